package gso

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Sample returns a VXLAN packet with a frame of a reserved type (IEEE 802, local experimental) and
// no use, to find out what a kernel does with such packets.
func Sample(from, to netip.Addr, port uint16, vni uint32) []byte {
	const etherExperimental = 0x88b5
	p := make([]byte, vxlanAt+vxlanLen+EthernetLen+46)
	n := uint16(len(p) - outerLen) //nolint:gosec // 76
	p[0], p[6], p[7] = 6<<4, unix.IPPROTO_UDP, 64
	binary.BigEndian.PutUint16(p[4:], n)
	copy(p[8:], from.AsSlice())
	copy(p[24:], to.AsSlice())
	udp := p[outerLen:]
	binary.BigEndian.PutUint16(udp, port)
	binary.BigEndian.PutUint16(udp[2:], port)
	binary.BigEndian.PutUint16(udp[4:], n)
	p[vxlanAt] = vxlanFlags
	binary.BigEndian.PutUint32(p[vxlanAt+4:], vni<<8)
	frame := p[vxlanAt+vxlanLen:]
	copy(frame, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
	binary.BigEndian.PutUint16(frame[12:], etherExperimental)
	putTransport(udp[udpChecksum:], sum(udp, pseudo(p, unix.IPPROTO_UDP, int(n))))
	return p
}
