// Package nl binds netlink work to a network namespace.
//
// It owns: opening, creating and removing network namespaces; running a
// function inside one on an OS thread of its own; the one netlink handle
// whose dumps are retried when the kernel interrupts them; the netlink socket for
// what holds keys, which leaves no copies of them; and the words for
// the errno values that callers decide on.
//
// It does not own any desired state: what links, routes or neighbours there
// should be is decided in tunnel and vxlan.
//
// Invariants: a thread that has left its namespace is never given back to the
// Go scheduler; a handle always speaks to the namespace it was opened for,
// whatever thread uses it; no caller sees a half-read dump.
//
// Start with Namespace and its methods Do and Handle.
package nl
