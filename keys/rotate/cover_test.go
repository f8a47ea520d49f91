package rotate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// project returns what a world shows of one of its pairs, as a world of two nodes.
// The lower node of the pair becomes node 0.
type project struct {
	from, to *universe
	pair     [2]int
}

func (j *project) world(w *world) world {
	out := world{target: w.target, budget: w.budget}
	for x, i := range j.pair {
		p := j.pair[1-x]
		out.node[x] = j.to.intern(j.node(j.from.node(w.node[i]).simNode))
		out.answers[x][1-x] = w.answers[i][p]
		for d, m := range w.chans[i][p] {
			out.chans[x][1-x][d] = j.packet(m)
		}
		if int(w.late.from) == i && int(w.late.to) == p {
			out.late = late{uint8(x), uint8(1 - x), j.packet(w.late.msg)}
		}
	}
	before := world{node: [worldNodes]uint32{^uint32(0), ^uint32(0)}}
	j.to.tidy(&out, &before)
	return out
}

func (j *project) packet(m uint32) uint32 {
	if m == 0 {
		return 0
	}
	p := j.from.msgs[m]
	p.Message = j.message(p.Message)
	return j.to.internMessage(p)
}

func (j *project) message(m Message) Message {
	m.Boot, m.AckBoot = j.boot(m.Boot), j.boot(m.AckBoot)
	return m
}

func (j *project) boot(b uint64) uint64 {
	if x := slices.Index(j.pair[:], int(b>>8)-1); x >= 0 {
		return simBoot(x, uint8(b))
	}
	return b
}

func (j *project) node(n *simNode) *simNode {
	c := n.copy()
	c.idx = slices.Index(j.pair[:], n.idx)
	i, p := 1-c.idx, j.pair[1-c.idx] // the peer's number there and here
	c.simKernel, c.simGhost = simKernel{dev: n.dev}, simGhost{}
	c.wants, c.asks, c.view = [simNodes]bool{}, [simNodes]simWant{}, [simNodes]simRecord{}
	c.secrets, c.probes = simKeys{}, simKeys{}
	c.route[i], c.hole[i], c.wants[i], c.asks[i], c.view[i] = n.route[p], n.hole[p], n.wants[p], n.asks[p], n.view[p]
	for e := range n.has {
		c.has[e][i], c.secrets[e][i], c.probes[e][i] = n.has[e][p], n.secrets[e][p], n.probes[e][p]
		c.lost[e][i], c.proved[e][i] = n.lost[e][p], n.proved[e][p]
	}
	c.m.self, c.m.boot = simID(c.idx), j.boot(n.m.boot)
	c.m.pairs = map[ids.NodeID]*pair{}
	if q := n.m.pairs[simID(p)]; q != nil {
		r := *q
		r.peer = simID(i)
		r.talk.heard, r.talk.said = j.message(q.talk.heard), j.message(q.talk.said)
		if r.ask.wanted.Epoch != 0 {
			r.ask.wanted.Peer = r.peer
		}
		c.m.pairs[r.peer] = &r
	}
	return c
}

// TestOthersCoverThird: whatever happens in a world of three nodes, each of its
// pairs sees something that may happen in a world of two among others, or nothing. So
// what an exploration finds to hold in all worlds of two nodes among others holds for
// all pairs of any number of nodes.
func TestOthersCoverThird(t *testing.T) {
	faults := limits{restarts: 1, reboots: 1, losses: 1, rejects: 1, lates: 1}
	turnwise := faults
	faults.eager = true
	for _, l := range []limits{faults, turnwise, {losses: 1, lates: 1, holddown: 1, eager: true}} {
		l.nodes, l.target, l.depth, l.turns, l.again = 3, 4, 2, true, true
		alone := l
		alone.nodes, alone.others = 2, true
		u, v := newUniverse(l), newUniverse(alone)
		from := append(u.seeds(), u.start())
		for i := range 3 {
			from = append(from, u.seeds(i)...)
		}
		random := rand.New(rand.NewPCG(1, 2))
		happened := map[actKind]int{}
		for range 80 / slowness {
			w := from[random.IntN(len(from))]
			for range 40 {
				act := u.anything(&w, random)
				happened[act.kind]++
				next, err := u.step(w, act)
				if err != nil {
					t.Fatalf("%v: %v\n%s", act, err, u.String(&w))
				}
				for _, pair := range [][2]int{{0, 1}, {0, 2}, {1, 2}} {
					if j := (project{u, v, pair}); !j.covered(&w, &next, act.kind) {
						a, b := j.world(&w), j.world(&next)
						t.Fatalf("after %v pair %v is where none among others comes:\n%s\n%s", act, pair, v.String(&a), v.String(&b))
					}
				}
				w = next
			}
		}
		for _, k := range []actKind{actLoop, actReject, actCrash, actDeliver, actAgree, actAnswer, actProbe, actLearn, actRotate} {
			if happened[k] == 0 && slowness == 1 && l.rejects > 0 {
				t.Errorf("no %s happened", actNames[k])
			}
		}
	}
}

// anything returns something that may happen, rare kinds as often as others.
func (u *universe) anything(w *world, random *rand.Rand) action {
	acts := map[actKind][]action{}
	u.actions(w, func(a action) { acts[a.kind] = append(acts[a.kind], a) })
	kinds := slices.Sorted(maps.Keys(acts))
	of := acts[kinds[random.IntN(len(kinds))]]
	return of[random.IntN(len(of))]
}

// covered reports whether next follows from w for the pair.
func (j *project) covered(w, next *world, kind actKind) bool {
	x := &explorer{universe: j.to}
	same := func(v world) uint64 {
		v.budget = budget{} // that is of all nodes together
		return x.hash(&v)
	}
	before, after := j.world(w), j.world(next)
	want := same(after)
	found := same(before) == want
	for _, first := range []bool{true, false} { // the likely ones
		j.to.actions(&before, func(a action) {
			if !found && (a.kind == kind) == first {
				j.to.steps(before, a, func(_ action, v world, err error) { found = found || err == nil && same(v) == want })
			}
		})
	}
	return found
}

// TestOthersMatterWhereDevicesGo: the turns that loops leaves out lead where
// others do.
func TestOthersMatterWhereDevicesGo(t *testing.T) {
	u := newUniverse(limits{nodes: 2, target: 3, depth: 1, turns: true, again: true, others: true, losses: 1})
	random := rand.New(rand.NewPCG(3, 4))
	removed := 0
	for range 60 / slowness {
		w := u.start()
		for range 150 {
			w, _ = u.step(w, u.anything(&w, random))
			there := map[uint32]bool{}
			u.loops(w.node[0], action{}, func(a action) { there[u.do(w.node[0], a.loopOp()).node] = true })
			removed += len(there) - 1
			for legs := range uint8(1 << (MaxEpochs + 1)) {
				if a := (action{b: legs}); !there[u.do(w.node[0], a.loopOp()).node] {
					t.Fatalf("where others need %b, a turn leads elsewhere", legs)
				}
			}
		}
	}
	if removed == 0 {
		t.Error("others never mattered")
	}
}

// TestAgainCoversLoss: where messages stay and arrive any number of times, nodes come
// to all states that they come to where each arrives once or is lost.
func TestAgainCoversLoss(t *testing.T) {
	for _, l := range []limits{
		{nodes: 2, target: 1, depth: 1, eager: true},
		{nodes: 2, target: 2, depth: 1, eager: true},
	} {
		again := l
		again.again = true
		rested := l.target > 1
		with, without := reached(t, again, rested), reached(t, l, rested)
		t.Logf("target %d: %d states, %d of them where messages are lost", l.target, len(with), len(without))
		for s := range without {
			if !with[s] {
				t.Fatalf("target %d: nodes come where they do not if messages stay: %q", l.target, s)
			}
		}
	}
}

// reached returns the states of nodes and agreements in all worlds, whatever is
// under way.
func reached(t *testing.T, l limits, rested bool) map[string]bool {
	t.Helper()
	u := newUniverse(l)
	w := u.start()
	if rested {
		w = u.rested()
	}
	out := map[string]bool{}
	visit(u, w, func(w world) {
		w.chans = [worldNodes][worldNodes][worldDepth]uint32{}
		before := world{node: [worldNodes]uint32{^uint32(0), ^uint32(0)}}
		u.tidy(&w, &before)
		var s []byte
		for i := range u.limits.nodes {
			s = append(s, encode(u.node(w.node[i]).simNode)...)
		}
		out[fmt.Sprint(string(s), w.answers, w.target)] = true
	})
	return out
}

// visit calls f with all worlds within reach of w.
func visit(u *universe, w world, f func(world)) {
	x := &explorer{universe: u, seen: newHashSet()}
	for queue := []world{w}; len(queue) > 0; queue = queue[1:] {
		w := queue[0]
		if !x.seen.add(x.hash(&w)) {
			continue
		}
		f(w)
		u.actions(&w, func(a action) {
			u.steps(w, a, func(_ action, next world, _ error) {
				if !x.seen.has(x.hash(&next)) {
					queue = append(queue, next)
				}
			})
		})
	}
}
