package tunnel_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// TestMetBy changes one thing of a state, or of a spec, after the other.
func TestMetBy(t *testing.T) {
	id, inner := ids.NodeIDOf([32]byte{7}), netip.MustParseAddr("fd00::7")
	here, there := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")
	esp := tunnel.ESP{Local: here, Remote: there, In: 1000, Out: 2000}
	wanted := func() tunnel.Spec {
		return tunnel.Spec{
			Devices: []tunnel.Device{{Epoch: 1, Port: 51871, MTU: 1400}, {Epoch: 2, Port: 51872, MTU: 1400}},
			Peers: []tunnel.Peer{{ID: id, Inner: inner, Keys: []tunnel.PeerKey{
				{Epoch: 1, Public: keys.TunnelPublic{1}, Key: 11, Endpoint: netip.AddrPortFrom(there, 51871)}, {Epoch: 2, Key: 12, ESP: esp},
			}}},
		}
	}
	found := func() tunnel.State {
		return tunnel.State{Devices: []tunnel.DeviceState{
			{Epoch: 1, Port: 51871, MTU: 1400, Up: true, Peers: []tunnel.PeerState{{Inner: inner, Public: keys.TunnelPublic{1}, Key: 11, RxBytes: 5}}},
			{Epoch: 2, MTU: 1400, Up: true, Peers: []tunnel.PeerState{{
				Inner: inner, Key: 12, In: 1000, Out: 2000, Local: here, Endpoint: netip.AddrPortFrom(there, 0),
			}}},
		}}
	}
	if !wanted().MetBy(found()) {
		t.Fatal("what was wanted is there, and the spec is not met")
	}
	for name, change := range map[string]func(*tunnel.Spec, *tunnel.State){
		"device missing":      func(_ *tunnel.Spec, s *tunnel.State) { s.Devices = s.Devices[:1] },
		"device too many":     func(w *tunnel.Spec, _ *tunnel.State) { w.Devices = w.Devices[1:] },
		"device of a lane":    func(_ *tunnel.Spec, s *tunnel.State) { s.Devices[0].Lane = 1 },
		"device down":         func(_ *tunnel.Spec, s *tunnel.State) { s.Devices[1].Up = false },
		"other port":          func(_ *tunnel.Spec, s *tunnel.State) { s.Devices[0].Port = 1 },
		"other MTU":           func(_ *tunnel.Spec, s *tunnel.State) { s.Devices[1].MTU-- },
		"peer missing":        func(_ *tunnel.Spec, s *tunnel.State) { s.Devices[0].Peers = nil },
		"peer too many":       func(w *tunnel.Spec, _ *tunnel.State) { w.Peers = nil },
		"other inner address": func(_ *tunnel.Spec, s *tunnel.State) { s.Devices[0].Peers[0].Inner = here },
		"other key":           func(_ *tunnel.Spec, s *tunnel.State) { s.Devices[0].Peers[0].Key = 13 },
		"other public key":    func(_ *tunnel.Spec, s *tunnel.State) { s.Devices[0].Peers[0].Public[0] = 2 },
		"half an association": func(_ *tunnel.Spec, s *tunnel.State) { s.Devices[1].Peers[0].Out = 0 },
		"other index":         func(w *tunnel.Spec, _ *tunnel.State) { w.Peers[0].Keys[1].ESP.In++ },
		"other form":          func(w *tunnel.Spec, _ *tunnel.State) { w.Peers[0].Keys[1].ESP.InUDP = true },
		"own address moved":   func(w *tunnel.Spec, _ *tunnel.State) { w.Peers[0].Keys[1].ESP.Local = there },
		"peer's address":      func(w *tunnel.Spec, _ *tunnel.State) { w.Peers[0].Keys[1].ESP.Remote = here },
		"ESP where none is":   func(_ *tunnel.Spec, s *tunnel.State) { s.Devices[0].Peers[0].In = 1000 },
	} {
		w, s := wanted(), found()
		change(&w, &s)
		if w.MetBy(s) {
			t.Errorf("%s: the spec is met", name)
		}
	}
}

// TestMetPorts: a device, or a pair in UDP, that names no port is met by whichever
// the driver has.
func TestMetPorts(t *testing.T) {
	here, there := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")
	id, inner := ids.NodeIDOf([32]byte{7}), netip.MustParseAddr("fd00::7")
	for _, c := range []struct {
		device, hasDevice uint16
		inUDP             bool // both of the spec and of the state
		peer, hasPeer     uint16
		met               bool
	}{
		{0, 0, false, 0, 0, true},
		{51871, 0, false, 0, 0, true},
		{0, 4500, true, 0, 4500, true},
		{0, 4500, true, 4500, 4500, true},
		{51871, 51871, true, 51873, 51873, true},
		{51871, 51872, true, 51873, 51873, false},
		{51871, 51871, true, 51873, 4500, false},
		{51871, 51871, false, 0, 4500, false},
	} {
		spec := tunnel.Spec{
			Devices: []tunnel.Device{{Epoch: 1, Port: c.device, MTU: 1400}},
			Peers: []tunnel.Peer{{ID: id, Inner: inner, Keys: []tunnel.PeerKey{
				{Epoch: 1, Key: 12, ESP: tunnel.ESP{Local: here, Remote: there, In: 1000, InUDP: c.inUDP, Port: c.peer}},
			}}},
		}
		state := tunnel.State{Devices: []tunnel.DeviceState{{Epoch: 1, Port: c.hasDevice, MTU: 1400, Up: true, Peers: []tunnel.PeerState{
			{Inner: inner, Key: 12, In: 1000, Local: here, Endpoint: netip.AddrPortFrom(there, c.hasPeer), InUDP: c.inUDP},
		}}}}
		if spec.MetBy(state) != c.met {
			t.Errorf("%+v: met %t", c, !c.met)
		}
	}
}

// TestSpecEqual: secrets and the revision do not count, all else does.
func TestSpecEqual(t *testing.T) {
	secret, err := keys.TunnelSecretFromRaw32(slices.Repeat([]byte{5}, 32))
	if err != nil {
		t.Fatal(err)
	}
	spec := func() tunnel.Spec {
		return tunnel.Spec{
			Revision: 1, Devices: []tunnel.Device{{Epoch: 1, Port: 51871, MTU: 1400}},
			Peers: []tunnel.Peer{{ID: ids.NodeIDOf([32]byte{7}), Inner: netip.MustParseAddr("fd00::7"), Keys: []tunnel.PeerKey{
				{Epoch: 1, Public: keys.TunnelPublic{1}, Key: secret.ID(), Secret: secret},
			}}},
		}
	}
	bare := spec().WithoutSecrets()
	if !bare.Peers[0].Keys[0].Secret.IsZero() || spec().Peers[0].Keys[0].Secret.IsZero() {
		t.Error("the copy holds the secret, or the original lost it")
	}
	bare.Revision = 2
	if !spec().Equal(bare) || !bare.Equal(spec()) {
		t.Error("a secret or a revision makes specs differ")
	}
	for name, change := range map[string]func(*tunnel.Spec){
		"device":   func(s *tunnel.Spec) { s.Devices[0].MTU++ },
		"peer":     func(s *tunnel.Spec) { s.Peers[0].ID = ids.NodeID{} },
		"inner":    func(s *tunnel.Spec) { s.Peers[0].Inner = netip.MustParseAddr("fd00::8") },
		"no keys":  func(s *tunnel.Spec) { s.Peers[0].Keys = nil },
		"epoch":    func(s *tunnel.Spec) { s.Peers[0].Keys[0].Epoch++ },
		"lane":     func(s *tunnel.Spec) { s.Peers[0].Keys[0].Lane++ },
		"public":   func(s *tunnel.Spec) { s.Peers[0].Keys[0].Public[0]++ },
		"key":      func(s *tunnel.Spec) { s.Peers[0].Keys[0].Key++ },
		"endpoint": func(s *tunnel.Spec) { s.Peers[0].Keys[0].Endpoint = netip.MustParseAddrPort("198.18.0.1:5") },
		"ESP":      func(s *tunnel.Spec) { s.Peers[0].Keys[0].ESP.In++ },
		"ESP port": func(s *tunnel.Spec) { s.Peers[0].Keys[0].ESP.Port++ },
	} {
		s := spec()
		change(&s)
		if s.Equal(bare) {
			t.Errorf("%s: specs are equal", name)
		}
	}
}
