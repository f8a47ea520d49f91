package nft

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
)

// Join makes one rule of parts.
func Join(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

// Accept ends a rule.
func Accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

// Counted counts what comes so far in a rule.
func Counted() []expr.Any { return []expr.Any{&expr.Counter{}} }

// Drop ends a rule, and counts.
func Drop() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

// Ifname matches a link's name (key MetaKeyIIFNAME or MetaKeyOIFNAME); without a
// trailing NUL, a prefix of it.
func Ifname(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(name)},
	}
}

// NotIfname matches every other link.
func NotIfname(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte(name)},
	}
}

// Is matches a value of one byte, such as MetaKeyL4PROTO.
func Is(key expr.MetaKey, value byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{value}},
	}
}

// Dport matches a destination port of UDP or TCP; the protocol is another part's.
func Dport(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
	}
}

// Types matches a range of ICMP types of a protocol, ICMP or ICMPv6.
func Types(protocol, from, to byte) []expr.Any {
	return Join(Is(expr.MetaKeyL4PROTO, protocol), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{from}, ToData: []byte{to}},
	})
}
