package ipsec

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
)

// holder is the driver's side of the process that holds the sockets of ESP in
// UDP open. The kernel does all the work, but only while somebody has them
// open; if that were the agent, every packet would be lost until it is back.
type holder struct {
	env      tunnel.Env
	argv     []string // command that calls RunHolder; empty: this driver needs none
	port     uint16
	children worker.Children
}

// holderArgs are a holder's parameters. The node is there to tell, in ps and
// to a successor, whose it is.
type holderArgs struct {
	socket, node string
	port         uint
}

func (a *holderArgs) flags() *flag.FlagSet {
	f := worker.Flags()
	f.StringVar(&a.socket, "socket", "", "")
	f.StringVar(&a.node, "node", "", "")
	f.UintVar(&a.port, "port", 0, "")
	return f
}

// command is the inverse of flags.
func (a holderArgs) command() []string {
	return []string{"--socket=" + a.socket, "--node=" + a.node, fmt.Sprintf("--port=%d", a.port)}
}

func (h *holder) socket() string { return filepath.Join(h.env.RuntimeDir, "esp-udp.sock") }

func (h *holder) log() string { return filepath.Join(h.env.RuntimeDir, "esp-udp.log") }

func (h *holder) args() holderArgs {
	return holderArgs{socket: h.socket(), node: h.env.Node.String(), port: uint(h.port)}
}

// ensure sees to it that a holder runs, for this port, if the driver needs one,
// and that none runs if it does not.
func (h *holder) ensure(ctx context.Context) error {
	if len(h.argv) == 0 {
		return h.end(ctx)
	}
	h.children.Reap()
	p, err := worker.Find(h.socket())
	if err == nil {
		defer p.Close()
		if p.Carries(h.args().command()[2] + "\x00") {
			return nil
		}
		err = h.end(ctx) // for another port
	}
	if err != nil && !errors.Is(err, worker.ErrNone) {
		return err
	}
	return h.start(ctx)
}

// start starts a holder and waits until it has the sockets.
func (h *holder) start(ctx context.Context) error {
	if err := os.MkdirAll(h.env.RuntimeDir, 0o750); err != nil {
		return fmt.Errorf("hold udp port %d: %w", h.port, err)
	}
	if err := os.Remove(h.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("hold udp port %d: %w", h.port, err)
	}
	pid, err := worker.Command{
		Argv: append(append([]string{}, h.argv...), h.args().command()...),
		Host: h.env.Host, Log: h.log(),
	}.Start(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("hold udp port %d: %w", h.port, err), h.removeFiles())
	}
	h.children[pid] = true
	h.env.Log.Info("holder of ESP in UDP started", logkey.Driver, Name, logkey.PID, pid)
	return nil
}

// removeFiles removes what a holder leaves that has ended.
func (h *holder) removeFiles() error {
	for _, file := range []string{h.socket(), h.log()} {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("end the holder: %w", err)
		}
	}
	return nil
}

// end ends the holder, if there is one, and removes what it leaves.
func (h *holder) end(ctx context.Context) error {
	h.children.Reap()
	if _, err := os.Lstat(h.socket()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	p, err := worker.Find(h.socket())
	if err == nil {
		defer p.Close()
		if !p.Carries("--node=" + h.env.Node.String()) {
			return fmt.Errorf("end the holder at %s: it belongs to another agent or program", h.socket())
		}
		p.Signal(unix.SIGTERM)
		if err := p.End(ctx); err != nil {
			return fmt.Errorf("end the holder at %s: %w", h.socket(), err)
		}
		delete(h.children, p.PID)
	} else if !errors.Is(err, worker.ErrNone) {
		return err
	}
	return h.removeFiles()
}

// readyFD is the pipe on which a holder says that it is ready.
const readyFD = 3

// RunHolder is the holder process: it holds the sockets until SIGTERM arrives,
// its own socket is lost, or ctx ends. The arguments and the open file 3 are the
// driver's own; nobody else calls it.
func RunHolder(ctx context.Context, args []string) error {
	ready := os.NewFile(readyFD, "ready")
	var a holderArgs
	err := a.flags().Parse(args)
	if err == nil && (a.socket == "" || a.port == 0 || a.port > 65535) {
		err = errors.New("needs a socket and a port")
	}
	var l net.Listener
	if err == nil {
		// Never closed: they are what this process is for.
		if _, err = encapSockets(uint16(a.port)); err == nil {
			l, err = (&net.ListenConfig{}).Listen(ctx, "unix", a.socket)
		}
	}
	worker.Report(ready, err)
	if err != nil {
		return fmt.Errorf("hold sockets: %w", err)
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		c, err := l.Accept() // only to be found
		if err != nil && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("hold sockets: %w", err)
		}
		_ = c.Close()
	}
}
