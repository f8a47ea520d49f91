package esp

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Lengths in bytes. A packet is SPI, the low half of the sequence number and the IV
// (HeaderLen), then encrypted the inner packet, padding, the padding's length and the
// number of the inner protocol, then the tag.
const (
	HeaderLen = 4 + 4 + ivLen
	// MaxOverhead is how many bytes longer than the inner packet it is, at most.
	MaxOverhead = HeaderLen + (align - 1) + trailerLen + tagLen

	ivLen      = 8
	align      = 4 // RFC 4303, 2.4
	trailerLen = 2
	tagLen     = 16

	saltLen  = 4
	nonceLen = saltLen + ivLen
	// aadLen is SPI and 64-bit sequence number (RFC 4106, 5).
	aadLen = 4 + 8
)

// ProtocolIPv6 is the inner protocol of a tunnel that carries IPv6.
const ProtocolIPv6 = 41

// gcm makes the cipher of an association and returns its salt. material is as in
// keys.TunnelSecret.ExposeESP; nothing keeps it.
func gcm(material []byte) (aead cipher.AEAD, salt [saltLen]byte, err error) {
	if len(material) != keys.ESPKeySize {
		return nil, salt, fmt.Errorf("make ESP association: %d bytes of key material, want %d", len(material), keys.ESPKeySize)
	}
	block, err := aes.NewCipher(material[:keys.ESPKeySize-saltLen])
	if err != nil {
		return nil, salt, fmt.Errorf("make ESP association: %w", err)
	}
	copy(salt[:], material[keys.ESPKeySize-saltLen:])
	aead, err = cipher.NewGCM(block)
	return aead, salt, err
}

// Sealer is the sending end of an association. One goroutine uses it.
type Sealer struct {
	aead  cipher.AEAD
	seq   uint64 // of the last packet
	nonce [nonceLen]byte
	aad   [aadLen]byte
}

// NewSealer returns the sending end of a new association. There must never be two for the same
// key material: both would begin with the same nonce.
func NewSealer(spi ids.SPI, material []byte) (*Sealer, error) {
	aead, salt, err := gcm(material)
	if err != nil {
		return nil, err
	}
	s := &Sealer{aead: aead}
	copy(s.nonce[:], salt[:])
	binary.BigEndian.PutUint32(s.aad[:], uint32(spi))
	return s, nil
}

// ErrExhausted says that an association has no sequence number left.
var ErrExhausted = errors.New("sequence numbers exhausted")

// Seal makes b the packet of the inner packet of n bytes that begins at b[HeaderLen], and
// returns its length. b has room for n + MaxOverhead bytes.
func (s *Sealer) Seal(b []byte, n int) (int, error) {
	if s.seq+1 == 0 {
		return 0, ErrExhausted // after 2^64 packets; a nonce must not come twice
	}
	s.seq++
	padding := -(n + trailerLen) & (align - 1)
	end := HeaderLen + n
	for i := range padding {
		b[end+i] = byte(i + 1) // RFC 4303, 2.4
	}
	end += padding
	b[end], b[end+1] = byte(padding), ProtocolIPv6
	end += trailerLen

	copy(b, s.aad[:4])
	binary.BigEndian.PutUint32(b[4:], uint32(s.seq))
	// The sequence number is the IV: it is unique, which is all that GCM asks for.
	binary.BigEndian.PutUint64(b[8:], s.seq)
	binary.BigEndian.PutUint64(s.nonce[saltLen:], s.seq)
	binary.BigEndian.PutUint64(s.aad[4:], s.seq)
	return HeaderLen + len(s.aead.Seal(b[HeaderLen:HeaderLen], s.nonce[:], b[HeaderLen:end], s.aad[:])), nil
}

// Opener is the receiving end of an association. One goroutine uses it.
type Opener struct {
	aead   cipher.AEAD
	window window
	nonce  [nonceLen]byte
	aad    [aadLen]byte
}

// NewOpener returns the receiving end of a new association. There must never be two for the
// same key material, one after the other: the second would accept once more what was
// recorded of the first.
func NewOpener(spi ids.SPI, material []byte) (*Opener, error) {
	aead, salt, err := gcm(material)
	if err != nil {
		return nil, err
	}
	o := &Opener{aead: aead}
	copy(o.nonce[:], salt[:])
	binary.BigEndian.PutUint32(o.aad[:], uint32(spi))
	return o, nil
}

// Why a packet is dropped.
var (
	// ErrShort says that a packet is too short to be one.
	ErrShort = errors.New("too short for ESP")
	// ErrReplay says that a packet was there before, or is older than the window.
	ErrReplay = errors.New("replayed")
	// ErrForged says that a packet's tag is wrong.
	ErrForged = errors.New("forged or damaged")
	// ErrTrailer says that a packet's end makes no sense, although its tag is right.
	ErrTrailer = errors.New("padding or protocol wrong")
)

// SPI returns whose a packet says to be: the association's index. Zero, which is none,
// where it is too short; and with ESP in UDP what is not ESP begins with zero (RFC 3948, 2.2).
func SPI(p []byte) ids.SPI {
	if len(p) < 4 {
		return 0
	}
	return ids.SPI(binary.BigEndian.Uint32(p))
}

// Open returns the inner packet of p, which it changes, and which is part of p.
func (o *Opener) Open(p []byte) ([]byte, error) {
	if len(p) < HeaderLen+trailerLen+tagLen {
		return nil, ErrShort
	}
	// The upper half of the number is not in the packet: it is guessed, and the tag, which
	// covers it, says whether rightly (RFC 4303, appendix A2).
	seq := o.window.guess(binary.BigEndian.Uint32(p[4:]))
	if !o.window.fresh(seq) {
		return nil, ErrReplay
	}
	copy(o.nonce[saltLen:], p[8:HeaderLen])
	binary.BigEndian.PutUint64(o.aad[4:], seq)
	plain, err := o.aead.Open(p[HeaderLen:HeaderLen], o.nonce[:], p[HeaderLen:], o.aad[:])
	if err != nil {
		return nil, ErrForged
	}
	// Only now: a number that anybody could have written moves nothing.
	o.window.take(seq)
	end := len(plain) - trailerLen
	padding, protocol := int(plain[end]), plain[end+1]
	if padding > end || protocol != ProtocolIPv6 {
		return nil, ErrTrailer
	}
	return plain[:end-padding], nil
}
