package vxlan

import (
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Spec is the complete desired state of one overlay network on this host.
// Slices are sorted (VTEPs and MACs ascending), so equal states compare equal.
type Spec struct {
	Network   string
	VNI       ids.VNI
	Encrypted bool       // true: born in the secure namespace; false: in the host's
	Local     netip.Addr // VTEP address: inner address if encrypted, underlay address if not
	Port      uint16     // UDP destination port of VXLAN
	MTU       int        // of bridge, VXLAN device and veths, in bytes of IP packet
	Flood     []netip.Addr
	// Other is the form that Encrypted is not, while the network changes from one
	// to the other: a second device on the same bridge, which receives as well.
	// To each node frames go through one of the two.
	Other     *Way
	Remotes   []Remote
	Endpoints []Endpoint
}

// Way is one form of a network: where its device sends from, and to whom what is
// for all.
type Way struct {
	Local netip.Addr
	Flood []netip.Addr
}

// Remote is an endpoint on another node, known from that node's signed record.
type Remote struct {
	MAC   ids.MAC
	Addrs []netip.Addr
	VTEP  netip.Addr
	Other bool // VTEP is one of Spec.Other
}

// Endpoint is a local attachment: a veth pair, one end a bridge port, the
// other in the endpoint's network namespace.
type Endpoint struct {
	ID     string // 12 hexadecimal characters, chosen by the agent
	MAC    ids.MAC
	Addrs  []netip.Prefix // address with the subnet's prefix length
	Netns  string         // path of the endpoint's namespace
	NsID   nl.ID          // identity of that namespace when it was attached
	Ifname string         // name of the link inside it
	// Ways are the gateways of its default routes, at most one of a family. A default
	// route that its namespace has already is not touched.
	Ways []netip.Addr
	// Apart: frames pass between it and endpoints of this node, and none between it
	// and other nodes. So every node can have one of the same MAC and addresses.
	Apart bool
}

// Way returns a form of the network, nil if it has it not.
func (s Spec) Way(encrypted bool) *Way {
	if s.Encrypted == encrypted {
		return &Way{s.Local, s.Flood}
	}
	return s.Other
}

// WithFlood returns the network with another flood list of a form that it has.
func (s Spec) WithFlood(encrypted bool, flood []netip.Addr) Spec {
	if s.Encrypted == encrypted {
		s.Flood = flood
	} else {
		s.Other = &Way{s.Other.Local, flood}
	}
	return s
}

// way is one form of a network with its device.
type way struct {
	Way
	birth  Birthplace
	remote func(Remote) bool // whether a remote is reached by it
}

// ways lists the forms that a network is to have: Encrypted's first.
func (s Spec) ways() []way {
	births := []Birthplace{BornHost, BornSecure}
	if s.Encrypted {
		births = []Birthplace{BornSecure, BornHost}
	}
	out := []way{{Way{s.Local, s.Flood}, births[0], func(r Remote) bool { return !r.Other }}}
	if s.Other != nil {
		out = append(out, way{*s.Other, births[1], func(r Remote) bool { return r.Other }})
	}
	return out
}
