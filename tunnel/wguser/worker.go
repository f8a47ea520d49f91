package wguser

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/internal/nl"
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
	mark   string // shows in ps, and tells whose worker it is
	port   uint
	mtu    int
	single bool // Options.Single
}

func (a *workerArgs) flags() *flag.FlagSet {
	f := worker.Flags()
	f.StringVar(&a.device, "device", "", "")
	f.StringVar(&a.mark, "mark", "", "")
	f.UintVar(&a.port, "port", 0, "")
	f.IntVar(&a.mtu, "mtu", 0, "")
	f.BoolVar(&a.single, "single", false, "")
	return f
}

// command is the inverse of flags.
func (a workerArgs) command() []string {
	return []string{
		"--device=" + a.device, "--mark=" + a.mark,
		fmt.Sprintf("--port=%d", a.port), fmt.Sprintf("--mtu=%d", a.mtu), fmt.Sprintf("--single=%t", a.single),
	}
}

// RunWorker is the worker process: it serves one device until its link is
// deleted, its control socket is removed, SIGTERM arrives or ctx ends. The
// arguments and the open files 3 and 4 are the driver's own; nobody else
// calls it.
func RunWorker(ctx context.Context, args []string) error {
	ready := os.NewFile(readyFD, "ready")
	w, err := startWorker(args)
	if err != nil {
		worker.Report(ready, err)
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM)
	defer stop()
	worker.Report(ready, nil)
	return w.serve(ctx)
}

// server is one device in this process.
type server struct {
	dev     *device.Device
	public  wgtypes.Key
	control net.Listener
}

func startWorker(args []string) (*server, error) {
	var a workerArgs
	if err := a.flags().Parse(args); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	if a.device == "" || a.port == 0 || a.port > 65535 || a.mtu == 0 {
		return nil, errors.New("start worker: needs a device, a port and an mtu")
	}
	if err := worker.Hide(); err != nil {
		return nil, err
	}
	ns, err := nl.OpenNamespace(fmt.Sprintf("/proc/self/fd/%d", secureFD))
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	_ = unix.Close(secureFD)
	link, err := newTunLink(ns, a)
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	// The sockets are opened by this process's ordinary threads, which are in
	// the host namespace: only the TUN is in the secure one.
	dev := device.NewDevice(link, newBind(), logger(a.device))
	w := &server{dev: dev}
	if err := w.open(a); err != nil {
		dev.Close()
		return nil, err
	}
	return w, nil
}

// open makes the device's key, binds the UDP port and opens the control
// socket. The key is made here, in the only process that needs it, and ends
// with it: it is in no file, and nobody else has ever had it.
func (w *server) open(a workerArgs) error {
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return fmt.Errorf("start worker: make key: %w", err)
	}
	w.public = private.PublicKey()
	port := int(a.port)
	request := encodeSet(wgtypes.Config{PrivateKey: &private, ListenPort: &port})
	err = w.dev.IpcSetOperation(bytes.NewReader(request[len("set=1\n"):]))
	clear(request)
	clear(private[:])
	if err != nil {
		return fmt.Errorf("start worker: %w", err)
	}
	if err := w.dev.Up(); err != nil {
		return fmt.Errorf("open udp port %d: %w", a.port, err)
	}
	file, err := ipc.UAPIOpen(a.device)
	if err != nil {
		return fmt.Errorf("open control socket of %s: %w", a.device, err)
	}
	defer func() { _ = file.Close() }()
	if w.control, err = ipc.UAPIListen(a.device, file); err != nil {
		return fmt.Errorf("listen on control socket of %s: %w", a.device, err)
	}
	return nil
}

// serve answers on the control socket until something ends the worker.
func (w *server) serve(ctx context.Context) error {
	lost := make(chan error, 1)
	go func() {
		for {
			c, err := w.control.Accept()
			if err != nil {
				lost <- err
				return
			}
			go w.answer(c)
		}
	}()
	var err error
	select {
	case <-ctx.Done():
	case <-w.dev.Wait(): // the link was deleted
	case err = <-lost:
		// Without its socket nobody could ever configure, find or end this
		// worker again.
		err = fmt.Errorf("control socket lost: %w", err)
	}
	_ = w.control.Close()
	w.dev.Close()
	return err
}

// answer serves a connection: identityRequest itself, anything else as
// WireGuard's own protocol.
func (w *server) answer(c net.Conn) {
	head := make([]byte, len(identityRequest))
	got := 0
	for got < len(head) && bytes.HasPrefix([]byte(identityRequest), head[:got]) {
		n, err := c.Read(head[got:])
		got += n
		if err != nil {
			_ = c.Close()
			return
		}
	}
	if string(head[:got]) == identityRequest {
		_, _ = c.Write(append(appendKey(nil, "public_key", &w.public), "errno=0\n\n"...))
		_ = c.Close()
		return
	}
	w.dev.IpcHandle(&begunConn{Conn: c, head: head[:got]})
}

// begunConn is a connection of which the beginning has been read.
type begunConn struct {
	net.Conn
	head []byte
}

// Read implements net.Conn.
func (c *begunConn) Read(b []byte) (int, error) {
	if len(c.head) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.head)
	clear(c.head[:n])
	c.head = c.head[n:]
	return n, nil
}
