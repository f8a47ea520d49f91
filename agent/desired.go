package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// Desired computes what this node must look like and what it must publish.
// It is pure: no clock, no kernel, no memory of earlier calls.
func Desired(in Input) Output {
	b := newBuild(in)
	b.chooseNetworks()
	b.findShared()
	b.claimBlocks()
	b.settleAddresses()
	b.connectPeers()
	b.connectPlaintext()
	b.nameApart()
	b.measure()
	b.buildTunnels()
	b.buildSecure()
	b.buildNetworks()
	b.buildGateway()
	b.buildNames()
	b.buildRecord()
	b.finishView()
	return b.out
}

// build is the work in progress of one Desired call.
type build struct {
	in    Input
	nets  []*network // in the order of the configuration
	peers []*peer    // every member, sorted by ID
	// ownMTU is the smallest MTU on the way to any connected node, by the
	// index of the own underlay address in use. It is what the record says.
	ownMTU []int
	out    Output
}

// network is one network of the configuration while it is being worked out.
type network struct {
	config.Network
	wanted bool
	reason string // why it is not wanted
	lame   bool   // it cannot have its encrypted form, and has the other

	alike     []*peer // members with the same definition but for the form, sorted by ID
	agreed    []*peer // of them, those with a form in common
	links     []link  // of them, those this node sends to
	conflicts []api.Conflict

	blocks  []netip.Prefix
	settled []netip.Prefix   // of them, those that are surely this node's
	full    []netip.Prefix   // subnets without a free address
	fill    []Filling        // subnets that are nearly full
	local   []ownEndpoint    // attachments that are plugged in
	remote  []remoteEndpoint // accepted endpoints of agreed nodes
	vteps   []netip.Addr     // where its plaintext form sends from: IPv4, IPv6 or both, in this order
	mtu     int
	fits    int // what the underlay leaves for it; mtu unless the configuration wants less
	from    string
}

// peer is one member while it is being worked out.
type peer struct {
	Member
	link    *link           // of its tunnel; nil if there is none
	tunnels []record.Tunnel // of its devices, those that this node may use
	refusal string          // why there is no tunnel although one is wanted
}

// link is the way to a peer for one purpose: its tunnel, or a plaintext
// network.
type link struct {
	peer   *peer
	own    int             // index in Underlay.Own
	tunnel bool            // it is the peer's tunnel
	to     record.Underlay // of the peer
	mtu    int             // bytes of underlay packet on the way, by what both ends say
}

func newBuild(in Input) *build {
	b := &build{in: in}
	for _, m := range in.Members {
		if m.ID != in.Self.ID {
			b.peers = append(b.peers, &peer{Member: m})
		}
	}
	slices.SortFunc(b.peers, func(x, y *peer) int { return x.ID.Compare(y.ID) })
	b.in.Attachments = slices.Clone(in.Attachments)
	slices.SortFunc(b.in.Attachments, func(x, y Attachment) int { return cmp.Compare(x.ID, y.ID) })
	for _, n := range in.Config.Networks {
		b.nets = append(b.nets, &network{Network: n})
	}
	b.out.View.Endpoints = map[string]string{}
	if len(in.Underlay.Own) == 0 {
		b.problem("no-underlay", "", "no address is known at which other nodes reach this one",
			"set control.advertise in the configuration")
	}
	return b
}

// chooseNetworks decides which networks are instantiated. An encrypted
// network needs the driver it asks for; nothing stands in for it.
func (b *build) chooseNetworks() {
	for _, n := range b.nets {
		switch {
		case !n.Tunnelled():
			n.wanted = true
		case n.Driver == config.DriverAuto && b.in.Tunnels.Driver != "":
			n.wanted = true
		case n.Driver == b.in.Tunnels.Driver && n.Driver != "":
			n.wanted = true
		case n.Moving:
			n.wanted, n.lame = true, true // what it has been so far goes on
			b.problem("driver-missing", n.Name,
				fmt.Sprintf("network %s cannot have its encrypted form here: %s", n.Name, b.driverReason(n.Driver)),
				"run secure-overlay doctor")
		default:
			n.reason = b.driverReason(n.Driver)
			b.problem("driver-missing", n.Name,
				fmt.Sprintf("network %s is not connected: %s", n.Name, n.reason),
				"run secure-overlay doctor; or set driver: auto for the network")
		}
	}
}

// driverReason says why a driver is not available.
func (b *build) driverReason(driver string) string {
	reasons := ""
	for _, r := range b.in.Tunnels.Refused {
		if driver == config.DriverAuto || r.Name == driver {
			if reasons != "" {
				reasons += "; "
			}
			reasons += r.Reason
		}
	}
	if reasons == "" {
		reasons = "driver " + driver + " is not available"
	}
	return reasons
}

// problem adds a line to the status.
func (b *build) problem(code, subject, message, fix string) {
	b.out.View.Problems = append(b.out.View.Problems,
		api.Problem{Code: code, Subject: subject, Message: message, Fix: fix})
}

// title names a member for people.
func (m Member) title() string {
	if m.Name == "" {
		return m.ID.Short()
	}
	return m.Name + " (" + m.ID.Short() + ")"
}

// rank is the member's place in a dispute.
func (m Member) rank() owner { return owner{node: m.ID, serial: m.Serial} }

func (s Self) rank() owner { return owner{node: s.ID, serial: s.Serial} }

// title names the node with this ID for people.
func (b *build) title(id ids.NodeID) string {
	if id == b.in.Self.ID {
		return "this node"
	}
	i, ok := slices.BinarySearchFunc(b.peers, id, func(p *peer, id ids.NodeID) int { return p.ID.Compare(id) })
	if !ok {
		return id.Short()
	}
	return b.peers[i].title()
}

// finishView fills what the other steps have left in their own variables.
func (b *build) finishView() {
	v := &b.out.View
	networks := map[ids.NodeID][]string{}
	for _, n := range b.nets {
		nv := NetworkView{
			Name: n.Name, Wanted: n.wanted, Reason: n.reason, MTU: n.mtu, MTUFrom: n.from,
			Conflicts: n.conflicts, Blocks: n.blocks, Settled: n.settled, Full: n.full, Filling: n.fill, Total: len(n.local) + len(n.remote),
		}
		for _, p := range n.agreed {
			nv.Agreed = append(nv.Agreed, p.ID)
			networks[p.ID] = append(networks[p.ID], n.Name)
		}
		for _, l := range n.links {
			nv.Connected = append(nv.Connected, l.peer.ID)
			if !l.tunnel {
				nv.Clear = append(nv.Clear, l.peer.ID)
			}
		}
		v.Networks = append(v.Networks, nv)
	}
	for _, p := range b.peers {
		shared := networks[p.ID]
		if len(shared) == 0 {
			continue
		}
		pv := PeerView{ID: p.ID, Name: p.Name, Networks: shared}
		if len(p.Record.Underlay) > 0 {
			pv.Underlay = p.Record.Underlay[0].Control
		}
		if p.link != nil {
			pv.Tunnel = true
			pv.Underlay = p.link.to.Control
			pv.Frame = b.frameTo(p)
			pv.Top = b.topFrame(p)
			pv.InnerMTU = p.link.mtu - tunnel.Overhead(p.link.to.Control.Addr())
		}
		v.Peers = append(v.Peers, pv)
	}
	slices.SortStableFunc(v.Problems, func(x, y api.Problem) int {
		return cmp.Or(cmp.Compare(x.Code, y.Code), cmp.Compare(x.Subject, y.Subject), cmp.Compare(x.Message, y.Message))
	})
}
