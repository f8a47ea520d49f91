package membertest

import (
	"encoding/binary"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Types of memberlist's messages, the first byte (PROTOCOL.md, section 10).
const (
	Ping     = 0
	PushPull = 6
	User     = 8
	Compress = 9

	suspect = 3
	alive   = 4
	dead    = 5
)

// Field is one entry of a memberlist message: a uint32, uint16, text or bytes.
type Field struct {
	Name  string // at most 31 bytes
	Value any
}

// Gossip encodes a memberlist message as any member can: its type and a msgpack
// map of the fields. Texts and bytes have at most 31 bytes.
func Gossip(kind byte, fields ...Field) []byte {
	b := []byte{kind, 0x80 | byte(len(fields))}
	str := func(s string) { b = append(append(b, 0xa0|byte(len(s))), s...) }
	for _, f := range fields {
		str(f.Name)
		switch v := f.Value.(type) {
		case uint32:
			b = binary.BigEndian.AppendUint32(append(b, 0xce), v)
		case uint16:
			b = binary.BigEndian.AppendUint16(append(b, 0xcd), v)
		case string:
			str(v)
		case []byte:
			str(string(v))
		}
	}
	return b
}

// Dead says that from holds node for dead; if both are the same, that it has left.
func Dead(incarnation uint32, node, from ids.NodeID) []byte {
	return accuse(dead, incarnation, node, from)
}

// Suspect says that from suspects node.
func Suspect(incarnation uint32, node, from ids.NodeID) []byte {
	return accuse(suspect, incarnation, node, from)
}

func accuse(kind byte, incarnation uint32, node, from ids.NodeID) []byte {
	return Gossip(kind, Field{"Incarnation", incarnation}, Field{"Node", node.String()}, Field{"From", from.String()})
}

// Alive says that a node of this name is at an address, with its protocol
// versions (6 bytes).
func Alive(incarnation uint32, name string, addr []byte, port uint16, versions []byte) []byte {
	return Gossip(alive, Field{"Incarnation", incarnation}, Field{"Node", name}, Field{"Addr", addr},
		Field{"Port", port}, Field{"Meta", []byte{}}, Field{"Vsn", versions})
}
