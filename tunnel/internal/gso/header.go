package gso

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Lengths of the headers in front of a packet on a packet socket: struct virtio_net_hdr and
// Ethernet without tags.
const (
	HeaderLen   = 10
	EthernetLen = 14
)

// Header says how a packet is to be split and what checksum is missing.
// Offsets are in bytes from the start of the packet, which is an IP packet.
type Header struct {
	Flags          uint8  // unix.VIRTIO_NET_HDR_F_*
	Type           uint8  // unix.VIRTIO_NET_HDR_GSO_*; of the inner packet, where there is a tunnel
	Len            uint16 // of all headers, a hint
	Size           uint16 // payload bytes of a segment
	ChecksumStart  uint16 // where the checksum begins: the (inner) transport header
	ChecksumOffset uint16 // from there to where it goes
}

// Decode reads what a packet socket gives, and returns the IP packet and its header. Numbers
// have the machine's byte order. An error matches ErrMalformed.
func Decode(b []byte) (Header, []byte, error) {
	if len(b) <= HeaderLen+EthernetLen {
		return Header{}, nil, fmt.Errorf("%w: %d bytes, its headers have %d", ErrMalformed, len(b), HeaderLen+EthernetLen)
	}
	at := func(i int) uint16 { return binary.NativeEndian.Uint16(b[i:]) }
	h := Header{Flags: b[0], Type: b[1], Len: at(2), Size: at(4), ChecksumStart: at(6), ChecksumOffset: at(8)}
	if h.Flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
		if h.ChecksumStart < EthernetLen {
			return Header{}, nil, fmt.Errorf("%w: checksum from byte %d on, in the Ethernet header", ErrMalformed, h.ChecksumStart)
		}
		h.ChecksumStart -= EthernetLen
	}
	return h, b[HeaderLen+EthernetLen:], nil
}

// Put is the inverse of Decode. It leaves the Ethernet header as it is: the first HeaderLen bytes
// of b are the header.
func (h Header) Put(b []byte) {
	if h.Flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
		h.ChecksumStart += EthernetLen
	}
	put := func(i int, v uint16) { binary.NativeEndian.PutUint16(b[i:], v) }
	b[0], b[1] = h.Flags, h.Type
	put(2, h.Len)
	put(4, h.Size)
	put(6, h.ChecksumStart)
	put(8, h.ChecksumOffset)
}

// ErrMalformed: a packet is not what its header says. It is to be dropped and counted.
var ErrMalformed = errors.New("malformed packet")

// Lengths and numbers of VXLAN over IPv6 without extensions.
const (
	outerLen = 40
	vxlanAt  = outerLen + udpLen
	vxlanLen = 8
	tagLen   = 4 // of a VLAN tag

	vxlanFlags = 0x08 // the VNI is valid; everything else is reserved (RFC 7348, 5)
	etherVLAN  = 0x8100
	etherQinQ  = 0x88a8
	maxTags    = 2
)

// innerIP returns where the inner IP packet begins in a UDP packet whose UDP header is at
// transport; -1 if it is not VXLAN or has more than two VLAN tags.
func innerIP(p []byte, transport int) int {
	vxlan := transport + udpLen
	at := vxlan + vxlanLen + EthernetLen
	if len(p) < at || p[vxlan] != vxlanFlags {
		return -1
	}
	for range maxTags {
		switch binary.BigEndian.Uint16(p[at-2:]) {
		case etherVLAN, etherQinQ:
			if at += tagLen; len(p) < at {
				return -1
			}
		default:
			return at
		}
	}
	return at
}
