package wguser

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
)

// socketDir is where wireguard-go and wg(8) keep control sockets.
const socketDir = "/var/run/wireguard"

// maker makes devices by starting workers.
type maker struct {
	env     tunnel.Env
	secure  *nl.Handle
	workers *worker.Fleet
	single  bool // Options.Single
}

func newMaker(env tunnel.Env, o Options, secure *nl.Handle) *maker {
	fleet := worker.NewFleet(env, o.Worker, socketDir, cmp.Or(o.Patience, worker.DefaultPatience))
	return &maker{env: env, secure: secure, workers: fleet, single: o.Single}
}

func (m *maker) close() {
	m.workers.Close()
	m.secure.Close()
}

// Create implements wg.Maker: it starts a worker and waits until it is ready.
func (m *maker) Create(ctx context.Context, name string, mark tunnel.Mark, d tunnel.Device) error {
	args := workerArgs{device: name, mark: mark.String(), port: uint(d.Port), mtu: d.MTU, single: m.single}
	return m.workers.Start(ctx, name, args.command(), m.env.Secure.File())
}

// Delete implements wg.Maker: it deletes the link, which ends the worker, and
// waits for that.
func (m *maker) Delete(ctx context.Context, name string) error {
	err := m.workers.End(ctx, name, func() error { return wg.DeleteLink(m.secure, name) })
	if err != nil {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}

// Check implements wg.Maker: a device is as good as its worker.
func (m *maker) Check(ctx context.Context, name string) error {
	return m.workers.Check(ctx, name, ping)
}

// ping asks the worker for an answer: an empty set changes nothing and its
// answer, unlike get's, holds no key.
func ping(c net.Conn) error {
	if _, err := c.Write([]byte("set=1\n\n")); err != nil {
		return err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil {
		return err
	}
	if got := bytes.TrimSpace(buf[:n]); string(got) != "errno=0" {
		return fmt.Errorf("answered %q", got)
	}
	return nil
}
