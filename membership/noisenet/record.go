package noisenet

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
)

// Channels: the first plaintext byte of each frame. A stream carries one
// channel, fixed by its first frame.
const (
	channelMemberlist = 1
	channelControl    = 2
	channelJoin       = 3
	channelAgree      = 4
)

const (
	tagSize       = 16
	maxCiphertext = 16 << 10                    // of one frame
	maxFrameData  = maxCiphertext - tagSize - 1 // after the channel byte
	framePrefix   = 2
)

var errRecordDead = errors.New("stream is dead after an earlier error")

// record protects the frames of one stream: u16 length, then that many bytes
// of ChaCha20-Poly1305 ciphertext over channel byte and data; the length is
// additional data, the nonce counts frames.
//
// It does no I/O. An error of seal or open kills that direction: every later
// call returns errRecordDead. A stream is ordered and reliable, so a frame that
// does not verify means an attacker or a bug, and nothing after it can be
// trusted to be in order. seal and open are independent: one goroutine may use
// each.
type record struct {
	out, in         cipher.AEAD
	sent, received  uint64
	outDead, inDead bool
	channel         uint8 // of the first opened frame; 0 before
}

// newRecord derives both directions' keys from S. The initiator sends with the
// forward key.
func newRecord(s *secret, initiator bool) (*record, error) {
	fwd, err := s.aead(labelStream, dirForward)
	if err != nil {
		return nil, fmt.Errorf("derive stream key: %w", err)
	}
	back, err := s.aead(labelStream, dirBack)
	if err != nil {
		return nil, fmt.Errorf("derive stream key: %w", err)
	}
	if initiator {
		return &record{out: fwd, in: back}, nil
	}
	return &record{out: back, in: fwd}, nil
}

// seal appends one frame to dst. data holds at most maxFrameData bytes.
func (r *record) seal(dst []byte, channel uint8, data []byte) ([]byte, error) {
	if r.outDead {
		return dst, errRecordDead
	}
	if len(data) > maxFrameData || r.sent == ^uint64(0) {
		r.outDead = true
		return dst, fmt.Errorf("seal frame of %d bytes: %w", len(data), ErrTooLarge)
	}
	at := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, uint16(1+len(data)+tagSize))
	dst = append(dst, channel)
	dst = append(dst, data...)
	plain := dst[at+framePrefix:]
	sealed := r.out.Seal(plain[:0], nonce(r.sent), plain, dst[at:at+framePrefix:at+framePrefix])
	r.sent++
	return append(dst[:at+framePrefix], sealed...), nil
}

// frameLen reads the length prefix: how many ciphertext bytes follow.
func frameLen(prefix []byte) (int, error) {
	if len(prefix) != framePrefix {
		return 0, fmt.Errorf("read frame length: have %d bytes", len(prefix))
	}
	n := int(binary.BigEndian.Uint16(prefix))
	if n < 1+tagSize || n > maxCiphertext {
		return 0, fmt.Errorf("read frame length: %d is outside %d..%d", n, 1+tagSize, maxCiphertext)
	}
	return n, nil
}

// open decrypts one whole frame, prefix included, in place. data aliases frame.
func (r *record) open(frame []byte) (channel uint8, data []byte, err error) {
	if r.inDead {
		return 0, nil, errRecordDead
	}
	defer func() { r.inDead = err != nil }()
	if len(frame) < framePrefix {
		return 0, nil, fmt.Errorf("open frame: have %d bytes", len(frame))
	}
	n, err := frameLen(frame[:framePrefix])
	if err != nil {
		return 0, nil, err
	}
	if len(frame) != framePrefix+n {
		return 0, nil, fmt.Errorf("open frame: have %d bytes, want %d", len(frame), framePrefix+n)
	}
	body := frame[framePrefix:]
	plain, err := r.in.Open(body[:0], nonce(r.received), body, frame[:framePrefix])
	if err != nil {
		return 0, nil, fmt.Errorf("open frame %d: not authentic", r.received)
	}
	r.received++
	if r.channel == 0 {
		r.channel = plain[0]
	}
	if plain[0] != r.channel || r.channel < channelMemberlist || r.channel > channelAgree {
		return 0, nil, fmt.Errorf("open frame: channel %d on a stream of channel %d", plain[0], r.channel)
	}
	return plain[0], plain[1:], nil
}
