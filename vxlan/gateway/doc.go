// Package gateway makes the gateway namespace: the one place of a node where endpoints
// of its overlay networks find the node itself, at the gateway address of each subnet.
// Resolvers listen there, and through it endpoints that asked for it reach what is
// beyond the overlay.
//
// It owns the namespace, its sysctls, routes and nftables table, the link to the host's
// namespace (the uplink), and a table of its own in the host's namespace. It does not
// own the links of networks in it: these are endpoints like others (package vxlan),
// which package agent wants there.
//
// Invariants: nothing is forwarded but from a network named in Spec.Out to the
// uplink, with a source address of that network, and what answers it; so no network
// reaches another, and none the host itself. Packets for an address of an overlay
// network never leave by the uplink: what is meant for an encrypted network does not
// get out in clear because somebody has not attached to it. Where a rule cannot be set,
// forwarding is off.
//
// Start with Ensure, Spec and Namespace.Set.
package gateway
