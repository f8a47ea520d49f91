// Package esp seals and opens the packets of IPsec ESP (RFC 4303) in tunnel mode, with
// AES-256-GCM (RFC 4106) and extended sequence numbers, as the kernel's associations of
// tunnel/ipsec do: what one seals the other opens.
//
// It owns the format, the sequence numbers and the replay window. It has no key agreement,
// no socket and no policy: whether an inner packet may come from whom it says is its
// caller's to check.
//
// Invariants: a Sealer uses no sequence number, and so no nonce, twice. An Opener returns a
// packet only if its tag is right, and each packet once; its window moves only for such
// packets. Nothing allocates per packet, and no input makes them panic or read beyond it.
//
// Start with Sealer and Opener.
package esp
