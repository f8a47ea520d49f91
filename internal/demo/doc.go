// Package demo shows the product on one machine: hosts made of network
// namespaces, real agents on them, containers on an encrypted and on a
// plaintext network, a sniffer on every wire, and keys that rotate under load.
//
// It owns the script and its findings. Hosts, wires and captures are
// test/netlab's, agents as processes are test/fleet's; what is printed is the
// command's.
//
// Invariants: it needs root and nothing else; it sends only between
// namespaces it made; whatever happens, Run leaves nothing behind. The
// plaintext network is the positive control: a run in which the sniffer could
// not read it proves nothing and is an error.
//
// Start with Run.
package demo
