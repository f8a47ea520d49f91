// Package netlab builds small networks out of network namespaces and
// measures what goes over them.
//
// It owns: a switch (a bridge in a namespace of its own), hosts that are
// plugged into it, bare namespaces that stand for containers, processes
// started inside them, packet captures, pings, UDP flows, TCP transfers and
// streams, injected and replayed packets, blocked and bad wires, counters of the
// kernel, and the snapshot that shows whether something was left behind. It does not import "testing", because the demo uses it too; Require
// takes the few methods of *testing.T that it needs.
//
// It does not own anything of the product: no overlay, no key, no agent.
//
// Invariants: nothing is made in the namespace of the calling process, so a
// lab never disturbs the machine or another lab; all traffic stays inside the
// lab; underlay addresses come from 198.18.0.0/15 (RFC 2544) and
// fd00:198:18::/64; Close removes everything, in reverse order, also after a
// failure half way.
//
// Start with New, Lab.Host and Lab.Container.
package netlab
