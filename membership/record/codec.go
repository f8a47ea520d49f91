package record

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Domain begins the signed bytes of a record.
const Domain = "so-rec-v1"

const maxName = 63 // bytes of the name of a network, an endpoint or a service

// Sizes of the format (PROTOCOL.md): the smallest encoding of each list
// element, which bounds allocations, and of the largest record.
const (
	minUnderlay = 1 + 4 + 2 + 2
	tunnelSize  = 4 + 1 + 4 + 1 + 32 + 2
	minNetwork  = 4 + 1 + 1 + 1 + 2 + 1 + 1 + 1 + 1 + 1
	minPrefix   = 1 + 4 + 1
	minAttached = 4 + 6 + 1 + 1 + 1
	minAddr     = 1 + 4

	maxAddr   = 1 + 16
	maxPrefix = maxAddr + 1

	maxOptions = 1 + MaxSubnets*maxAddr + 1 + MaxSubnets*maxPrefix + 1 + netdef.MaxReserved*maxPrefix

	// MaxSize is the length in bytes of the largest record: 1,202,044.
	MaxSize = len(Domain) + 16 + 8 +
		1 + MaxEndpoints*(maxAddr+2+2) +
		1 + MaxTunnels*tunnelSize + 1 +
		2 + MaxNetworks*(4+1+maxName+1+2+1+MaxSubnets*maxPrefix+1+MaxBlocks*maxPrefix+maxOptions) +
		2 + MaxAttached*(4+6+1+MaxAddrs*maxAddr+1+1) + MaxNames +
		keys.SignatureSize
)

// Flags of a network.
const (
	flagEncrypted = 0x01
	flagBoth      = 0x02
	flagMoved     = 0x04
	flagInternal  = 0x08
	flagQuiet     = 0x10 // no broadcast

	networkFlags = flagEncrypted | flagBoth | flagMoved | flagInternal | flagQuiet
)

// Encode returns the bytes of a record without its signature: the domain and
// every field of n in canonical order. n must be valid once it is canonical;
// Sign checks that.
func Encode(n Node) []byte { return encode(n.Canonical()) }

// encode writes n in the order that it has.
func encode(n Node) []byte {
	w := &writer{b: make([]byte, 0, 256)}
	w.bytes([]byte(Domain))
	w.bytes(n.ID[:])
	w.u64(n.Seq)
	w.u8(uint8(len(n.Underlay)))
	for _, u := range n.Underlay {
		w.addr(u.Control.Addr())
		w.u16(u.Control.Port())
		w.u16(u.MTU)
	}
	w.u8(uint8(len(n.Tunnels)))
	for _, t := range n.Tunnels {
		w.u32(uint32(t.Epoch))
		w.u8(uint8(t.Lane))
		w.u32(t.Instance)
		w.u8(uint8(t.Wire))
		w.bytes(t.Public[:])
		w.u16(t.Port)
	}
	w.u8(uint8(n.Able))
	w.u16(uint16(len(n.Networks)))
	for _, net := range n.Networks {
		w.network(net)
	}
	w.u16(uint16(len(n.Attached)))
	for _, a := range n.Attached {
		w.u32(uint32(a.VNI))
		w.bytes(a.MAC[:])
		w.addrs(a.Addrs)
		w.name(a.Name)
		w.u8(uint8(len(a.Services)))
		for _, s := range a.Services {
			w.name(s)
		}
	}
	return w.b
}

func (w *writer) network(n Network) {
	w.u32(uint32(n.VNI))
	w.name(n.Name)
	w.u8(n.flags())
	w.u16(n.VTEPPort)
	w.prefixes(n.Subnets)
	w.prefixes(n.Blocks)
	w.addrs(n.Gateways)
	w.prefixes(n.Ranges)
	w.prefixes(n.Reserved)
}

func (n Network) flags() uint8 {
	var out uint8
	for flag, set := range map[uint8]bool{
		flagEncrypted: n.Encrypted, flagBoth: n.Both, flagMoved: n.Moved, flagInternal: n.Internal, flagQuiet: n.NoBroadcast,
	} {
		if set {
			out |= flag
		}
	}
	return out
}

// Sign returns the complete record of n. The error says what no record can
// hold; n.ID must be the ID of key.
func Sign(n Node, key keys.NodePrivate) ([]byte, error) {
	n = n.Canonical()
	if err := n.Validate(); err != nil {
		return nil, fmt.Errorf("sign record of node %s: %w", n.ID, err)
	}
	if n.ID != key.Public().ID() {
		return nil, fmt.Errorf("sign record of node %s: %w: key belongs to node %s", n.ID, ErrMalformed, key.Public().ID())
	}
	body := Encode(n)
	sig := key.Sign(Domain, body[len(Domain):])
	return append(body, sig[:]...), nil
}

// Parse reads a complete record. It checks everything but the signature,
// which needs the owner's certificate: see Verify. What parses re-encodes to
// the same bytes.
func Parse(raw []byte) (Node, error) {
	n, _, err := split(raw)
	return n, err
}

// split parses raw and returns where its signature begins.
func split(raw []byte) (n Node, signed int, err error) {
	if len(raw) > MaxSize {
		return Node{}, 0, malformed("%d bytes, at most %d", len(raw), MaxSize)
	}
	r := newReader(raw)
	if string(r.Take(len(Domain))) != Domain {
		r.Fail("does not begin with %s", Domain)
	}
	r.Fill(n.ID[:])
	n.Seq = r.U64()
	r.underlay(&n)
	r.tunnels(&n)
	n.Able = Able(r.U8())
	r.networks(&n)
	r.attached(&n)
	if left := len(r.Rest()); left != keys.SignatureSize {
		r.Fail("%d bytes after the content, want a signature of %d", left, keys.SignatureSize)
	}
	if r.Err() != nil {
		return Node{}, 0, r.Err()
	}
	if err := n.Validate(); err != nil {
		return Node{}, 0, err
	}
	signed = len(raw) - keys.SignatureSize
	// The checks above leave one encoding per content. This comparison does
	// not depend on their being complete: two spellings of one content would
	// be two records with one sequence number.
	if !bytes.Equal(Encode(n), raw[:signed]) {
		return Node{}, 0, malformed("not in canonical form")
	}
	return n, signed, nil
}

func (r reader) underlay(n *Node) {
	k := r.Count("underlay addresses", int(r.U8()), MaxEndpoints, minUnderlay)
	for range k {
		n.Underlay = append(n.Underlay, Underlay{Control: netip.AddrPortFrom(r.addr(), r.U16()), MTU: r.U16()})
	}
}

func (r reader) tunnels(n *Node) {
	k := r.Count("tunnels", int(r.U8()), MaxTunnels, tunnelSize)
	for range k {
		t := Tunnel{Epoch: ids.Epoch(r.U32()), Lane: ids.Lane(r.U8()), Instance: r.U32(), Wire: Wire(r.U8())}
		r.Fill(t.Public[:])
		t.Port = r.U16()
		n.Tunnels = append(n.Tunnels, t)
	}
}

func (r reader) networks(n *Node) {
	k := r.Count("networks", int(r.U16()), MaxNetworks, minNetwork)
	if k > 0 {
		n.Networks = make([]Network, 0, k)
	}
	for range k {
		w := r.network()
		if r.Err() != nil {
			return
		}
		n.Networks = append(n.Networks, w)
	}
}

func (r reader) network() Network {
	w := Network{VNI: ids.VNI(r.U32())}
	w.Name = r.name("network")
	flags := r.U8()
	if flags&^networkFlags != 0 {
		r.Fail("network flags %#x", flags)
	}
	w.Encrypted, w.Both, w.Moved = flags&flagEncrypted != 0, flags&flagBoth != 0, flags&flagMoved != 0
	w.Internal, w.NoBroadcast = flags&flagInternal != 0, flags&flagQuiet != 0
	w.VTEPPort = r.U16()
	w.Subnets = r.prefixes("subnets", MaxSubnets)
	w.Blocks = r.prefixes("blocks", MaxBlocks)
	w.Gateways = r.addrs("gateways", MaxSubnets)
	w.Ranges = r.prefixes("address ranges", MaxSubnets)
	w.Reserved = r.prefixes("reserved prefixes", netdef.MaxReserved)
	return w
}

// AppendNetwork appends the encoding that a network has in a record. n must be
// valid (Network.Validate).
func AppendNetwork(b []byte, n Network) []byte {
	w := &writer{b: b}
	w.network(n)
	return w.b
}

// CutNetwork takes a network off the front of b and returns the rest.
func CutNetwork(b []byte) (Network, []byte, error) {
	r := newReader(b)
	n := r.network()
	err := r.Err()
	if err == nil {
		err = n.Validate()
	}
	if err != nil {
		return Network{}, nil, fmt.Errorf("read network: %w", err)
	}
	return n, r.Rest(), nil
}

func (r reader) name(of string) string {
	return string(r.Take(r.Count("bytes of the name of a "+of, int(r.U8()), maxName, 1)))
}

func (r reader) addrs(what string, limit int) []netip.Addr {
	k := r.Count(what, int(r.U8()), limit, minAddr)
	if k == 0 {
		return nil
	}
	out := make([]netip.Addr, k)
	for i := range out {
		out[i] = r.addr()
	}
	return out
}

func (r reader) prefixes(what string, limit int) []netip.Prefix {
	k := r.Count(what, int(r.U8()), limit, minPrefix)
	if k == 0 {
		return nil
	}
	out := make([]netip.Prefix, k)
	for i := range out {
		out[i] = r.prefix()
	}
	return out
}

func (r reader) attached(n *Node) {
	k := r.Count("endpoints", int(r.U16()), MaxAttached, minAttached)
	if k > 0 {
		n.Attached = make([]Attached, 0, k)
	}
	for range k {
		a := Attached{VNI: ids.VNI(r.U32())}
		r.Fill(a.MAC[:])
		a.Addrs = r.addrs("addresses of an endpoint", MaxAddrs)
		a.Name = r.name("endpoint")
		for range r.Count("services of an endpoint", int(r.U8()), MaxServices, 1+1) {
			a.Services = append(a.Services, r.name("service"))
		}
		if r.Err() != nil {
			return
		}
		n.Attached = append(n.Attached, a)
	}
}
