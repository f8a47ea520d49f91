// Package keys says what a secret is and what a signature proves.
//
// It owns the key types (root, issuer, node identity, Noise static, cluster
// access key, token secret, tunnel secret of a pair), the signed objects that
// admit a node (Delegation, Cert), the join token, and their byte formats. It
// does no I/O: files are keys/keystore's, the wire is membership/noisenet's.
//
// Invariants: a private type cannot be printed, logged, marshalled or
// compared with ==; its bytes leave only through Expose. Every decoder is
// bounded and canonical: what decodes re-encodes to the same bytes. Nothing
// is accepted before its signature chain ends at the root key.
//
// Start with NodePrivate and Trust.VerifyMember; PROTOCOL.md has every format byte
// by byte.
package keys
