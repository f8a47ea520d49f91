package keys

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// RootPublic is the public half of a root key, which a join token pins. Its text form is
// "so-root-pub:" and 64 hexadecimal digits in lower case.
type RootPublic [32]byte

const prefixRootPublic = "so-root-pub:"

// String returns the text form.
func (k RootPublic) String() string { return prefixRootPublic + hex.EncodeToString(k[:]) }

// Fingerprint returns 8 characters of a hash of the key, for logs and tables.
func (k RootPublic) Fingerprint() string { return fingerprint(prefixRootPublic, k) }

// IsZero reports whether k is the zero value, which is no key.
func (k RootPublic) IsZero() bool { return k == RootPublic{} }

// MarshalText implements encoding.TextMarshaler.
func (k RootPublic) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The error does not
// repeat the input.
func (k *RootPublic) UnmarshalText(b []byte) error {
	return parsePublic((*[32]byte)(k), "root public key", prefixRootPublic, b)
}

// Verify reports whether sig is k's signature of domain || msg. It refuses
// keys of small order, under which anybody can make signatures.
func (k RootPublic) Verify(domain string, msg []byte, sig [SignatureSize]byte) bool {
	return edVerify(k, domain, msg, sig)
}

// IssuerPublic is the public half of a issuer key. Its text form is
// "so-issuer-pub:" and 64 hexadecimal digits in lower case.
type IssuerPublic [32]byte

const prefixIssuerPublic = "so-issuer-pub:"

// String returns the text form.
func (k IssuerPublic) String() string { return prefixIssuerPublic + hex.EncodeToString(k[:]) }

// Fingerprint returns 8 characters of a hash of the key, for logs and tables.
func (k IssuerPublic) Fingerprint() string { return fingerprint(prefixIssuerPublic, k) }

// IsZero reports whether k is the zero value, which is no key.
func (k IssuerPublic) IsZero() bool { return k == IssuerPublic{} }

// MarshalText implements encoding.TextMarshaler.
func (k IssuerPublic) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The error does not
// repeat the input.
func (k *IssuerPublic) UnmarshalText(b []byte) error {
	return parsePublic((*[32]byte)(k), "issuer public key", prefixIssuerPublic, b)
}

// Verify reports whether sig is k's signature of domain || msg. It refuses
// keys of small order, under which anybody can make signatures.
func (k IssuerPublic) Verify(domain string, msg []byte, sig [SignatureSize]byte) bool {
	return edVerify(k, domain, msg, sig)
}

// IdentityPublic is the public half of a node identity key. Its text form is
// "so-node-pub:" and 64 hexadecimal digits in lower case.
type IdentityPublic [32]byte

const prefixIdentityPublic = "so-node-pub:"

// String returns the text form.
func (k IdentityPublic) String() string { return prefixIdentityPublic + hex.EncodeToString(k[:]) }

// Fingerprint returns 8 characters of a hash of the key, for logs and tables.
func (k IdentityPublic) Fingerprint() string { return fingerprint(prefixIdentityPublic, k) }

// IsZero reports whether k is the zero value, which is no key.
func (k IdentityPublic) IsZero() bool { return k == IdentityPublic{} }

// MarshalText implements encoding.TextMarshaler.
func (k IdentityPublic) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The error does not
// repeat the input.
func (k *IdentityPublic) UnmarshalText(b []byte) error {
	return parsePublic((*[32]byte)(k), "node public key", prefixIdentityPublic, b)
}

// Verify reports whether sig is k's signature of domain || msg. It refuses
// keys of small order, under which anybody can make signatures.
func (k IdentityPublic) Verify(domain string, msg []byte, sig [SignatureSize]byte) bool {
	return edVerify(k, domain, msg, sig)
}

// ID returns the node ID, which is a hash of k (ids.NodeIDOf).
func (k IdentityPublic) ID() ids.NodeID { return ids.NodeIDOf(k) }

// NoisePublic is the public half of a Noise static key (X25519). Its text form is
// "so-noise-pub:" and 64 hexadecimal digits in lower case.
type NoisePublic [32]byte

const prefixNoisePublic = "so-noise-pub:"

// String returns the text form.
func (k NoisePublic) String() string { return prefixNoisePublic + hex.EncodeToString(k[:]) }

// Fingerprint returns 8 characters of a hash of the key, for logs and tables.
func (k NoisePublic) Fingerprint() string { return fingerprint(prefixNoisePublic, k) }

// IsZero reports whether k is the zero value, which is no key.
func (k NoisePublic) IsZero() bool { return k == NoisePublic{} }

// MarshalText implements encoding.TextMarshaler.
func (k NoisePublic) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The error does not
// repeat the input.
func (k *NoisePublic) UnmarshalText(b []byte) error {
	return parsePublic((*[32]byte)(k), "Noise public key", prefixNoisePublic, b)
}

// fingerprint hashes the prefix too, so that one key in two roles has two
// fingerprints, and it never shows bytes of the key itself.
func fingerprint(prefix string, k [32]byte) string {
	sum := sha256.Sum256(append([]byte("so-fp-v1"+prefix), k[:]...))
	return strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
}

// parsePublic reads prefix and 64 lower-case digits. One key has one
// spelling: upper case is refused. What was read is not repeated in the
// error, because people paste private keys where public ones belong.
func parsePublic(k *[32]byte, what, prefix string, b []byte) error {
	text, ok := strings.CutPrefix(string(b), prefix)
	if !ok {
		return fmt.Errorf("parse %s: does not begin with %s", what, prefix)
	}
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(k) || hex.EncodeToString(raw) != text {
		return fmt.Errorf("parse %s: want 64 hexadecimal digits in lower case after %s, have %d characters", what, prefix, len(text))
	}
	copy(k[:], raw)
	return nil
}
