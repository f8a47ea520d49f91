package keys

import (
	"encoding/base64"
	"fmt"
)

// TunnelPublic is the X25519 public key of a tunnel device, as WireGuard
// uses it. The private half is made by the driver and never leaves it.
type TunnelPublic [32]byte

// String returns the base64 form that wg(8) prints.
func (k TunnelPublic) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero reports whether k is the zero value, which is no key.
func (k TunnelPublic) IsZero() bool { return k == TunnelPublic{} }

// MarshalText implements encoding.TextMarshaler.
func (k TunnelPublic) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *TunnelPublic) UnmarshalText(b []byte) error {
	raw, err := base64.StdEncoding.DecodeString(string(b))
	// The library passes over line breaks and stray padding bits; a key has one
	// spelling.
	if err != nil || len(raw) != len(k) || TunnelPublic(raw).String() != string(b) {
		return fmt.Errorf("parse tunnel public key: want 44 base64 characters, have %d", len(b))
	}
	copy(k[:], raw)
	return nil
}
