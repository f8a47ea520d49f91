// Package probe shows that the virtual machine of test/vm has what it is
// booted for, before any suite of the product depends on it: a failure here is the
// machine's, not the product's.
//
// It owns no code, only tests. They run inside the machine; elsewhere they
// are skipped for what the kernel lacks.
//
// Start with TestFeatures.
package probe
