package wgkernel

import (
	"context"
	"errors"

	"github.com/secure-overlay/secure-overlay/tunnel"
)

// Name is the driver's name in config files and in status.
const Name = "wireguard"

// Kind returns the driver's row for the table of drivers.
func Kind() tunnel.Kind {
	return tunnel.Kind{
		Name:       Name,
		Probe:      func(context.Context, tunnel.Env) error { return errors.ErrUnsupported },
		Open:       func(context.Context, tunnel.Env) (tunnel.Driver, error) { return nil, errors.ErrUnsupported },
		Overhead:   tunnel.WireGuardOverhead,
		Compatible: "wireguard",
	}
}
