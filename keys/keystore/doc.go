// Package keystore keeps a node's identity and durable state on disk.
//
// It owns the data directory: its lock, file modes, file formats, the order
// of writes, and the issuer's decisions about join tokens. It does not own
// key types and signed formats (package keys), sockets, or any goroutine.
//
// Invariants: a file is complete or absent, and mode 0600 from its first
// byte; an identity is never overwritten; a record sequence number is never
// given out twice, across any crash; a join token yields certificates for one
// identity only, across any crash and any number of concurrent requests; a node
// that has left is no member again, across any crash; the root's private key is
// written once, at Init, and never held.
//
// Start with Init, Prepare and Open; then Issuer.Issue. DESIGN.md describes
// the files and the argument for each order of writes.
package keystore
