// Package vm runs test suites of this module on a kernel that has what the
// building machine's kernel may lack: WireGuard, ESP and xfrm interfaces,
// netem, dummy links.
//
// It owns: fetching Debian's cloud kernel as a package (downloaded and
// unpacked, never installed), choosing and ordering its modules, building an
// initramfs of the modules, the product and test binaries, booting it under
// qemu's own emulation, and turning what comes back into ordinary results of go
// test. The program that runs inside is test/vm/guest.
//
// It does not own any test of the product: those lie beside the code and in
// test/e2e. Suites lists which of them run here.
//
// Invariants: KVM is never used (it hangs on some of the machines this must
// run on); nothing is installed but qemu, and that only if it is missing; a suite
// that reports no test, skips one or does not finish is a failure.
//
// Start with Suites, and Run, which does everything.
package vm
