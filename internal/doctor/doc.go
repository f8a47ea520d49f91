// Package doctor finds out what on this machine would keep the agent from
// working, and says how to fix it.
//
// It owns the checks of the kernel, capabilities, ESP, ports and MTU. It does not
// know tunnel drivers or the configuration: the caller hands in probes and
// numbers. It changes nothing that outlives a check: what it makes, it makes
// in network namespaces of its own.
//
// Invariant: every finding that is not ok says what is wrong and what to do.
// Start with Run.
package doctor
