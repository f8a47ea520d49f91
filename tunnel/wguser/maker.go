package wguser

import (
	"bytes"
	"context"
	"fmt"
	"net"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/links"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
)

// socketDir is where wireguard-go and wg(8) keep control sockets.
const socketDir = "/var/run/wireguard"

// maker makes devices by starting workers.
type maker struct {
	secure  *nl.Handle
	workers *worker.Fleet
	// overflowed are packets that found no room, by device, as it was last read.
	overflowed map[string]int64
}

func newMaker(env tunnel.Env, o Options) (*maker, error) {
	fleet, err := worker.OpenFleet(env, worker.Options{Argv: o.Worker, Sockets: socketDir, Timeout: o.Patience, Driver: Name, Single: o.Single})
	if err != nil {
		return nil, err
	}
	secure, err := env.Secure.Handle()
	if err != nil {
		fleet.Close()
		return nil, err
	}
	return &maker{secure: secure, workers: fleet, overflowed: map[string]int64{}}, nil
}

func (m *maker) close() {
	m.workers.Close()
	m.secure.Close()
}

// Create implements wg.Maker: it starts a worker and waits until it is ready.
func (m *maker) Create(ctx context.Context, name string, mark tunnel.Mark, d tunnel.Device) error {
	return m.workers.Start(ctx, worker.Device{Name: name, Mark: mark, Port: d.Port, MTU: d.MTU})
}

// Delete implements wg.Maker: it deletes the link, which ends the worker, and
// waits for that.
func (m *maker) Delete(ctx context.Context, name string) error {
	delete(m.overflowed, name)
	err := m.workers.End(ctx, name, func() error { return links.Delete(m.secure, name) })
	if err != nil {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}

// Check implements wg.Maker: a device is as good as its worker.
func (m *maker) Check(ctx context.Context, name string) error {
	_, err := m.workers.Check(ctx, name, ping)
	return err
}

// ping asks the worker for an answer: an empty set changes nothing and its
// answer, unlike get's, holds no key.
func ping(c net.Conn) ([]byte, error) {
	if _, err := c.Write([]byte("set=1\n\n")); err != nil {
		return nil, err
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil {
		return nil, err
	}
	if got := bytes.TrimSpace(buf[:n]); string(got) != "errno=0" {
		return nil, fmt.Errorf("answered %q", got)
	}
	return nil, nil
}
