package gso

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Lengths of what is in a packet that may be joined with others: outer IPv6 without
// extensions, UDP, VXLAN and an Ethernet header without tags, then IP and TCP.
const (
	outerLen    = 40
	innerAt     = outerLen + udpLen + vxlanLen + ethernetLen
	vxlanLen    = 8
	ethernetLen = 14

	vxlanFlags = 0x08 // the VNI is valid; everything else is reserved (RFC 7348, 5)
	etherIPv4  = 0x0800
	etherIPv6  = 0x86dd
	dontFrag   = 0x4000
	maxJoined  = 65535 // bytes behind the outer header: what its length field can say
	// maxDatagrams is what Linux lets a socket send at once (UDP_MAX_SEGMENTS, 64 before 6.13):
	// no receiver meets more.
	maxDatagrams = 64
)

// Coalescer joins TCP segments of one connection that follow each other, and UDP datagrams of one
// flow and one length. It is used by one goroutine at a time.
type Coalescer struct {
	joined []Joined
}

// Joined is one packet to be written: a packet as it came, or several in one.
type Joined struct {
	// Parts are the packet's bytes, in order; the first begins with all headers.
	Parts [][]byte

	flow
	open    bool // another segment may follow
	payload int  // of all parts together
}

// flow is what there is to know of a TCP segment or a UDP datagram in VXLAN.
type flow struct {
	at   int // where TCP or UDP begins; 0: it is neither
	udp  bool
	head int // where its payload begins
	size int // of its payload
	next uint32
}

func (f flow) protocol() uint8 {
	if f.udp {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// checksum is where the checksum is, from at on.
func (f flow) checksum() int {
	if f.udp {
		return udpChecksum
	}
	return tcpChecksum
}

// Join returns packets in the order in which they are to be written. It changes packets, and
// what it returns is valid until it is called again. Packets must be whole IP packets.
func (c *Coalescer) Join(packets [][]byte, offset int) []Joined {
	for i := range c.joined {
		clear(c.joined[i].Parts) // so that it keeps no buffer
	}
	c.joined = c.joined[:0]
	for _, p := range packets {
		c.add(p[offset:])
	}
	for i := range c.joined {
		if j := &c.joined[i]; len(j.Parts) > 1 {
			j.finish()
		}
	}
	return c.joined
}

func (c *Coalescer) add(p []byte) {
	f, ok := parse(p)
	if f.at != 0 {
		// The last packet of the connection is the only one that may grow: so
		// a connection's packets keep their order.
		for i := len(c.joined) - 1; i >= 0; i-- {
			j := &c.joined[i]
			if j.at == 0 || !sameConnection(j.Parts[0], p, f.at) {
				continue
			}
			if ok && j.open && j.follows(p, f) {
				j.append(p, f)
				return
			}
			break
		}
	}
	n := len(c.joined)
	if n < cap(c.joined) {
		c.joined = c.joined[:n+1]
		c.joined[n].Parts = append(c.joined[n].Parts[:0], p)
	} else {
		c.joined = append(c.joined, Joined{Parts: [][]byte{p}})
	}
	j := &c.joined[n]
	j.flow, j.payload = f, f.size
	j.open = ok && f.size > 0 && (f.udp || p[f.at+tcpFlags]&flagPSH == 0)
}

// parse looks at a packet. A flow without at is none; ok says whether it may be joined with
// others: all checksums are right, and nothing in it is unusual.
func parse(p []byte) (f flow, ok bool) {
	if len(p) < innerAt+20+udpLen || p[0]>>4 != 6 || p[6] != unix.IPPROTO_UDP || p[outerLen+udpLen] != vxlanFlags {
		return flow{}, false
	}
	ip := p[innerAt:]
	header, total := ipLen(ip), 0
	protocol, usual := uint8(0), false
	switch binary.BigEndian.Uint16(p[innerAt-2:]) {
	case etherIPv4:
		if header < 20 || ip[0]>>4 != 4 {
			return flow{}, false
		}
		// Without Don't Fragment its number would have a meaning, which is lost.
		protocol, total = ip[9], int(binary.BigEndian.Uint16(ip[2:]))
		usual = header == 20 && binary.BigEndian.Uint16(ip[6:]) == dontFrag && fold(sum(ip[:20], 0)) == 0xffff
	case etherIPv6:
		if header < 40 || ip[0]>>4 != 6 {
			return flow{}, false
		}
		protocol, total = ip[6], 40+int(binary.BigEndian.Uint16(ip[4:]))
		usual = true
	}
	f.at = innerAt + header
	switch {
	case protocol == unix.IPPROTO_UDP && len(p) >= f.at+udpLen:
		f.udp, f.head = true, f.at+udpLen
		// A checksum of zero is none, and a length of its own could say something else.
		length := int(binary.BigEndian.Uint16(p[f.at+4:]))
		usual = usual && length == len(p)-f.at && binary.NativeEndian.Uint16(p[f.at+udpChecksum:]) != 0
	case protocol == unix.IPPROTO_TCP && len(p) >= f.at+tcpMinLen:
		f.head = f.at + tcpLen(p[f.at:])
		usual = usual && f.head >= f.at+tcpMinLen
	default:
		return flow{}, false
	}
	// A packet shorter than its lengths say, or longer (padding), passes as it is.
	udp := int(binary.BigEndian.Uint16(p[outerLen+4:]))
	if !usual || f.head > len(p) || len(ip) != total ||
		udp != len(p)-outerLen || int(binary.BigEndian.Uint16(p[4:])) != udp {
		return f, false
	}
	f.size = len(p) - f.head
	if f.udp {
		return f, intact(p, f)
	}
	f.next = binary.BigEndian.Uint32(p[f.at+tcpSeq:]) + uint32(f.size)
	return f, p[f.at+tcpFlags]&(flagFIN|flagSYN|flagRST|flagURG|flagCWR) == 0 && intact(p, f)
}

// intact reports whether the inner and the outer checksum of a packet are right. Joined,
// the kernel takes them for right: an end would get what was broken on the way.
func intact(p []byte, f flow) bool {
	inner := pseudo(p[innerAt:], f.protocol(), len(p)-f.at)
	if fold(sum(p[f.at:], inner)) != 0xffff {
		return false
	}
	// Over IPv6 there must be an outer one (RFC 8200, 8.1): one that is not there
	// is the kernel's to refuse. As in outer, what the inner one covers is known.
	udp := p[outerLen:f.at]
	covered := uint64(^fold(inner))
	return binary.NativeEndian.Uint16(udp[udpChecksum:]) != 0 &&
		fold(sum(udp, add(covered, pseudo(p, unix.IPPROTO_UDP, len(p)-outerLen)))) == 0xffff
}

// sameConnection reports whether two packets of TCP or UDP in VXLAN, which begins in the second at
// transport, are of one connection, of one sender, on one network. Where either IP header has another
// length they may be, which only ends what could be joined.
func sameConnection(a, b []byte, transport int) bool {
	if !bytes.Equal(a[8:24], b[8:24]) || !bytes.Equal(a[outerLen+udpLen:innerAt-ethernetLen], b[outerLen+udpLen:innerAt-ethernetLen]) {
		return false
	}
	if a[innerAt] != b[innerAt] { // version, and length of the header
		return a[innerAt]>>4 == b[innerAt]>>4
	}
	addrs := innerAt + 12
	if a[innerAt]>>4 == 6 {
		addrs = innerAt + 8
	}
	end := transport + 4 // behind the ports
	return len(a) >= end && bytes.Equal(a[addrs:end], b[addrs:end])
}

// follows reports whether p is the next segment of j, equal in all that cannot be told
// from where it stands, so that a split of both together gives it again. All headers but
// lengths, positions and checksums are the same: so what a firewall says of the joined
// packet, by its source or VNI, is what it would have said of each part.
func (j *Joined) follows(p []byte, f flow) bool {
	a := j.Parts[0]
	if f.at != j.at || f.udp != j.udp || f.head != j.head || f.size == 0 || f.size > j.size ||
		len(a)+j.payload-j.size+f.size-outerLen > maxJoined || f.udp && len(j.Parts) == maxDatagrams {
		return false
	}
	return sameOuter(a, p) && sameInner(a[innerAt:], p[innerAt:]) &&
		(f.udp || binary.BigEndian.Uint32(p[f.at+tcpSeq:]) == j.next && sameTCP(a[j.at:j.head], p[f.at:f.head]))
}

// sameTCP compares TCP headers but for sequence number, PSH and checksum.
func sameTCP(a, b []byte) bool {
	flags := func(t []byte) byte { return t[tcpFlags] &^ flagPSH }
	return bytes.Equal(a[tcpAck:tcpFlags], b[tcpAck:tcpFlags]) && flags(a) == flags(b) &&
		bytes.Equal(a[tcpWindow:tcpChecksum], b[tcpWindow:tcpChecksum]) && bytes.Equal(a[tcpUrgent:], b[tcpUrgent:])
}

// sameOuter compares everything before the inner IP header but lengths and checksum.
func sameOuter(a, b []byte) bool {
	const udp = outerLen
	return bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[6:udp+4], b[6:udp+4]) &&
		bytes.Equal(a[udp+udpLen:innerAt], b[udp+udpLen:innerAt])
}

// sameInner compares inner IP headers but for lengths, checksum, and the number of a packet
// that is not to be fragmented, which has no meaning (RFC 6864, 4.1).
func sameInner(a, b []byte) bool {
	if a[0]>>4 == 6 {
		return bytes.Equal(a[:4], b[:4]) && bytes.Equal(a[6:40], b[6:40])
	}
	return bytes.Equal(a[:2], b[:2]) && bytes.Equal(a[6:10], b[6:10]) && bytes.Equal(a[12:20], b[12:20])
}

func (j *Joined) append(p []byte, f flow) {
	j.Parts = append(j.Parts, p[f.head:])
	j.payload += f.size
	j.next = f.next
	j.open = f.size == j.size // a shorter one can only be the last
	if f.udp {
		return
	}
	push := p[f.at+tcpFlags] & flagPSH
	j.Parts[0][j.at+tcpFlags] |= push
	j.open = j.open && push == 0 // what is pushed is to arrive now
}

// finish makes the headers those of the whole packet, with the sum of the pseudo header where
// the inner checksum goes. The outer checksum stays what it was: not zero, and not
// looked at, because the inner one is there to be computed.
func (j *Joined) finish() {
	p := j.Parts[0]
	n := len(p) - j.size + j.payload
	binary.BigEndian.PutUint16(p[4:], uint16(n-outerLen))
	binary.BigEndian.PutUint16(p[outerLen+4:], uint16(n-outerLen))
	ip := p[innerAt:]
	if ip[0]>>4 == 6 {
		binary.BigEndian.PutUint16(ip[4:], uint16(n-innerAt-40))
	} else {
		binary.BigEndian.PutUint16(ip[2:], uint16(n-innerAt))
		put(ip[10:], 0)
		put(ip[10:], ^fold(sum(ip[:20], 0)))
	}
	if j.udp {
		binary.BigEndian.PutUint16(p[j.at+4:], uint16(n-j.at))
	}
	put(p[j.at+j.checksum():], fold(pseudo(ip, j.protocol(), n-j.at)))
}

// Header describes the packet to a TUN link.
//
// lag is what the kernel wants the place of the outer UDP header to be too large by: Linux
// 6.17 and 6.18 demand one behind an Ethernet header, which a TUN link has not, and set
// the true place themselves when the packet gets to IP.
func (j *Joined) Header(lag uint16) Header {
	if len(j.Parts) == 1 {
		return Header{}
	}
	h := Header{
		Flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM | flagTunnelChecksum,
		Type:  unix.VIRTIO_NET_HDR_GSO_TCPV4 | typeTunnel6,
		Len:   uint16(j.head), Size: uint16(j.size),
		ChecksumStart: uint16(j.at), ChecksumOffset: uint16(j.checksum()),
		OuterTransport: outerLen + lag, InnerNetwork: innerAt,
	}
	switch {
	case j.udp:
		h.Type = unix.VIRTIO_NET_HDR_GSO_UDP_L4 | typeTunnel6
	case j.Parts[0][innerAt]>>4 == 6:
		h.Type = unix.VIRTIO_NET_HDR_GSO_TCPV6 | typeTunnel6
	}
	return h
}
