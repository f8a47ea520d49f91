package agent

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/pathmtu"
)

// mtuOf is the MTU that a node has given network blue.
func (m *machine) mtuOf(network string) int { return m.overlay.spec(network).MTU }

func (m *machine) warns(code string) bool {
	return slices.ContainsFunc(m.status().Warnings, func(p api.Problem) bool { return p.Code == code })
}

// TestNarrowPath: a way that swallows large packets in silence narrows the networks
// on every node, one after a restart, too, and no more when it carries them again.
func TestNarrowPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.machine(1, blue()), w.machine(2, blue()), w.machine(3, blue())
		all := []*machine{a, b, c}
		for _, m := range all {
			m.start()
		}
		// every reports whether all nodes have a network fit for an underlay.
		every := func(underlay int) func() bool {
			want := underlay - tunnel.Overhead(v4(1).Addr()) - vxlanOverheadV6
			return func() bool {
				return !slices.ContainsFunc(all, func(m *machine) bool { return m.mtuOf("blue") != want })
			}
		}
		w.until("the MTU of the links", every(1500))
		w.until("tunnels", func() bool { return len(a.guard.routesNow()) == 2 && len(b.guard.routesNow()) == 2 })
		w.watch("it stays", 2*pathmtu.Check, every(1500))
		w.narrows(a, b, 1450-60)
		w.within(pathmtu.Check+40*time.Second, "the MTU of the way", every(1450))
		// Whoever finds out second may find that the other's record has narrowed it.
		w.until("one says so", func() bool { return a.warns("narrow-path") || b.warns("narrow-path") })
		if c.warns("narrow-path") || a.status().State != api.StateOK {
			t.Errorf("state %s, the third warns %v", a.status().State, c.warns("narrow-path"))
		}
		w.watch("it stays", 2*pathmtu.Check, every(1450))

		// Neither end widens it because the other's record is narrow, nor forgets it.
		a.kill()
		b.kill()
		a.start()
		b.start()
		w.watch("it stays over a restart", 30*time.Second, every(1450))
		w.narrows(a, b, 0)
		w.within(pathmtu.Raise+time.Minute, "the MTU of the links again", every(1500))
		w.until("nobody warns", func() bool { return !a.warns("narrow-path") && !b.warns("narrow-path") })
	})
}

// TestOutageIsNoNarrowPath: where nothing passes, networks stay as they are.
func TestOutageIsNoNarrowPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()), w.machine(2, blue())
		a.start()
		b.start()
		w.until("tunnels", func() bool { return len(a.guard.routesNow()) == 1 && len(b.guard.routesNow()) == 1 })
		was := a.mtuOf("blue")
		w.narrows(a, b, 1)
		w.watch("the MTU stays", 3*time.Minute, func() bool { return a.mtuOf("blue") == was && b.mtuOf("blue") == was })
		w.narrows(a, b, 0)
		w.watch("the MTU stays", time.Minute, func() bool { return a.mtuOf("blue") == was })
	})
}

// TestNarrowPathEnds: with the last network that is shared goes the warning about the
// way there.
func TestNarrowPathEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1), w.machine(2)
		a.start()
		b.start()
		if _, err := a.create(api.NetworkRequest{Name: "green", Subnets: []string{"10.99.0.0/16"}}); err != nil {
			t.Fatal(err)
		}
		at := a.mustAttach("green", "/ns/1")
		b.mustAttach("green", "/ns/1")
		w.narrows(a, b, 1450-60)
		w.within(time.Minute, "a warning", func() bool { return a.warns("narrow-path") || b.warns("narrow-path") })
		if err := a.agent.Detach(context.Background(), at.ID); err != nil {
			t.Fatal(err)
		}
		w.until("no warning", func() bool { return !a.warns("narrow-path") && !b.warns("narrow-path") })
	})
}
