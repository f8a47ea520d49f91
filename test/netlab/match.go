package netlab

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Matcher decides on one captured frame, which starts at the link-layer
// header. It must not keep the slice.
type Matcher func(frame []byte) bool

// Any matches every frame.
func Any() Matcher { return func([]byte) bool { return true } }

// ContainsMarker matches frames that contain the marker anywhere. The whole
// frame is searched, also a 64 KiB one that the kernel has not segmented yet.
// A marker can be cut by a segment boundary: payloads repeat it.
func ContainsMarker(marker []byte) Matcher {
	m := bytes.Clone(marker)
	return func(frame []byte) bool { return bytes.Contains(frame, m) }
}

// UDPPort matches Ethernet frames that hold an IPv4 or IPv6 UDP packet from
// or to one of the ports.
func UDPPort(ports ...uint16) Matcher {
	return func(frame []byte) bool {
		udp := udpHeader(frame)
		return udp != nil && (slices.Contains(ports, binary.BigEndian.Uint16(udp)) || slices.Contains(ports, binary.BigEndian.Uint16(udp[2:])))
	}
}

// Fragment matches fragments of IPv4 and IPv6 packets.
func Fragment() Matcher {
	return func(frame []byte) bool {
		if len(frame) < 14+40 {
			return false
		}
		ip := frame[14:]
		switch binary.BigEndian.Uint16(frame[12:]) {
		case etherIPv4:
			return binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 // more fragments, or an offset (RFC 791)
		case etherIPv6:
			return ip[6] == 44 // fragment header (RFC 8200 section 4.5)
		}
		return false
	}
}

// All matches frames that every matcher matches.
func All(ms ...Matcher) Matcher {
	return func(frame []byte) bool {
		for _, m := range ms {
			if !m(frame) {
				return false
			}
		}
		return true
	}
}

// udpHeader finds the UDP header of an Ethernet frame, or nil. A later
// fragment has none. Extension headers are not followed.
func udpHeader(frame []byte) []byte {
	if len(frame) < 14 {
		return nil
	}
	ip := frame[14:]
	var at int
	switch binary.BigEndian.Uint16(frame[12:]) {
	case etherIPv4:
		if len(ip) < 20 || ip[9] != protoUDP || binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 {
			return nil
		}
		at = int(ip[0]&0x0f) * 4
	case etherIPv6:
		if len(ip) < 40 || ip[6] != protoUDP {
			return nil
		}
		at = 40
	default:
		return nil
	}
	if len(ip) < at+8 {
		return nil
	}
	return ip[at:]
}
