package espuser

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/block"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/tun"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
)

// RunWorker is the worker process: it serves one device until its link is
// deleted, its socket is lost, SIGTERM arrives or ctx ends. The
// arguments and the open files are the driver's own; nobody else calls it.
func RunWorker(ctx context.Context, args []string) error {
	runtime.GOMAXPROCS(block.Processors(3)) // sender, and a receiver for each family
	return worker.RunDevice(ctx, args, openDevice)
}

// device is one tunnel device in this process.
type device struct {
	self    innerAddr
	link    *tun.Link
	control net.Listener
	table   atomic.Pointer[table]
	ends    atomic.Pointer[ends]
	dropped drops
	running sync.WaitGroup // receivers

	mu      sync.Mutex // guards the rest, and changes of table and ends
	builder *builder
	closed  bool
}

func openDevice(w worker.Device, ns *nl.Namespace) (worker.Served, error) {
	d := &device{self: w.Mark.Node.InnerAddr().As16(), builder: newBuilder()}
	d.table.Store(d.builder.now)
	var err error
	if d.link, err = tun.Open(ns, tun.Options{Name: w.Name, MTU: w.MTU, Form: w.Form, Alias: w.Mark.String(), Block: true}); err != nil {
		return nil, err
	}
	if err := d.open(w); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// open opens the sockets. The process's ordinary threads are in the host namespace: only the
// link is in the secure one.
func (d *device) open(w worker.Device) error {
	e, err := listen(w.Port)
	if err != nil {
		return err
	}
	d.ends.Store(e)
	unix.Umask(0o177) // whoever may connect may install keys
	if d.control, err = net.ListenUnix("unix", &net.UnixAddr{Name: w.Socket, Net: "unix"}); err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	return nil
}

// Serve implements worker.Served: it carries packets and answers the driver until something ends the worker.
func (d *device) Serve(ctx context.Context) error {
	lost := make(chan error, 2)
	go func() { lost <- d.answerAll() }()
	go func() { lost <- newSender(d.link, &d.table, &d.ends, &d.dropped).run() }()
	d.receive(d.ends.Load())
	var err error
	select {
	case <-ctx.Done():
	case err = <-lost:
		if errors.Is(err, os.ErrClosed) { // the link was deleted
			err = nil
		}
	}
	d.close()
	d.running.Wait()
	return err
}

// receive starts what receives from both sockets.
func (d *device) receive(e *ends) {
	d.running.Go(newReceiver(d, e, true).run)
	d.running.Go(newReceiver(d, e, false).run)
}

func (d *device) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	if d.control != nil {
		_ = d.control.Close()
	}
	if e := d.ends.Load(); e != nil {
		e.close()
	}
	_ = d.link.Close()
}

// answerAll serves one connection after the other: there is one driver.
func (d *device) answerAll() error {
	for {
		c, err := d.control.Accept()
		if err != nil {
			// Without its socket nobody could ever configure, find or end this
			// worker again.
			return fmt.Errorf("control socket lost: %w", err)
		}
		go d.answer(c)
	}
}

// answer serves a connection.
func (d *device) answer(c net.Conn) {
	defer func() { _ = c.Close() }()
	for {
		k, body, err := readMessage(c)
		if err != nil {
			return
		}
		out, err := d.do(k, body)
		clear(body)
		k = kindAnswer
		if err != nil {
			k, out = kindFailed, []byte(err.Error())
		}
		if writeMessage(c, k, out) != nil {
			return
		}
	}
}

func (d *device) do(k kind, body []byte) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, net.ErrClosed
	}
	switch k {
	case kindGet:
		s := state{port: d.ends.Load().port, dropped: d.dropped.read(), peers: d.builder.now.peers()}
		s.dropped[dropOverflow] = d.link.Overflowed()
		return s.encode(), nil
	case kindSet:
		port, peers, err := decodeSet(body)
		if err != nil {
			return nil, err
		}
		return d.set(port, peers)
	default:
		return nil, fmt.Errorf("%w: kind %d", errMessage, k)
	}
}

// set makes port and peers what they are to be.
func (d *device) set(port uint16, peers []wanted) ([]byte, error) {
	if e := d.ends.Load(); port != e.port {
		// What the old sockets have not been read of is lost; nobody who knows the new
		// port from the record sends there.
		next, err := listen(port)
		if err != nil {
			return nil, err
		}
		d.ends.Store(next)
		e.close()
		d.running.Wait() // an association has one receiver
		d.receive(next)
	}
	verdicts, err := d.builder.set(peers)
	if err != nil {
		return nil, err
	}
	d.table.Store(d.builder.now)
	out := make([]byte, len(verdicts))
	for i, v := range verdicts {
		out[i] = byte(v)
	}
	return out, nil
}
