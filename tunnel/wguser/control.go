package wguser

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
)

// Control implements wg.Maker.
func (m *maker) Control() (wg.Control, error) { return &control{patience: m.patience}, nil }

// control configures devices through their workers' sockets. Each request has
// a connection of its own.
type control struct{ patience time.Duration }

// Close implements wg.Control.
func (c *control) Close() error { return nil }

// Device implements wg.Control.
func (c *control) Device(name string) (*wgtypes.Device, error) {
	var dev *wgtypes.Device
	var public wgtypes.Key
	err := c.ask(name, []byte(identityRequest), func(l *lineReader) error {
		return l.fields(func(key string, value []byte) error {
			if key != "public_key" {
				return nil
			}
			return readKey(&public, value)
		})
	})
	if err != nil {
		return nil, err
	}
	err = c.ask(name, []byte(getRequest), func(l *lineReader) (err error) {
		dev, err = readDevice(l)
		return err
	})
	if err != nil {
		return nil, err
	}
	dev.Name, dev.PublicKey = name, public
	return dev, nil
}

// ConfigureDevice implements wg.Control.
func (c *control) ConfigureDevice(name string, cfg wgtypes.Config) error {
	request := encodeSet(cfg)
	defer clear(request)
	return c.ask(name, request, func(l *lineReader) error {
		return l.fields(func(string, []byte) error { return nil })
	})
}

// ask sends a request to a device's worker and lets read take the answer. A
// worker that does not answer in time is killed: its device is broken, and the
// next Set makes a new one.
func (c *control) ask(name string, request []byte, read func(*lineReader) error) error {
	conn, cred, err := worker.Dial(socketPath(name))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	err = c.exchange(conn, request, read)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.Join(fmt.Errorf("worker of %s does not answer", name), kill(name, cred.Pid), err)
	}
	if err != nil {
		return fmt.Errorf("worker of %s: %w", name, err)
	}
	return nil
}

func (c *control) exchange(conn *net.UnixConn, request []byte, read func(*lineReader) error) error {
	if err := conn.SetDeadline(time.Now().Add(c.patience)); err != nil {
		return err
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	l := newLineReader(conn)
	defer l.wipe()
	return read(l)
}

// kill ends the worker of a device if it still is the process that was asked.
func kill(name string, pid int32) error {
	p, err := worker.Find(socketPath(name))
	if err != nil {
		return err
	}
	defer p.Close()
	if p.PID != int(pid) {
		return nil
	}
	p.Signal(unix.SIGKILL)
	// Collected here, if it is a child: nothing leads to it any more.
	p.Wait(context.Background(), time.Second)
	return nil
}
