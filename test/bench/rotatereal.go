package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/test/fleet"
)

// lookEvery is how often each agent is asked where it stands: as exact as the
// phases of real agents are.
const lookEvery = 10 * time.Millisecond

// realLimit bounds how long a fleet may take to come up.
const realLimit = time.Minute

// rotateReal rotates a fleet of agents that share this machine, and fits the
// costs that cannot be measured alone.
func rotateReal(ctx context.Context, driver string, nodes, rounds int, c *costs) (row rotationRow, err error) {
	bin, clean, err := buildProgram(ctx)
	if err != nil {
		return row, err
	}
	defer clean()
	ctx, cancel := context.WithTimeout(ctx, realLimit+time.Duration(rounds*nodes)*5*time.Second)
	defer cancel()
	f, err := fleet.New(fleet.Options{Name: "bench", Binary: bin, Nodes: nodes, Networks: networks("")[:1]})
	if err != nil {
		return row, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Start(ctx); err != nil {
		return row, err
	}
	if r, err := f.Nodes[0].Rotate(ctx, driver); err != nil {
		return row, err
	} else if err := f.WaitEpoch(ctx, r.To); err != nil {
		return row, err
	}
	row = rotationRow{Driver: driver, Nodes: nodes, Rotations: rounds}
	var all []*phases
	for i := range rounds {
		p, err := watchRotation(ctx, f, f.Nodes[i%nodes])
		if err != nil {
			return row, err
		}
		all = append(all, p)
	}
	row.take(all)
	c.fit(row)
	return row, nil
}

// fit sets the costs that only a fleet shows: a target or a record spreads
// twice until the last pair has its secret, once before and once after the
// device is made. What else the loops do meanwhile is small beside it.
func (c *costs) fit(row rotationRow) {
	if c.Gossip != 0 {
		return // fitted to a smaller fleet already
	}
	agreed := time.Duration(row.Left[rotate.StepAgree] * float64(time.Second))
	c.Gossip = max(time.Millisecond, (agreed-c.MakeDevice-c.Agree-2*c.Turn)/2)
}

// watchRotation asks a node for an epoch and looks at all nodes until it is
// complete.
func watchRotation(ctx context.Context, f *fleet.Fleet, asker *fleet.Node) (*phases, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	begin := time.Now()
	r, err := asker.Client().Rotate(ctx, api.RotateRequest{})
	if err != nil {
		return nil, err
	}
	p := newPhases(r.To)
	var mu sync.Mutex // guards p and errs
	var errs []error
	var wg sync.WaitGroup
	for _, n := range f.Nodes {
		wg.Go(func() {
			tick := time.NewTicker(lookEvery)
			defer tick.Stop()
			for {
				s, err := n.Keys(ctx)
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				} else {
					p.note(s.Nodes[selfAt(s)].ID, progressOf(s), time.Since(begin))
				}
				done := err != nil || fleet.AtEpoch(s, r.To, len(f.Nodes)-1)
				if done {
					p.all = max(p.all, time.Since(begin))
				}
				mu.Unlock()
				if done {
					return
				}
				<-tick.C
			}
		})
	}
	wg.Wait()
	return p, errors.Join(errs...)
}

func selfAt(s api.KeyStatus) int {
	for i, n := range s.Nodes {
		if n.Self {
			return i
		}
	}
	return 0
}

// progressOf turns what an agent answers into what machines say.
func progressOf(s api.KeyStatus) []rotate.Progress {
	var out []rotate.Progress
	for _, p := range s.Peers {
		out = append(out, rotate.Progress{Peer: p.ID, Tx: p.Epoch, Goal: p.Goal, Step: rotate.Step(p.Step)})
	}
	return out
}

// binaryEnv names a built program, for machines that cannot build one.
const binaryEnv = "SECURE_OVERLAY_BIN"

// buildProgram builds the product into a folder that clean removes.
func buildProgram(ctx context.Context) (bin string, clean func(), err error) {
	if bin := os.Getenv(binaryEnv); bin != "" {
		return bin, func() {}, nil
	}
	dir, err := os.MkdirTemp("", "secure-overlay-bench-")
	if err != nil {
		return "", nil, err
	}
	clean = func() { _ = os.RemoveAll(dir) }
	bin = filepath.Join(dir, "secure-overlay")
	build := exec.CommandContext(ctx, "go", "build", "-o", bin, "github.com/secure-overlay/secure-overlay/cmd/secure-overlay")
	if out, err := build.CombinedOutput(); err != nil {
		clean()
		return "", nil, fmt.Errorf("build the program (run this inside the source tree): %w\n%s", err, out)
	}
	return bin, clean, nil
}
