package wguser

import (
	"context"
	"errors"

	"github.com/secure-overlay/secure-overlay/tunnel"
)

// Name is the driver's name in config files and in status.
const Name = "userspace"

// Options say how the driver starts its workers.
type Options struct {
	// Worker is the command that calls RunWorker with the arguments that
	// follow it, for example ["/proc/self/exe", "worker"].
	Worker []string
}

// Kind returns the driver's row for the table of drivers.
func Kind(o Options) tunnel.Kind {
	_ = o
	return tunnel.Kind{
		Name:       Name,
		Probe:      func(context.Context, tunnel.Env) error { return errors.ErrUnsupported },
		Open:       func(context.Context, tunnel.Env) (tunnel.Driver, error) { return nil, errors.ErrUnsupported },
		Overhead:   tunnel.WireGuardOverhead,
		Compatible: "wireguard",
	}
}

// RunWorker is the worker process: it serves one device until its link is
// deleted, its control socket is removed, SIGTERM arrives or ctx ends. The
// arguments are the driver's own; nobody else calls it.
func RunWorker(ctx context.Context, args []string) error {
	return errors.ErrUnsupported
}
