package agent

import (
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

// deviceKind is a device as its node and as others see it.
type deviceKind struct {
	name  string
	wire  record.Wire
	forms bool
	port  uint16
}

func (k deviceKind) own() OwnDevice {
	d := OwnDevice{Wire: k.wire, Forms: k.forms, DeviceState: tunnel.DeviceState{Epoch: 2, Port: k.port, Up: true}}
	if k.wire == record.WireWireGuard {
		d.Public = keys.TunnelPublic{1}
	}
	return d
}

func (k deviceKind) theirs() record.Tunnel {
	return record.Tunnel{Epoch: 2, Instance: 1, Wire: k.wire, Port: k.port, Public: k.own().Public}
}

// TestMeet: how packets travel between devices of each two kinds; and that both
// nodes come to the same answer.
func TestMeet(t *testing.T) {
	kinds := []deviceKind{
		{"WireGuard", record.WireWireGuard, false, 51871},
		{"encap none", record.WireESP, false, 0},
		{"encap auto", record.WireESP, true, 4500},
		{"encap udp", record.WireESPUDP, false, 4500},
		{"userspace", record.WireESPUDP, false, 51871},
		{"newer", 9, false, 1},
	}
	no, native, choice, inUDP := "no", "native", "choice", "in UDP"
	for i, row := range [][]string{
		{"WireGuard", no, no, no, no, no},
		{no, native, native, no, no, no},
		{no, native, choice, inUDP, inUDP, no},
		{no, no, inUDP, inUDP, inUDP, no},
		{no, no, inUDP, inUDP, inUDP, no},
		{no, no, no, no, no, "newer"},
	} {
		for j, want := range row {
			m, back := kinds[i].own().meet(kinds[j].theirs()), kinds[j].own().meet(kinds[i].theirs())
			got := map[meeting]string{
				{ok: true, wire: record.WireWireGuard}:         "WireGuard",
				{ok: true, wire: record.WireESP}:               native,
				{ok: true, wire: record.WireESP, choice: true}: choice,
				{ok: true, wire: record.WireESPUDP}:            inUDP,
				{ok: true, wire: 9}:                            "newer",
			}[m]
			if !m.ok {
				got = no
			}
			if got != want {
				t.Errorf("%s and %s: %q, want %q", kinds[i].name, kinds[j].name, got, want)
			}
			if m.ok != back.ok || m.ok && m != back {
				t.Errorf("%s and %s: %+v, and the other way round %+v", kinds[i].name, kinds[j].name, m, back)
			}
			if m.inUDP(true) != (want == choice || want == inUDP) && m.ok || m.inUDP(false) != (want == inUDP) && m.ok {
				t.Errorf("%s and %s: in UDP %t if it was so, %t if not", kinds[i].name, kinds[j].name, m.inUDP(true), m.inUDP(false))
			}
		}
	}
}

// TestSeenWire: the rotation machine sees one wire where two devices can talk,
// and two where they cannot.
func TestSeenWire(t *testing.T) {
	auto := deviceKind{"", record.WireESP, true, 4500}
	none := deviceKind{"", record.WireESP, false, 0}
	user := deviceKind{"", record.WireESPUDP, false, 51871}
	wg := deviceKind{"", record.WireWireGuard, false, 51871}
	at := func(d OwnDevice, e ids.Epoch) OwnDevice {
		d.Epoch = e
		return d
	}
	for name, c := range map[string]struct {
		own  []OwnDevice
		peer deviceKind // of epoch 2
		want record.Wire
	}{
		"the same":                     {[]OwnDevice{user.own()}, user, record.WireESPUDP},
		"auto and userspace":           {[]OwnDevice{auto.own()}, user, record.WireESP},
		"userspace and auto":           {[]OwnDevice{user.own()}, auto, record.WireESPUDP},
		"none and userspace":           {[]OwnDevice{none.own()}, user, record.WireESPUDP},
		"userspace and none":           {[]OwnDevice{user.own()}, none, record.WireESP},
		"WireGuard and userspace":      {[]OwnDevice{wg.own()}, user, record.WireESPUDP},
		"the newest counts":            {[]OwnDevice{at(wg.own(), 1), at(auto.own(), 3)}, user, record.WireESP},
		"the device of the epoch does": {[]OwnDevice{wg.own(), at(auto.own(), 3)}, user, record.WireESPUDP},
		"no device here":               {nil, auto, record.WireESP},
	} {
		p := rotate.Peer{ID: ids.NodeID{2}, Devices: []rotate.Device{deviceIn(c.peer.theirs())}}
		got := TunnelFacts{Devices: c.own}.seen(p, record.Node{Tunnels: []record.Tunnel{c.peer.theirs()}})
		if len(got.Devices) != 1 || got.Devices[0].Wire != uint8(c.want) || p.Devices[0].Wire != uint8(c.peer.wire) {
			t.Errorf("%s: %+v, want wire %d", name, got, c.want)
		}
	}
}

// mixed makes a machine whose kernel has ESP, and one that has it in userspace,
// both told to use what they have. The lower one offers.
func mixed(w *world, encap string, kernelOffers bool) (kernel, user *machine) {
	kernel, user = w.machine(1, blue()), w.machine(2, blue())
	if !kernelOffers {
		kernel, user = user, kernel
	}
	kernel.ipsec, kernel.encap, user.userESP = true, encap, true
	for m, driver := range map[*machine]string{kernel: config.DriverIPsec, user: config.DriverIPsecUser} {
		m.cfg.Control.Profile = config.ProfileLocal // short pauses
		m.cfg.Keys.HoldDown = 24 * time.Hour
		m.cfg.Networks[0].Driver = driver
	}
	return kernel, user
}

// TestKernelAndUserspaceESP: a node with ESP in the kernel and one with ESP in
// userspace talk in UDP, always, over rotations and restarts, whichever of them
// offers; the networks leave room for it.
func TestKernelAndUserspaceESP(t *testing.T) {
	for _, encap := range []string{config.EncapAuto, config.EncapUDP} {
		for _, offers := range []string{config.DriverIPsec, config.DriverIPsecUser} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				kernel, user := mixed(w, encap, offers == config.DriverIPsec)
				ms := []*machine{kernel.start(), user.start()}
				w.until("epoch 1", all(ms, 1))
				fits := fakeInUDP(v4(1).Addr(), 1500) - vxlanOverheadV6
				w.until("room", func() bool { return kernel.mtu() == user.mtu() && kernel.mtu() <= fits && kernel.mtu() > fits-4 })
				for e := ids.Epoch(2); e <= 3; e++ {
					before := map[*machine]int{}
					for _, m := range ms {
						before[m] = len(m.guard.since(0))
						m.kill()
						m.start()
					}
					w.until("the tunnel after a restart", all(ms, e-1))
					begin := time.Now()
					w.board.aim(e, config.DriverIPsec)
					w.until("the next epoch", all(ms, e))
					if took := time.Since(begin); took > 5*time.Second {
						t.Errorf("encap %s, %s offers: the rotation took %v", encap, offers, took)
					}
					for _, m := range ms {
						for _, s := range m.guard.since(before[m]) {
							if len(s.Routes) != 1 {
								t.Errorf("encap %s, %s offers: node %d lost its tunnel", encap, offers, m.n)
							}
						}
					}
				}
				checkMixed(t, kernel, user)
			})
		}
	}
}

// checkMixed looks at what a pair of both drivers shows on epoch 3.
func checkMixed(t *testing.T, kernel, user *machine) {
	t.Helper()
	a, b := kernel.keys().Peers[0], user.keys().Peers[0]
	if a.Driver != "ipsec (kernel, in UDP)" || b.Driver != "ipsec (userspace)" || !a.InUDP || !b.InUDP || !a.UDPOnly || !b.UDPOnly {
		t.Errorf("%+v and %+v", a, b)
	}
	at := func(m, peer *machine) (port, peers uint16) {
		m.look(func(l *loop) {
			d, _ := l.facts.device(3)
			have, _ := l.facts.installed(peer.id, 3)
			port, peers = d.Port, have.Endpoint.Port()
		})
		return port, peers
	}
	kernelPort, userSeen := at(kernel, user)
	userPort, kernelSeen := at(user, kernel)
	if kernelPort != 4500 || kernelSeen != 4500 || userPort < config.DefaultDataPort || userSeen != userPort {
		t.Errorf("kernel at port %d, seen at %d; userspace at %d, seen at %d", kernelPort, kernelSeen, userPort, userSeen)
	}
}

// TestKernelWithoutUDP: where the kernel's side takes no ESP in UDP the two
// do not meet, and both say what to do.
func TestKernelWithoutUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		kernel, user := mixed(w, config.EncapNone, true)
		kernel.start()
		user.start()
		fix := func(m *machine) string {
			for _, p := range m.status().Problems {
				if p.Code == "peer-incompatible" {
					return p.Fix
				}
			}
			return ""
		}
		const first = "set ipsec.encap: auto on "
		w.until("both say so", func() bool {
			return strings.HasPrefix(fix(kernel), first+"this node") && strings.HasPrefix(fix(user), first+"node web-1")
		})
	})
}

// TestUserspaceESPBlocked: where UDP does not pass either, the pair stays where it
// is, and both say which ports to look at.
func TestUserspaceESPBlocked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		kernel, user := mixed(w, config.EncapAuto, true)
		for _, m := range []*machine{kernel, user} {
			m.cfg.Networks[0].Driver = config.DriverAuto
			m.ipsec, m.userESP, m.encap = true, true, config.EncapAuto
			m.start()
		}
		ms := []*machine{kernel, user}
		w.until("epoch 1", all(ms, 1))
		wide := kernel.mtu()
		w.block(kernel, user, swallows{inUDP: true})
		kernel.rotate(api.RotateRequest{Driver: config.DriverIPsecUser})
		said := "something on the way may block UDP port 51872 of that node or port 51872 of this one"
		w.within(30*time.Second, "both say so", func() bool {
			return strings.Contains(kernel.blockedTo(user), said) && strings.Contains(user.blockedTo(kernel), said)
		})
		w.watch("the old keys", 10*time.Second, func() bool {
			return epochTo(kernel, user) == 1 && epochTo(user, kernel) == 1 && kernel.mtu() == wide
		})
		w.block(kernel, user, swallows{})
		w.within(time.Minute, "epoch 2", all(ms, 2))
		// From there to the kernel's ESP: what was in UDP without a choice does not
		// count as one.
		kernel.rotate(api.RotateRequest{Driver: config.DriverIPsec})
		w.within(time.Minute, "epoch 3", all(ms, 3))
		if kernel.inUDP(user) || user.inUDP(kernel) {
			t.Errorf("in UDP, although nothing is blocked: %+v", kernel.keys().Peers)
		}
	})
}

// TestUserspaceESPMoves: a node in userspace comes back with other ports, and one
// changes its driver in an epoch that lives: the pair agrees anew, and finds itself.
func TestUserspaceESPMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		kernel, user := mixed(w, config.EncapAuto, true)
		user.ipsec, user.encap = true, config.EncapAuto
		ms := []*machine{kernel.start(), user.start()}
		w.until("epoch 1", all(ms, 1))
		w.board.aim(2, config.DriverIPsecUser)
		w.until("epoch 2", all(ms, 2))
		seen := func() (port uint16, inUDP bool) {
			kernel.look(func(l *loop) {
				have, _ := l.facts.installed(user.id, 2)
				port, inUDP = have.Endpoint.Port(), have.InUDP
			})
			return port, inUDP
		}
		restart := func(what, driver string, base uint16) {
			user.kill()
			user.cfg.Data.Port, user.cfg.Networks[0].Driver = base, driver
			user.start()
			w.within(time.Minute, what, func() bool {
				port, inUDP := seen()
				return all(ms, 2)() && inUDP == (driver == config.DriverIPsecUser) && (!inUDP || port >= base && port < base+3)
			})
			w.watch(what, 10*time.Second, func() bool { return epochTo(kernel, user) == 2 && epochTo(user, kernel) == 2 })
		}
		restart("other ports", config.DriverIPsecUser, 52000)
		restart("the kernel's", config.DriverIPsec, 52000)
		restart("userspace again", config.DriverIPsecUser, 52000)
	})
}
