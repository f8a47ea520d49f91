package gso

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Sample returns a joined packet with its header, from and to nobody (::), to find out
// whether a kernel takes such packets; lag as in Joined.Header.
func Sample(lag uint16) []byte {
	const segment, segments, tcp = 8, 2, innerAt + 20
	b := make([]byte, HeaderLen+tcp+tcpMinLen+segments*segment)
	p := b[HeaderLen:]
	p[0], p[6] = 6<<4, unix.IPPROTO_UDP
	p[outerLen+udpLen] = vxlanFlags
	binary.BigEndian.PutUint16(p[innerAt-2:], etherIPv4)
	p[innerAt], p[innerAt+9] = 4<<4|5, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(p[innerAt+6:], dontFrag)
	p[tcp+tcpDataOffset] = 5 << 4
	j := Joined{
		Parts:   [][]byte{p[:len(p)-segment], p[len(p)-segment:]},
		flow:    flow{at: tcp, head: tcp + tcpMinLen, size: segment},
		payload: segments * segment,
	}
	j.finish()
	j.Header(lag).Put(b)
	return b
}
