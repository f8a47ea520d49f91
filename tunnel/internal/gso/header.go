package gso

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// HeaderLen is the length of an encoded Header in bytes: struct
// virtio_net_hdr_v1_hash_tunnel of Linux 6.17, to be set by TUNSETVNETHDRSZ.
const HeaderLen = 24

// Offload is what TUNSETOFFLOAD must be told so that the kernel hands over and takes
// packets as Header describes them. TSO_ECN is not in it: the kernel splits
// packets with CWR itself, which only the first segment may keep.
const Offload = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6 |
	tunnelGSO | tunnelGSOChecksum

// Not in x/sys yet: <linux/if_tun.h> and <linux/virtio_net.h> of Linux 6.17 (virtio
// 1.4, 5.1.6.1).
const (
	tunnelGSO         = 0x080 // TUN_F_UDP_TUNNEL_GSO
	tunnelGSOChecksum = 0x100 // TUN_F_UDP_TUNNEL_GSO_CSUM

	flagTunnelChecksum = 8    // VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM
	typeTunnel4        = 0x20 // VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4
	typeTunnel6        = 0x40 // VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6
)

// Header says how a packet is to be split and what checksum is missing.
// Offsets are in bytes from the start of the packet, which is an IP packet.
type Header struct {
	Flags          uint8  // unix.VIRTIO_NET_HDR_F_*
	Type           uint8  // unix.VIRTIO_NET_HDR_GSO_*
	Len            uint16 // of all headers, a hint
	Size           uint16 // payload bytes of a segment
	ChecksumStart  uint16 // where the checksum begins: the (inner) transport header
	ChecksumOffset uint16 // from there to where it goes
	OuterTransport uint16 // the outer UDP header, with a tunnel
	InnerNetwork   uint16 // the inner IP header, with a tunnel
}

// Decode reads a header from the first HeaderLen bytes of b. Numbers have the machine's byte
// order, as TUN links have them unless told otherwise, but for the two of the tunnel,
// which are little endian.
func Decode(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, fmt.Errorf("%w: %d bytes, its virtio header has %d", ErrMalformed, len(b), HeaderLen)
	}
	at := func(i int) uint16 { return binary.NativeEndian.Uint16(b[i:]) }
	return Header{
		Flags: b[0], Type: b[1], Len: at(2), Size: at(4), ChecksumStart: at(6), ChecksumOffset: at(8),
		// Bytes 10 to 19 are the number of buffers and the hash, which TUN leaves at zero.
		OuterTransport: binary.LittleEndian.Uint16(b[20:]), InnerNetwork: binary.LittleEndian.Uint16(b[22:]),
	}, nil
}

// Put writes the header to the first HeaderLen bytes of b.
func (h Header) Put(b []byte) {
	clear(b[:HeaderLen])
	put := func(i int, v uint16) { binary.NativeEndian.PutUint16(b[i:], v) }
	b[0], b[1] = h.Flags, h.Type
	put(2, h.Len)
	put(4, h.Size)
	put(6, h.ChecksumStart)
	put(8, h.ChecksumOffset)
	binary.LittleEndian.PutUint16(b[20:], h.OuterTransport)
	binary.LittleEndian.PutUint16(b[22:], h.InnerNetwork)
}

// ErrMalformed: a packet is not what its header says. It is to be dropped and counted.
var ErrMalformed = errors.New("malformed packet")

func (h Header) tunnel() bool { return h.Type&(typeTunnel4|typeTunnel6) != 0 }

// inner is the type without what it says of the tunnel.
func (h Header) inner() uint8 { return h.Type &^ (typeTunnel4 | typeTunnel6) }
