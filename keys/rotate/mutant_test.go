package rotate

import (
	"slices"
	"strings"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// mutant breaks machines, or what surrounds them, from outside.
type mutant struct {
	observe func(n *simNode, o *Observation)
	receive func(n *simNode, m *Message)
	before  func(n *simNode) // each Poll, each answer
	plan    func(n *simNode, p *Plan)
	agree   func(n *simNode, w Wanted) // before MayAgree and Agreed
	echoes  bool                       // every probe comes back
}

func eachPair(n *simNode, f func(p *pair)) {
	for _, p := range n.m.sorted() {
		f(p)
	}
}

func eachLeg(n *simNode, f func(p *pair, l *leg)) {
	eachPair(n, func(p *pair) {
		for i := range p.legs {
			f(p, &p.legs[i])
		}
	})
}

// TestMutants: each of these mistakes is found, by breaking the invariant that
// it should, or by not arriving. So the exploration can fail.
func TestMutants(t *testing.T) {
	rotation := limits{nodes: 2, target: 2, depth: 1, eager: true}
	restart, loss, hole := rotation, rotation, rotation
	restart.restarts = 1
	loss.losses = 1
	hole.hole = 1 << 2
	late := loss
	late.lates = 1
	forms := limits{nodes: 2, target: 1, depth: 1, eager: true, forms: true, pauses: 2}
	formsRestart := forms
	formsRestart.restarts, formsRestart.pauses = 1, 1
	for _, c := range []struct {
		name   string
		want   string // in the error
		limits limits
		mutant mutant
	}{
		{"announces before it has installed", "announces key", rotation, mutant{observe: func(n *simNode, o *Observation) {
			for e := range n.secrets {
				for p, k := range n.secrets[e] {
					if k != 0 && n.dev[e].inst != 0 {
						o.Installed = append(o.Installed, Installed{Peer: simID(p), Device: Device{ids.Epoch(e), uint32(n.dev[e].inst), 1}, Key: keys.KeyID(k)})
					}
				}
			}
		}}},
		{"moves on its own proof", "not both proved", rotation, mutant{before: func(n *simNode) {
			eachPair(n, func(p *pair) {
				p.talk.heard.Epochs = slices.Clone(p.talk.heard.Epochs)
				for i := range p.talk.heard.Epochs {
					p.talk.heard.Epochs[i].Proved = true
				}
			})
		}}},
		{"moves without a probe", "not both proved", rotation, mutant{before: func(n *simNode) {
			eachLeg(n, func(p *pair, l *leg) { l.proved, l.sends = l.installed, l.installed })
		}}},
		{"moves as soon as there is a key", "not both proved", rotation, mutant{plan: func(n *simNode, p *Plan) {
			for i := range p.Pairs {
				q := &p.Pairs[i]
				q.Send, q.Main = true, i+1 == len(p.Pairs)
			}
		}}},
		{"drops the old epoch when it has moved itself", "where the other has 0", rotation, mutant{plan: func(n *simNode, p *Plan) {
			p.Pairs = slices.DeleteFunc(p.Pairs, func(q Pair) bool { return uint8(q.Epoch) < n.route[simIndex(q.Peer)] })
		}}},
		{"drops the old epoch when the peer has proved the new one", "where the other has 0", rotation, mutant{before: func(n *simNode) {
			eachPair(n, func(p *pair) {
				for _, s := range p.talk.heard.Epochs {
					if s.Proved {
						p.talk.heard.Tx = s.Epoch
					}
				}
			})
		}}},
		{"asks for new keys all the time", "which is in use", rotation, mutant{plan: func(n *simNode, p *Plan) {
			for _, q := range p.Pairs {
				if n.idx < simIndex(q.Peer) {
					p.Agree = append(p.Agree, Wanted{q.Peer, q.Epoch, uint32(n.dev[q.Epoch].inst), q.Theirs})
				}
			}
		}, agree: func(n *simNode, w Wanted) {
			eachPair(n, func(p *pair) { p.talk.heard.Epochs = nil })
		}}},
		{"takes messages that are older", "where the other has 0", late, mutant{receive: func(n *simNode, m *Message) {
			eachPair(n, func(p *pair) { p.talk.heard.Seq = 0 })
		}}},
		{"adopts nothing", "where the other has 0", restart, mutant{observe: func(n *simNode, o *Observation) {
			if n.boots > 1 && len(n.m.pairs) == 0 {
				o.Installed = nil
			}
		}}},
		{"prunes before it knows its peers", "where the other has 0", restart, mutant{observe: func(n *simNode, o *Observation) { o.Partial = false }}},
		{"goes back without asking", "where the other has 0", loss, mutant{before: func(n *simNode) {
			eachPair(n, func(p *pair) { p.talk.backSeq, p.talk.said.Tx = 0, 0 })
		}}},
		{"takes small packets for large ones", "into a hole", hole, mutant{before: func(n *simNode) {
			eachLeg(n, func(p *pair, l *leg) { l.probe.full = l.probe.small })
		}}},
		{"replaces what it has proved", "which is in use", forms, mutant{agree: func(n *simNode, w Wanted) {
			eachPair(n, func(p *pair) {
				p.talk.heard.Epochs = slices.Clone(p.talk.heard.Epochs)
				for i := range p.talk.heard.Epochs {
					p.talk.heard.Epochs[i].Proved = false
				}
			})
			eachLeg(n, func(p *pair, l *leg) { l.proved, l.probe.small = false, false })
		}}},
		{"replaces what it knows nothing about", "which is in use", formsRestart, mutant{agree: func(n *simNode, w Wanted) {
			eachLeg(n, func(p *pair, l *leg) { l.forms = l.forms && p.talk.heard.Seq != 0 })
		}}},
		{"never repeats a message", "at rest", rotation, mutant{before: func(n *simNode) {
			eachPair(n, func(p *pair) { p.talk.retry.next = simStart.Add(50 * simYear) })
		}}},
		{"has devices without limit", "4 devices", limits{nodes: 2, target: 4, depth: 1, eager: true}, mutant{plan: func(n *simNode, p *Plan) {
			p.Devices = append(p.Devices, ids.Epoch(n.target))
			for e, d := range n.dev {
				if d.inst != 0 {
					p.Devices = append(p.Devices, ids.Epoch(e))
				}
			}
		}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := newUniverse(c.limits)
			from := append(u.seeds(1), u.start())
			from = append(from, u.seeds()...)
			u.mutant = c.mutant
			clear(u.memo)
			// Not arriving is not what some of them are sought for.
			how := fairly
			if strings.Contains(c.want, "in use") || strings.Contains(c.want, "devices") {
				how = unchecked
			}
			found := func(u *universe) (worlds int) {
				out := explore(u, from, 500_000, how)
				t.Logf("%d worlds, %d steps: %v", out.worlds, out.steps, out.err)
				if out.err == nil || !strings.Contains(out.err.Error(), c.want) {
					t.Errorf("found %v, want %q", out.err, c.want)
				}
				return out.worlds
			}
			// Among others messages are not lost, so nothing needs to be repeated.
			if worlds := found(u); c.want == "at rest" || slowness > 1 && worlds > 5000 {
				return
			}
			u.again, u.turns, u.others = true, true, true
			clear(u.memo)
			found(u)
		})
	}
}

// TestDeadProcess: a message that a dead process sent, and that arrives late,
// is not believed; a machine that believes it drops the epoch that the peer
// sends on. The way there is too long for a search.
func TestDeadProcess(t *testing.T) {
	l := limits{nodes: 2, target: 2, depth: 2, eager: true, losses: 1, restarts: 1, lates: 1}
	believing := mutant{receive: func(n *simNode, m *Message) {
		eachPair(n, func(p *pair) { p.talk.freshSeq, m.AckBoot = 0, n.m.boot })
	}}
	for _, c := range []struct {
		name   string
		mutant mutant
		loss   bool
	}{{"as it is", mutant{}, false}, {"believing", believing, true}} {
		t.Run(c.name, func(t *testing.T) {
			u := newUniverse(l)
			var w world
			for _, s := range u.seeds() {
				if n, o := u.node(s.node[0]), u.node(s.node[1]); n.proved[2][1] != 0 && o.proved[2][0] != 0 && n.route[1] == 1 && o.route[0] == 1 {
					w = s // both have proved epoch 2 and do not know it of each other
				}
			}
			acts := []action{
				{kind: actDeliver, a: 0, b: 1}, // node 1 moves to epoch 2
				{kind: actDeliver, a: 1, b: 0}, // node 0 does, too, not knowing about node 1
				{kind: actHold, a: 1, b: 0},    // that it has moved
				{kind: actLoseDevice, a: 1, e: 2},
				{kind: actDeliver, a: 1, b: 0}, // node 0 keeps epoch 1 for it
				{kind: actDeliver, a: 0, b: 1}, // node 1 is back on it
				{kind: actCrash, a: 1, x: 7},
				{kind: actKnow, a: 1},
				{kind: actDeliver, a: 1, b: 0},
				{kind: actDeliver, a: 0, b: 1},
				{kind: actLoop, a: 1},
				{kind: actDeliver, a: 1, b: 0}, // node 0 knows the new process
			}
			for i, a := range acts {
				if a.kind == actDeliver && i > 1 {
					a.x = u.newest(&w, int(a.a), int(a.b))
				}
				w = u.play(t, w, a)
			}
			if n, o := u.node(w.node[0]), u.node(w.node[1]); n.route[1] != 2 || o.route[0] != 1 || n.has[1][1].key == 0 || n.peers[1].heard.Boot != simBoot(1, 2) {
				t.Fatalf("the story went another way\n%s", u.String(&w))
			}
			u.mutant = c.mutant
			clear(u.memo)
			_, err := u.step(w, action{kind: actLate, a: 1, b: 0})
			if (err != nil) != c.loss {
				t.Errorf("after the late message: %v", err)
			}
		})
	}
}

// newest returns the place of the newest message under way.
func (u *universe) newest(w *world, from, to int) (x uint8) {
	for i, m := range w.chans[from][to] {
		if m != 0 {
			x = uint8(i)
		}
	}
	return x
}

// play performs an action.
func (u *universe) play(t *testing.T, w world, a action) world {
	t.Helper()
	w, err := u.step(w, a)
	if err != nil {
		t.Fatalf("%v: %v\n%s", a, err, u.String(&w))
	}
	return w
}
