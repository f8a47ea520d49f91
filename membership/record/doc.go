// Package record defines what a node says about itself and signs: where it
// can be reached, its tunnel keys, its networks and its endpoints.
//
// It owns the byte format (PROTOCOL.md), the signature check and the set of
// records with its merge rule and digest. It does no I/O and knows no time
// but what it is given.
//
// Invariants: a record is accepted whole or not at all, only with a member
// certificate whose chain ends at the cluster's root and whose identity key
// signed it; a higher sequence number replaces a lower one and nothing else
// does; the final record of a node that has left is above all others; decoding
// is bounded and canonical.
//
// Start with Node and Set.
package record
