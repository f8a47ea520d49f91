package rotate

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
)

// hashSet is a set of hashes, 8 bytes each, by open addressing.
type hashSet struct {
	slots []uint64
	n     int
}

func newHashSet() *hashSet { return &hashSet{slots: make([]uint64, 1<<10)} }

// add reports whether h is new.
func (s *hashSet) add(h uint64) bool {
	if s.n*3 > len(s.slots)*2 {
		old := s.slots
		s.slots, s.n = make([]uint64, 2*len(old)), 0
		for _, h := range old {
			if h != 0 {
				s.add(h)
			}
		}
	}
	h = max(h, 1)
	for i := h; ; i++ {
		switch slot := &s.slots[i&uint64(len(s.slots)-1)]; *slot {
		case h:
			return false
		case 0:
			*slot = h
			s.n++
			return true
		}
	}
}

func (s *hashSet) has(h uint64) bool {
	h = max(h, 1)
	for i := h; ; i++ {
		switch s.slots[i&uint64(len(s.slots)-1)] {
		case h:
			return true
		case 0:
			return false
		}
	}
}

// explorer visits all worlds within reach, breadth first.
type explorer struct {
	*universe
	seen, good *hashSet
	queue      queue
	log        []logged
	cut        []int // off from the others in fair rounds
	fairRuns   int
	longest    int // rounds of a fair run
	buf        []byte
}

type queued struct {
	world
	at uint32 // in log
}

// queue is a queue that gives back the memory of what has left it.
type queue struct {
	chunks [][]queued
	n      int
}

func (q *queue) push(v queued) {
	const size = 1 << 14
	if last := len(q.chunks) - 1; last < 0 || len(q.chunks[last]) == size {
		q.chunks = append(q.chunks, make([]queued, 0, size))
	}
	last := &q.chunks[len(q.chunks)-1]
	*last = append(*last, v)
	q.n++
}

func (q *queue) pop() queued {
	v := q.chunks[0][0]
	q.n--
	if q.chunks[0] = q.chunks[0][1:]; len(q.chunks[0]) == 0 {
		q.chunks = q.chunks[1:]
	}
	return v
}

// logged is how a world was reached.
type logged struct {
	from uint32
	act  action
}

// start returns the world in which every node has just been started.
func (u *universe) start() world {
	w := world{target: 1, budget: budget{u.limits.restarts, u.limits.reboots, u.limits.losses, u.limits.rejects, u.limits.holddown, u.limits.lates, u.limits.keeps, u.limits.pauses}}
	for i := range u.limits.nodes {
		n := newSimNode(i, u.limits.nodes, simTiming)
		n.unable = u.limits.unable[i]
		for e := range n.wires {
			switch {
			case u.forms:
				n.wires[e] = simForms
			case u.esp:
				n.wires[e] = simESP
			}
		}
		w.node[i] = u.intern(n)
	}
	return w
}

func (x *explorer) hash(w *world) uint64 {
	b := x.buf[:0]
	for i := range x.limits.nodes {
		b = binary.LittleEndian.AppendUint32(b, w.node[i])
		for p := range x.limits.nodes {
			if p == i {
				continue
			}
			for _, m := range w.chans[i][p][:x.depth] {
				b = binary.LittleEndian.AppendUint32(b, m)
			}
			s := w.answers[i][p]
			b = append(b, s.epoch, s.mine, s.theirs, s.key)
		}
	}
	b = append(b, w.target, w.budget.restarts, w.budget.reboots, w.budget.losses, w.budget.rejects, w.budget.holddown, w.budget.lates, w.budget.keeps, w.budget.pauses, w.late.from, w.late.to)
	b = binary.LittleEndian.AppendUint32(b, w.late.msg)
	x.buf = b
	return maphash.Bytes(x.seed, b)
}

// seeds are the worlds that all rotations to the last target go through, in
// which the nodes of cut are cut off from the second target on.
func (u *universe) seeds(cut ...int) (out []world) {
	x := &explorer{universe: u}
	w := u.start()
	w.budget = budget{}
	for {
		for range fairRounds {
			next, err := x.fairRound(w, func(w world) {
				if w.target >= min(2, u.limits.target) {
					w.budget = u.start().budget
					out = append(out, w)
				}
			})
			if err != nil || next == w {
				break
			}
			w = next
		}
		if w.target == u.limits.target {
			return out
		}
		w.target++
		x.cut = cut
	}
}

type exploration struct {
	worlds, steps, nodes, msgs int
	complete                   bool
	err                        error
	trace                      string
}

// explore visits up to most worlds from those given. From each it also runs
// the fair scheduler, if live.
func explore(u *universe, from []world, most int, live bool) exploration {
	x := &explorer{universe: u, seen: newHashSet(), good: newHashSet()}
	for _, w := range from {
		if x.seen.add(x.hash(&w)) {
			x.queue.push(queued{w, uint32(len(x.log))})
			x.log = append(x.log, logged{from: ^uint32(0)})
		}
	}
	var out exploration
	for x.queue.n > 0 && out.err == nil && x.seen.n < most {
		q := x.queue.pop()
		if live {
			if err := x.fair(q.world); err != nil {
				out.err, out.trace = err, x.trace(from, q.at, nil)
				break
			}
		}
		x.actions(&q.world, func(act action) {
			if out.err != nil {
				return
			}
			next, err := x.step(q.world, act)
			out.steps++
			if err != nil {
				out.err, out.trace = err, x.trace(from, q.at, &act)
				return
			}
			if x.seen.add(x.hash(&next)) {
				x.queue.push(queued{next, uint32(len(x.log))})
				x.log = append(x.log, logged{q.at, act})
			}
		})
	}
	out.worlds, out.nodes, out.msgs = x.seen.n, len(u.store.at), len(u.msgs)-1
	out.complete = x.queue.n == 0 && out.err == nil
	return out
}

// trace tells how a world was reached.
func (x *explorer) trace(from []world, at uint32, last *action) string {
	var acts []action
	if last != nil {
		acts = append(acts, *last)
	}
	for x.log[at].from != ^uint32(0) {
		acts = append(acts, x.log[at].act)
		at = x.log[at].from
	}
	w := from[at]
	var b strings.Builder
	fmt.Fprintf(&b, "from %s", x.universe.String(&w))
	for i := len(acts) - 1; i >= 0; i-- {
		w, _ = x.step(w, acts[i])
		fmt.Fprintf(&b, "%s\n", acts[i])
		if i < 3 {
			b.WriteString(x.universe.String(&w))
		}
	}
	return b.String()
}

const fairRounds = 60

// fair lets everything happen that should, in turn, and returns an error
// unless all pairs arrive at the target.
func (x *explorer) fair(w world) error {
	x.fairRuns++
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
		x.longest = max(x.longest, round+1)
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
	do := func(act action) {
		if err == nil {
			w, err = x.step(w, act)
			seen(w)
		}
	}
	for i := range x.limits.nodes {
		a := uint8(i)
		if slices.Contains(x.cut, i) {
			continue
		}
		if x.node(w.node[i]).target < w.target {
			do(action{kind: actTarget, a: a})
		}
		for e := range simEpochs + 1 {
			if x.node(w.node[i]).keep>>e&1 != 0 {
				do(action{kind: actKeep, a: a, e: uint8(e)})
			}
		}
		if x.node(w.node[i]).partial {
			do(action{kind: actKnow, a: a})
		}
		for p := range x.limits.nodes {
			if p != i && !slices.Contains(x.cut, p) && x.node(w.node[i]).view[p] != x.node(w.node[p]).dev {
				do(action{kind: actLearn, a: a, b: uint8(p)})
			}
		}
		for range 3 {
			do(action{kind: actLoop, a: a})
		}
	}
	for i := range x.limits.nodes {
		for p := range x.limits.nodes {
			if i != p && !slices.Contains(x.cut, i) && !slices.Contains(x.cut, p) {
				x.fairPair(&w, i, p, do)
			}
		}
	}
	return w, err
}

func (x *explorer) fairPair(w *world, i, p int, do func(action)) {
	a, b := uint8(i), uint8(p)
	for n := range worldDepth {
		if !x.again {
			n = 0
		}
		if w.chans[i][p][n] != 0 {
			do(action{kind: actDeliver, a: a, b: b, x: uint8(n)})
		}
	}
	if w.answers[i][p].epoch != 0 {
		do(action{kind: actAnswer, a: a, b: b})
	}
	if ask := x.node(w.node[i]).asks[p]; ask.epoch != 0 && ask != w.answers[i][p].simWant {
		do(action{kind: actAgree, a: a, b: b})
		if w.answers[i][p].epoch != 0 {
			do(action{kind: actAnswer, a: a, b: b})
		}
	}
	n, o := x.node(w.node[i]).simNode, x.node(w.node[p]).simNode
	for e := range n.probes {
		if k := n.probes[e][p]; k != 0 && n.has[e][p].key == k && n.echo(o, e) {
			do(action{kind: actProbe, a: a, b: b, e: uint8(e)})
		}
	}
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
