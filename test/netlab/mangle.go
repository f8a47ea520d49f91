package netlab

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"

	"golang.org/x/sys/unix"
)

// mangler decides what becomes of packets in one direction of a rough wire. It is used by one goroutine.
type mangler struct {
	r      Roughness
	rng    *rand.Rand
	n      int // packets so far
	later  []waiting
	counts RoughCounts // since take
}

// waiting is a packet that is sent once so many have passed.
type waiting struct {
	at  int
	raw []byte
}

func newMangler(r Roughness) *mangler {
	return &mangler{r: r, rng: rand.New(rand.NewPCG(r.Seed, 0))}
}

// take returns what was counted since the last call.
func (m *mangler) take() RoughCounts {
	c := m.counts
	m.counts = RoughCounts{}
	return c
}

// all returns the packets that wait.
func (m *mangler) all() (out [][]byte) {
	for _, l := range m.later {
		out = append(out, l.raw)
	}
	m.later = nil
	return out
}

// pass takes a packet, with its virtio header, and returns those that are sent now. They are valid until
// raw changes.
func (m *mangler) pass(raw []byte) (out [][]byte) {
	m.n++
	m.later = slices.DeleteFunc(m.later, func(l waiting) bool {
		if l.at > m.n {
			return false
		}
		out = append(out, l.raw)
		return true
	})
	u, ok := parse(raw)
	if !ok {
		return append(out, raw)
	}
	one := func(share float64, count *uint64) bool {
		if m.rng.Float64() >= share {
			return false
		}
		*count++
		return true
	}
	wait := func(reach int) {
		m.later = append(m.later, waiting{at: m.n + 1 + m.rng.IntN(reach), raw: bytes.Clone(raw)})
	}
	if one(m.r.Replay, &m.counts.Replayed) {
		wait(8 * m.r.Reach)
	}
	switch {
	case one(m.r.Drop, &m.counts.Dropped):
		return out
	case one(m.r.Hold, &m.counts.Held):
		wait(m.r.Reach)
		return out
	case one(m.r.Flip, &m.counts.Flipped):
		i := u.payload + m.rng.IntN(len(raw)-u.payload)
		raw[i] ^= 1 << m.rng.IntN(8)
	case one(m.r.Resize, &m.counts.Resized):
		raw = u.resize(raw, m.rng)
	case one(m.r.Double, &m.counts.Doubled):
		out = append(out, raw)
	default:
		m.counts.Passed++
	}
	return append(out, raw)
}

// parts is where the parts of a UDP or ESP packet begin, behind its virtio header.
type parts struct {
	ip, transport, payload int
	v6, udp                bool
}

// parse finds the parts of a UDP or ESP packet that has a payload and is no fragment.
func parse(raw []byte) (u parts, ok bool) {
	const ethernet = 14
	u.ip = vnetHeader + ethernet
	if len(raw) < u.ip+20 {
		return u, false
	}
	ip, protocol := raw[u.ip:], byte(0)
	switch binary.BigEndian.Uint16(raw[u.ip-2:]) {
	case unix.ETH_P_IP:
		u.transport = u.ip + int(ip[0]&15)*4
		protocol, ok = ip[9], binary.BigEndian.Uint16(ip[6:])&0x3fff == 0
	case unix.ETH_P_IPV6:
		u.v6, u.transport = true, u.ip+40
		protocol, ok = ip[6], true
	}
	u.payload = u.transport
	if u.udp = protocol == unix.IPPROTO_UDP; u.udp {
		u.payload += 8
	}
	return u, ok && (u.udp || protocol == unix.IPPROTO_ESP) && len(raw) > u.payload
}

// resize returns the packet with a shorter payload, or one with up to 20 bytes more, and lengths that
// say so.
func (u parts) resize(raw []byte, rng *rand.Rand) []byte {
	if n := len(raw) - u.payload; rng.IntN(2) == 0 && n > 1 {
		raw = raw[:len(raw)-1-rng.IntN(n-1)]
	} else {
		raw = append(bytes.Clone(raw), make([]byte, 1+rng.IntN(20))...)
	}
	if u.udp {
		binary.BigEndian.PutUint16(raw[u.transport+4:], uint16(len(raw)-u.transport))
	}
	if u.v6 {
		binary.BigEndian.PutUint16(raw[u.ip+4:], uint16(len(raw)-u.ip-40))
		return raw
	}
	binary.BigEndian.PutUint16(raw[u.ip+2:], uint16(len(raw)-u.ip))
	header := raw[u.ip:u.transport]
	clear(header[10:12])
	sum := uint32(0)
	for i := 0; i < len(header); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(header[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(header[10:], ^uint16(sum>>16+sum&0xffff))
	return raw
}
