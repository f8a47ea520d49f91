package wguser

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
)

// question is one ping on its way. err may be read when done is closed.
type question struct {
	asked time.Time
	done  chan struct{}
	err   error
}

// answerTime is how long callers wait for a worker that is slow to answer.
// The question stays open beyond it, see Check.
const answerTime = time.Second

// Check implements wg.Maker: a device is as good as its worker.
//
// A worker may take m.patience to answer, its caller does not: the agent's
// loop would stand still for all networks, and with a deadline no longer than
// the patience it would never learn that the worker is stuck. So the question
// stays open from call to call, and the answer is unclear meanwhile.
func (m *maker) Check(ctx context.Context, name string) error {
	q := m.asked[name]
	if q == nil {
		q = &question{asked: time.Now(), done: make(chan struct{})}
		m.asked[name] = q
		m.asking.Go(func() {
			defer close(q.done)
			q.err = ping(m.life, name, m.patience)
		})
	}
	// Together they wait once, not each of them.
	wait, cancel := context.WithDeadline(ctx, q.asked.Add(answerTime))
	defer cancel()
	select {
	case <-q.done:
	case <-wait.Done():
	}
	select {
	case <-q.done:
		// That a worker was silent for so long stays known until its device
		// is made anew: State may hear of it before Set, which acts on it.
		if !errors.Is(q.err, os.ErrDeadlineExceeded) {
			delete(m.asked, name)
		}
		return q.err
	default:
		if ctx.Err() != nil {
			return fmt.Errorf("ask worker of %s: %w", name, ctx.Err())
		}
		return fmt.Errorf("%w: the worker of %s has not answered yet", wg.ErrUnclear, name)
	}
}
