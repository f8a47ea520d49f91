// Package kdf derives keys with HKDF-SHA256 (RFC 5869) and leaves no copy of
// them behind.
//
// It owns HMAC and the expansion step, written out because crypto/hkdf leaves
// its output, and a hash its last input, in memory that nobody clears. It does
// not own labels, contexts or any key: callers do, and wipe what they get.
//
// Invariant: after a call the heap holds neither the key, nor the output, nor
// an intermediate value, except where the caller has put it.
//
// Start with MAC.
package kdf
