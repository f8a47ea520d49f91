package keys

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
)

// RootPrivate is the cluster's root key (Ed25519). It signs issuer delegations and is
// kept offline by the operator: only init and the creation of a new issuer
// need it.
type RootPrivate struct{ secret }

// NewRootPrivate makes a key from the operating system's randomness. The error is
// always nil today; it stands in the signature for a hardware source.
func NewRootPrivate() (RootPrivate, error) { return RootPrivate{newSecret()}, nil }

// RootPrivateFromRaw32 copies 32 bytes that Expose gave. It is for stores and
// decoders; the caller clears raw. The error never repeats the input.
func RootPrivateFromRaw32(raw []byte) (RootPrivate, error) {
	s, err := secretFrom("root key", raw)
	return RootPrivate{s}, err
}

// Equal compares in constant time.
func (k RootPrivate) Equal(o RootPrivate) bool { return k.equal(o.secret) }

// Clone returns the same key in memory of its own, which Wipe of k leaves
// alone.
func (k RootPrivate) Clone() RootPrivate { return RootPrivate{k.clone()} }

// Public returns the public half, or the zero value of a zero or wiped key.
func (k RootPrivate) Public() RootPublic { return RootPublic(edPublic(k.secret)) }

// Sign signs domain || msg (Ed25519, RFC 8032, deterministic). The domain has
// the form so-NAME-vN and is a constant of the calling package; any other
// panics. A zero or wiped key gives the zero signature, which is invalid.
func (k RootPrivate) Sign(domain string, msg []byte) [SignatureSize]byte {
	return edSign(k.secret, domain, msg)
}

// IssuerPrivate signs node certificates (Ed25519) within the limits of its
// delegation.
type IssuerPrivate struct{ secret }

// NewIssuerPrivate makes a key from the operating system's randomness. The error is
// always nil today; it stands in the signature for a hardware source.
func NewIssuerPrivate() (IssuerPrivate, error) { return IssuerPrivate{newSecret()}, nil }

// IssuerPrivateFromRaw32 copies 32 bytes that Expose gave. It is for stores and
// decoders; the caller clears raw. The error never repeats the input.
func IssuerPrivateFromRaw32(raw []byte) (IssuerPrivate, error) {
	s, err := secretFrom("issuer key", raw)
	return IssuerPrivate{s}, err
}

// Equal compares in constant time.
func (k IssuerPrivate) Equal(o IssuerPrivate) bool { return k.equal(o.secret) }

// Clone returns the same key in memory of its own, which Wipe of k leaves
// alone.
func (k IssuerPrivate) Clone() IssuerPrivate { return IssuerPrivate{k.clone()} }

// Public returns the public half, or the zero value of a zero or wiped key.
func (k IssuerPrivate) Public() IssuerPublic { return IssuerPublic(edPublic(k.secret)) }

// Sign signs domain || msg (Ed25519, RFC 8032, deterministic). The domain has
// the form so-NAME-vN and is a constant of the calling package; any other
// panics. A zero or wiped key gives the zero signature, which is invalid.
func (k IssuerPrivate) Sign(domain string, msg []byte) [SignatureSize]byte {
	return edSign(k.secret, domain, msg)
}

// NodePrivate is a node's identity (Ed25519). It signs the node's records and
// its proof in a join, and the node ID is the hash of its public half.
type NodePrivate struct{ secret }

// NewNodePrivate makes a key from the operating system's randomness. The error is
// always nil today; it stands in the signature for a hardware source.
func NewNodePrivate() (NodePrivate, error) { return NodePrivate{newSecret()}, nil }

// NodePrivateFromRaw32 copies 32 bytes that Expose gave. It is for stores and
// decoders; the caller clears raw. The error never repeats the input.
func NodePrivateFromRaw32(raw []byte) (NodePrivate, error) {
	s, err := secretFrom("node identity key", raw)
	return NodePrivate{s}, err
}

// Equal compares in constant time.
func (k NodePrivate) Equal(o NodePrivate) bool { return k.equal(o.secret) }

// Clone returns the same key in memory of its own, which Wipe of k leaves
// alone.
func (k NodePrivate) Clone() NodePrivate { return NodePrivate{k.clone()} }

// Public returns the public half, or the zero value of a zero or wiped key.
func (k NodePrivate) Public() IdentityPublic { return IdentityPublic(edPublic(k.secret)) }

// Sign signs domain || msg (Ed25519, RFC 8032, deterministic). The domain has
// the form so-NAME-vN and is a constant of the calling package; any other
// panics. A zero or wiped key gives the zero signature, which is invalid.
func (k NodePrivate) Sign(domain string, msg []byte) [SignatureSize]byte {
	return edSign(k.secret, domain, msg)
}

// NoisePrivate is a node's static key for Noise handshakes (X25519, RFC 7748).
type NoisePrivate struct{ secret }

// NewNoisePrivate makes a key from the operating system's randomness. The error is
// always nil today; it stands in the signature for a hardware source.
func NewNoisePrivate() (NoisePrivate, error) { return NoisePrivate{newSecret()}, nil }

// NoisePrivateFromRaw32 copies 32 bytes that Expose gave. It is for stores and
// decoders; the caller clears raw. The error never repeats the input.
func NoisePrivateFromRaw32(raw []byte) (NoisePrivate, error) {
	s, err := secretFrom("Noise key", raw)
	return NoisePrivate{s}, err
}

// Equal compares in constant time.
func (k NoisePrivate) Equal(o NoisePrivate) bool { return k.equal(o.secret) }

// Clone returns the same key in memory of its own, which Wipe of k leaves
// alone.
func (k NoisePrivate) Clone() NoisePrivate { return NoisePrivate{k.clone()} }

// Public returns the public half, or the zero value of a zero or wiped key.
func (k NoisePrivate) Public() NoisePublic {
	var pub NoisePublic
	k.Expose(func(raw []byte) {
		// crypto/ecdh clamps inside the multiplication (RFC 7748 section 5),
		// as flynn/noise does, so the stored bytes stay as they were drawn.
		if p, err := ecdh.X25519().NewPrivateKey(raw); err == nil {
			pub = NoisePublic(p.PublicKey().Bytes())
		}
	})
	return pub
}

// AccessKey is a 32-byte preshared key of the control plane: the cluster
// access key that members use as Noise psk0, or the key of one join token. It
// keeps strangers from costing a responder more than one AEAD check; it
// authenticates nobody.
type AccessKey struct{ secret }

// NewAccessKey makes a key from the operating system's randomness. The error is
// always nil today; it stands in the signature for a hardware source.
func NewAccessKey() (AccessKey, error) { return AccessKey{newSecret()}, nil }

// Commitment is SHA-256("so-access-v1" || key). It says nothing about the key,
// and names it: whoever gets a key can tell whether it is the one that was meant.
func (k AccessKey) Commitment() (sum [32]byte) {
	h := sha256.New()
	h.Write([]byte("so-access-v1"))
	k.Expose(func(raw []byte) { h.Write(raw) })
	h.Sum(sum[:0])
	return sum
}

// AccessKeyFromRaw32 copies 32 bytes that Expose gave. It is for stores and
// decoders; the caller clears raw. The error never repeats the input.
func AccessKeyFromRaw32(raw []byte) (AccessKey, error) {
	s, err := secretFrom("access key", raw)
	return AccessKey{s}, err
}

// Equal compares in constant time.
func (k AccessKey) Equal(o AccessKey) bool { return k.equal(o.secret) }

// Clone returns the same key in memory of its own, which Wipe of k leaves
// alone.
func (k AccessKey) Clone() AccessKey { return AccessKey{k.clone()} }

// TokenSecret is the secret part of a join token.
type TokenSecret struct{ secret }

// NewTokenSecret makes a key from the operating system's randomness. The error is
// always nil today; it stands in the signature for a hardware source.
func NewTokenSecret() (TokenSecret, error) { return TokenSecret{newSecret()}, nil }

// TokenSecretFromRaw32 copies 32 bytes that Expose gave. It is for stores and
// decoders; the caller clears raw. The error never repeats the input.
func TokenSecretFromRaw32(raw []byte) (TokenSecret, error) {
	s, err := secretFrom("token secret", raw)
	return TokenSecret{s}, err
}

// Equal compares in constant time.
func (k TokenSecret) Equal(o TokenSecret) bool { return k.equal(o.secret) }

// Clone returns the same key in memory of its own, which Wipe of k leaves
// alone.
func (k TokenSecret) Clone() TokenSecret { return TokenSecret{k.clone()} }

// joinKeyInfo is the HKDF info string of JoinKey.
const joinKeyInfo = "so-join-psk-v1"

// JoinKey derives the preshared key of the join handshake:
// HKDF-SHA256(ikm = secret, no salt, info = "so-join-psk-v1"), 32 bytes. The
// issuer stores this key, never the secret, so its disk does not hold what
// was printed to the operator. A zero or wiped secret gives the zero key.
func (k TokenSecret) JoinKey() AccessKey {
	var out AccessKey
	k.Expose(func(raw []byte) {
		psk, err := hkdf.Key(sha256.New, raw, nil, joinKeyInfo, secretSize)
		if err != nil {
			return // unreachable: 32 bytes are below the HKDF limit of 255 hashes
		}
		defer clear(psk)
		out = AccessKey{boxed((*[secretSize]byte)(psk))}
	})
	return out
}

func edPublic(s secret) (pub [32]byte) {
	s.Expose(func(seed []byte) {
		full := ed25519.NewKeyFromSeed(seed)
		defer clear(full)
		copy(pub[:], full[ed25519.SeedSize:])
	})
	return pub
}

func edSign(s secret, domain string, msg []byte) (sig [SignatureSize]byte) {
	if !validDomain(domain) {
		panic("keys: sign: domain is not of the form so-NAME-vN")
	}
	s.Expose(func(seed []byte) {
		full := ed25519.NewKeyFromSeed(seed)
		defer clear(full)
		copy(sig[:], ed25519.Sign(full, signedBytes(domain, msg)))
	})
	return sig
}
