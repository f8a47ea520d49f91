package rotate

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
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
	seen   *hashSet
	good   *hashSet // from here all pairs arrive
	steady *hashSet // and here, whatever others need
	queue  queue
	log    []logged
	cut    []int // off from the others in fair rounds
	buf    []byte
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

// rested returns the world in which all pairs are on epoch 1, and all is silent.
func (u *universe) rested() world {
	x := &explorer{universe: u}
	for w := u.start(); ; {
		next, err := x.fairRound(w, func(world) {})
		if err != nil || next == w {
			return w
		}
		w = next
	}
}

type exploration struct {
	worlds, steps, nodes, msgs int
	complete                   bool
	err                        error
	trace                      string
}

// arrival says how it is checked that pairs arrive, from each world.
type arrival uint8

const (
	fairly      arrival = iota // by the fair scheduler; others need nothing
	unchecked                  // not at all
	amongOthers                // in the first way, and whatever others need meanwhile
)

// explore visits up to most worlds from those given.
func explore(u *universe, from []world, most int, how arrival) exploration {
	x := &explorer{universe: u, seen: newHashSet(), good: newHashSet(), steady: newHashSet()}
	for _, w := range from {
		if x.seen.add(x.hash(&w)) {
			x.queue.push(queued{w, uint32(len(x.log))})
			x.log = append(x.log, logged{from: ^uint32(0)})
		}
	}
	var out exploration
	for x.queue.n > 0 && out.err == nil && x.seen.n < most {
		q := x.queue.pop()
		if how != unchecked {
			err := x.fair(q.world)
			if err == nil && how == amongOthers {
				err = x.fairAmongOthers(q.world, nil)
			}
			if err != nil {
				out.err, out.trace = err, x.trace(from, q.at, nil)
				break
			}
		}
		x.actions(&q.world, func(act action) {
			if out.err != nil {
				return
			}
			x.steps(q.world, act, func(act action, next world, err error) {
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
