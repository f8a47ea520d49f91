package keys

import (
	"crypto/ed25519"
	"encoding/hex"
)

// SignatureSize is the length in bytes of an Ed25519 signature.
const SignatureSize = ed25519.SignatureSize

// Domains of the signed objects of this package. A domain is the first field
// of the signed bytes, so that a signature made for one kind of object is
// never one for another kind.
const (
	domainDelegation  = "so-dele-v1"
	domainCert        = "so-cert-v1"
	domainJoinRequest = "so-csr-v1"
	domainJoinAnswer  = "so-answer-v1" // not signed: it travels inside Noise

	domainIssuerRequest = "so-isreq-v1"

	// DomainItem begins the cluster items that membership/item makes and an
	// issuer or the root signs. It stands here because keystore signs them,
	// under this domain and no other.
	DomainItem = "so-item-v1"
)

// ItemHeartbeat is the kind of cluster item that an issuer signs without keeping
// it (membership/item). It stands here because keystore tells it from others.
const ItemHeartbeat = 6

// validDomain reports whether d is so-NAME-vN with NAME of a-z and N one
// digit 1-9. No string of this form is a proper prefix of another: the second
// hyphen ends NAME, and exactly two characters follow it. So domain || msg
// can be taken apart in one way only, without a length field.
func validDomain(d string) bool {
	const head, tail = "so-", "-v1"
	if len(d) < len(head)+1+len(tail) || d[:len(head)] != head {
		return false
	}
	name, end := d[len(head):len(d)-len(tail)], d[len(d)-len(tail):]
	for i := range len(name) {
		if name[i] < 'a' || name[i] > 'z' {
			return false
		}
	}
	return end[:2] == "-v" && end[2] >= '1' && end[2] <= '9'
}

func signedBytes(domain string, msg []byte) []byte {
	b := make([]byte, 0, len(domain)+len(msg))
	return append(append(b, domain...), msg...)
}

// edVerify is the only place where this module checks a signature. Go's
// Ed25519 refuses S outside the group order and compares R as bytes, so a
// signature cannot be altered into another valid one (RFC 8032 section 5.1.7).
func edVerify(pub [32]byte, domain string, msg []byte, sig [SignatureSize]byte) bool {
	if !validDomain(domain) || smallOrder(pub) {
		return false
	}
	return ed25519.Verify(pub[:], signedBytes(domain, msg), sig[:])
}

// smallOrder reports whether pub is one of the eight points of the curve's
// small subgroup, in any encoding. Under such a key the equation that Verify
// checks holds for made-up signatures (sign_test.go shows it), and the
// all-zero key, the likeliest accident, is one of them.
//
// The strings are every encoding with the sign bit cleared: y = 0, 1, the two
// y of order 8, -1, and 0 and 1 in their spelling above the field prime.
func smallOrder(pub [32]byte) bool {
	pub[31] &= 0x7f
	switch hex.EncodeToString(pub[:]) {
	case "0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f":
		return true
	}
	return false
}
