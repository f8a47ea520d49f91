// Package ids holds the plain named types that every other package shares:
// node and cluster identifiers, VXLAN network identifiers, key epochs, lanes.
//
// It owns their text and byte forms and the two values derived from a node ID
// (the inner address, the short form). It does not own keys, certificates or
// any behaviour, and it imports nothing of this module.
//
// Invariants: a NodeID is the hash of an identity key, so whoever holds the ID
// can check the key; two nodes never share an inner address unless they share
// 120 bits of that hash.
//
// Start with NodeID.
package ids
