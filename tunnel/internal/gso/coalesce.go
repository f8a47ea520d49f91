package gso

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

const (
	// maxPacket is the longest packet that is made, in bytes: with its Ethernet header it must be
	// shorter than the 64 KiB that a link takes unsplit unless it is told otherwise (gso_max_size).
	maxPacket = 1<<16 - 1 - EthernetLen
	// maxDatagrams is what Linux lets a socket send at once (UDP_MAX_SEGMENTS, 64 before 6.13):
	// no receiver meets more.
	maxDatagrams = 64
)

// Coalescer joins VXLAN datagrams of one flow and one length. It is used by one goroutine at a
// time.
type Coalescer struct {
	joined []Joined
}

// Joined is one packet to be written: a packet as it came, or several in one.
type Joined struct {
	// Parts are the packet's bytes, in order; the first begins with all headers.
	Parts [][]byte

	flow bool // it is VXLAN, so that the order matters
	open bool // another datagram may follow
	size int  // of the first datagram's payload, behind UDP
	len  int  // of the whole packet
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
	flow := isVXLAN(p)
	whole := flow && intact(p)
	if flow {
		// The flow's last packet is the only one that may grow: so a flow's packets keep
		// their order.
		for i := len(c.joined) - 1; i >= 0; i-- {
			j := &c.joined[i]
			if !j.flow || !sameFlow(j.Parts[0], p) {
				continue
			}
			if whole && j.open && j.takes(p) {
				j.append(p)
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
	j.flow, j.open, j.size, j.len = flow, whole, len(p)-vxlanAt, len(p)
}

// isVXLAN reports whether a packet is VXLAN over UDP over IPv6 without extensions.
func isVXLAN(p []byte) bool {
	return len(p) >= vxlanAt+vxlanLen && p[0]>>4 == 6 && p[6] == unix.IPPROTO_UDP && p[vxlanAt] == vxlanFlags
}

// intact reports whether a VXLAN packet's lengths and its checksum are right. Joined, the kernel
// computes them anew: an end would get what was broken on the way. Over IPv6 there must be a
// checksum (RFC 8200, 8.1): one that is not there is the kernel's to refuse.
func intact(p []byte) bool {
	udp := p[outerLen:]
	n := uint16(len(udp)) //nolint:gosec // longer ones are found out by what they say themselves
	return len(udp) <= 0xffff && binary.BigEndian.Uint16(p[4:]) == n && binary.BigEndian.Uint16(udp[4:]) == n &&
		binary.NativeEndian.Uint16(udp[udpChecksum:]) != 0 && fold(sum(udp, pseudo(p, unix.IPPROTO_UDP, len(udp)))) == 0xffff
}

// sameFlow reports whether two VXLAN packets have the same addresses and ports.
func sameFlow(a, b []byte) bool { return bytes.Equal(a[8:outerLen+4], b[8:outerLen+4]) }

// takes reports whether p, of the same flow as j, may become a part of it: equal to the first in all
// headers but lengths and checksum. VXLAN's header is among them, since the kernel looks at the
// first one only: what the secure namespace's firewall says of the joined packet, by its source
// and its VNI, is what it would have said of each. Without that, a peer could take frames of a
// network that it has no part in past the firewall, behind one that it may send.
func (j *Joined) takes(p []byte) bool {
	a := j.Parts[0]
	size := len(p) - vxlanAt
	return size <= j.size && j.len+size <= maxPacket && len(j.Parts) < maxDatagrams &&
		bytes.Equal(a[:4], p[:4]) && bytes.Equal(a[6:8], p[6:8]) && bytes.Equal(a[vxlanAt:vxlanAt+vxlanLen], p[vxlanAt:vxlanAt+vxlanLen])
}

func (j *Joined) append(p []byte) {
	payload := p[vxlanAt:]
	j.Parts = append(j.Parts, payload)
	j.len += len(payload)
	j.open = len(payload) == j.size // a shorter one can only be the last
}

// finish makes the headers those of the whole packet, with the sum of the pseudo header where
// the checksum goes.
func (j *Joined) finish() {
	p := j.Parts[0]
	n := j.len - outerLen
	binary.BigEndian.PutUint16(p[4:], uint16(n))          //nolint:gosec // at most maxPacket
	binary.BigEndian.PutUint16(p[outerLen+4:], uint16(n)) //nolint:gosec // likewise
	put(p[outerLen+udpChecksum:], fold(pseudo(p, unix.IPPROTO_UDP, n)))
}

// Header describes the packet to a packet socket.
func (j *Joined) Header() Header {
	if len(j.Parts) == 1 {
		return Header{}
	}
	return Header{
		Flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, Type: unix.VIRTIO_NET_HDR_GSO_UDP_L4,
		Len: vxlanAt, Size: uint16(j.size), //nolint:gosec // at most maxPacket
		ChecksumStart: outerLen, ChecksumOffset: udpChecksum,
	}
}
