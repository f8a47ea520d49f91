package main

import (
	"container/heap"
	"encoding/binary"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
)

// simWorld runs the machines of many nodes in made-up time: each node has a
// machine of its own, as if alone on a host, and pays for what it does with
// costs. Its packets are never lost.
type simWorld struct {
	now    time.Time
	queue  simQueue
	seq    int
	nodes  []*simNode
	byID   map[ids.NodeID]*simNode
	costs  costs
	wire   uint8
	target ids.Epoch
	key    uint32
	began  time.Time
	phases *phases
}

// simEvent is something that happens at a time.
type simEvent struct {
	at  time.Time
	seq int // events of one time keep their order
	fn  func()
}

type simQueue []simEvent

func (q simQueue) Len() int { return len(q) }
func (q simQueue) Less(i, j int) bool {
	if q[i].at.Equal(q[j].at) {
		return q[i].seq < q[j].seq
	}
	return q[i].at.Before(q[j].at)
}
func (q simQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *simQueue) Push(x any)   { *q = append(*q, x.(simEvent)) }
func (q *simQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

// simTiming are the pauses of control.profile local, as the real fleet of the
// same run has them, without a limit on how often epochs follow.
func simTiming() rotate.Timing {
	return rotate.Timing{
		Drain: 300 * time.Millisecond, Quiet: 100 * time.Millisecond, HoldDown: time.Hour,
		RetryMin: 100 * time.Millisecond, RetryMax: 3 * time.Second,
	}
}

func newSimWorld(nodes int, c costs) *simWorld {
	w := &simWorld{now: time.Unix(1e9, 0), byID: map[ids.NodeID]*simNode{}, costs: c, wire: 1, target: 1}
	for i := range nodes {
		var id ids.NodeID
		binary.BigEndian.PutUint32(id[:], uint32(i+1))
		n := &simNode{
			w: w, id: id, m: rotate.New(id, uint64(i+1), simTiming()),
			devices: map[ids.Epoch]*simDevice{}, routes: map[ids.NodeID]ids.Epoch{},
			views: map[ids.NodeID][]ids.Epoch{}, secrets: map[simHeld]keys.KeyID{},
		}
		w.nodes = append(w.nodes, n)
		w.byID[id] = n
	}
	for _, n := range w.nodes {
		w.after(0, n.turn)
	}
	return w
}

// after schedules fn.
func (w *simWorld) after(d time.Duration, fn func()) {
	w.seq++
	heap.Push(&w.queue, simEvent{w.now.Add(d), w.seq, fn})
}

// run lets time pass until cond holds; false: nothing is left to happen, or it
// took more than an hour of made-up time.
func (w *simWorld) run(cond func() bool) bool {
	end := w.now.Add(time.Hour)
	for !cond() {
		if len(w.queue) == 0 || w.now.After(end) {
			return false
		}
		e := heap.Pop(&w.queue).(simEvent)
		w.now = e.at
		e.fn()
	}
	return true
}

// rotate raises the target and returns the time of each phase.
func (w *simWorld) rotate() (*phases, bool) {
	w.target++
	w.began, w.phases = w.now, newPhases(w.target)
	for _, n := range w.nodes {
		w.after(w.costs.Gossip, n.turn)
	}
	ok := w.run(func() bool {
		for _, n := range w.nodes {
			if n.busy || !n.done(w.target) {
				return false
			}
		}
		return true
	})
	w.phases.end(w.now.Sub(w.began))
	return w.phases, ok
}

// settle runs until everybody is done with the first epoch.
func (w *simWorld) settle() bool {
	w.phases, w.began = newPhases(w.target), w.now
	return w.run(func() bool {
		for _, n := range w.nodes {
			if n.busy || !n.done(w.target) {
				return false
			}
		}
		return true
	})
}
