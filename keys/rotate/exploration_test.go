package rotate

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// beginning is where an exploration begins.
type beginning uint8

const (
	fresh  beginning = iota // every node has just been started
	rested                  // all pairs are on epoch 1, and all is silent
	seeded                  // fresh, and the middle of rotations, with and without nodes cut off
)

// explorations are worlds to explore. quick is how many of them a normal test
// run visits, 0 for none; whole: it visits all there are.
var explorations = []struct {
	name   string
	limits limits
	from   beginning
	quick  int
	whole  bool
	how    arrival
}{
	{"first connection, restart", limits{nodes: 2, target: 1, depth: 1, eager: true, restarts: 1}, fresh, 80_000, true, fairly},
	{"rotation", limits{nodes: 2, target: 2, depth: 1, eager: true}, fresh, 120_000, true, fairly},
	{"rotation, step by step, held back messages", limits{nodes: 2, target: 2, depth: 1, lates: 1}, seeded, 30_000, false, fairly},
	{"three nodes, three epochs, everything", limits{
		nodes: 3, target: 3, depth: 1, eager: true,
		restarts: 1, reboots: 1, losses: 1, rejects: 1, lates: 1, keeps: 1, holddown: 1,
	}, seeded, 40_000, false, fairly},
	{"a hole in every epoch", limits{nodes: 2, target: 2, depth: 1, eager: true, restarts: 1, hole: 1<<1 | 1<<2}, seeded, 20_000, false, fairly},
	{"keys that are not proved", limits{nodes: 2, target: 2, depth: 1, eager: true, forms: true, pauses: 2}, seeded, 20_000, false, fairly},
	{"keys that are not proved, restart", limits{nodes: 2, target: 1, depth: 1, eager: true, forms: true, pauses: 1, restarts: 1, lates: 1}, fresh, 20_000, false, fairly},
	{"ESP, restart", limits{nodes: 2, target: 2, depth: 1, eager: true, restarts: 1, esp: true}, seeded, 20_000, false, fairly},
	{"among others, rotation, restart", among(2, 1, limits{restarts: 1}), rested, 12_000, false, fairly},
	{"among others, rotation, arriving", among(2, 1, limits{}), rested, 2_000, true, amongOthers},

	{"among others, three epochs, restart", among(3, 1, limits{restarts: 1}), rested, 0, true, fairly},
	{"among others, three epochs", among(3, 1, limits{}), rested, 0, true, amongOthers},
	{"among others, rotation, restart, arriving", among(2, 1, limits{restarts: 1}), rested, 0, true, amongOthers},
	{"among others, rotation, overtaking", among(2, 2, limits{}), rested, 0, true, fairly},
	{"among others, rotation, overtaking, restart", among(2, 2, limits{restarts: 1}), rested, 0, true, fairly},
	{"among others, rotation, held back message", among(2, 1, limits{lates: 1}), rested, 0, true, fairly},
	{"among others, rotation, loss", among(2, 1, limits{losses: 1}), rested, 0, true, fairly},
	{"among others, rotation, reject", among(2, 1, limits{rejects: 1}), rested, 0, true, fairly},
	{"among others, rotation, reboot", among(2, 1, limits{reboots: 1}), rested, 0, true, fairly},
	{"among others, rotation, turn by turn", turnByTurn(among(2, 1, limits{})), rested, 0, true, fairly},
	{"among others, rotation from the first connection", among(2, 1, limits{}), fresh, 0, true, fairly},
	{"among others, three epochs, held back message", among(3, 1, limits{lates: 1}), rested, 0, true, fairly},

	{"keys that are not proved, rotation, restart", limits{nodes: 2, target: 2, depth: 1, eager: true, forms: true, pauses: 2, restarts: 1, losses: 1, lates: 1}, seeded, 0, false, fairly},
	{"keys that are not proved, step by step", limits{nodes: 2, target: 1, depth: 1, forms: true, pauses: 2}, fresh, 0, false, fairly},
	{"first connection, step by step", limits{nodes: 2, target: 1, depth: 1}, fresh, 0, true, fairly},
	{"rotation, restart", limits{nodes: 2, target: 2, depth: 1, eager: true, restarts: 1}, fresh, 0, true, fairly},
	{"rotation, reboot", limits{nodes: 2, target: 2, depth: 1, eager: true, reboots: 1}, fresh, 0, true, fairly},
	{"rotation, loss", limits{nodes: 2, target: 2, depth: 1, eager: true, losses: 1}, fresh, 0, true, fairly},
	{"rotation, reject", limits{nodes: 2, target: 2, depth: 1, eager: true, rejects: 1}, fresh, 0, true, fairly},
	{"rotation, others need devices", limits{nodes: 2, target: 2, depth: 1, eager: true, keeps: 2}, fresh, 0, true, fairly},
	{"rotation, hold-down", limits{nodes: 2, target: 2, depth: 1, eager: true, holddown: 2}, fresh, 0, true, fairly},
	{"rotation, reordering", limits{nodes: 2, target: 2, depth: 2, eager: true}, fresh, 0, true, fairly},
	{"rotation, repetition", limits{nodes: 2, target: 2, depth: 2, eager: true, again: true}, fresh, 0, true, fairly},
	{"three epochs", limits{nodes: 2, target: 3, depth: 1, eager: true}, fresh, 0, true, fairly},
	{"rotation, step by step", limits{nodes: 2, target: 2, depth: 1}, fresh, 0, true, fairly},
	{"four epochs, three nodes", limits{nodes: 3, target: 4, depth: 1, eager: true, restarts: 1}, seeded, 0, false, fairly},
	{"two losses, two restarts, a late message", limits{nodes: 2, target: 3, depth: 2, eager: true, losses: 2, restarts: 2, lates: 1}, seeded, 0, false, fairly},
}

// among returns the limits of a pair in any cluster: third parties need what they
// like, messages arrive never, once or often.
func among(target uint8, depth int, faults limits) limits {
	l := faults
	l.nodes, l.target, l.depth, l.eager = 2, target, depth, true
	l.turns, l.again, l.others = true, true, true
	return l
}

// turnByTurn lets anything happen between two turns of a node that has not come to
// rest.
func turnByTurn(l limits) limits {
	l.eager = false
	return l
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
			switch e.from {
			case rested:
				from = []world{u.rested()}
			case seeded:
				from = append(from, u.seeds()...)
				for i := range e.limits.nodes {
					from = append(from, u.seeds(i)...)
				}
			}
			began := time.Now()
			out := explore(u, from, most, e.how)
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
