package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/agent/ipam"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// node is one simulated node: what a real agent would know about itself.
type node struct {
	id     ids.NodeID
	name   string
	serial uint64
	in     Input
	out    Output
}

// sim is a cluster in which every node has every other's newest record.
type sim struct{ nodes []*node }

// newSim makes n nodes web-1, web-2 ... with serials 1, 2 ..., IDs in the same
// order, underlay addresses 198.18.0.1 ..., userspace WireGuard and a device.
func newSim(n int, networks ...config.Network) *sim {
	s := &sim{}
	for i := 1; i <= n; i++ {
		id := ids.NodeID{byte(i), 0xaa, byte(i)}
		name := fmt.Sprintf("web-%d", i)
		s.nodes = append(s.nodes, &node{id: id, name: name, serial: uint64(i), in: Input{
			Config: config.Config{
				Data:     config.Data{Port: config.DefaultDataPort, VXLANPort: config.DefaultVXLANPort},
				Networks: append([]config.Network(nil), networks...),
			},
			Self: Self{ID: id, Name: name, Serial: uint64(i)},
			Tunnels: TunnelFacts{
				Driver: config.DriverUserspace,
				Devices: []OwnDevice{{Driver: config.DriverUserspace, Wire: record.WireWireGuard, DeviceState: tunnel.DeviceState{
					Name: tunnel.DeviceName(id, 1, lane), Epoch: 1, Lane: lane, Up: true,
					Public: keys.TunnelPublic{byte(i), 0xbb}, Port: config.DefaultDataPort, MTU: 1420,
				}}},
			},
			Underlay: Underlay{
				Own:    []OwnAddr{{Control: v4(i), MTU: 1500}},
				Routes: map[netip.Addr]nl.Route{},
			},
		}})
	}
	return s
}

func v4(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}), 7946)
}

func v6(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("fd00:198:18::%x", i)), 7946)
}

// run lets the nodes exchange records until nothing changes. It fails after
// more rounds than any real convergence needs.
func (s *sim) run() error {
	for range 50 {
		if !s.step() {
			return nil
		}
	}
	return fmt.Errorf("the records of %d nodes keep changing", len(s.nodes))
}

// step gives every node the others' records and reports whether any node's
// own record changed by that.
func (s *sim) step() bool {
	changed := false
	outs := make([]Output, len(s.nodes))
	for i, n := range s.nodes {
		n.in.Members = nil
		for _, o := range s.nodes {
			if o == n {
				continue
			}
			n.in.Members = append(n.in.Members, Member{ID: o.id, Name: o.name, Serial: o.serial, Record: o.out.Record})
			for _, u := range o.out.Record.Underlay {
				a := u.Control.Addr()
				if _, ok := n.in.Underlay.Routes[a]; !ok {
					n.in.Underlay.Routes[a] = nl.Route{Device: "eth0", MTU: 1500}
				}
			}
		}
		outs[i] = Desired(n.in)
	}
	for i, n := range s.nodes {
		if fmt.Sprint(outs[i].Record) != fmt.Sprint(n.out.Record) {
			changed = true
		}
		n.out = outs[i]
		n.in.Self.Previous = outs[i].Record
		n.in.Blocks = nil // claims that are not settled: each node yields to older ones
		for b := range listedBlocks(outs[i].Record.Networks) {
			n.in.Blocks = append(n.in.Blocks, ipam.Own{Block: b})
		}
		changed = n.rotate() || changed
	}
	return changed
}

// rotate stands in for the rotation machine: every pair that can have a tunnel
// has agreed on a secret and sends through it.
func (n *node) rotate() (changed bool) {
	t := &n.in.Tunnels
	before := fmt.Sprint(t.Plan)
	t.Plan, t.Held = rotate.Plan{}, map[heldKey]Held{}
	if t.Driver != "" && n.in.Config.AnyEncrypted() {
		t.Plan.Devices = []ids.Epoch{1}
	}
	own, ok := t.device(1)
	for _, p := range n.out.Pairs {
		i := slices.IndexFunc(p.Devices, func(d rotate.Device) bool { return ok && d.Epoch == 1 && d.Wire == uint8(own.Wire) })
		if i < 0 {
			t.Plan.Progress = append(t.Plan.Progress, rotate.Progress{Peer: p.ID, Step: rotate.StepRefused})
			continue
		}
		t.Held[heldKey{p.ID, 1}] = Held{Key: 7}
		t.Plan.Pairs = append(t.Plan.Pairs, rotate.Pair{Peer: p.ID, Epoch: 1, Key: 7, Theirs: p.Devices[i].Instance, Send: true, Main: true})
		t.Plan.Progress = append(t.Plan.Progress, rotate.Progress{Peer: p.ID, Tx: 1, Goal: 1, Step: rotate.StepDone, FullMTU: true})
	}
	return fmt.Sprint(t.Plan) != before
}

// attach gives node i (from 1) an endpoint.
func (s *sim) attach(i int, network string, addrs ...string) *Attachment {
	n := s.nodes[i-1]
	a := Attachment{
		ID: fmt.Sprintf("%02d%010x", i, len(n.in.Attachments)+1), Network: network,
		Netns: "/run/netns/c", NsID: nl.ID{Dev: 4, Ino: uint64(100*i + len(n.in.Attachments))}, Ifname: "eth0", Ready: true,
	}
	for _, p := range addrs {
		a.Addrs = append(a.Addrs, netip.MustParsePrefix(p))
	}
	n.in.Attachments = append(n.in.Attachments, a)
	return &n.in.Attachments[len(n.in.Attachments)-1]
}

func blue() config.Network {
	return config.Network{
		Name: "blue", VNI: 4097, Encrypted: true, Driver: config.DriverAuto,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd00:77::/64")},
	}
}

func lab() config.Network {
	return config.Network{
		Name: "lab", VNI: 4098, Driver: config.DriverAuto,
		Subnets: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/24")},
	}
}
