package agent

import (
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// drivers says which driver has which epoch's device.
func (m *machine) drivers() map[ids.Epoch]string {
	out := map[ids.Epoch]string{}
	for _, d := range m.keys().Devices {
		out[d.Epoch] = d.Driver
	}
	return out
}

// TestOtherDriverWaits: a target that names another driver, and that this node
// may not start yet, takes no live device from the driver that made it. When
// the target starts, it does so beside them.
func TestOtherDriverWaits(t *testing.T) {
	for name, c := range map[string]struct {
		nodes int
		keys  func(*config.Keys)
		// until brings nodes to where the next epoch is held; release lets it go.
		until, release func(w *world, m []*machine)
		target         ids.Epoch
	}{
		"the last one began just now": {
			nodes: 2, keys: func(k *config.Keys) { k.MinInterval = time.Minute }, target: 3,
			until: func(w *world, m []*machine) {
				m[0].rotate(api.RotateRequest{})
				w.until("epoch 2", func() bool { return m[0].on(2, 1) && m[1].on(2, 1) })
			},
			release: func(*world, []*machine) { <-time.After(time.Minute) },
		},
		"three are live": {
			nodes: 4, keys: func(k *config.Keys) { k.HoldDown = 2 * time.Minute }, target: 4,
			until: func(w *world, m []*machine) {
				for e := ids.Epoch(2); e <= 3; e++ {
					w.board.isolate(m[e].id)
					w.board.aim(e, config.DriverAuto) // a request might join the rotation before
					w.until("the others on the epoch", func() bool {
						return epochTo(m[0], m[1]) == e && epochTo(m[1], m[0]) == e && stepTo(m[0], m[1]) == api.KeyStepDone &&
							(e == 3 || epochTo(m[0], m[3]) == e && epochTo(m[1], m[3]) == e)
					})
				}
			},
			release: func(w *world, m []*machine) {
				// The nodes that come back make a device of the target, which
				// the others cannot before an epoch has expired.
				w.board.set(func() { clear(w.board.cut) })
				<-time.After(2 * time.Minute)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				var all []*machine
				for i := range c.nodes {
					m := w.machine(i+1, blue())
					m.ipsec = true
					c.keys(&m.cfg.Keys)
					all = append(all, m.start())
				}
				w.until("epoch 1", func() bool {
					for _, m := range all {
						if !m.on(1, c.nodes-1) {
							return false
						}
					}
					return true
				})
				c.until(w, all)
				a, b := all[0], all[1]
				before, was := a.drivers(), epochTo(a, b)
				w.board.aim(c.target, config.DriverIPsec)
				w.watch("every device with the driver that made it", 5*time.Second, func() bool {
					return maps.Equal(a.drivers(), before) && maps.Equal(b.drivers(), before) && epochTo(a, b) == was && epochTo(b, a) == was
				})
				if a.keys().Blocked == "" {
					t.Error("nothing says why the epoch has not started")
				}
				c.release(w, all)
				w.until("all on the target", func() bool {
					for _, m := range all {
						if !m.on(c.target, c.nodes-1) || m.drivers()[c.target] != config.DriverIPsec {
							return false
						}
					}
					return true
				})
			})
		})
	}
}

// TestRestartOfUnable restarts a node that cannot follow the target's driver:
// what it has stays, in the kernel and in what the others know of it, from the
// first round on.
func TestRestartOfUnable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()), w.machine(2, blue())
		b.ipsec = true
		a.start()
		b.start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		e := a.mustAttach("blue", "/run/netns/c1")
		w.board.aim(2, config.DriverIPsec)
		w.until("a knows that it cannot follow", func() bool { return a.keys().Blocked != "" })
		a.kill()
		syncs, sets := len(a.overlay.since(0)), len(a.guard.since(0))
		published, _ := w.board.publishedBy(a.id, 0)
		a.start()
		w.watch("the pair on epoch 1", 3*time.Second, func() bool { return epochTo(b, a) == 1 })
		if epochTo(a, b) != 1 || a.keys().Blocked == "" {
			t.Errorf("after the restart: pair %+v, blocked: %q", pairOf(a, b), a.keys().Blocked)
		}
		after := a.overlay.since(syncs)
		for i, networks := range after {
			if !hasEndpoint(networks, "blue", e.ID) {
				t.Errorf("round %d after the restart set networks %+v", i+1, networks)
			}
		}
		for i, s := range a.guard.since(sets) {
			if len(s.Routes) != 1 {
				t.Errorf("round %d after the restart set routes %v", i+1, s.Routes)
			}
		}
		_, records := w.board.publishedBy(a.id, published)
		for _, r := range append(records, w.board.record(a.id)) {
			if len(r.Attached) != 1 || len(r.Tunnels) != 1 || len(r.Networks) != 1 {
				t.Errorf("after the restart the others know %d endpoints, %d tunnels, %d networks", len(r.Attached), len(r.Tunnels), len(r.Networks))
			}
		}
		if len(after) == 0 {
			t.Error("no round after the restart")
		}
	})
}

func hasEndpoint(networks []vxlan.Spec, network, id string) bool {
	for _, n := range networks {
		for _, e := range n.Endpoints {
			if n.Network == network && e.ID == id {
				return true
			}
		}
	}
	return false
}
