package noisenet

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Types of datagram.
const (
	datagramData = 1
	datagramHint = 2
)

const (
	datagramHeaderSize = 16
	datagramOverhead   = datagramHeaderSize + tagSize
	maxDatagram        = 1200 // UDP payload
	maxPacket          = maxDatagram - datagramOverhead
)

// Lifetimes of a datagram session. A key is replaced at the first mark and
// refused at twice that, so one lost OPEN does not cut a pair off.
const (
	rekeyAge      = time.Hour
	rekeyPackets  = 1 << 20
	rekeyLate     = time.Minute // the answerer waits this much longer than the opener
	refuseAge     = 2 * rekeyAge
	refusePackets = 2 * rekeyPackets
)

var (
	errDatagram  = errors.New("datagram is malformed")
	errReplay    = errors.New("datagram was seen before or is too old")
	errForged    = errors.New("datagram is not authentic")
	errExhausted = errors.New("datagram session is used up")
)

// datagramHeader starts each UDP payload: type u8, flags u8 (zero), reserved
// u16 (zero), receiver index u32, counter u64.
type datagramHeader struct {
	kind    uint8
	index   uint32 // chosen by the receiver when the session was opened
	counter uint64
}

func (h datagramHeader) encode() [datagramHeaderSize]byte {
	var b [datagramHeaderSize]byte
	b[0] = h.kind
	binary.BigEndian.PutUint32(b[4:], h.index)
	binary.BigEndian.PutUint64(b[8:], h.counter)
	return b
}

// parseDatagram reads the header and checks the length of the whole UDP
// payload. It is canonical: flags and reserved must be zero, a HINT is exactly
// a header with counter zero.
func parseDatagram(b []byte) (datagramHeader, error) {
	if len(b) < datagramHeaderSize || len(b) > maxDatagram || b[1]|b[2]|b[3] != 0 {
		return datagramHeader{}, errDatagram
	}
	h := datagramHeader{kind: b[0], index: binary.BigEndian.Uint32(b[4:]), counter: binary.BigEndian.Uint64(b[8:])}
	switch {
	case h.kind == datagramData && len(b) >= datagramOverhead:
		return h, nil
	case h.kind == datagramHint && len(b) == datagramHeaderSize && h.counter == 0:
		return h, nil
	}
	return datagramHeader{}, errDatagram
}

// datagramSession holds the keys and counters of one session with a peer. It
// does no I/O and reads no clock.
//
// An error of seal or open leaves the state untouched, except that seal after
// refusePackets and both after refuseAge go on failing with errExhausted.
// Its owner (sessions) serialises all calls.
type datagramSession struct {
	peer          ids.NodeID
	opener        ids.NodeID // the node that sent OPEN
	local, remote uint32     // index we receive on, index the peer receives on
	send, recv    cipher.AEAD
	counter       uint64 // next to send; the first is 0
	window        replayWindow
	created       time.Time
	lastRecv      time.Time      // last valid packet; zero: none
	addr          netip.AddrPort // where to send; follows authenticated packets
	confirmed     bool           // the peer has shown that it has the keys
	expires       time.Time      // zero: not superseded
}

// openContext makes a session's keys unique on its stream: who opened it (0:
// the stream's initiator), the number of the OPEN in that direction, and both
// indices. The number never repeats on a stream, so neither does the context.
type openContext struct {
	byResponder      bool
	number           uint32
	opener, answerer uint32 // indices
}

func (c openContext) encode(dir byte) []byte {
	role := byte(0)
	if c.byResponder {
		role = 1
	}
	b := []byte{dir, role}
	b = binary.BigEndian.AppendUint32(b, c.number)
	b = binary.BigEndian.AppendUint32(b, c.opener)
	return binary.BigEndian.AppendUint32(b, c.answerer)
}

// keys derives the AEADs opener-to-answerer and back from the session secret
// of the stream that carried the OPEN.
func (c openContext) keys(s *secret) (forward, back cipher.AEAD, err error) {
	if forward, err = s.aead(labelDatagram, c.encode(dirForward)...); err != nil {
		return nil, nil, fmt.Errorf("derive datagram key: %w", err)
	}
	if back, err = s.aead(labelDatagram, c.encode(dirBack)...); err != nil {
		return nil, nil, fmt.Errorf("derive datagram key: %w", err)
	}
	return forward, back, nil
}

// seal returns one datagram with payload, which has at most maxPacket bytes.
func (d *datagramSession) seal(now time.Time, payload []byte) ([]byte, error) {
	if d.spent(now) {
		return nil, errExhausted
	}
	if len(payload) > maxPacket {
		return nil, fmt.Errorf("seal datagram of %d bytes: %w", len(payload), ErrTooLarge)
	}
	h := datagramHeader{kind: datagramData, index: d.remote, counter: d.counter}.encode()
	out := make([]byte, datagramHeaderSize, datagramOverhead+len(payload))
	copy(out, h[:])
	out = d.send.Seal(out, nonce(d.counter), payload, h[:])
	d.counter++
	return out, nil
}

// open authenticates a datagram that parseDatagram accepted with this session's
// index and returns its payload in new memory. highest reports that its counter
// is above every earlier one. The replay window moves only after the tag
// verified.
func (d *datagramSession) open(now time.Time, h datagramHeader, b []byte) (payload []byte, highest bool, err error) {
	if now.Sub(d.created) >= refuseAge {
		return nil, false, errExhausted
	}
	if h.counter >= refusePackets {
		return nil, false, errExhausted
	}
	if !d.window.check(h.counter) {
		return nil, false, errReplay
	}
	payload, err = d.recv.Open(nil, nonce(h.counter), b[datagramHeaderSize:], b[:datagramHeaderSize])
	if err != nil {
		return nil, false, errForged
	}
	highest = d.window.accept(h.counter)
	d.lastRecv = now
	return payload, highest, nil
}

// spent reports that nothing may be sent any more.
func (d *datagramSession) spent(now time.Time) bool {
	return d.counter >= refusePackets || now.Sub(d.created) >= refuseAge
}

// wantsRekey reports that self should open a successor. The opener does it at
// the mark, the answerer a little later in case the opener cannot.
func (d *datagramSession) wantsRekey(now time.Time, self ids.NodeID) bool {
	age, packets := rekeyAge, uint64(rekeyPackets)
	if d.opener != self {
		age, packets = age+rekeyLate, packets+packets/8
	}
	return d.counter >= packets || now.Sub(d.created) >= age
}
