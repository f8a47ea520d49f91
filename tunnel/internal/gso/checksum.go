package gso

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071). sum adds 16-bit words in whatever byte order the
// machine has, which changes nothing but the order of the two bytes of the result
// (section 2 B there); fold and put are where it matters. Every part that is added
// must begin at an even distance from the first.

// sum adds b to s, a one's complement sum of 64 bits.
func sum(b []byte, s uint64) uint64 {
	var carry uint64
	for len(b) >= 64 {
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b), 0)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[8:]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[16:]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[24:]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[32:]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[40:]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[48:]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[56:]), carry)
		s += carry
		b = b[64:]
	}
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b), 0)
		s += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(last[:]), 0)
		s += carry
	}
	return s
}

// fold returns s as 16 bits, still in the machine's byte order.
func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// put writes a sum, or its complement, to the two bytes where a checksum goes.
func put(b []byte, v uint16) { binary.NativeEndian.PutUint16(b, v) }

// word is a number as it is in a packet, for sum.
func word(v uint16) uint64 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return uint64(binary.NativeEndian.Uint16(b[:]))
}

// add adds two sums.
func add(a, b uint64) uint64 {
	s, carry := bits.Add64(a, b, 0)
	return s + carry
}

// pseudo is the sum of the pseudo header of TCP or UDP (RFC 9293 3.1, RFC 8200 8.1) with
// length n in the IP packet ip, whose header has been checked.
func pseudo(ip []byte, protocol uint8, n int) uint64 {
	s := add(word(uint16(protocol)), word(uint16(n)))
	if ip[0]>>4 == 4 {
		return sum(ip[12:20], s)
	}
	return sum(ip[8:40], s)
}
