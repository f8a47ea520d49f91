package espuser

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// ecn is the mark by which routers say that they are congested instead of dropping packets (RFC 3168). It is
// copied to the outer header and back as RFC 6040 has it (sections 4.1, normal mode, and 4.2), and as the kernel's
// ESP does. Nothing else of the inner header is shown outside.
type ecn uint8

// The marks.
const (
	notECT ecn = 0 // the sender does not know of marks
	ect1   ecn = 1
	ect0   ecn = 2
	ce     ecn = 3 // congestion experienced

	ecnMask = 3
)

// ecnOf returns the mark of an IPv6 packet: the last two bits of its traffic class.
func ecnOf(p []byte) ecn { return ecn(p[1] >> 4 & ecnMask) }

// copyTo gives a packet that was inside the mark that it has from the way; false: it is to be dropped, since its
// sender would not understand that.
func (outer ecn) copyTo(p []byte) bool {
	inner := ecnOf(p)
	switch {
	case outer == ce && inner == notECT:
		return false
	case outer == ce, outer == ect1 && inner == ect0:
		p[1] = p[1]&^(ecnMask<<4) | byte(outer)<<4
	}
	return true
}

// ecnMessage appends the control message that gives what is sent a mark.
func ecnMessage(b []byte, is4 bool, mark ecn) []byte {
	var data [4]byte
	binary.NativeEndian.PutUint32(data[:], uint32(mark))
	if is4 {
		return appendControl(b, unix.IPPROTO_IP, unix.IP_TOS, data[:])
	}
	return appendControl(b, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, data[:])
}
