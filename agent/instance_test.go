package agent

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/tunnel"
)

// remake removes a node's device of epoch 1, with its keys, and waits until
// its agent has made and published another.
func (m *machine) remake() {
	m.w.t.Helper()
	was := m.w.board.record(m.id).Tunnels[0]
	if err := m.host.DeleteLink(tunnel.DeviceName(m.id, 1, lane)); err != nil {
		m.w.t.Fatal(err)
	}
	m.w.until("another device", func() bool {
		is := m.w.board.record(m.id).Tunnels
		return len(is) == 1 && is[0].Instance == was.Instance+1 && is[0].Public != was.Public
	})
}

// eachRole runs a test with a pair on epoch 1 twice: a is the lower node, which
// asks for agreements and initiates, then the higher one.
func eachRole(t *testing.T, test func(t *testing.T, w *world, a, b *machine)) {
	for name, n := range map[string][2]int{"lower": {1, 2}, "higher": {2, 1}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a, b := w.machine(n[0], blue()).start(), w.machine(n[1], blue()).start()
				w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
				test(t, w, a, b)
			})
		})
	}
}

// TestRestartWithOldRecord: the record of a peer that an agent finds in its
// cache may name a device that the peer has replaced since. The pair that works
// with the new one stays as it is, and its route too.
func TestRestartWithOldRecord(t *testing.T) {
	eachRole(t, func(t *testing.T, w *world, a, b *machine) {
		old := w.board.record(b.id)
		b.remake()
		w.until("epoch 1 again", func() bool { return a.on(1, 1) && b.on(1, 1) })
		before, theirs := a.installed(), b.installed()
		if len(before) != 1 || len(theirs) != 1 {
			t.Fatalf("installed: %q, %q", before, theirs)
		}
		a.kill()
		sets := len(a.guard.since(0))
		w.board.set(func() { w.board.aged[b.id] = old })
		a.start()
		same := func() bool { return slices.Equal(a.installed(), before) && slices.Equal(b.installed(), theirs) }
		w.watch("the pair, with the old record", 5*time.Second, same)
		w.board.set(func() { delete(w.board.aged, b.id) })
		w.watch("the pair, with the new record", 2*time.Second, same)
		if !a.on(1, 1) || !b.on(1, 1) {
			t.Errorf("after the restart: %+v", a.keys())
		}
		for i, s := range a.guard.since(sets) {
			if len(s.Routes) != 1 {
				t.Errorf("round %d after the restart set routes %v", i+1, s.Routes)
			}
		}
	})
}

// TestPeerLostItsKeys: a peer whose device was made anew, before this agent's
// eyes or while it was away, gets another secret.
func TestPeerLostItsKeys(t *testing.T) {
	for name, away := range map[string]bool{"seen": false, "away": true} {
		t.Run(name, func(t *testing.T) {
			eachRole(t, func(t *testing.T, w *world, a, b *machine) {
				before := a.installed()
				if away {
					a.kill()
				}
				b.remake()
				if away {
					a.start()
				}
				w.until("another secret on both", func() bool {
					is := a.installed()
					return len(is) == 1 && !slices.Equal(is, before) && a.on(1, 1) && b.on(1, 1)
				})
			})
		})
	}
}
