package wguser

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// The files that a worker is started with, beside the standard three.
const (
	secureFD = 3 // the secure namespace
	readyFD  = 4 // the pipe that says ready, or what went wrong
)

// readyWord is what a worker writes when its control socket answers.
const readyWord = "ready"

// workerArgs are a worker's parameters. Nothing in them is secret: everybody
// on the machine can read a command line. The private key comes through the
// control socket.
type workerArgs struct {
	device string
	mark   string // shows in ps, and tells whose worker it is
	port   uint
	mtu    int
}

func (a *workerArgs) flags() *flag.FlagSet {
	f := flag.NewFlagSet("worker", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&a.device, "device", "", "")
	f.StringVar(&a.mark, "mark", "", "")
	f.UintVar(&a.port, "port", 0, "")
	f.IntVar(&a.mtu, "mtu", 0, "")
	return f
}

// command is the inverse of flags.
func (a workerArgs) command() []string {
	return []string{
		"--device=" + a.device, "--mark=" + a.mark,
		fmt.Sprintf("--port=%d", a.port), fmt.Sprintf("--mtu=%d", a.mtu),
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
		if ready != nil {
			_, _ = fmt.Fprintf(ready, "%v", err)
			_ = ready.Close()
		}
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM)
	defer stop()
	// An agent that died since the start reads no more; that is no reason to
	// end, the next one will adopt this worker. Go turns a broken pipe on
	// this descriptor into an error, not into a signal.
	_, _ = fmt.Fprint(ready, readyWord)
	_ = ready.Close()
	return w.serve(ctx)
}

// worker is one device in this process.
type worker struct {
	dev     *device.Device
	control net.Listener
}

func startWorker(args []string) (*worker, error) {
	var a workerArgs
	if err := a.flags().Parse(args); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	if a.device == "" || a.port == 0 || a.port > 65535 || a.mtu == 0 {
		return nil, errors.New("start worker: needs a device, a port and an mtu")
	}
	if err := hide(); err != nil {
		return nil, err
	}
	ns, err := nl.OpenNamespace(fmt.Sprintf("/proc/self/fd/%d", secureFD))
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	_ = unix.Close(secureFD)
	link, err := newTunLink(ns, a.device, a.mtu)
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	// The sockets are opened by this process's ordinary threads, which are in
	// the host namespace: only the TUN is in the secure one.
	dev := device.NewDevice(link, conn.NewDefaultBind(), logger(a.device))
	control, err := openDevice(dev, a)
	if err != nil {
		dev.Close()
		return nil, err
	}
	return &worker{dev: dev, control: control}, nil
}

// openDevice binds the UDP port and opens the control socket.
func openDevice(dev *device.Device, a workerArgs) (net.Listener, error) {
	if err := dev.IpcSet(fmt.Sprintf("listen_port=%d\n", a.port)); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	if err := dev.Up(); err != nil {
		return nil, fmt.Errorf("open udp port %d: %w", a.port, err)
	}
	file, err := ipc.UAPIOpen(a.device)
	if err != nil {
		return nil, fmt.Errorf("open control socket of %s: %w", a.device, err)
	}
	defer func() { _ = file.Close() }()
	control, err := ipc.UAPIListen(a.device, file)
	if err != nil {
		return nil, fmt.Errorf("listen on control socket of %s: %w", a.device, err)
	}
	return control, nil
}

// serve answers on the control socket until something ends the worker.
func (w *worker) serve(ctx context.Context) error {
	lost := make(chan error, 1)
	go func() {
		for {
			c, err := w.control.Accept()
			if err != nil {
				lost <- err
				return
			}
			go w.dev.IpcHandle(c)
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

// hide keeps the keys in this process's memory out of reach: no core file, no
// ptrace and no /proc/PID/mem for processes without CAP_SYS_PTRACE.
func hide() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("switch off core dumps: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switch off core dumps: %w", err)
	}
	return nil
}
