package noisenet

import (
	"encoding/binary"
	"errors"
)

// Message types of memberlist v0.7.0 (net.go). Its own constants are not
// exported; the numbers are its wire protocol and only ever appended to.
const (
	mlPing         = 0
	mlIndirectPing = 1
	mlAck          = 2
	mlSuspect      = 3
	mlAlive        = 4
	mlDead         = 5
	mlPushPull     = 6
	mlCompound     = 7
	mlUser         = 8
	mlNack         = 11
	mlHasCRC       = 12
	mlError        = 13
)

const crcHeader = 5 // type and CRC-32

var errFiltered = errors.New("memberlist message type is not allowed")

// checkPacket decides whether the decrypted payload of a datagram may reach
// memberlist. Allowed: ping, indirect ping, ack, nack, suspect, alive, dead,
// user, one compound of these, and one CRC around all of it.
//
// An authenticated peer may still be hostile. Compression (a 308 kB message
// once expanded to 1 GB), memberlist's own encryption and labels, and compounds
// within compounds (unbounded recursion) have no use inside Noise, so their
// parsers must not be reachable. Everything not listed is refused, including
// types that a later memberlist adds.
func checkPacket(b []byte) error { return eachMessage(b, checkSimple) }

// eachMessage calls fn for the messages of a packet, until one fails.
func eachMessage(b []byte, fn func([]byte) error) error {
	if len(b) >= crcHeader && b[0] == mlHasCRC {
		b = b[crcHeader:]
	}
	if len(b) == 0 {
		return errFiltered
	}
	if b[0] == mlCompound {
		return eachPart(b[1:], fn)
	}
	return fn(b)
}

// eachPart walks u8 count, u16 lengths, parts, and wants them to fill b
// exactly, so memberlist's reading of the same bytes cannot differ.
func eachPart(b []byte, fn func([]byte) error) error {
	if len(b) < 1 {
		return errFiltered
	}
	count := int(b[0])
	b = b[1:]
	if len(b) < 2*count {
		return errFiltered
	}
	parts := b[2*count:]
	for i := range count {
		n := int(binary.BigEndian.Uint16(b[2*i:]))
		if n > len(parts) {
			return errFiltered
		}
		if err := fn(parts[:n]); err != nil {
			return err
		}
		parts = parts[n:]
	}
	if len(parts) != 0 {
		return errFiltered
	}
	return nil
}

func checkSimple(b []byte) error {
	if len(b) == 0 {
		return errFiltered
	}
	switch b[0] {
	case mlPing, mlIndirectPing, mlAck, mlNack, mlSuspect, mlAlive, mlDead, mlUser:
		return nil
	}
	return errFiltered
}

// maxStreamNodes bounds the table that memberlist allocates from the node count
// of a push/pull header before it has read a single node: 16,384 nodes are
// 2 MB; its own limit of 2^20 would let one 40-byte message cost 120 MB.
const maxStreamNodes = 16384

var errShort = errors.New("more bytes are needed")

// checkStream decides from the first bytes of a memberlist stream whether it
// may be read at all. It returns errShort until it has seen enough.
//
// push/pull and user messages begin with a msgpack header whose numbers
// memberlist uses as allocation sizes; both are parsed strictly in the one
// form that memberlist writes (fields sorted by name) and bounded.
func checkStream(b []byte) error {
	if len(b) == 0 {
		return errShort
	}
	p := headParser{b: b[1:]}
	switch b[0] {
	case mlPing, mlAck, mlError:
		return nil
	case mlPushPull:
		p.literal("\x83\xa4Join")
		p.boolean()
		p.literal("\xa5Nodes")
		p.number(maxStreamNodes)
		p.literal("\xacUserStateLen")
		p.number(MaxMessage)
	case mlUser:
		p.literal("\x81\xaaUserMsgLen")
		p.number(MaxMessage)
	default:
		return errFiltered
	}
	return p.err
}

// headParser consumes b; its first error stays.
type headParser struct {
	b   []byte
	err error
}

func (p *headParser) literal(s string) {
	for i := 0; i < len(s) && p.err == nil; i++ {
		if c, ok := p.next(); ok && c != s[i] {
			p.err = errFiltered
		}
	}
}

func (p *headParser) boolean() {
	if c, ok := p.next(); ok && c != 0xc2 && c != 0xc3 {
		p.err = errFiltered
	}
}

// number reads a non-negative msgpack integer of at most limit.
func (p *headParser) number(limit uint64) {
	c, ok := p.next()
	if !ok {
		return
	}
	width := 0
	switch {
	case c <= 0x7f:
		p.bound(uint64(c), limit)
		return
	case c == 0xcc || c == 0xd0:
		width = 1
	case c == 0xcd || c == 0xd1:
		width = 2
	case c == 0xce || c == 0xd2:
		width = 4
	case c == 0xcf || c == 0xd3:
		width = 8
	default:
		p.err = errFiltered
		return
	}
	var v uint64
	for i := range width {
		d, ok := p.next()
		if !ok {
			return
		}
		if i == 0 && c >= 0xd0 && d >= 0x80 {
			p.err = errFiltered // negative
			return
		}
		v = v<<8 | uint64(d)
	}
	p.bound(v, limit)
}

func (p *headParser) bound(v, limit uint64) {
	if v > limit {
		p.err = errFiltered
	}
}

func (p *headParser) next() (byte, bool) {
	if p.err != nil {
		return 0, false
	}
	if len(p.b) == 0 {
		p.err = errShort
		return 0, false
	}
	c := p.b[0]
	p.b = p.b[1:]
	return c, true
}
