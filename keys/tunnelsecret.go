package keys

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/kdf"
)

// TunnelSecret is what two nodes share for one key epoch: 32 bytes from a
// handshake of their own, bound to both identities, both devices and the
// epoch. It is never sent and never stored on disk. A WireGuard driver uses it
// as the preshared key, an ESP driver derives its keys from it.
type TunnelSecret struct{ secret }

// TunnelSecretFromRaw32 copies 32 bytes of a key schedule; the caller clears
// raw. The error never repeats the input.
func TunnelSecretFromRaw32(raw []byte) (TunnelSecret, error) {
	s, err := secretFrom("tunnel secret", raw)
	return TunnelSecret{s}, err
}

// Equal compares in constant time.
func (k TunnelSecret) Equal(o TunnelSecret) bool { return k.equal(o.secret) }

// Clone returns the same secret in memory of its own, which Wipe of k leaves
// alone.
func (k TunnelSecret) Clone() TunnelSecret { return TunnelSecret{k.clone()} }

// KeyID names a TunnelSecret: the first 32 bits of
// SHA-256("so-key-id-v1" || secret), 1 where they are zero. Zero names none.
// The hash tells nothing about the secret; what is installed in a kernel can
// be named by it again after a restart, without the secret being kept.
type KeyID uint32

const keyIDDomain = "so-key-id-v1"

// String returns eight hexadecimal digits.
func (i KeyID) String() string { return fmt.Sprintf("%08x", uint32(i)) }

// ID returns the secret's name, or zero for a zero or wiped secret.
func (k TunnelSecret) ID() (id KeyID) {
	k.Expose(func(raw []byte) {
		h := sha256.New()
		h.Write([]byte(keyIDDomain))
		h.Write(raw)
		id = max(KeyID(binary.BigEndian.Uint32(h.Sum(nil))), 1)
		// The hash keeps its input until a block is full, 32 secret bytes in
		// garbage that nobody clears: overwrite them.
		h.Reset()
		h.Write(make([]byte, h.BlockSize()-1))
	})
	return id
}

// ESPKeySize is the length of the key material of one direction: 32 bytes of
// AES-256 key, then 4 bytes of salt (RFC 4106 section 8.1).
const ESPKeySize = 32 + 4

const espKeyLabel = "so-esp-v1"

// ExposeESP calls f with the key material of the security association from one
// node to another under an SPI, and clears it when f returns: HKDF-Expand
// (RFC 5869) of the secret with info = "so-esp-v1" || from (16) || to (16) ||
// SPI (u32). Key and salt both come from it, so two directions, two epochs and
// two pairs share neither (Docker's salt is a hash of addresses, which repeats;
// security.md T5). On a zero or wiped secret f is not called.
func (k TunnelSecret) ExposeESP(from, to ids.NodeID, spi ids.SPI, f func(material []byte)) {
	k.Expose(func(raw []byte) {
		info := append([]byte(espKeyLabel), from[:]...)
		info = append(info, to[:]...)
		info = binary.BigEndian.AppendUint32(info, uint32(spi))
		var material [ESPKeySize]byte
		defer clear(material[:])
		kdf.Expand(raw, info, material[:])
		f(material[:])
	})
}
