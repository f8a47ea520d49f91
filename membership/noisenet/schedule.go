package noisenet

import (
	"crypto/cipher"
	"encoding/binary"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/secure-overlay/secure-overlay/internal/kdf"
)

// Labels of the key schedule. Each names one use; no key has two.
const (
	labelSession  = "so-session-v1"
	labelSession2 = "so-session-v2"
	labelHybrid   = "so-hybrid-v2"
	labelStream   = "so-stream-v1"
	labelDatagram = "so-dgram-v1"
	labelAccessID = "so-access-id-v1"
	labelTunnel   = "so-tunnel-v1"
)

// Directions: 0 from the initiator (or opener), 1 back.
const (
	dirForward = 0
	dirBack    = 1
)

// secret is the session secret S or a key made from it.
type secret [32]byte

// sessionSecret derives S = HKDF-SHA256(salt = handshake hash, ikm = parts
// joined, info = label). Version 1 has two parts, the keys that Noise's Split
// gives to both directions. Version 2 appends the ML-KEM shared secret
// as a third part and its transcript to the label: S is then safe if either
// X25519 or ML-KEM holds, because HKDF-Extract takes all parts at once.
func sessionSecret(hash []byte, label string, parts ...[]byte) secret {
	prk := secret(kdf.MAC(hash, parts...))
	defer clear(prk[:])
	return prk.derive(label)
}

// derive expands s for one use: HKDF-Expand with info = label || context. All
// contexts of one label have the same length, so no two uses share an info.
func (s *secret) derive(label string, context ...byte) secret {
	return kdf.MAC(s[:], []byte(label), context, []byte{1}) // one block: RFC 5869, section 2.3
}

// aead derives a ChaCha20-Poly1305 key and forgets its bytes.
func (s *secret) aead(label string, context ...byte) (cipher.AEAD, error) {
	key := s.derive(label, context...)
	defer clear(key[:])
	return chacha20poly1305.New(key[:])
}

// nonce is 32 zero bits and the 64-bit counter, big-endian. A key serves one
// direction of one session, and its counter never repeats.
func nonce(counter uint64) []byte {
	var n [chacha20poly1305.NonceSize]byte
	binary.BigEndian.PutUint64(n[4:], counter)
	return n[:]
}
