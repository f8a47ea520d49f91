package agent

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// choosing makes n machines whose pairs may choose the form of ESP.
func choosing(w *world, n int) (out []*machine) {
	for i := range n {
		m := w.machine(i+1, blue())
		m.ipsec, m.encap = true, config.EncapAuto
		m.cfg.Control.Profile = config.ProfileLocal // short pauses
		m.cfg.Keys.HoldDown = 24 * time.Hour
		out = append(out, m.start())
	}
	return out
}

// all reports whether every machine has all its pairs on an epoch and nothing
// else.
func all(ms []*machine, e ids.Epoch) func() bool {
	return func() bool {
		for _, m := range ms {
			if !m.on(e, len(ms)-1) {
				return false
			}
		}
		return true
	}
}

// inUDP says how a node shows its pair with another.
func (m *machine) inUDP(to *machine) bool {
	for _, p := range m.keys().Peers {
		if p.ID == to.id {
			if p.InUDP != strings.Contains(p.Driver, "in UDP") {
				m.w.t.Errorf("pair: %+v", p)
			}
			return p.InUDP
		}
	}
	return false
}

// blockedTo returns what the status says about ESP toward another node.
func (m *machine) blockedTo(to *machine) string {
	for _, p := range m.status().Problems {
		if p.Code == "esp-blocked" && p.Subject == to.id.String() {
			return p.Message
		}
	}
	return ""
}

// mtu is the MTU of a node's network, as its kernel has it.
func (m *machine) mtu() int { return m.overlay.spec("blue").MTU }

// TestESPBlocked: where ESP does not pass between two of three nodes, these two
// go over to ESP in UDP by themselves, and stay on their old keys until then.
// The others do not. The next rotation, and the one after a restart, begins
// with what passed.
func TestESPBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ms := choosing(w, 3)
		a, b, c := ms[0], ms[1], ms[2]
		w.until("epoch 1", all(ms, 1))
		wide := a.mtu()
		w.block(a, b, swallows{native: true})
		c.rotate(api.RotateRequest{Driver: config.DriverIPsec})
		w.until("the others", func() bool { return epochTo(a, c) == 2 && epochTo(b, c) == 2 })
		var said [2]bool // each for as long as it takes to go over, which is not long
		w.within(30*time.Second, "both say so", func() bool {
			said[0], said[1] = said[0] || a.blockedTo(b) != "", said[1] || b.blockedTo(a) != ""
			if !said[0] && (epochTo(a, b) != 1 || a.mtu() != wide) || a.blockedTo(c) != "" {
				t.Fatalf("before: epoch %d, MTU %d, %q", epochTo(a, b), a.mtu(), a.blockedTo(c))
			}
			return said[0] && said[1]
		})
		w.until("epoch 2", all(ms, 2))
		check := func(when string) {
			t.Helper()
			if !a.inUDP(b) || !b.inUDP(a) || a.inUDP(c) || c.inUDP(a) || b.inUDP(c) || c.inUDP(b) {
				t.Errorf("%s: %+v", when, a.keys().Peers)
			}
			for _, m := range ms {
				if m.mtu() != wide-2 || m.blockedTo(a)+m.blockedTo(b) != "" {
					t.Errorf("%s: MTU %d, was %d; %q", when, m.mtu(), wide, m.blockedTo(a))
				}
			}
		}
		check("after the rotation")
		for e := ids.Epoch(3); e <= 4; e++ {
			begin := time.Now()
			b.rotate(api.RotateRequest{})
			w.until("the next epoch", all(ms, e))
			check("after another rotation")
			if took := time.Since(begin); took > timing(a.cfg).Unproved {
				t.Errorf("the next rotation took %v", took)
			}
			a.kill()
			a.start()
			w.watch("the same after a restart", 2*time.Second, func() bool {
				if !(a.inUDP(b) && a.mtu() == wide-2 && c.mtu() == wide-2) {
					t.Logf("%v %d %d %d %+v", a.inUDP(b), a.mtu(), c.mtu(), wide, a.keys())
				}
				return a.inUDP(b) && a.mtu() == wide-2 && c.mtu() == wide-2
			})
		}
		// Back to WireGuard, where nobody needs the room any more.
		b.rotate(api.RotateRequest{Driver: config.DriverAuto})
		w.until("epoch 5", all(ms, 5))
		w.until("the former MTU", func() bool { return a.mtu() == wide && b.mtu() == wide && c.mtu() == wide })
	})
}

// TestESPBlockedBothWays: where neither form passes, a pair tries both in turn,
// stays where it is and says so; once one passes, it moves.
func TestESPBlockedBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ms := choosing(w, 2)
		a, b := ms[0], ms[1]
		w.until("epoch 1", all(ms, 1))
		wide := a.mtu()
		w.block(a, b, swallows{native: true, inUDP: true})
		a.rotate(api.RotateRequest{Driver: config.DriverIPsec})
		for range 2 {
			w.within(time.Minute, "both forms are named", func() bool {
				return strings.Contains(a.blockedTo(b), "neither ESP nor ESP in UDP") && strings.Contains(b.blockedTo(a), "neither")
			})
			w.watch("the old keys", 20*time.Second, func() bool { return epochTo(a, b) == 1 && epochTo(b, a) == 1 && a.mtu() == wide })
		}
		w.block(a, b, swallows{inUDP: true})
		for range 6 {
			if all(ms, 2)() {
				break
			}
			<-time.After(10 * time.Second)
		}
		if !all(ms, 2)() || a.inUDP(b) || a.mtu() != wide || a.blockedTo(b) != "" {
			t.Errorf("after ESP passes: %+v, %q", a.keys().Peers, a.blockedTo(b))
		}
	})
}

// TestESPBlockedAndRefused: a node whose configuration allows no ESP in UDP does
// not agree on it, whoever asks, and the reason is said.
func TestESPBlockedAndRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()), w.machine(2, blue())
		for _, m := range []*machine{a, b} {
			m.ipsec = true
			m.cfg.Control.Profile = config.ProfileLocal
			m.cfg.Keys.HoldDown = 24 * time.Hour
		}
		a.encap = config.EncapAuto
		a.start()
		b.start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		w.block(a, b, swallows{native: true})
		a.rotate(api.RotateRequest{Driver: config.DriverIPsec})
		w.within(30*time.Second, "the refusal", func() bool { return strings.Contains(a.blockedTo(b), "ipsec.encap of that node is none") })
		w.within(30*time.Second, "the other says it, too", func() bool { return b.blockedTo(a) != "" })
		w.watch("the old keys", 10*time.Second, func() bool { return epochTo(a, b) == 1 && epochTo(b, a) == 1 })
		w.block(a, b, swallows{})
		w.within(time.Minute, "epoch 2", func() bool { return a.on(2, 1) && b.on(2, 1) })
	})
}

// TestNextForm: in which form the lower node offers a key.
func TestNextForm(t *testing.T) {
	peer := ids.NodeID{2}
	now := time.Unix(1e9, 0)
	long, short := now.Add(-nativeAgain), now.Add(-time.Hour)
	device := func(e ids.Epoch, key keys.KeyID, inUDP bool) OwnDevice {
		d := OwnDevice{Wire: record.WireESP, Forms: true, Narrows: true, DeviceState: tunnel.DeviceState{Epoch: e, Up: true}}
		if key != 0 {
			d.Peers = []tunnel.PeerState{{Inner: peer.InnerAddr(), Key: key, In: 0x1000, InUDP: inUDP}}
		}
		return d
	}
	for _, c := range []struct {
		name     string
		devices  []OwnDevice // the goal is epoch 2
		unproved keys.KeyID
		last     *form
		tx       ids.Epoch
		want     bool
		since    time.Time
	}{
		{"first", []OwnDevice{device(2, 0, false)}, 0, nil, 0, false, now},
		{"the first form is given up", []OwnDevice{device(2, 5, false)}, 5, &form{false, short}, 0, true, now},
		{"the second form is given up", []OwnDevice{device(2, 5, true)}, 5, &form{true, short}, 0, false, now},
		{"the peer has lost its half", []OwnDevice{device(2, 5, true)}, 0, &form{true, short}, 2, true, short},
		{"another key was given up", []OwnDevice{device(2, 5, true)}, 4, &form{true, short}, 0, true, short},
		{"the next epoch", []OwnDevice{device(1, 5, true), device(2, 0, false)}, 0, &form{true, short}, 1, true, short},
		{"the next epoch, after another form was tried in vain", []OwnDevice{device(1, 5, true), device(2, 0, false)}, 0, &form{false, short}, 1, true, now},
		{"WireGuard carries the pair", []OwnDevice{device(2, 0, false)}, 0, &form{true, short}, 1, true, short},
		{"the next epoch, a day later", []OwnDevice{device(1, 5, true), device(2, 0, false)}, 0, &form{true, long}, 1, false, now},
		{"a day later, and no tunnel to stay on", []OwnDevice{device(2, 0, false)}, 0, &form{true, long}, 0, true, long},
		{"a day later, and the key in use is lost", []OwnDevice{device(2, 5, true)}, 0, &form{true, long}, 2, true, long},
		{"after a restart", []OwnDevice{device(1, 5, true), device(2, 0, false)}, 0, nil, 1, true, now},
		{"after a restart, what is used counts", []OwnDevice{device(1, 5, true), device(2, 6, false)}, 0, nil, 1, true, now},
		{"after a restart, the newest counts", []OwnDevice{device(1, 5, true), device(2, 6, false)}, 0, nil, 0, false, now},
	} {
		in := Input{Tunnels: TunnelFacts{Devices: c.devices, Plan: rotate.Plan{Pairs: []rotate.Pair{
			{Peer: peer, Epoch: 2, Key: 5, Unproved: c.unproved == 5},
		}}}}
		var last form
		if c.last != nil {
			last = *c.last
		}
		got := in.nextForm(rotate.Wanted{Peer: peer, Epoch: 2}, last, c.last != nil, c.tx, now)
		if got != (form{c.want, c.since}) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// TestFormOfAssociations: associations are in UDP if they were agreed on or
// found so, and if the configuration still allows it; and for the peer's port.
func TestFormOfAssociations(t *testing.T) {
	for _, c := range []struct {
		name  string
		wire  record.Wire
		forms bool
		have  bool  // what is installed
		held  *bool // what was agreed on
		want  bool
	}{
		{"as it is", record.WireESP, true, false, nil, false},
		{"installed in UDP", record.WireESP, true, true, nil, true},
		{"agreed on in UDP", record.WireESP, true, false, ptr(true), true},
		{"agreed on as it is", record.WireESP, true, true, ptr(false), false},
		{"no longer allowed", record.WireESP, false, true, nil, false},
		{"all in UDP", record.WireESPUDP, false, true, nil, true},
		{"all in UDP, agreed on", record.WireESPUDP, false, false, ptr(true), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := pairSim(t)
			for _, i := range []int{1, 2} {
				s.addDevice(i, 2, config.DriverIPsec, 51872)
			}
			in := s.nodes[0].in
			peer := in.Members[0].ID
			d := &in.Tunnels.Devices[1]
			d.Wire, d.Forms = c.wire, c.forms
			d.Peers = []tunnel.PeerState{{
				Inner: peer.InnerAddr(), Key: 5, In: 0x1111, Out: 0x2222, InUDP: c.have, Local: v4(1).Addr(), Endpoint: netip.AddrPortFrom(v4(2).Addr(), 0),
			}}
			in.Tunnels.Plan.Pairs = []rotate.Pair{{Peer: peer, Epoch: 2, Key: 5, Theirs: 1, Send: true}}
			if c.held != nil {
				in.Tunnels.Plan.Pairs[0].Key = 6
				in.Tunnels.Held = map[heldKey]Held{{peer, 2}: {Key: 6, In: 0x3333, Out: 0x4444, InUDP: *c.held}}
			}
			check := func(port uint16) {
				t.Helper()
				if !c.want {
					port = 0
				}
				peers := Desired(in).Tunnels[config.DriverIPsec].Peers
				if len(peers) != 1 || len(peers[0].Keys) != 1 || peers[0].Keys[0].ESP.InUDP != c.want || peers[0].Keys[0].ESP.Port != port {
					t.Errorf("want port %d: peers = %+v", port, peers)
				}
			}
			check(51872) // by the peer's record
			if c.held == nil {
				d.Peers[0].Endpoint = netip.AddrPortFrom(v4(2).Addr(), 4501)
				in.Members = nil
				check(4501) // it is not known: as it is
			}
		})
	}
}

func ptr[T any](v T) *T { return &v }

// TestAgreeOnForm: the higher node takes both forms where pairs choose, and
// nothing else.
func TestAgreeOnForm(t *testing.T) {
	for encap, want := range map[string]map[record.Wire]bool{
		config.EncapAuto: {record.WireESP: true, record.WireESPUDP: true, record.WireWireGuard: false, 9: false},
		config.EncapNone: {record.WireESP: true, record.WireESPUDP: false},
		config.EncapUDP:  {record.WireESP: false, record.WireESPUDP: true},
	} {
		for wire, agrees := range want {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a, b := w.machine(1, blue()), w.machine(2, blue())
				for _, m := range []*machine{a, b} {
					m.ipsec, m.encap = true, encap
					m.start()
				}
				w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
				w.board.aim(2, config.DriverIPsec)
				w.until("epoch 2", func() bool { return a.on(2, 1) && b.on(2, 1) })
				r := a.rogue()
				r.settle(t, b.id)
				offer := w.board.offer(r.self.ID, b.id)
				offer.Wire = uint8(wire)
				if wire.ESP() {
					offer.SPI = 0x5000
				}
				_, secret, _, err := r.Agree(context.Background(), b.id, offer.Encode())
				secret.Wipe()
				if (err == nil) != agrees {
					t.Errorf("encap %s, wire %d: %v", encap, wire, err)
				}
			})
		}
	}
}
