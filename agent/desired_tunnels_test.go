package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// pairSim is two connected nodes; the first one's tunnels are to be set.
func pairSim(t *testing.T) *sim {
	t.Helper()
	s := newSim(2, blue())
	if err := s.run(); err != nil {
		t.Fatal(err)
	}
	return s
}

// addDevice gives node i (from 1) a further device, and publishes it.
func (s *sim) addDevice(i int, e ids.Epoch, driver string, port uint16) {
	n := s.nodes[i-1]
	d := OwnDevice{Driver: driver, Wire: record.WireWireGuard, DeviceState: tunnel.DeviceState{
		Name: tunnel.DeviceName(n.id, e, lane), Epoch: e, Lane: lane, Public: keys.TunnelPublic{byte(i), byte(e), 0xcc}, Port: port, MTU: 1420, Up: true,
	}}
	if driver == config.DriverIPsec {
		d.Wire, d.Public = record.WireESP, keys.TunnelPublic{}
	}
	n.in.Tunnels.Devices = append(n.in.Tunnels.Devices, d)
	n.in.Tunnels.Plan.Devices = append(n.in.Tunnels.Plan.Devices, e)
	n.out = Desired(n.in)
	for _, o := range s.nodes {
		for j := range o.in.Members {
			if o.in.Members[j].ID == n.id {
				o.in.Members[j].Record = n.out.Record
			}
		}
	}
}

// TestDevicePorts: a device keeps its port, a new one gets the first of the
// three that is free.
func TestDevicePorts(t *testing.T) {
	for _, c := range []struct {
		name  string
		have  map[ids.Epoch]uint16
		plan  []ids.Epoch
		ports map[ids.Epoch]uint16
	}{
		{"first", nil, []ids.Epoch{7}, map[ids.Epoch]uint16{7: 51871}},
		{"second", map[ids.Epoch]uint16{7: 51871}, []ids.Epoch{7, 8}, map[ids.Epoch]uint16{7: 51871, 8: 51872}},
		{"gap", map[ids.Epoch]uint16{5: 51872, 7: 51873}, []ids.Epoch{5, 7, 8}, map[ids.Epoch]uint16{5: 51872, 7: 51873, 8: 51871}},
		{"one goes", map[ids.Epoch]uint16{5: 51871, 7: 51872}, []ids.Epoch{7, 8}, map[ids.Epoch]uint16{7: 51872, 8: 51871}},
		{"beside kernel ESP, whose port is its own", map[ids.Epoch]uint16{5: 4500, 6: 51871}, []ids.Epoch{5, 6, 7}, map[ids.Epoch]uint16{5: 0, 6: 51871, 7: 51872}},
		{"data.port has changed", map[ids.Epoch]uint16{5: 40000}, []ids.Epoch{5}, map[ids.Epoch]uint16{5: 51871}},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := newSim(1, blue()).nodes[0].in
			in.Tunnels.Devices = nil
			for e, port := range c.have {
				d := OwnDevice{
					Driver: config.DriverUserspace, Wire: record.WireWireGuard,
					DeviceState: tunnel.DeviceState{Epoch: e, Port: port, Public: keys.TunnelPublic{byte(e)}},
				}
				if port == 4500 {
					d.Driver, d.Wire, d.Public = config.DriverIPsec, record.WireESP, keys.TunnelPublic{}
				}
				in.Tunnels.Devices = append(in.Tunnels.Devices, d)
			}
			in.Tunnels.Plan.Devices = c.plan
			got := map[ids.Epoch]uint16{}
			for _, spec := range Desired(in).Tunnels {
				for _, d := range spec.Devices {
					got[d.Epoch] = d.Port
				}
			}
			for e, port := range c.ports {
				if got[e] != port || len(got) != len(c.ports) {
					t.Errorf("ports = %v, want %v", got, c.ports)
				}
			}
		})
	}
}

// TestDeviceDriver: a device stays with the driver that made it; only a driver
// that somebody named takes the newest one over.
func TestDeviceDriver(t *testing.T) {
	in := newSim(1, blue()).nodes[0].in
	in.Tunnels.Plan.Devices = []ids.Epoch{1, 2}
	in.Tunnels.Driver = config.DriverIPsec
	out := Desired(in).Tunnels
	if len(out[config.DriverUserspace].Devices) != 1 || len(out[config.DriverIPsec].Devices) != 1 || out[config.DriverIPsec].Devices[0].Epoch != 2 {
		t.Errorf("a new epoch with another driver: %+v", out)
	}
	in.Tunnels.Plan.Devices = []ids.Epoch{1}
	if out := Desired(in).Tunnels; len(out) != 1 || len(out[config.DriverUserspace].Devices) != 1 {
		t.Errorf("a better driver is there: %+v", out)
	}
	in.Tunnels.Replace, in.Tunnels.Target = true, 2
	if out := Desired(in).Tunnels; len(out) != 1 || len(out[config.DriverUserspace].Devices) != 1 {
		t.Errorf("the driver was named for an epoch that has not started: %+v", out)
	}
	in.Tunnels.Target = 1
	if out := Desired(in).Tunnels; len(out) != 1 || len(out[config.DriverIPsec].Devices) != 1 {
		t.Errorf("the driver was named: %+v", out)
	}
}

// TestPeerKey: what a device holds for a pair, from secret to drain.
func TestPeerKey(t *testing.T) {
	secret, err := keys.TunnelSecretFromRaw32(slices.Repeat([]byte{5}, 32))
	if err != nil {
		t.Fatal(err)
	}
	s := pairSim(t)
	for _, i := range []int{1, 2} {
		s.addDevice(i, 2, config.DriverUserspace, 51872)
		s.addDevice(i, 3, config.DriverIPsec, 51873)
	}
	lower, higher := s.nodes[0].in, s.nodes[1].in
	at := func(in Input, e ids.Epoch, held Held, have *tunnel.PeerState, change func(*rotate.Pair)) (tunnel.PeerKey, bool) {
		peer := in.Members[0].ID
		in.Tunnels.Held = map[heldKey]Held{}
		if held.Key != 0 {
			in.Tunnels.Held[heldKey{peer, e}] = held
		}
		in.Tunnels.Devices = slices.Clone(in.Tunnels.Devices)
		driver := ""
		for i := range in.Tunnels.Devices {
			if d := &in.Tunnels.Devices[i]; d.Epoch == e {
				driver = d.Driver
				if have != nil {
					p := *have
					p.Inner = peer.InnerAddr()
					d.Peers = []tunnel.PeerState{p}
				}
			}
		}
		pair := rotate.Pair{Peer: peer, Epoch: e, Key: secret.ID(), Theirs: 1}
		change(&pair)
		in.Tunnels.Plan.Pairs = []rotate.Pair{pair}
		peers := Desired(in).Tunnels[driver].Peers
		if len(peers) == 0 {
			return tunnel.PeerKey{}, false
		}
		return peers[0].Keys[0], true
	}
	none, send := func(*rotate.Pair) {}, func(p *rotate.Pair) { p.Send = true }
	held := Held{Key: secret.ID(), Secret: secret}

	if k, ok := at(lower, 2, held, nil, none); !ok || !k.Secret.Equal(secret) || k.Endpoint.IsValid() || k.Public != (keys.TunnelPublic{2, 2, 0xcc}) {
		t.Errorf("receive only: %+v", k)
	}
	if k, _ := at(lower, 2, held, nil, send); k.Endpoint != netip.MustParseAddrPort("198.18.0.2:51872") {
		t.Errorf("the lower node sends: endpoint %s", k.Endpoint)
	}
	if k, _ := at(higher, 2, held, nil, send); k.Endpoint.IsValid() {
		t.Errorf("the higher node sends: endpoint %s", k.Endpoint)
	}
	if k, _ := at(lower, 2, held, nil, func(p *rotate.Pair) { p.Send, p.Draining = true, true }); k.Endpoint.IsValid() {
		t.Errorf("while draining: endpoint %s", k.Endpoint)
	}
	if k, ok := at(lower, 2, Held{}, nil, send); ok {
		t.Errorf("neither held nor installed: %+v", k)
	}
	if k, ok := at(lower, 2, Held{}, &tunnel.PeerState{Key: secret.ID() + 1}, send); ok {
		t.Errorf("another secret is installed: %+v", k)
	}
	if k, ok := at(lower, 2, Held{}, &tunnel.PeerState{Key: secret.ID(), Public: keys.TunnelPublic{2, 2, 0xcc}}, send); !ok || !k.Secret.IsZero() || !k.Endpoint.IsValid() {
		t.Errorf("installed: %+v", k)
	}

	held.In, held.Out = 0x1111, 0x2222
	if k, ok := at(lower, 3, held, nil, none); !ok || k.ESP.In != 0x1111 || k.ESP.Out != 0 || !k.Public.IsZero() || k.Endpoint.IsValid() {
		t.Errorf("ESP, receive only: %+v", k)
	}
	k, ok := at(higher, 3, held, nil, send)
	if !ok || k.ESP.Out != 0x2222 || k.ESP.Local != v4(2).Addr() || k.ESP.Remote != v4(1).Addr() {
		t.Errorf("ESP, sending: %+v", k)
	}
	if k, _ := at(lower, 3, Held{}, &tunnel.PeerState{Key: secret.ID(), In: 0x1111, Out: 0x2222}, none); k.ESP.Out != 0x2222 || !k.Secret.IsZero() {
		t.Errorf("ESP, installed: %+v", k)
	}

	// The peer's record names another device of the epoch, or lists none any
	// more, as after its restart: what is installed stays as it is. A secret
	// that is not installed is for the device that the record names.
	was := tunnel.PeerState{Key: secret.ID(), Public: keys.TunnelPublic{9}, Endpoint: netip.MustParseAddrPort("198.18.0.2:7")}
	if k, ok := at(lower, 2, Held{}, &was, send); !ok || k.Public != was.Public || k.Endpoint != was.Endpoint {
		t.Errorf("another device listed: %+v", k)
	}
	other := was
	other.Key++
	if k, ok := at(lower, 2, held, &other, send); !ok || k.Public != (keys.TunnelPublic{2, 2, 0xcc}) || k.Endpoint.Port() != 51872 {
		t.Errorf("another device listed, and a secret held for it: %+v", k)
	}
	lower.Members[0].Record.Tunnels = lower.Members[0].Record.Tunnels[:1]
	if k, ok := at(lower, 2, Held{}, &was, send); !ok || k.Public != was.Public || k.Endpoint != was.Endpoint {
		t.Errorf("device not listed any more: %+v", k)
	}
}

// TestObserve: what a device holds is reported with the instance whose key the
// peer's record names; if it names another key, or there is none to compare,
// with an unknown one.
func TestObserve(t *testing.T) {
	s := pairSim(t)
	for _, i := range []int{1, 2} {
		s.addDevice(i, 2, config.DriverIPsec, 51872)
	}
	in := s.nodes[0].in
	peer := in.Members[0]
	stranger := ids.NodeID{77, 1}
	right := peer.Record.Tunnels[0].Public
	for _, c := range []struct {
		name   string
		device int
		has    tunnel.PeerState
		want   bool
		theirs uint32
	}{
		{"right", 0, tunnel.PeerState{Inner: peer.ID.InnerAddr(), Public: right, Key: 3, RxBytes: 9}, true, 1},
		{"key of another device", 0, tunnel.PeerState{Inner: peer.ID.InnerAddr(), Public: keys.TunnelPublic{1}, Key: 3}, true, 0},
		{"ESP", 1, tunnel.PeerState{Inner: peer.ID.InnerAddr(), Key: 3, In: 0x1111, Out: 0x2222}, true, 0},
		{"of nobody", 0, tunnel.PeerState{Inner: netip.MustParseAddr("fd99::1"), Key: 3}, false, 0},
		{"of a former peer", 0, tunnel.PeerState{Inner: stranger.InnerAddr(), Public: keys.TunnelPublic{4}, Key: 3}, true, 0},
	} {
		in.Tunnels.Devices[0].Peers, in.Tunnels.Devices[1].Peers = nil, nil
		in.Tunnels.Devices[c.device].Peers = []tunnel.PeerState{c.has}
		in.Tunnels.Former = map[netip.Addr]ids.NodeID{stranger.InnerAddr(): stranger}
		o := in.observe(Desired(in), rotate.Observation{Target: 4})
		if len(o.Installed) == 1 != c.want || c.want && (o.Installed[0].Theirs != c.theirs || o.Installed[0].Key != 3) {
			t.Errorf("%s: installed %+v", c.name, o.Installed)
		}
		if !o.Enabled || o.Target != 4 || len(o.Devices) != 2 || len(o.Peers) != 1 {
			t.Errorf("%s: observation %+v", c.name, o)
		}
	}
}

// TestObserveHalf: an ESP pair whose secret was lost between its two halves
// counts as not there, so that it gets another one.
func TestObserveHalf(t *testing.T) {
	s := pairSim(t)
	for _, i := range []int{1, 2} {
		s.addDevice(i, 2, config.DriverIPsec, 51872)
	}
	in := s.nodes[0].in
	peer := in.Members[0].ID
	count := func(out ids.SPI, held keys.KeyID) int {
		d := &in.Tunnels.Devices[1]
		d.Peers = []tunnel.PeerState{{Inner: peer.InnerAddr(), Key: 3, In: 0x1111, Out: out}}
		in.Tunnels.Held = map[heldKey]Held{{peer, 2}: {Key: held}}
		return len(in.observe(Desired(in), rotate.Observation{}).Installed)
	}
	for _, c := range []struct {
		name string
		out  ids.SPI
		held keys.KeyID
		want int
	}{
		{"both halves", 0x2222, 0, 1}, {"half, secret held", 0, 3, 1}, {"half, secret gone", 0, 0, 0}, {"half, another secret held", 0, 4, 0},
	} {
		if got := count(c.out, c.held); got != c.want {
			t.Errorf("%s: %d pairs installed, want %d", c.name, got, c.want)
		}
	}
}
