package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/events"
	"github.com/secure-overlay/secure-overlay/keys/clock"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// Options is what an Agent works with. Config, Store and Kinds are required.
type Options struct {
	Config  config.Config
	Store   *keystore.Store // opened; the caller closes it after Run
	Kinds   []tunnel.Kind   // in the order in which auto tries them
	Clock   *clock.Clock    // whose trusted time is kept in Store; nil: the system clock
	Version string          // for status
	Log     *slog.Logger    // nil: discarded
	// Events is the node's event log, which the caller closes after Run. Nil:
	// nothing is kept.
	Events *events.Log
	// Load reads the configuration again, and Loaded hears of one that was taken up.
	// Nil: the agent keeps Config.
	Load   func() (config.Config, error)
	Loaded func(config.Config)
	// Progress hears about each stage of the start, for the checklist of up.
	// It is called from one goroutine at a time and must not block. Nil:
	// nobody listens.
	Progress func(Step)
}

// Step is one line of the checklist.
type Step struct {
	Name   string // what is done, such as "tunnel driver"
	State  StepState
	Detail string // what was found or why it failed
}

// StepState is where a Step is.
type StepState string

// The states of a Step. A step that was done can fail later and be done again.
const (
	StepRunning StepState = "running"
	StepDone    StepState = "done"
	StepWarning StepState = "warning" // works in part; Detail says what does not
	StepFailed  StepState = "failed"
)

// Agent is one node's agent. Its API methods may be called from any
// goroutine, before, while and after Run runs.
type Agent struct {
	opts         Options
	calls        chan call
	ready        chan struct{} // closed by the loop
	ended        chan struct{} // closed when the loop has ended
	stopped      chan struct{} // closed when Run has ended
	openEndpoint func(path string) (endpointNS, error)
	issuerOf     func() (issuer, error)
	disk         departing // opts.Store
	blocks       *keeper   // of promises, on opts.Store
}

var (
	_ api.Observer  = (*Agent)(nil)
	_ api.Attacher  = (*Agent)(nil)
	_ api.Tokens    = (*Agent)(nil)
	_ api.Lifecycle = (*Agent)(nil)
	_ api.Keys      = (*Agent)(nil)
	_ api.Revoker   = (*Agent)(nil)
	_ api.Issuing   = (*Agent)(nil)
	_ api.Protocols = (*Agent)(nil)
	_ api.Leaver    = (*Agent)(nil)

	_ api.IssuerRevoker  = (*Agent)(nil)
	_ api.NetworkDefiner = (*Agent)(nil)
)

// New returns an agent. It does no I/O; Run does.
func New(o Options) *Agent {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = func(Step) {}
	}
	if o.Clock == nil {
		o.Clock = clock.New(clock.Options{})
	}
	return &Agent{
		opts: o, calls: make(chan call), ready: make(chan struct{}), ended: make(chan struct{}), stopped: make(chan struct{}),
		openEndpoint: openEndpoint, disk: o.Store, blocks: &keeper{disk: o.Store},
		issuerOf: func() (issuer, error) {
			i, err := o.Store.Issuer()
			if err != nil {
				return nil, err
			}
			return i, nil
		},
	}
}

// Ready is closed once the kernel has matched the configuration for the first
// time, whatever the other nodes do.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Backend returns the agent as the control socket serves it.
func (a *Agent) Backend() api.Backend {
	return api.Backend{
		Observer: a, Attacher: a, Tokens: a, Lifecycle: a, Keys: a, Revoker: a, Leaver: a, Issuing: a, IssuerRevoker: a, NetworkDefiner: a, Protocols: a,
		Events: api.LogEvents(a.opts.Events),
	}
}

// errDown ends the tasks of Run after Down.
var errDown = errors.New("agent was taken down")

// Run makes the machine match the configuration and keeps it so until ctx
// ends or Down is called; then it returns nil. When ctx ends the data plane
// stays as it is, for the next agent to adopt. After FinishLeave it removes the
// node's keys and closes the Store. Run may be called once.
func (a *Agent) Run(ctx context.Context) error {
	defer close(a.stopped)
	// No core dump and no ptrace of other users' processes: this process
	// holds the node's keys in memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	dir := files{dir: a.opts.Config.RuntimeDir}
	lock, err := a.lock(dir)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()

	l, cluster, err := a.open(ctx, dir)
	if err != nil {
		return err
	}
	defer l.close()

	parent := ctx
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := cluster.Run(ctx); err != nil {
			a.opts.Progress(Step{Name: stepControl, State: StepFailed, Detail: err.Error()})
			return fmt.Errorf("run control plane: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		a.keepTime(ctx)
		return nil
	})
	group.Go(func() error {
		l.waitForCache(ctx)
		if err := l.run(ctx); err != nil {
			return err
		}
		return errDown
	})
	err = group.Wait()
	if errors.Is(err, errDown) {
		return a.taken(l)
	}
	if parent.Err() != nil && errors.Is(err, parent.Err()) {
		return nil
	}
	return err
}

func (a *Agent) lock(dir files) (*os.File, error) {
	if err := dir.prepare(); err != nil {
		return nil, err
	}
	return dir.lock()
}

// do runs fn in the loop's goroutine and waits for it. Once the loop has
// taken it, it is always run to its end.
func (a *Agent) do(ctx context.Context, fn func(context.Context, *loop)) error {
	c := call{run: fn, done: make(chan struct{})}
	select {
	case <-a.stopped:
		return errStopped()
	default:
	}
	select {
	case a.calls <- c:
		<-c.done
		return nil
	case <-a.ended:
		return errStopped()
	case <-ctx.Done():
		return typed(api.CodeTimeout, ctx.Err(), "the agent is busy and did not answer in time", "secure-overlay status")
	case <-a.stopped:
		return errStopped()
	}
}

func errStopped() error {
	return api.NewError(api.CodeNotRunning, "the agent has stopped", "secure-overlay up")
}
