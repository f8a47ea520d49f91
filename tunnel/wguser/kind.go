package wguser

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/tun"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
)

// Name is the driver's name in config files and in status.
const Name = "userspace"

// Options say how the driver starts its workers.
type Options struct {
	// Worker is the command that calls RunWorker with the arguments that
	// follow it, for example ["/proc/self/exe", "worker"]. The path
	// /proc/self/exe is this very program even if its file has been replaced.
	Worker []string
	// Patience is how long a worker may take to answer a request before its
	// device counts as broken and is made anew. Zero means 20 s.
	Patience time.Duration
	// Single makes workers exchange one packet at a time with their link, as on a kernel
	// that cannot do more.
	Single bool
}

// Kind returns the driver's row for the table of drivers.
func Kind(o Options) tunnel.Kind {
	return tunnel.Kind{
		Name:   Name,
		Probe:  func(ctx context.Context, _ tunnel.Env) error { return tun.Probe(ctx, Name) },
		Slower: func(ctx context.Context) error { return tun.Slower(ctx, Name, o.Single) },
		Auto:   func() error { return nil },
		Open: func(_ context.Context, env tunnel.Env) (tunnel.Driver, error) {
			return open(env, o)
		},
		Overhead:   tunnel.WireGuardOverhead,
		Compatible: "wireguard",
	}
}

func open(env tunnel.Env, o Options) (tunnel.Driver, error) {
	m, err := newMaker(env, o)
	if err != nil {
		return nil, fmt.Errorf("open driver %s: %w", Name, err)
	}
	d, err := wg.Open(wg.Options{Env: env, Driver: Name, LinkType: tun.UnmarkedType, Maker: m})
	if err != nil {
		m.close()
		return nil, err
	}
	return &driver{Driver: d, maker: m}, nil
}

// driver adds to the shared one what a device in another process needs.
type driver struct {
	*wg.Driver
	maker *maker
}

// Set implements tunnel.Driver.
func (d *driver) Set(ctx context.Context, spec tunnel.Spec) error {
	d.maker.workers.Reap()
	return d.Driver.Set(ctx, spec)
}

// State implements tunnel.Driver.
func (d *driver) State(ctx context.Context) (tunnel.State, error) {
	d.maker.workers.Reap()
	s, err := d.Driver.State(ctx)
	for i := range s.Devices {
		dev := &s.Devices[i]
		dev.Dropped = map[string]uint64{}
		if n := d.maker.overflowed[dev.Name]; n > 0 {
			dev.Dropped[tunnel.Overflow] = uint64(n)
		}
	}
	return s, err
}

// Remove implements tunnel.Driver. After the links it looks for workers and
// sockets that have lost theirs.
func (d *driver) Remove(ctx context.Context) error {
	err := d.Driver.Remove(ctx)
	err = errors.Join(err, d.maker.workers.Sweep(ctx))
	d.maker.workers.Reap()
	return err
}

// Close implements tunnel.Driver.
func (d *driver) Close() error {
	d.maker.close()
	return d.Driver.Close()
}
