package agent

import (
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/agent/ipam"
	"github.com/secure-overlay/secure-overlay/agent/resolver"
	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
	"github.com/secure-overlay/secure-overlay/vxlan/gateway"
)

// lane is the one lane of this version: places that name a device carry its
// number, so that a pair can later use several.
const lane ids.Lane = 0

// Input is everything that Desired looks at. It holds values only: two equal
// Inputs give equal Outputs, on any node and at any time.
type Input struct {
	Config      config.Config
	Self        Self
	Members     []Member     // the other nodes, in any order
	Attachments []Attachment // of this node, in any order
	// Blocks are this node's claims, and Wanted those that an attach asks for.
	// Barred are blocks that it must not claim, and whose they are.
	Blocks   []ipam.Own
	Wanted   []ipam.Block
	Barred   map[ipam.Block]ids.NodeID
	Tunnels  TunnelFacts
	Underlay Underlay
	Gateway  GatewayFacts
	// Forms are those that the kernel has of networks, by name, as far as this
	// agent has brought it there.
	Forms map[string]Forms
}

// Forms of a network are its devices in the kernel. Old says that the last change
// of it failed, so that frames may still go where they are not to go any more.
type Forms struct{ Encrypted, Clear, Old bool }

// Self is this node.
type Self struct {
	ID     ids.NodeID
	Name   string
	Serial uint64 // of the certificate; the lower serial wins a dispute
	// Previous is the record this node published last, also before a restart.
	// The instance of a tunnel key continues from it.
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
	// MAC is a chosen one; zero: it follows from network and address.
	MAC      ids.MAC      `json:"mac,omitzero"`
	Name     string       `json:"name,omitempty"` // label of a domain name
	Services []string     `json:"services,omitempty"`
	Ways     []netip.Addr `json:"ways,omitempty"` // gateways of its default routes
	// Ready says that the kernel has it: only then do other nodes learn it.
	Ready bool `json:"ready"`
}

// TunnelFacts is what this node has of tunnels, and what the rotation machine
// wants of them.
type TunnelFacts struct {
	// Driver is the tunnel.Kind.Name with which a device of the target epoch is
	// made, or of the newest device where that cannot be; empty: none works,
	// or none is needed.
	Driver  string
	Refused []api.Refusal
	// Replace: the configuration or the target names Driver, so a device of
	// the target epoch that another driver made is made anew.
	Replace bool
	Target  ids.Epoch   // of the cluster
	Able    record.Able // what this node could do instead
	Devices []OwnDevice // that exist, by epoch
	Plan    rotate.Plan
	Held    map[heldKey]Held // secrets that are not installed yet, or not forgotten
	// Former are nodes that the previous agent had tunnels with, by inner
	// address. Their records may not be known yet.
	Former map[netip.Addr]ids.NodeID
}

// OwnDevice is a tunnel device of this node and its driver.
type OwnDevice struct {
	tunnel.DeviceState
	Driver string // tunnel.Kind.Name
	Wire   record.Wire
	Forms  bool // each pair may have ESP in UDP or as it is
	// Narrows: pairs in UDP need more room than networks reckon with, which
	// become narrower while there are such pairs (tunnel.Kind.InUDP).
	Narrows bool
}

// heldKey names a pair's device.
type heldKey struct {
	Peer  ids.NodeID
	Epoch ids.Epoch
}

// Held is a secret between its agreement and its installation.
type Held struct {
	Key     keys.KeyID
	Secret  keys.TunnelSecret
	In, Out ids.SPI // ESP only
	InUDP   bool    // it is for ESP in UDP
}

// device returns the device of an epoch, if it exists and works.
func (t TunnelFacts) device(epoch ids.Epoch) (OwnDevice, bool) {
	for _, d := range t.Devices {
		if d.Epoch == epoch && d.Lane == lane && d.Up && (d.Wire != record.WireWireGuard || !d.Public.IsZero()) {
			return d, true
		}
	}
	return OwnDevice{}, false
}

// installed returns what the device of an epoch holds for a peer.
func (t TunnelFacts) installed(peer ids.NodeID, epoch ids.Epoch) (tunnel.PeerState, bool) {
	d, ok := t.device(epoch)
	if !ok {
		return tunnel.PeerState{}, false
	}
	i := slices.IndexFunc(d.Peers, func(p tunnel.PeerState) bool { return p.Inner == peer.InnerAddr() })
	if i < 0 {
		return tunnel.PeerState{}, false
	}
	return d.Peers[i], true
}

// Underlay is what the host namespace says about the way to other nodes.
type Underlay struct {
	Own    []OwnAddr               // published, in order of preference
	Routes map[netip.Addr]nl.Route // by destination; absent: no route
	// Limits are destinations to which packets of more bytes do not come, whatever
	// links and routes say. Absent: nothing like that was found.
	Limits map[netip.Addr]int
}

// OwnAddr is an address at which other nodes reach this one.
type OwnAddr struct {
	Control netip.AddrPort
	MTU     int // of the link that has the address
}

// Output is the complete desired state of this node.
type Output struct {
	// Tunnels are the specs of the drivers that have devices, by Kind.Name.
	Tunnels map[string]tunnel.Spec
	// Pairs are the nodes that a tunnel is wanted with, and their devices:
	// what the rotation machine works on.
	Pairs    []rotate.Peer
	Secure   secure.Spec
	Networks []vxlan.Spec // sorted by name
	Gateway  gateway.Spec
	Names    []resolver.Zone // of the networks that have the gateway here
	Record   record.Node     // content to publish; ID set, Seq not
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
	Agreed    []ids.NodeID // nodes that define it the same way, and have a form of it in common
	Connected []ids.NodeID // of them, those that this node sends to
	Clear     []ids.NodeID // of them, those that it sends to without a tunnel
	Conflicts []api.Conflict
	Blocks    []netip.Prefix
	Settled   []netip.Prefix // of them, those that addresses may be handed out from
	Full      []netip.Prefix // subnets in which this node has no free address and can claim none
	Filling   []Filling      // subnets of which little is left for anybody
	Total     int            // endpoints on all nodes that agree, disputed ones excluded
}

// Filling is how much of a subnet nodes have claimed.
type Filling struct {
	Subnet        netip.Prefix
	Taken, Blocks int
}

// PeerView is one node that shares a network with this one.
type PeerView struct {
	ID       ids.NodeID
	Name     string
	Underlay netip.AddrPort // where its control plane is, of the family in use
	Tunnel   bool           // a tunnel to it is wanted
	Frame    int            // bytes of the largest packet that is sent to it through the tunnel
	Top      int            // bytes of the largest that this node's link and route would let through
	InnerMTU int            // bytes of a packet inside the tunnel; 0 without tunnel
	Networks []string
}
