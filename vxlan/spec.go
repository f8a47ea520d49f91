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
	// Also is the underlay address of the other IP family, where the nodes of a
	// plaintext network have no family in common: a further device on the same
	// bridge. Frames go by the device of the family of the VTEP that they go to.
	Also netip.Addr `json:",omitzero"`
	Port uint16     // UDP destination port of VXLAN
	MTU  int        // of bridge, VXLAN device and veths, in bytes of IP packet
	// Burst is the largest packet, in bytes, that the stack of an endpoint hands over to
	// be cut into packets later (IFLA_GSO_MAX_SIZE): what passes an encrypting process at
	// once. 0: as the kernel has it. A hint, set where an endpoint is set up.
	Burst int `json:",omitzero"`
	Flood []netip.Addr
	// Other is the form that Encrypted is not, while the network changes from one
	// to the other: a second device on the same bridge, which receives as well.
	// To each node frames go through one of the two.
	Other     *Way
	Remotes   []Remote
	Endpoints []Endpoint
}

// Way is one form of a network: where its devices send from, and to whom what is
// for all. Also is as in Spec.
type Way struct {
	Local netip.Addr
	Also  netip.Addr `json:",omitzero"`
	Flood []netip.Addr
}

// Locals are the addresses that a form sends from, one for each device.
func (w Way) Locals() []netip.Addr {
	if !w.Also.IsValid() {
		return []netip.Addr{w.Local}
	}
	return []netip.Addr{w.Local, w.Also}
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
		return &Way{s.Local, s.Also, s.Flood}
	}
	return s.Other
}

// With returns the network with a form that it has replaced.
func (s Spec) With(encrypted bool, w Way) Spec {
	if s.Encrypted == encrypted {
		s.Local, s.Also, s.Flood = w.Local, w.Also, w.Flood
	} else {
		s.Other = &w
	}
	return s
}

// way is what goes through one device.
type way struct {
	name  string // of the device
	birth Birthplace
	local netip.Addr
	flood []netip.Addr
	other bool // it is of Spec.Other
}

// carries reports whether a remote is reached by the device.
func (w way) carries(r Remote) bool { return r.Other == w.other && r.VTEP.Is4() == w.local.Is4() }

// ways lists the devices that a network is to have: those of Encrypted's form first.
func (s Spec) ways() []way {
	var out []way
	add := func(f Way, encrypted, other bool) {
		for _, local := range f.Locals() {
			w := way{birth: BornHost, local: local, other: other}
			if encrypted {
				w.birth = BornSecure
			}
			w.name = nameOf(w.birth, local)
			for _, v := range f.Flood {
				if v.Is4() == local.Is4() {
					w.flood = append(w.flood, v)
				}
			}
			out = append(out, w)
		}
	}
	add(*s.Way(s.Encrypted), s.Encrypted, false)
	if s.Other != nil {
		add(*s.Other, !s.Encrypted, true)
	}
	return out
}
