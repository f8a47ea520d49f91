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
	Remotes   []Remote
	Endpoints []Endpoint
}

// Remote is an endpoint on another node, known from that node's signed record.
type Remote struct {
	MAC   ids.MAC
	Addrs []netip.Addr
	VTEP  netip.Addr
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
}
