package wguser

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"runtime"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
)

// RunWorker is the worker process: it serves one device until its link is
// deleted, its control socket is removed, SIGTERM arrives or ctx ends. The
// arguments and the open files are the driver's own; nobody else calls it.
func RunWorker(ctx context.Context, args []string) error {
	runtime.GOMAXPROCS(processors(runtime.GOMAXPROCS(0)))
	return worker.RunDevice(ctx, args, openServer)
}

// processors is how many of the n processors that a process may use run wireguard-go's goroutines: half.
// A packet goes through three of them, and whichever hands it over wakes a thread if a processor is
// free for it, which then competes with what the kernel and the applications do for the same packet. System
// calls that take long do not count (DESIGN.md has figures).
func processors(n int) int { return max(1, n/2) }

// server is one device in this process.
type server struct {
	dev     *device.Device
	link    *tunLink
	public  wgtypes.Key
	control net.Listener
}

func openServer(d worker.Device, ns *nl.Namespace) (worker.Served, error) {
	link, err := newTunLink(ns, d)
	if err != nil {
		return nil, err
	}
	// The sockets are opened by this process's ordinary threads, which are in
	// the host namespace: only the link is in the secure one.
	dev := device.NewDevice(link, newBind(), logger(d.Name))
	w := &server{dev: dev, link: link}
	if err := w.open(d); err != nil {
		dev.Close()
		return nil, err
	}
	return w, nil
}

// open makes the device's key, binds the UDP port and opens the control
// socket. The key is made here, in the only process that needs it, and ends
// with it: it is in no file, and nobody else has ever had it.
func (w *server) open(d worker.Device) error {
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	w.public = private.PublicKey()
	port := int(d.Port)
	request := encodeSet(wgtypes.Config{PrivateKey: &private, ListenPort: &port})
	err = w.dev.IpcSetOperation(bytes.NewReader(request[len("set=1\n"):]))
	clear(request)
	clear(private[:])
	if err != nil {
		return err
	}
	if err := w.dev.Up(); err != nil {
		return fmt.Errorf("open udp port %d: %w", d.Port, err)
	}
	file, err := ipc.UAPIOpen(d.Name)
	if err != nil {
		return fmt.Errorf("open control socket of %s: %w", d.Name, err)
	}
	defer func() { _ = file.Close() }()
	if w.control, err = ipc.UAPIListen(d.Name, file); err != nil {
		return fmt.Errorf("listen on control socket of %s: %w", d.Name, err)
	}
	return nil
}

// Serve implements worker.Served: it answers on the control socket until something ends the worker.
func (w *server) Serve(ctx context.Context) error {
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
		b := appendKey(nil, "public_key", &w.public)
		_, _ = c.Write(fmt.Appendf(b, "%s=%d\nerrno=0\n\n", overflowKey, w.link.Overflowed()))
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
