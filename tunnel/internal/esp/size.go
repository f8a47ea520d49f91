package esp

import "net/netip"

const udpLen = 8

// Overhead is what ESP in tunnel mode adds at most to a packet on an underlay of the family of an
// address, in bytes (RFC 4303 section 2, RFC 4106 section 3): the outer IP header and MaxOverhead.
func Overhead(underlay netip.Addr) int {
	if underlay.Unmap().Is4() {
		return 20 + MaxOverhead
	}
	return 40 + MaxOverhead
}

// OverheadInUDP is the same of ESP in UDP.
func OverheadInUDP(underlay netip.Addr) int { return Overhead(underlay) + udpLen }

// LongestInUDP is the length of the longest inner packet that travels in ESP in
// UDP on an underlay of an MTU: the packet and the two bytes of trailer are
// padded to a multiple of four, so most underlays have room for more than
// OverheadInUDP says.
func LongestInUDP(underlay netip.Addr, mtu int) int {
	room := mtu - (OverheadInUDP(underlay) - (align - 1) - trailerLen)
	return room&^(align-1) - trailerLen
}
