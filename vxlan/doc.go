// Package vxlan makes the overlay networks of this host: for each a network
// namespace with a bridge, a VXLAN device and one veth port per endpoint.
//
// It owns the desired overlay (Spec), the pure decision what to change
// (Plan), and the thin code that reads and writes the kernel (Programmer).
// It does not know tunnels, membership or keys: it is told VTEP addresses.
//
// Invariants: the VXLAN device of an encrypted network is born in the secure
// namespace, so its socket has no way to the physical links; there is no
// other switch. Devices do not learn: forwarding and neighbour entries come
// from the Spec only and are replaced, never created exclusively. In a
// network's namespace everything is ours; outside, only the one veth end of
// each endpoint is touched.
//
// Start with Spec and Plan. DESIGN.md has the reasons.
package vxlan
