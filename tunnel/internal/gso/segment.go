package gso

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Offsets and flags of TCP (RFC 9293, 3.1).
const (
	tcpSeq, tcpDataOffset, tcpFlags, tcpChecksum = 4, 12, 13, 16

	tcpMinLen, udpLen = 20, 8
	udpChecksum       = 6

	flagFIN, flagPSH, flagCWR = 0x01, 0x08, 0x80
)

// Segmenter splits one packet after the other into packets that fit the link. It is
// used by one goroutine at a time; its zero value has nothing to give.
type Segmenter struct {
	packet []byte // of the caller, as long as there is more
	h      Header
	head   int // length of all headers
	tunnel
	next int // where the payload of the next segment begins
	n    int // segments so far
}

// tunnel is what is around a packet in VXLAN that is to be split.
type tunnel struct {
	outer, inner int  // where the outer UDP header and the inner IP header begin; 0: there is no tunnel
	sums         bool // the outer UDP has a checksum
}

// Start takes a packet and its header h, as Decode returns them. The packet
// is the Segmenter's until More is false. An error matches ErrMalformed.
func (s *Segmenter) Start(h Header, packet []byte) error {
	*s = Segmenter{}
	if h.Flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 &&
		int(h.ChecksumStart)+int(h.ChecksumOffset)+2 > len(packet) {
		return fmt.Errorf("%w: checksum beyond its %d bytes", ErrMalformed, len(packet))
	}
	head, around := 0, tunnel{}
	if h.Type != unix.VIRTIO_NET_HDR_GSO_NONE {
		var err error
		if head, around, err = check(h, packet); err != nil {
			return err
		}
	}
	*s = Segmenter{packet: packet, h: h, head: head, tunnel: around, next: head}
	return nil
}

// check returns the length of all headers of a packet that is to be split, and what is around it.
func check(h Header, p []byte) (int, tunnel, error) {
	transport, around := int(h.ChecksumStart), tunnel{}
	wrong := func(what string) (int, tunnel, error) { return 0, around, fmt.Errorf("%w: %s", ErrMalformed, what) }
	if h.Flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 || h.Size == 0 {
		return wrong("to be split, without a checksum or a size")
	}
	// The kernel says no more than where the innermost checksum is.
	if outer := ipLen(p); outer != transport {
		// The distance is even, since the checksum of one covers the other.
		if !isUDP(p) || outer+udpLen > len(p) || (transport-outer)%2 != 0 {
			return wrong("a tunnel that is not UDP on IP without extensions")
		}
		if around = (tunnel{outer, innerIP(p, outer), binary.NativeEndian.Uint16(p[outer+udpChecksum:]) != 0}); around.inner < 0 {
			return wrong("a tunnel that is not VXLAN")
		}
	}
	if transport < around.inner || ipLen(p[around.inner:]) != transport-around.inner {
		return wrong("an inner packet that is not IP, or has extensions")
	}
	head := transport + udpLen
	switch v, offset := p[around.inner]>>4, int(h.ChecksumOffset); {
	case h.Type == unix.VIRTIO_NET_HDR_GSO_UDP_L4 && offset == udpChecksum:
	case h.Type == unix.VIRTIO_NET_HDR_GSO_TCPV4 && v == 4 && offset == tcpChecksum,
		h.Type == unix.VIRTIO_NET_HDR_GSO_TCPV6 && v == 6 && offset == tcpChecksum:
		if head = transport + tcpLen(p[transport:]); head < transport+tcpMinLen {
			return wrong("a TCP header of less than 20 bytes")
		}
	default:
		return wrong(fmt.Sprintf("type %#x of a packet of IP version %d", h.Type, v))
	}
	if head >= len(p) {
		return wrong("to be split, without payload")
	}
	return head, around, nil
}

// isUDP reports whether an IP packet, whose header ipLen has looked at, says that UDP comes next.
func isUDP(p []byte) bool {
	switch {
	case ipLen(p) < 0:
		return false
	case p[0]>>4 == 6:
		return p[6] == unix.IPPROTO_UDP
	}
	return p[9] == unix.IPPROTO_UDP
}

// ipLen returns the length of the IP header that p begins with: 40 of IPv6, whatever
// comes next; -1 if it is not there.
func ipLen(p []byte) int {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4 && int(p[0]&15)*4 >= 20 && int(p[0]&15)*4 <= len(p):
		return int(p[0]&15) * 4
	case len(p) >= 40 && p[0]>>4 == 6:
		return 40
	}
	return -1
}

// tcpLen returns the length of the TCP header that p begins with, -1 if it is not there.
func tcpLen(p []byte) int {
	if len(p) < tcpMinLen {
		return -1
	}
	return int(p[tcpDataOffset]>>4) * 4
}

// More reports whether Next has another packet.
func (s *Segmenter) More() bool { return s.packet != nil }

// Next writes the next packet to b and returns its length; a packet that does not fit is
// left out, with an error that matches ErrMalformed.
func (s *Segmenter) Next(b []byte) (int, error) {
	p, last := s.packet, true
	end := len(p)
	if s.h.Type != unix.VIRTIO_NET_HDR_GSO_NONE {
		end = min(end, s.next+int(s.h.Size))
		last = end == len(p)
	}
	from, i := s.next, s.n
	s.next, s.n = end, i+1
	if last {
		s.packet = nil
	}
	n := s.head + end - from
	if n > len(b) {
		return 0, fmt.Errorf("%w: %d bytes, at most %d fit", ErrMalformed, n, len(b))
	}
	b = b[:n]
	copy(b, p[:s.head])
	copy(b[s.head:], p[from:end])
	if s.h.Type == unix.VIRTIO_NET_HDR_GSO_NONE {
		s.finish(b)
	} else {
		s.headers(b, i, last)
	}
	return n, nil
}

// finish computes the checksum that is missing in a packet that is not split. Where it is
// the inner one, the outer one is right already (local checksum offload).
func (s *Segmenter) finish(b []byte) {
	if s.h.Flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
		return
	}
	from := b[s.h.ChecksumStart:]
	putTransport(from[s.h.ChecksumOffset:], sum(from, 0)) // the pseudo header's is there
}

// putTransport writes the complement of a sum as the checksum of TCP or UDP. Zero
// would mean none to UDP; the other zero means the same to TCP.
func putTransport(at []byte, s uint64) {
	v := ^fold(s)
	if v == 0 {
		v = 0xffff
	}
	put(at, v)
}

// headers makes the headers of segment i what they are in a packet of its own.
func (s *Segmenter) headers(b []byte, i int, last bool) {
	ip, t := b[s.inner:], b[s.h.ChecksumStart:]
	setLength(ip, i)
	protocol := uint8(unix.IPPROTO_TCP)
	if s.h.Type == unix.VIRTIO_NET_HDR_GSO_UDP_L4 {
		protocol = unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
	} else {
		binary.BigEndian.PutUint32(t[tcpSeq:], binary.BigEndian.Uint32(t[tcpSeq:])+uint32(i)*uint32(s.h.Size))
		if !last {
			t[tcpFlags] &^= flagFIN | flagPSH
		}
		if i > 0 {
			t[tcpFlags] &^= flagCWR
		}
	}
	checksum, pseudo := t[s.h.ChecksumOffset:], pseudo(ip, protocol, len(t))
	put(checksum, 0)
	if protocol == unix.IPPROTO_UDP {
		putTransport(checksum, sum(t, pseudo))
	} else {
		put(checksum, ^fold(sum(t, pseudo))) // where the kernel has zero, too
	}
	if s.outer > 0 {
		s.around(b, pseudo, i)
	}
}

// around does the same for the outer headers. All that the inner checksum covers adds up
// to the complement of the inner pseudo header, so none of it is read again.
func (s *Segmenter) around(b []byte, innerPseudo uint64, i int) {
	setLength(b, i)
	udp := b[s.outer:]
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	put(udp[udpChecksum:], 0)
	if !s.sums {
		return
	}
	covered := uint64(^fold(innerPseudo))
	headers := udp[:int(s.h.ChecksumStart)-s.outer]
	putTransport(udp[udpChecksum:], sum(headers, add(covered, pseudo(b, unix.IPPROTO_UDP, len(udp)))))
}

// setLength makes ip, which ends where its packet does, the header of segment i.
func setLength(ip []byte, i int) {
	if ip[0]>>4 == 6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(len(ip)-40))
		return
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[4:], binary.BigEndian.Uint16(ip[4:])+uint16(i))
	put(ip[10:], 0)
	put(ip[10:], ^fold(sum(ip[:int(ip[0]&15)*4], 0)))
}
