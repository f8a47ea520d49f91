package noisenet

import (
	"crypto/cipher"
	"crypto/mlkem"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/flynn/noise"
	"golang.org/x/crypto/chacha20poly1305"
)

// Lengths of messages 4 and 5: an ML-KEM-768 encapsulation key of 1,184 bytes
// and a ciphertext of 1,088 (FIPS 203, table 3), each with a tag. Nothing else
// is read, so an initiator that has authenticated costs 1,202 bytes more.
const (
	hybridOffer  = mlkem.EncapsulationKeySize768 + tagSize
	hybridAnswer = mlkem.CiphertextSize768 + tagSize
)

// kem is the randomized half of ML-KEM-768. crypto/mlkem takes no source of
// randomness, so tests with fixed bytes replace these functions.
type kem struct {
	generate    func() (*mlkem.DecapsulationKey768, error)
	encapsulate func(*mlkem.EncapsulationKey768) (shared, ciphertext []byte)
}

func newKEM() kem {
	return kem{generate: mlkem.GenerateKey768, encapsulate: (*mlkem.EncapsulationKey768).Encapsulate}
}

// hybrid is the last part of a handshake of version 2: after message 3 the
// initiator sends an ML-KEM-768 encapsulation key (message 4), the responder
// answers with a ciphertext (message 5), and the session secret comes from
// Noise's Split and the ML-KEM secret together.
//
// Both messages are encrypted under keys of the Split. That binds them to the
// authenticated peer, so nobody in the middle can put in a key of his own, and
// it hides them from whoever cannot break X25519, so that a flaw in ML-KEM
// alone gives away nothing. The first frame under the new secret shows that
// both sides have it: ML-KEM itself answers a ciphertext that was made for
// another key with a secret nobody knows, not with an error.
//
// Like handshake it does no I/O, and any error is final.
type hybrid struct {
	peer  *established               // authenticated; its secret comes last
	split [2 * len(secret{})]byte    // k_i2r || k_r2i
	key   *mlkem.DecapsulationKey768 // of the initiator, after offer
}

func newHybrid(peer *established, i2r, r2i *noise.CipherState) *hybrid {
	y := &hybrid{peer: peer}
	a, b := i2r.UnsafeKey(), r2i.UnsafeKey()
	copy(y.split[:], a[:])
	copy(y.split[len(a):], b[:])
	clear(a[:])
	clear(b[:])
	return y
}

// offer makes the initiator's message 4.
func (y *hybrid) offer(k kem) ([]byte, error) {
	var err error
	if y.key, err = k.generate(); err != nil {
		return nil, fmt.Errorf("make ML-KEM key: %w", err)
	}
	return y.seal(dirForward, y.key.EncapsulationKey().Bytes())
}

// answer takes message 4 and makes the responder's message 5.
func (y *hybrid) answer(k kem, m4 []byte) ([]byte, *established, error) {
	offer, err := y.open(dirForward, m4, mlkem.EncapsulationKeySize768)
	if err != nil {
		return nil, nil, err
	}
	// Refuses coefficients out of range (FIPS 203, section 7.2).
	key, err := mlkem.NewEncapsulationKey768(offer)
	if err != nil {
		return nil, nil, fmt.Errorf("read ML-KEM encapsulation key: %w: %w", ErrHandshake, err)
	}
	shared, ciphertext := k.encapsulate(key)
	defer clear(shared)
	m5, err := y.seal(dirBack, ciphertext)
	if err != nil {
		return nil, nil, err
	}
	return m5, y.establish(offer, ciphertext, shared), nil
}

// finish takes message 5.
func (y *hybrid) finish(m5 []byte) (*established, error) {
	ciphertext, err := y.open(dirBack, m5, mlkem.CiphertextSize768)
	if err != nil {
		return nil, err
	}
	shared, err := y.key.Decapsulate(ciphertext)
	if err != nil {
		return nil, fmt.Errorf("read ML-KEM ciphertext: %w: %w", ErrHandshake, err)
	}
	defer clear(shared)
	return y.establish(y.key.EncapsulationKey().Bytes(), ciphertext, shared), nil
}

// establish derives S. The transcript goes into the info, because ML-KEM does
// not promise that a secret belongs to one ciphertext and one key only.
func (y *hybrid) establish(offer, ciphertext, shared []byte) *established {
	h := sha256.New()
	h.Write(offer)
	h.Write(ciphertext)
	y.peer.secret = sessionSecret(y.peer.hash[:], labelSession2+string(h.Sum(nil)), y.split[:], shared)
	return y.peer
}

// aead is the key of one direction. Each seals one message, with nonce 0.
func (y *hybrid) aead(direction byte) (cipher.AEAD, error) {
	key := sessionSecret(y.peer.hash[:], labelHybrid+string([]byte{direction}), y.split[:])
	defer clear(key[:])
	return chacha20poly1305.New(key[:])
}

// seal returns u16 length and ciphertext; the length is additional data, as in
// a frame.
func (y *hybrid) seal(direction byte, plain []byte) ([]byte, error) {
	a, err := y.aead(direction)
	if err != nil {
		return nil, err
	}
	prefix := binary.BigEndian.AppendUint16(nil, uint16(len(plain)+tagSize))
	return append(prefix, a.Seal(nil, nonce(0), plain, prefix)...), nil
}

// open returns the plaintext, which must have size bytes.
func (y *hybrid) open(direction byte, msg []byte, size int) ([]byte, error) {
	if len(msg) != size+tagSize {
		return nil, fmt.Errorf("open hybrid message: %d bytes, want %d: %w", len(msg), size+tagSize, ErrHandshake)
	}
	a, err := y.aead(direction)
	if err != nil {
		return nil, err
	}
	plain, err := a.Open(nil, nonce(0), msg, binary.BigEndian.AppendUint16(nil, uint16(len(msg))))
	if err != nil {
		return nil, fmt.Errorf("open hybrid message: not authentic: %w", ErrHandshake)
	}
	return plain, nil
}

// forget clears what can be cleared; crypto/mlkem has no way to clear a
// decapsulation key, which the garbage collector takes.
func (y *hybrid) forget() {
	clear(y.split[:])
	y.key = nil
}
