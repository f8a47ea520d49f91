// Package item defines what the cluster says about itself, signed by an issuer
// or by the root: the target epoch of rotation, the access key, which nodes and
// issuers are revoked, the lowest protocol version; and what issuers say about
// themselves: heartbeats.
//
// It owns the byte format (PROTOCOL.md, section 11.4), the signature check and
// the set of items with its merge rule and digest. It does no I/O and knows no
// time but what it is given. Who may ask for an item, and when, is decided by
// membership; the issuer's key stays in keys/keystore.
//
// Invariants: an item is accepted whole or not at all, only if the chain of
// its signer ends at the cluster's root; for each slot a higher version
// replaces a lower one and nothing else does; merging does not depend on
// order; what allows more than before was signed by the root; no heartbeat is in
// a set; decoding is bounded and canonical; items of kinds that this build does
// not know are kept and passed on like the others.
//
// Start with Item, Verify and Set.
package item
