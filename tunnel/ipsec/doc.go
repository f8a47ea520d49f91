// Package ipsec is the tunnel driver for ESP in the kernel (XFRM).
//
// It owns: the xfrm interfaces, one for each key epoch, which live in the
// secure namespace and encrypt in the host namespace; their interface IDs; and
// the security associations and policies of each peer, which are installed
// and removed in an order that loses nothing.
//
// It does not own keys: it derives those of an association from the pair's
// secret, hands them to the kernel and keeps nothing. It does not know which
// secrets there should be.
//
// Invariants: an association is installed at most once in its life, so no
// sequence number is used twice under one key and no replay window begins
// again. A policy names the one association it accepts, and both are bound to
// the peer's inner address. Associations and policies of other programs are
// neither changed nor, but for the search described in DESIGN.md, read.
//
// ESP has no handshake: PeerState.LastHandshake is always zero. Its counters
// are bytes of inner packets, as the association counts them.
//
// Start with Kind and plan; DESIGN.md has the reasons.
package ipsec
