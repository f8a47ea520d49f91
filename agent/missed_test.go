package agent

import (
	"testing"
	"testing/synctest"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// TestMissedEpoch: nodes that were cut off in different epochs come back to
// others that are full of epochs for them. They make the epoch that they have
// missed, with its driver, though the cluster wants another one by now, and all
// arrive without losing a tunnel.
func TestMissedEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var all []*machine
		for i := range 4 {
			m := w.machine(i+1, blue())
			m.ipsec = true
			all = append(all, m.start())
		}
		a, b, c, d := all[0], all[1], all[2], all[3]
		w.until("epoch 1", func() bool { return a.on(1, 3) && b.on(1, 3) && c.on(1, 3) && d.on(1, 3) })
		before := map[*machine]int{}
		for _, m := range all {
			before[m] = len(m.guard.since(0))
		}
		meet := func(e ids.Epoch, nodes ...*machine) func() bool {
			return func() bool {
				for _, x := range nodes {
					for _, y := range nodes {
						if x != y && epochTo(x, y) != e {
							return false
						}
					}
				}
				return true
			}
		}
		back := func(m *machine) { w.board.set(func() { delete(w.board.cut, m.id) }) }

		w.board.isolate(b.id)
		w.board.aim(2, config.DriverAuto)
		w.until("all but one on 2", meet(2, a, c, d))
		w.board.isolate(c.id)
		w.board.aim(3, config.DriverAuto)
		w.until("two on 3", meet(3, a, d))
		w.board.aim(4, config.DriverIPsec)
		w.until("no room for 4", func() bool { return a.keys().Blocked != "" && d.keys().Blocked != "" })

		back(c)
		w.until("all but one on 4", meet(4, a, c, d))
		back(b)
		w.until("all on 4", func() bool { return a.on(4, 3) && b.on(4, 3) && c.on(4, 3) && d.on(4, 3) })
		for _, m := range all {
			if got := m.keys().Devices[0].Driver; got != config.DriverIPsec {
				t.Errorf("node %d: the device of epoch 4 is of driver %s", m.n, got)
			}
			for _, s := range m.guard.since(before[m]) {
				if len(s.Routes) != 3 {
					t.Errorf("node %d lost a tunnel: %+v", m.n, s.Routes)
				}
			}
		}
	})
}
