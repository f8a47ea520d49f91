package xfrm

import (
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Form of every association.
const (
	// Window is how many packets may overtake one another (RFC 4303 section
	// 3.4.3 asks for at least 32).
	Window = 1024
	// aead is AES in Galois/counter mode as RFC 4106 uses it, in the words of
	// the kernel's crypto API.
	aead = "rfc4106(gcm(aes))"
	// tagBits is the length of the integrity check value: the longest.
	tagBits = 128
)

// State is an ESP security association in tunnel mode, without its key.
type State struct {
	Src, Dst netip.Addr // outer addresses
	SPI      ids.SPI
	IfID     uint32 // of the xfrm interface it belongs to
	ReqID    uint32 // a number of our own, which policies ask for
	// From and To are the selector: the one inner source and destination that
	// may pass through it. The kernel drops a decrypted packet with others.
	From, To netip.Addr
	Encap    Encap
}

// Encap are the UDP ports of ESP in UDP (RFC 3948); zero: plain ESP.
type Encap struct{ Src, Dst uint16 }

// Name is what the kernel finds an association by.
type Name struct {
	Dst netip.Addr
	SPI ids.SPI
}

// Name returns the association's name.
func (s State) Name() Name { return Name{s.Dst, s.SPI} }

// Dir is the direction of a policy; the values are the kernel's.
type Dir uint8

// The directions in use. Packets leave the xfrm interface in a namespace of
// its own, where the kernel checks them against In policies, also those that
// it forwards there.
const (
	In  Dir = 0
	Out Dir = 1
)

// Policy says that packets from one inner address to another through an xfrm
// interface must use one association.
type Policy struct {
	Dir      Dir
	IfID     uint32
	From, To netip.Addr // inner addresses
	Src, Dst netip.Addr // outer addresses of the association
	SPI      ids.SPI
	ReqID    uint32
}

// Policy returns the policy that asks for exactly s.
func (s State) Policy(d Dir) Policy {
	return Policy{Dir: d, IfID: s.IfID, From: s.From, To: s.To, Src: s.Src, Dst: s.Dst, SPI: s.SPI, ReqID: s.ReqID}
}

// Name returns the name of the association that p asks for.
func (p Policy) Name() Name { return Name{p.Dst, p.SPI} }

// Usage is what the kernel tells of an association without its key.
type Usage struct {
	Src         netip.Addr
	IfID, ReqID uint32
	Bytes       uint64 // of inner packets
	Packets     uint64
}
