package agent

import (
	"net/netip"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// The one key epoch and lane of this version. Rotation will add epochs; every
// place that names a device goes through these two.
const (
	epoch ids.Epoch = 1
	lane  ids.Lane  = 0
)

// Input is everything that Desired looks at. It holds values only: two equal
// Inputs give equal Outputs, on any node and at any time.
type Input struct {
	Config      config.Config
	Self        Self
	Members     []Member     // the other nodes, in any order
	Attachments []Attachment // of this node, in any order
	Driver      DriverFacts
	Underlay    Underlay
}

// Self is this node.
type Self struct {
	ID     ids.NodeID
	Name   string
	Serial uint64 // of the certificate; the lower serial wins a dispute
	// Previous is the record this node published last, also before a restart.
	// Address blocks and the instance of a tunnel key continue from it.
	Previous record.Node
}

// Member is another node, from its certificate and its signed record. There
// is no liveness in it: what gossip believes must not change the data plane.
type Member struct {
	ID     ids.NodeID
	Name   string
	Serial uint64
	Record record.Node
}

// Attachment is an endpoint of this node as attach made it.
type Attachment struct {
	ID      string         `json:"id"` // 12 hexadecimal characters
	Network string         `json:"network"`
	Netns   string         `json:"netns"` // path it was attached by
	NsID    nl.ID          `json:"ns_id"` // what the path named then
	Addrs   []netip.Prefix `json:"addrs"` // with the subnet's length
	Ifname  string         `json:"ifname"`
	// Ready says that the kernel has it: only then do other nodes learn it.
	Ready bool `json:"ready"`
}

// DriverFacts is the tunnel driver that was chosen, and what it found.
type DriverFacts struct {
	Name       string      // tunnel.Kind.Name; empty if none works or none is needed
	Wire       record.Wire // what it speaks on the wire
	OverheadV4 int         // bytes it adds on an IPv4 underlay
	OverheadV6 int         // bytes it adds on an IPv6 underlay
	Refused    []api.Refusal
	State      tunnel.State
}

func (d DriverFacts) overhead(is4 bool) int {
	if is4 {
		return d.OverheadV4
	}
	return d.OverheadV6
}

// device returns the state of the device of the current epoch and lane.
func (d DriverFacts) device() (tunnel.DeviceState, bool) {
	for _, s := range d.State.Devices {
		if s.Epoch == epoch && s.Lane == lane && !s.Public.IsZero() {
			return s, true
		}
	}
	return tunnel.DeviceState{}, false
}

// Underlay is what the host namespace says about the way to other nodes.
type Underlay struct {
	Own    []OwnAddr               // published, in order of preference
	Routes map[netip.Addr]nl.Route // by destination; absent: no route
}

// OwnAddr is an address at which other nodes reach this one.
type OwnAddr struct {
	Control netip.AddrPort
	MTU     int // of the link that has the address
}

// Output is the complete desired state of this node.
type Output struct {
	Tunnel   tunnel.Spec // no devices if no encrypted network is wanted
	Secure   secure.Spec
	Networks []vxlan.Spec // sorted by name
	Record   record.Node  // content to publish; ID set, Seq not
	View     View
}

// View explains an Output: it is what status shows besides kernel facts.
type View struct {
	Networks  []NetworkView     // in the order of the configuration
	Peers     []PeerView        // nodes that share a network, sorted by ID
	Endpoints map[string]string // attachment ID -> why it is not plugged in
	Problems  []api.Problem
}

// NetworkView is one network of the configuration.
type NetworkView struct {
	Name      string
	Wanted    bool // false: not instantiated, Reason says why
	Reason    string
	MTU       int
	MTUFrom   string
	Agreed    []ids.NodeID // nodes that define it the same way
	Connected []ids.NodeID // of them, those that this node sends to
	Conflicts []api.Conflict
	Blocks    []netip.Prefix
	Full      []netip.Prefix // subnets in which this node has no free address and can claim none
	Total     int            // endpoints on all nodes that agree, disputed ones excluded
}

// PeerView is one node that shares a network with this one.
type PeerView struct {
	ID       ids.NodeID
	Name     string
	Underlay netip.AddrPort    // where its control plane is, of the family in use
	Tunnel   bool              // a tunnel to it is wanted
	Public   keys.TunnelPublic // its tunnel key; zero if none
	InnerMTU int               // bytes of a packet inside the tunnel; 0 without tunnel
	Networks []string
}
