// Package secure makes and guards the secure namespace: the network namespace
// in which the VXLAN devices of encrypted networks are born, and whose only
// way in or out are tunnel devices.
//
// It owns the namespace itself, the node's inner address on lo, one route for
// each peer and further ones for probes, the unreachable defaults, the sysctls
// and the nftables table inside; and Prober, which asks peers for echoes through
// one device. It does not own the tunnel devices (a tunnel driver makes and
// removes them) and knows neither keys nor VXLAN devices.
//
// Invariants: an inner address without a live tunnel device is unreachable,
// never sent elsewhere; a VXLAN packet is accepted only if its inner source
// is a member of its network; nothing is forwarded; a link that is no tunnel
// device of ours carries nothing and is reported.
//
// Start with Ensure, Namespace.Set and Namespace.Prober. DESIGN.md has the reasons.
package secure
