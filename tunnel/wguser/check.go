package wguser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
)

// socketDir is where wireguard-go and wg(8) keep control sockets.
const socketDir = "/var/run/wireguard"

func socketPath(device string) string { return filepath.Join(socketDir, device+".sock") }

// defaultPatience is how long a worker may take to answer a request. The
// request takes a millisecond; but a machine can be so busy that nobody gets
// a turn for seconds (5 s were too few in an emulated machine), and giving up
// on a worker that only waits for its turn costs its sessions.
const defaultPatience = 20 * time.Second

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

// ping asks the worker for an answer: an empty set changes nothing and its
// answer, unlike get's, holds no key.
func ping(ctx context.Context, device string, patience time.Duration) error {
	c, _, err := worker.Dial(socketPath(device))
	if err != nil && !errors.Is(err, worker.ErrNone) {
		return fmt.Errorf("%w: %w", wg.ErrUnclear, err) // such as no file descriptor left here
	}
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("ask worker of %s: %w", device, err)
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := c.Write([]byte("set=1\n\n")); err != nil {
		return fmt.Errorf("ask worker of %s: %w", device, err)
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil {
		return fmt.Errorf("ask worker of %s: %w", device, errors.Join(err, ctx.Err()))
	}
	if got := bytes.TrimSpace(buf[:n]); string(got) != "errno=0" {
		return fmt.Errorf("ask worker of %s: answered %q", device, got)
	}
	return nil
}
