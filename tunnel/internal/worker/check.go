package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/secure-overlay/secure-overlay/tunnel"
)

// question is one ping on its way. answer and err may be read when done is closed.
type question struct {
	asked  time.Time
	done   chan struct{}
	answer []byte
	err    error
}

// answerTime is how long callers wait for a worker that is slow to answer.
// The question stays open beyond it, see Check.
const answerTime = time.Second

// Check returns what the worker of a device answers to ping, which writes a request and
// reads the answer; tunnel.ErrUnclear (wrapped) if there is none yet.
//
// A worker may take the fleet's patience to answer, its caller does not: the agent's
// loop would stand still for all networks, and with a deadline no longer than
// the patience it would never learn that the worker is stuck. So the question
// stays open from call to call, and the answer is unclear meanwhile.
func (f *Fleet) Check(ctx context.Context, device string, ping func(net.Conn) ([]byte, error)) ([]byte, error) {
	q := f.asked[device]
	if q == nil {
		q = &question{asked: time.Now(), done: make(chan struct{})}
		f.asked[device] = q
		f.asking.Go(func() {
			defer close(q.done)
			q.answer, q.err = f.ask(device, ping)
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
			delete(f.asked, device)
		}
		return q.answer, q.err
	default:
		if ctx.Err() != nil {
			return nil, fmt.Errorf("ask worker of %s: %w", device, ctx.Err())
		}
		return nil, fmt.Errorf("%w: the worker of %s has not answered yet", tunnel.ErrUnclear, device)
	}
}

// ask pings the worker, for as long as the fleet is open.
func (f *Fleet) ask(device string, ping func(net.Conn) ([]byte, error)) ([]byte, error) {
	c, _, err := Dial(f.socket(device))
	if err != nil && !errors.Is(err, ErrNone) {
		return nil, fmt.Errorf("%w: %w", tunnel.ErrUnclear, err) // such as no file descriptor left here
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(f.patience)); err != nil {
		return nil, fmt.Errorf("ask worker of %s: %w", device, err)
	}
	defer context.AfterFunc(f.life, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	answer, err := ping(c)
	if err != nil {
		return nil, fmt.Errorf("ask worker of %s: %w", device, errors.Join(err, f.life.Err()))
	}
	return answer, nil
}
