package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/tun"
)

// The files that the worker of a device is started with, beside the standard three.
const (
	secureFD = 3 // the secure namespace
	readyFD  = 4 // the pipe that says ready, or what went wrong
)

// Device is what the worker of a tunnel device is told. Nothing in it is secret: everybody
// on the machine can read a command line.
type Device struct {
	Name   string // of the link
	Socket string // where it listens for the driver
	Mark   tunnel.Mark
	Port   uint16 // outer UDP port
	MTU    int
	Form   tun.Form
}

// command is the inverse of parseDevice. The mark shows in ps, and tells whose worker it is.
func (d Device) command() []string {
	return []string{
		"--device=" + d.Name, "--socket=" + d.Socket, "--mark=" + d.Mark.String(),
		fmt.Sprintf("--port=%d", d.Port), fmt.Sprintf("--mtu=%d", d.MTU), "--form=" + string(d.Form),
	}
}

func parseDevice(args []string) (Device, error) {
	var d Device
	var mark string
	var port uint
	f := Flags()
	f.StringVar(&d.Name, "device", "", "")
	f.StringVar(&d.Socket, "socket", "", "")
	f.StringVar(&mark, "mark", "", "")
	f.UintVar(&port, "port", 0, "")
	f.IntVar(&d.MTU, "mtu", 0, "")
	f.StringVar((*string)(&d.Form), "form", "", "")
	if err := f.Parse(args); err != nil {
		return d, err
	}
	var ok bool
	if d.Mark, ok = tunnel.ParseMark(mark); !ok || d.Name == "" || d.Socket == "" || port == 0 || port > 65535 || d.MTU == 0 {
		return d, errors.New("needs a device, a socket, a mark, a port and an mtu")
	}
	d.Port = uint16(port)
	return d, nil
}

// Served is a device that a worker has opened. Serve carries packets until the device or its
// control socket is gone, or ctx ends.
type Served interface {
	Serve(ctx context.Context) error
}

// RunDevice is the worker process of one device: it opens the device, says whether that went
// well, and serves it until SIGTERM arrives or Serve returns. Who opens it owns the secure
// namespace; all of the process's threads are in the host's. The arguments and the open files 3
// and 4 are Fleet's.
func RunDevice(ctx context.Context, args []string, open func(Device, *nl.Namespace) (Served, error)) error {
	ready := os.NewFile(readyFD, "ready")
	s, err := openDevice(args, open)
	if err != nil {
		err = fmt.Errorf("start worker: %w", err)
		Report(ready, err)
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM)
	defer stop()
	Report(ready, nil)
	return s.Serve(ctx)
}

func openDevice(args []string, open func(Device, *nl.Namespace) (Served, error)) (Served, error) {
	d, err := parseDevice(args)
	if err != nil {
		return nil, err
	}
	if err := hide(); err != nil {
		return nil, err
	}
	ns, err := nl.OpenNamespace(fmt.Sprintf("/proc/self/fd/%d", secureFD))
	if err != nil {
		return nil, err
	}
	_ = unix.Close(secureFD)
	return open(d, ns)
}
