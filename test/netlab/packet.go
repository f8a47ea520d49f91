package netlab

import (
	"encoding/binary"
	"net/netip"
)

// Numbers of the link and network layers (IANA).
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	protoUDP  = 17
)

// UDPPacket builds an IP packet with a UDP payload and right checksums.
// Source and destination must be of one family; the source may be anybody's.
func UDPPacket(src, dst netip.AddrPort, payload []byte) []byte {
	udp := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(udp[0:], src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	udp = append(udp, payload...)
	sum := udpChecksum(src.Addr(), dst.Addr(), udp)
	binary.BigEndian.PutUint16(udp[6:], sum)
	if src.Addr().Is4() {
		return append(ipv4Header(src.Addr(), dst.Addr(), len(udp)), udp...)
	}
	return append(ipv6Header(src.Addr(), dst.Addr(), len(udp)), udp...)
}

// EthernetFrame puts an IP packet into an Ethernet frame.
func EthernetFrame(src, dst [6]byte, packet []byte) []byte {
	f := make([]byte, 14, 14+len(packet))
	copy(f, dst[:])
	copy(f[6:], src[:])
	typ := uint16(etherIPv4)
	if len(packet) > 0 && packet[0]>>4 == 6 {
		typ = etherIPv6
	}
	binary.BigEndian.PutUint16(f[12:], typ)
	return append(f, packet...)
}

// VXLANPayload puts an Ethernet frame behind a VXLAN header (RFC 7348, 8
// bytes): the payload of a UDP packet to port 4789.
func VXLANPayload(vni uint32, frame []byte) []byte {
	p := make([]byte, 8, 8+len(frame))
	p[0] = 0x08 // the VNI is valid
	binary.BigEndian.PutUint32(p[4:], vni<<8)
	return append(p, frame...)
}

func ipv4Header(src, dst netip.Addr, payload int) []byte {
	h := make([]byte, 20)
	h[0] = 0x45
	binary.BigEndian.PutUint16(h[2:], uint16(20+payload))
	h[8], h[9] = 64, protoUDP
	s, d := src.As4(), dst.As4()
	copy(h[12:], s[:])
	copy(h[16:], d[:])
	binary.BigEndian.PutUint16(h[10:], ^fold(sum16(0, h)))
	return h
}

func ipv6Header(src, dst netip.Addr, payload int) []byte {
	h := make([]byte, 40)
	h[0] = 0x60
	binary.BigEndian.PutUint16(h[4:], uint16(payload))
	h[6], h[7] = protoUDP, 64
	s, d := src.As16(), dst.As16()
	copy(h[8:], s[:])
	copy(h[24:], d[:])
	return h
}

// udpChecksum computes the checksum over pseudo header and segment, whose
// checksum field is zero. Zero is sent as 0xffff (RFC 768).
func udpChecksum(src, dst netip.Addr, udp []byte) uint16 {
	sum := sum16(0, src.AsSlice())
	sum = sum16(sum, dst.AsSlice())
	sum += protoUDP + uint32(len(udp))
	if c := ^fold(sum16(sum, udp)); c != 0 {
		return c
	}
	return 0xffff
}

// sum16 adds 16-bit words to a ones' complement sum (RFC 1071).
func sum16(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
