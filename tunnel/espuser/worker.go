package espuser

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/block"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/tun"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
)

// The files that a worker is started with, beside the standard three.
const (
	secureFD = 3 // the secure namespace
	readyFD  = 4 // the pipe that says ready, or what went wrong
)

// workerArgs are a worker's parameters. Nothing in them is secret: everybody
// on the machine can read a command line.
type workerArgs struct {
	device string
	socket string // where it listens for the driver
	mark   string // shows in ps, and tells whose worker it is
	node   string // this node's ID
	port   uint
	mtu    int
	single bool // Options.Single
}

func (a *workerArgs) flags() *flag.FlagSet {
	f := worker.Flags()
	f.StringVar(&a.device, "device", "", "")
	f.StringVar(&a.socket, "socket", "", "")
	f.StringVar(&a.mark, "mark", "", "")
	f.StringVar(&a.node, "node", "", "")
	f.UintVar(&a.port, "port", 0, "")
	f.IntVar(&a.mtu, "mtu", 0, "")
	f.BoolVar(&a.single, "single", false, "")
	return f
}

// command is the inverse of flags.
func (a workerArgs) command() []string {
	return []string{
		"--device=" + a.device, "--socket=" + a.socket, "--mark=" + a.mark, "--node=" + a.node,
		fmt.Sprintf("--port=%d", a.port), fmt.Sprintf("--mtu=%d", a.mtu), fmt.Sprintf("--single=%t", a.single),
	}
}

// RunWorker is the worker process: it serves one device until its link is
// deleted, its socket is lost, SIGTERM arrives or ctx ends. The
// arguments and the open files 3 and 4 are the driver's own; nobody else
// calls it.
func RunWorker(ctx context.Context, args []string) error {
	ready := os.NewFile(readyFD, "ready")
	runtime.GOMAXPROCS(block.Processors(3)) // sender, and a receiver for each family
	d, err := startWorker(ctx, args)
	worker.Report(ready, err)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM)
	defer stop()
	return d.serve(ctx)
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

func startWorker(ctx context.Context, args []string) (*device, error) {
	var a workerArgs
	if err := a.flags().Parse(args); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	node, err := ids.ParseNodeID(a.node)
	if err != nil || a.device == "" || a.socket == "" || a.port == 0 || a.port > 65535 || a.mtu == 0 {
		return nil, errors.New("start worker: needs a device, a socket, a node, a port and an mtu")
	}
	if err := worker.Hide(); err != nil {
		return nil, err
	}
	ns, err := nl.OpenNamespace(fmt.Sprintf("/proc/self/fd/%d", secureFD))
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	_ = unix.Close(secureFD)
	d := &device{self: node.InnerAddr().As16(), builder: newBuilder()}
	d.table.Store(d.builder.now)
	if d.link, err = tun.Open(ns, tun.Options{Name: a.device, MTU: a.mtu, Single: a.single, Block: true}); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	if err := d.open(ctx, a); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// open opens the sockets. The process's ordinary threads are in the host namespace: only the
// TUN is in the secure one.
func (d *device) open(ctx context.Context, a workerArgs) error {
	e, err := listen(uint16(a.port))
	if err != nil {
		return err
	}
	d.ends.Store(e)
	unix.Umask(0o177) // whoever may connect may install keys
	if d.control, err = (&net.ListenConfig{}).Listen(ctx, "unix", a.socket); err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	return nil
}

// serve carries packets and answers the driver until something ends the worker.
func (d *device) serve(ctx context.Context) error {
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
