package e2e

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/fleet"
)

// killSteps are the steps at which an agent is killed: all in which it waits
// for something.
func killSteps() []api.KeyStep {
	var steps []api.KeyStep
	for _, s := range api.KeySteps() {
		if s != api.KeyStepDone && s != api.KeyStepRefused {
			steps = append(steps, s)
		}
	}
	return steps
}

// maxTries is how many rotations a test waits for a step to be seen. A step
// may pass between two looks.
const maxTries = 30

// TestKillAtEachState kills an agent (SIGKILL) at every step of a rotation, on
// the node that dials and on the one that answers. Its data plane carries on
// without it, nothing is lost then or when it is back, and the rotation completes.
func TestKillAtEachState(t *testing.T) { eachDriver(t, killAtEachState) }

func killAtEachState(t *testing.T, driver string) {
	times := min(3, scaled(t, 75))
	ctx, f := startFor(t, suited(), 3, maxTries*times, "")
	toDriver(t, ctx, f, driver)
	l := startLoad(t, ctx, f, lowRate(t), 200)
	// A secret that an agent has not handed to the kernel whole dies with it. Until
	// its peer hears of that, it may probe what the next agent has taken away.
	l.refusals = func(counter string) bool { return counter == "XfrmInNoStates" }
	lower, higher := lowerFirst(t, ctx, f.Nodes[1], f.Nodes[2])
	victims := []*fleet.Node{lower, higher, f.Nodes[0]}
	for _, step := range killSteps() {
		for i := range times {
			victim := victims[i%len(victims)]
			epoch, tries := killAt(t, ctx, f, victim, step)
			l.more(ctx, 100, "while the agent of "+victim.Name+" is dead")
			begin := time.Now()
			if err := victim.Up(ctx); err != nil {
				t.Fatal(err)
			}
			if err := f.WaitEpoch(ctx, epoch); err != nil {
				t.Fatalf("after the agent of %s was killed at step %s: %v", victim.Name, step, err)
			}
			t.Logf("step %-7s %s killed at try %d; epoch %d complete %v after its return", step, victim.Name, tries, epoch,
				time.Since(begin).Round(time.Millisecond))
			if r := l.mesh.Result(); r.SendErrors != 0 || r.Duplicated != 0 {
				t.Errorf("after the kill at step %s: %+v", step, r)
			}
		}
	}
	l.more(ctx, 100, "after the last kill")
	l.finish(ctx)
}

// killAt rotates until a pair of the victim is seen at a step, and kills its
// agent there. Which step the kernel is at when the signal comes may be the next
// one: both are states worth dying in.
func killAt(t *testing.T, ctx context.Context, f *fleet.Fleet, victim *fleet.Node, step api.KeyStep) (epoch ids.Epoch, tries int) {
	t.Helper()
	var asker *fleet.Node
	for _, n := range f.Nodes {
		if n != victim {
			asker = n
		}
	}
	for tries = 1; tries <= maxTries; tries++ {
		r, err := asker.Client().Rotate(ctx, api.RotateRequest{})
		if err != nil {
			t.Fatal(err)
		}
		seen, err := watchFor(ctx, victim, step, r.To)
		if err != nil {
			t.Fatal(err)
		}
		if seen {
			if err := victim.Kill(); err != nil {
				t.Fatal(err)
			}
			return r.To, tries
		}
		if err := f.WaitEpoch(ctx, r.To); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatalf("no pair of %s was seen at step %s in %d rotations", victim.Name, step, maxTries)
	return 0, 0
}

// watchFor looks at a node as often as it answers until one of its pairs is at
// a step on the way to an epoch (true), or the node is done with the epoch (false).
func watchFor(ctx context.Context, n *fleet.Node, step api.KeyStep, epoch ids.Epoch) (bool, error) {
	for {
		s, err := n.Keys(ctx)
		if err != nil {
			return false, err
		}
		done := s.Target.Epoch >= epoch && len(s.Devices) == 1 && s.Devices[0].Epoch >= epoch
		for _, p := range s.Peers {
			if s.Target.Epoch >= epoch && p.Step == step {
				return true, nil
			}
			done = done && p.Step == api.KeyStepDone
		}
		if done {
			return false, nil
		}
		if ctx.Err() != nil {
			return false, errors.New("the rotation did not end: " + ctx.Err().Error())
		}
	}
}
