package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Rotate asks a node for the next epoch with the keys rotate command and waits
// as the command does. An empty driver keeps the present one.
func (n *Node) Rotate(ctx context.Context, driver string) (api.Rotation, error) {
	args := []string{"keys", "rotate", "--wait"}
	if driver != "" {
		args = append(args, "--driver", driver)
	}
	var r api.Rotation
	err := n.JSON(ctx, &r, args...)
	return r, err
}

// Keys asks the agent for its epochs and pairs through its socket.
func (n *Node) Keys(ctx context.Context) (api.KeyStatus, error) {
	return n.client.Keys(ctx)
}

// WaitKeys asks until cond holds. When ctx ends first, or the agent's process
// does, the error shows the last answer and the end of the log.
func (n *Node) WaitKeys(ctx context.Context, what string, cond func(api.KeyStatus) bool) error {
	// Each answer costs the agent a look at its tunnels.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last api.KeyStatus
	for {
		now, err := n.Keys(ctx)
		if err == nil {
			if last = now; cond(now) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return n.waitError(what, last, err, ctx.Err())
		case <-n.proc.done:
			return n.waitError(what, last, err, fmt.Errorf("the agent ended: %w", n.proc.err))
		case <-tick.C:
		}
	}
}

// WaitEpoch waits until every running node is done with an epoch or a later one:
// all its pairs with running nodes send on it and nothing older is left on this node.
func (f *Fleet) WaitEpoch(ctx context.Context, epoch ids.Epoch) error {
	running := 0
	for _, n := range f.Nodes {
		if n.Running() {
			running++
		}
	}
	for _, n := range f.Nodes {
		if !n.Running() {
			continue
		}
		err := n.WaitKeys(ctx, fmt.Sprintf("epoch %d and nothing older", epoch), func(s api.KeyStatus) bool {
			return AtEpoch(s, epoch, running-1)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// AtEpoch reports whether a node has finished with an epoch or a later one toward
// at least so many peers.
func AtEpoch(s api.KeyStatus, epoch ids.Epoch, peers int) bool {
	if s.Target.Epoch < epoch || len(s.Devices) != 1 || s.Devices[0].Epoch < epoch {
		return false
	}
	done := 0
	for _, p := range s.Peers {
		if p.Epoch >= epoch && p.Step == api.KeyStepDone {
			done++
		}
	}
	return done >= peers
}
