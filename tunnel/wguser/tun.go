package wguser

import (
	"os"

	"golang.zx2c4.com/wireguard/conn"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/tun"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
)

// tunLink is the link as wireguard-go sees it. It differs from wireguard-go's
// own in three points: packets cross it as package tun says; it never asks for
// the MTU by name from whatever namespace a thread happens to be in; it
// reports no up and down events, so the UDP sockets are open from start to
// end and a port that is taken shows at once, to the one who asked for it.
type tunLink struct {
	*tun.Link
	events chan wgtun.Event
}

// newTunLink makes the link in the namespace. It keeps ns open and closes it in the end.
func newTunLink(ns *nl.Namespace, d worker.Device) (*tunLink, error) {
	t := &tunLink{events: make(chan wgtun.Event, 1)}
	var err error
	t.Link, err = tun.Open(ns, tun.Options{
		Name: d.Name, MTU: d.MTU, Form: d.Form, Alias: d.Mark.String(),
		// wireguard-go pads packets up to the MTU it was told last, so a stale one
		// would make the outer packet too long.
		Changed: func() {
			select {
			case t.events <- wgtun.EventMTUUpdate:
			default: // one is waiting; the reader asks for the value anyway
			}
		},
	})
	return t, err
}

// BatchSize implements tun.Device.
func (*tunLink) BatchSize() int { return conn.IdealBatchSize }

// Read implements tun.Device. It waits for a first packet and takes what else is there, as
// far as it fits: the more go into one batch, the fewer system calls sending takes.
func (t *tunLink) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for n := range bufs {
		size, err := t.Next(bufs[n][offset:], n == 0)
		if err != nil || size == 0 && n > 0 {
			return n, err
		}
		sizes[n] = size // wireguard-go passes over empty ones
	}
	return len(bufs), nil
}

// Name implements tun.Device.
func (t *tunLink) Name() (string, error) { return t.Link.Name(), nil }

// MTU implements tun.Device.
func (t *tunLink) MTU() (int, error) { return t.Link.MTU(), nil }

// File implements tun.Device.
func (t *tunLink) File() *os.File { return t.Link.File() }

// Events implements tun.Device.
func (t *tunLink) Events() <-chan wgtun.Event { return t.events }

// Close implements tun.Device.
func (t *tunLink) Close() error {
	err := t.Link.Close()
	close(t.events) // nothing is reported after Close
	return err
}
