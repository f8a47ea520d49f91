package main

import (
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
)

// steps are the phases of a rotation, in order.
func steps() []rotate.Step {
	return []rotate.Step{
		rotate.StepDevice, rotate.StepAgree, rotate.StepReady, rotate.StepProve, rotate.StepProved, rotate.StepSwitch, rotate.StepDrain,
	}
}

// phases says when the last pair left each step, from the rotation's start.
type phases struct {
	epoch ids.Epoch // the rotation's target
	left  map[rotate.Step]time.Duration
	ends  map[[2]ids.NodeID]int // at which step each end of each pair was seen last
	all   time.Duration
}

func newPhases(epoch ids.Epoch) *phases {
	return &phases{epoch: epoch, left: map[rotate.Step]time.Duration{}, ends: map[[2]ids.NodeID]int{}}
}

// note takes where a node's pairs stand. A pair that is past a step has left it.
func (p *phases) note(node ids.NodeID, pairs []rotate.Progress, at time.Duration) {
	for _, g := range pairs {
		if g.Step == rotate.StepDone && g.Tx < p.epoch {
			continue // the node does not know of the rotation yet
		}
		end := [2]ids.NodeID{node, g.Peer}
		now := stepNumber(g.Step)
		for i := p.ends[end]; i < now; i++ {
			p.left[steps()[i]] = max(p.left[steps()[i]], at)
		}
		p.ends[end] = max(p.ends[end], now)
	}
}

// end notes when everything was over.
func (p *phases) end(at time.Duration) { p.all = at }

// stepNumber is a step's place; done is behind the last.
func stepNumber(s rotate.Step) int {
	for i, known := range steps() {
		if known == s {
			return i
		}
	}
	if s == rotate.StepDone {
		return len(steps())
	}
	return 0
}
