package gso

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// Offsets of what splitting leaves alone.
const tcpAck, tcpWindow = 8, 14

// segment describes one packet of TCP or UDP in VXLAN over IPv6, or without tunnel.
type segment struct {
	from, vni, port byte // of the outer source, the network, the connection
	tags            int  // VLAN tags of the frame
	v6, udp, bare   bool // inner family, protocol; without a tunnel
	id              uint16
	seq, ack        uint32
	flags           byte
	window          uint16
	options         []byte // of TCP, a multiple of 4
	payload         []byte
	noOuterChecksum bool
}

// bytes returns the packet with right checksums, computed the slow way.
func (s segment) bytes() []byte {
	var t []byte
	protocol, at := byte(unix.IPPROTO_TCP), tcpChecksum
	if s.udp {
		t = make([]byte, udpLen)
		binary.BigEndian.PutUint16(t[4:], uint16(udpLen+len(s.payload)))
		protocol, at = unix.IPPROTO_UDP, udpChecksum
	} else {
		t = make([]byte, tcpMinLen, tcpMinLen+len(s.options))
		binary.BigEndian.PutUint32(t[tcpSeq:], s.seq)
		binary.BigEndian.PutUint32(t[tcpAck:], s.ack)
		t[tcpDataOffset], t[tcpFlags] = byte((tcpMinLen+len(s.options))/4)<<4, s.flags
		binary.BigEndian.PutUint16(t[tcpWindow:], s.window)
		t = append(t, s.options...)
	}
	t[0], t[1], t[2], t[3] = 0x80, s.port, 0, 80
	t = append(t, s.payload...)
	p := s.ip(t, protocol)
	setChecksum(p, protocol, at)
	if s.bare {
		return p
	}
	frame := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	for range s.tags {
		frame = append(frame, etherVLAN>>8, etherVLAN&0xff, 0, 9)
	}
	if s.v6 {
		frame = append(frame, 0x86, 0xdd)
	} else {
		frame = append(frame, 8, 0)
	}
	u := []byte{0xc0, s.port, 0x12, 0xb5, 0, 0, 0, 0, vxlanFlags, 0, 0, 0, 0, 0, s.vni, 0}
	u = append(append(u, frame...), p...)
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	o := header6(fd00(s.from), fd00(100), unix.IPPROTO_UDP, u)
	if !s.noOuterChecksum {
		setChecksum(o, unix.IPPROTO_UDP, udpChecksum)
	}
	return o
}

func fd00(last byte) []byte { return []byte{0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last} }

func header6(src, dst []byte, protocol byte, payload []byte) []byte {
	h := []byte{6 << 4, 0, 0, 0, 0, 0, protocol, 64}
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	return slices.Concat(h, src, dst, payload)
}

func (s segment) ip(t []byte, protocol byte) []byte {
	if s.v6 {
		return header6(fd00(200), fd00(201), protocol, t)
	}
	h := []byte{4<<4 | 5, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+len(t)))
	binary.BigEndian.PutUint16(h[4:], s.id)
	binary.BigEndian.PutUint16(h[10:], ^slow(h))
	return append(h, t...)
}

// setChecksum writes the checksum of the TCP or UDP packet in IP.
func setChecksum(ip []byte, protocol byte, at int) {
	t := ip[ipLen(ip):]
	binary.BigEndian.PutUint16(t[at:], 0)
	v := ^slow(slices.Concat(slowPseudo(ip, protocol, len(t)), t))
	if v == 0 && protocol == unix.IPPROTO_UDP {
		v = 0xffff
	}
	binary.BigEndian.PutUint16(t[at:], v)
}

func slowPseudo(ip []byte, protocol byte, n int) []byte {
	addrs := ip[12:20]
	if ip[0]>>4 == 6 {
		addrs = ip[8:40]
	}
	return slices.Concat(addrs, []byte{0, protocol, byte(n >> 8), byte(n)})
}

// slow is the sum of RFC 1071 as its section 4.1 has it.
func slow(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// superframe is the segment as a packet that is yet to be split into pieces of size bytes:
// what Linux hands over.
func (s segment) superframe(size int) (Header, []byte) {
	p := s.bytes()
	inner := 0
	if !s.bare {
		inner = vxlanAt + vxlanLen + EthernetLen + s.tags*tagLen
	}
	ip := p[inner:]
	transport := inner + ipLen(ip)
	protocol, at := byte(unix.IPPROTO_TCP), uint16(tcpChecksum)
	h := Header{Flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, Size: uint16(size), ChecksumStart: uint16(transport)}
	switch {
	case s.udp:
		h.Type, protocol, at = unix.VIRTIO_NET_HDR_GSO_UDP_L4, unix.IPPROTO_UDP, udpChecksum
	case s.v6:
		h.Type = unix.VIRTIO_NET_HDR_GSO_TCPV6
	default:
		h.Type = unix.VIRTIO_NET_HDR_GSO_TCPV4
	}
	h.ChecksumOffset = at
	binary.BigEndian.PutUint16(p[transport+int(at):], slow(slowPseudo(ip, protocol, len(p)-transport)))
	return h, p
}

// cut is what is to become of the segment: packets of size bytes each, made one by one.
func (s segment) cut(size int) (out []segment) {
	for i := uint16(0); len(s.payload) > 0; i++ {
		n := min(size, len(s.payload))
		c := s
		c.payload, c.seq, c.id = s.payload[:n], s.seq, s.id+i
		s.payload, s.seq = s.payload[n:], s.seq+uint32(n)
		if len(s.payload) > 0 {
			c.flags &^= flagPSH | flagFIN
		}
		if i > 0 {
			c.flags &^= flagCWR
		}
		out = append(out, c)
	}
	return out
}

// drawSegment draws a TCP segment of one of few connections.
func drawSegment(t *rapid.T) segment {
	few := rapid.ByteRange(1, 2)
	s := segment{
		from: few.Draw(t, "from"), vni: few.Draw(t, "vni"), port: few.Draw(t, "port"),
		v6: rapid.Bool().Draw(t, "v6"), flags: 0x10, window: 500,
		id:  rapid.Uint16().Draw(t, "id"),
		seq: rapid.Uint32().Draw(t, "seq"), ack: rapid.Uint32().Draw(t, "ack"),
	}
	if rapid.Bool().Draw(t, "options") {
		s.options = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	}
	return s
}
