package rotate

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// explorations are worlds to explore. quick is how many of them a normal test
// run visits, 0 for none; whole: it visits all there are.
var explorations = []struct {
	name   string
	limits limits
	seeded bool // begins in the middle of rotations, too, with and without nodes cut off
	quick  int
	whole  bool
}{
	{"first connection, restart", limits{nodes: 2, target: 1, depth: 1, eager: true, restarts: 1}, false, 80_000, true},
	{"rotation", limits{nodes: 2, target: 2, depth: 1, eager: true}, false, 120_000, true},
	{"rotation, step by step, held back messages", limits{nodes: 2, target: 2, depth: 1, lates: 1}, true, 30_000, false},
	{"three nodes, three epochs, everything", limits{
		nodes: 3, target: 3, depth: 1, eager: true,
		restarts: 1, reboots: 1, losses: 1, rejects: 1, lates: 1, keeps: 1, holddown: 1,
	}, true, 40_000, false},
	{"a hole in every epoch", limits{nodes: 2, target: 2, depth: 1, eager: true, restarts: 1, hole: 1<<1 | 1<<2}, true, 20_000, false},
	{"keys that are not proved", limits{nodes: 2, target: 2, depth: 1, eager: true, forms: true, pauses: 2}, true, 20_000, false},
	{"keys that are not proved, restart", limits{nodes: 2, target: 1, depth: 1, eager: true, forms: true, pauses: 1, restarts: 1, lates: 1}, false, 20_000, false},
	{"ESP, restart", limits{nodes: 2, target: 2, depth: 1, eager: true, restarts: 1, esp: true}, true, 20_000, false},

	{"keys that are not proved, rotation, restart", limits{nodes: 2, target: 2, depth: 1, eager: true, forms: true, pauses: 2, restarts: 1, losses: 1, lates: 1}, true, 0, false},
	{"keys that are not proved, step by step", limits{nodes: 2, target: 1, depth: 1, forms: true, pauses: 2}, false, 0, false},
	{"first connection, step by step", limits{nodes: 2, target: 1, depth: 1}, false, 0, true},
	{"rotation, restart", limits{nodes: 2, target: 2, depth: 1, eager: true, restarts: 1}, false, 0, true},
	{"rotation, reboot", limits{nodes: 2, target: 2, depth: 1, eager: true, reboots: 1}, false, 0, true},
	{"rotation, loss", limits{nodes: 2, target: 2, depth: 1, eager: true, losses: 1}, false, 0, true},
	{"rotation, reject", limits{nodes: 2, target: 2, depth: 1, eager: true, rejects: 1}, false, 0, true},
	{"rotation, others need devices", limits{nodes: 2, target: 2, depth: 1, eager: true, keeps: 2}, false, 0, true},
	{"rotation, hold-down", limits{nodes: 2, target: 2, depth: 1, eager: true, holddown: 2}, false, 0, true},
	{"rotation, reordering", limits{nodes: 2, target: 2, depth: 2, eager: true}, false, 0, true},
	{"rotation, repetition", limits{nodes: 2, target: 2, depth: 2, eager: true, again: true}, false, 0, true},
	{"three epochs", limits{nodes: 2, target: 3, depth: 1, eager: true}, false, 0, true},
	{"rotation, step by step", limits{nodes: 2, target: 2, depth: 1}, false, 0, true},
	{"four epochs, three nodes", limits{nodes: 3, target: 4, depth: 1, eager: true, restarts: 1}, true, 0, false},
	{"two losses, two restarts, a late message", limits{nodes: 2, target: 3, depth: 2, eager: true, losses: 2, restarts: 2, lates: 1}, true, 0, false},
}

// exploreEnv is how many worlds to visit in each exploration. It makes them
// all run, for minutes or hours: 10,000,000 take up to 4 GB and, one by one,
// a quarter of an hour each.
const exploreEnv = "SECURE_OVERLAY_EXPLORE"

// TestExplore: no sequence of events leads to a world in which an invariant
// is broken (invariant_test.go), and from every world all pairs arrive
// when what should happen happens.
func TestExplore(t *testing.T) {
	large, _ := strconv.Atoi(os.Getenv(exploreEnv))
	for _, e := range explorations {
		most := e.quick / slowness
		if large > 0 {
			most = large
		}
		if most == 0 {
			continue
		}
		t.Run(e.name, func(t *testing.T) {
			u := newUniverse(e.limits)
			from := []world{u.start()}
			if e.seeded {
				from = append(from, u.seeds()...)
				for i := range e.limits.nodes {
					from = append(from, u.seeds(i)...)
				}
			}
			began := time.Now()
			out := explore(u, from, most, true)
			t.Logf("%d worlds, %d steps, %d states of nodes, %d messages; all: %v; %v",
				out.worlds, out.steps, out.nodes, out.msgs, out.complete, time.Since(began).Round(time.Second/10))
			switch {
			case out.err != nil:
				t.Errorf("%v\n%s", out.err, out.trace)
			case e.whole && !out.complete && slowness == 1 && most >= e.quick && large == 0:
				t.Error("there are more worlds than this was meant to visit")
			}
		})
	}
}
