package main

import (
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
)

// testCosts are about what this was measured to be.
func testCosts() costs {
	return costs{
		MakeDevice: 20 * time.Millisecond, RemoveDevice: 30 * time.Millisecond, AddPeer: 150 * time.Microsecond,
		ReadEntry: 40 * time.Microsecond, MoveRoute: 20 * time.Microsecond, Turn: 2 * time.Millisecond,
		Agree: 1600 * time.Microsecond, Gossip: 50 * time.Millisecond, RTT: time.Millisecond,
	}
}

// TestSimulatedRotations lets simulated clusters rotate: every rotation ends,
// its steps follow each other, and none is faster than its parts.
func TestSimulatedRotations(t *testing.T) {
	c := testCosts()
	for _, nodes := range []int{2, 3, 10} {
		w := newSimWorld(nodes, c)
		if !w.settle() {
			t.Fatalf("%d nodes do not connect", nodes)
		}
		for i := range 3 {
			p, ok := w.rotate()
			if !ok {
				t.Fatalf("rotation %d of %d nodes does not end", i+1, nodes)
			}
			for k := 1; k < len(steps()); k++ {
				if a, b := p.left[steps()[k-1]], p.left[steps()[k]]; a > b || a == 0 {
					t.Errorf("%d nodes: the last pair left %s after %v, %s after %v", nodes, steps()[k-1], a, steps()[k], b)
				}
			}
			least := 2*c.Gossip + c.MakeDevice + c.Agree + simTiming().Drain
			if p.all < least || p.all > 20*least {
				t.Errorf("%d nodes: a rotation took %v, its parts %v", nodes, p.all, least)
			}
		}
	}
}

// TestPhases: a pair that was seen past a step has left it; one that does not
// know of the rotation has not.
func TestPhases(t *testing.T) {
	node, peer := ids.NodeID{1}, ids.NodeID{2}
	at := func(step rotate.Step, tx ids.Epoch) []rotate.Progress {
		return []rotate.Progress{{Peer: peer, Step: step, Tx: tx}}
	}
	p := newPhases(5)
	p.note(node, at(rotate.StepDone, 4), 1*time.Second)
	p.note(node, at(rotate.StepDevice, 4), 2*time.Second)
	p.note(node, at(rotate.StepReady, 4), 3*time.Second)
	p.note(node, at(rotate.StepDone, 5), 4*time.Second)
	p.note(node, at(rotate.StepDone, 5), 5*time.Second)
	want := map[rotate.Step]time.Duration{
		rotate.StepDevice: 3 * time.Second, rotate.StepAgree: 3 * time.Second, rotate.StepReady: 4 * time.Second, rotate.StepDrain: 4 * time.Second,
	}
	for s, d := range want {
		if p.left[s] != d {
			t.Errorf("step %s was left after %v, want %v", s, p.left[s], d)
		}
	}
}
