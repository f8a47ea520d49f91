package rotate

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
)

const fairRounds = 60

// fair lets everything happen that should, in turn, and returns an error
// unless all pairs arrive at the target. Others need nothing.
func (x *explorer) fair(w world) error {
	defer func(others bool) { x.others = others }(x.others)
	x.others = false
	var path []uint64
	for round := range fairRounds {
		h := x.hash(&w)
		if x.good.has(h) {
			break
		}
		path = append(path, h)
		next, err := x.fairRound(w, func(world) {})
		if err != nil {
			return fmt.Errorf("under the fair scheduler: %w", err)
		}
		if next == w {
			if err := x.arrived(&w); err != nil {
				return fmt.Errorf("at rest after %d fair rounds: %w\n%s", round, err, x.universe.String(&w))
			}
			break
		}
		if round == fairRounds-1 {
			return fmt.Errorf("no rest after %d fair rounds\n%s", round, x.universe.String(&w))
		}
		w = next
	}
	for _, h := range path {
		x.good.add(h)
	}
	return nil
}

// fairRound lets each node look and act, and each message arrive. It shows
// every world on the way to seen.
func (x *explorer) fairRound(w world, seen func(world)) (world, error) {
	var err error
	x.fairSlots(func(s action) {
		act, ok := x.due(&w, s)
		if err == nil && ok {
			w, err = x.step(w, act)
			seen(w)
		}
	})
	return w, err
}

// fairSlots calls f with what has its turn in a fair round.
func (x *explorer) fairSlots(f func(action)) {
	up := func(i int) bool { return i < x.limits.nodes && !slices.Contains(x.cut, i) }
	for i := range x.limits.nodes {
		if !up(i) {
			continue
		}
		a := uint8(i)
		f(action{kind: actTarget, a: a})
		for e := range uint8(simEpochs + 1) {
			f(action{kind: actKeep, a: a, e: e})
		}
		f(action{kind: actKnow, a: a})
		for p := range x.limits.nodes {
			if p != i && up(p) {
				f(action{kind: actLearn, a: a, b: uint8(p)})
			}
		}
		for range 3 {
			f(action{kind: actLoop, a: a})
		}
	}
	for i := range x.limits.nodes {
		for p := range x.limits.nodes {
			if i != p && up(i) && up(p) {
				x.fairPair(uint8(i), uint8(p), f)
			}
		}
	}
}

func (x *explorer) fairPair(a, b uint8, f func(action)) {
	for n := range uint8(worldDepth) {
		if !x.again {
			n = 0
		}
		f(action{kind: actDeliver, a: a, b: b, x: n})
	}
	f(action{kind: actAnswer, a: a, b: b})
	f(action{kind: actAgree, a: a, b: b})
	f(action{kind: actAnswer, a: a, b: b})
	for e := range uint8(simEpochs + 1) {
		f(action{kind: actProbe, a: a, b: b, e: e})
	}
}

// due reports whether what has its turn in a fair round can and should happen.
func (x *explorer) due(w *world, s action) (action, bool) {
	n, o := x.node(w.node[s.a]).simNode, x.node(w.node[s.b]).simNode
	answer := w.answers[s.a][s.b]
	switch s.kind {
	case actTarget:
		return s, n.target < w.target
	case actKeep:
		return s, n.keep>>s.e&1 != 0
	case actKnow:
		return s, n.partial
	case actLearn:
		return s, n.view[s.b] != o.dev
	case actDeliver:
		return s, w.chans[s.a][s.b][s.x] != 0
	case actAnswer:
		return s, answer.epoch != 0
	case actAgree:
		ask := n.asks[s.b]
		return s, ask.epoch != 0 && ask != answer.simWant
	case actProbe:
		k := n.probes[s.e][s.b]
		return s, k != 0 && n.has[s.e][s.b].key == k && n.echo(o, int(s.e))
	}
	return s, true
}

// arrived returns an error unless every pair is on the target epoch and
// nothing else is left.
func (x *explorer) arrived(w *world) error {
	for i := range x.limits.nodes {
		n := x.node(w.node[i]).simNode
		for e, d := range n.dev {
			if (d.inst != 0) != (e == int(w.target)) {
				return fmt.Errorf("node %d has devices %v, the target is %d", i, simDevices(n.dev), w.target)
			}
		}
		for p := range x.limits.nodes {
			if o := x.node(w.node[p]).simNode; p != i && (n.route[p] != w.target || !n.reaches(o, int(w.target))) {
				return fmt.Errorf("node %d sends to %d on epoch %d, the target is %d", i, p, n.route[p], w.target)
			}
		}
	}
	return nil
}

// fairAmongOthers is fair where others need what they like in every turn: all
// worlds in which a round may end are followed. It returns an error unless the pair
// arrives on every way, and stays. Its older devices are others' business then.
func (x *explorer) fairAmongOthers(w world, path []uint64) error {
	h := x.hash(&w)
	switch {
	case slices.Contains(path, h):
		return fmt.Errorf("a fair round among others leads back to where one began\n%s", x.universe.String(&w))
	case x.steady.has(h):
		return nil
	}
	there := x.settledPair(&w)
	if there {
		x.steady.add(h) // it may well come back here
	} else {
		path = append(path, h)
	}
	ends, err := x.roundAmongOthers(w)
	for v := range ends {
		if err == nil && there && !x.settledPair(&v) {
			err = fmt.Errorf("a pair that had arrived does not stay\n%s", x.universe.String(&v))
		}
		if err == nil {
			err = x.fairAmongOthers(v, path)
		}
	}
	if err == nil {
		x.steady.add(h)
	}
	return err
}

// roundAmongOthers returns each world in which a fair round may end, with further
// turns of both nodes anywhere, as events of other pairs cause them.
func (x *explorer) roundAmongOthers(w world) (set map[world]bool, err error) {
	set = map[world]bool{w: true}
	step := func(s action, optional bool) {
		next := make(map[world]bool, len(set))
		for v := range set {
			act, ok := x.due(&v, s)
			if !ok || optional {
				next[v] = true
			}
			if ok {
				x.steps(v, act, func(_ action, v world, e error) {
					err = cmp.Or(err, e)
					next[v] = true
				})
			}
		}
		set = next
	}
	x.fairSlots(func(s action) {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(set)), func(v world) bool { _, ok := x.due(&v, s); return ok }) {
			return
		}
		step(s, false)
		for i := range x.limits.nodes {
			step(action{kind: actLoop, a: uint8(i)}, true)
		}
	})
	return set, err
}

// settledPair reports whether nodes 0 and 1 send to each other on the target
// epoch and hold no other.
func (x *explorer) settledPair(w *world) bool {
	for i := range 2 {
		n, o := x.node(w.node[i]).simNode, x.node(w.node[1-i]).simNode
		if n.route[1-i] != w.target || !n.reaches(o, int(w.target)) {
			return false
		}
		for e := range n.has {
			if n.has[e][1-i].key != 0 && e != int(w.target) {
				return false
			}
		}
	}
	return true
}
