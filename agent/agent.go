package agent

import (
	"context"
	"log/slog"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// Options is what an Agent works with. Config, Store and Kinds are required.
type Options struct {
	Config  config.Config
	Store   *keystore.Store // opened; the caller closes it after Run
	Kinds   []tunnel.Kind   // in the order in which auto tries them
	Version string          // for status
	Log     *slog.Logger    // nil: discarded
	// Progress hears about each stage of the start, for the checklist of up.
	// It is called from one goroutine and must not block. Nil: nobody listens.
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
// goroutine while Run runs.
type Agent struct {
	opts Options
}

// New returns an agent. It does no I/O; Run does.
func New(o Options) *Agent { return &Agent{opts: o} }

// Run makes the machine match the configuration and keeps it so until ctx
// ends or Down is called. When ctx ends the data plane stays as it is, for
// the next agent to adopt.
func (a *Agent) Run(ctx context.Context) error { return nil }

// Ready is closed once the kernel has matched the configuration for the first
// time, whatever the other nodes do.
func (a *Agent) Ready() <-chan struct{} { return nil }

// Backend returns the agent as the control socket serves it.
func (a *Agent) Backend() api.Backend { return api.Backend{} }

// Teardown removes everything that an agent with this configuration made,
// when no agent runs; with one running it is refused (api.CodeRefused).
// Nothing to remove is no error.
func Teardown(ctx context.Context, cfg config.Config, kinds []tunnel.Kind, log *slog.Logger) (api.DownResult, error) {
	return api.DownResult{}, nil
}

// DryRun lists the kernel objects that Run would make, one line each. It is
// pure; node may be zero if the identity does not exist yet.
func DryRun(cfg config.Config, node ids.NodeID) []string { return nil }
