package wguser

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
)

// startTime is how long a worker may take to become ready.
const startTime = 30 * time.Second

// maker makes devices by starting workers. It holds nothing that a successor
// could not find out from links and sockets, except whom to reap.
type maker struct {
	env    tunnel.Env
	argv   []string
	secure *nl.Handle
	// patience is how long a worker may take to answer.
	patience time.Duration
	// children are workers this process has started and not yet reaped. A
	// parent must collect its children's exit status; when the agent ends
	// init does it.
	children map[int]string // device by PID
	// asked are the questions whether a worker works that have no good answer
	// yet, by device. They are goroutines, which stop ends and asking counts.
	asked  map[string]*question
	life   context.Context //nolint:containedctx // of the questions: from open to close
	stop   context.CancelFunc
	asking sync.WaitGroup
}

func newMaker(env tunnel.Env, o Options, secure *nl.Handle) *maker {
	m := &maker{
		env: env, argv: o.Worker, secure: secure, children: map[int]string{},
		patience: cmp.Or(o.Patience, defaultPatience), asked: map[string]*question{},
	}
	m.life, m.stop = context.WithCancel(context.Background())
	return m
}

func (m *maker) close() {
	m.stop()
	m.asking.Wait()
	m.secure.Close()
}

// Create starts a worker and waits until it is ready.
func (m *maker) Create(ctx context.Context, name string, mark tunnel.Mark, d tunnel.Device) error {
	// A worker that has lost its link is on its way out; when it goes it
	// removes the socket by its path, so the successor must not be there yet.
	delete(m.asked, name)
	if err := m.retire(ctx, name); err != nil {
		return err
	}
	ready, readyWorker, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start worker: %w", err)
	}
	defer func() { _ = ready.Close() }()
	args := workerArgs{device: name, mark: mark.String(), port: uint(d.Port), mtu: d.MTU}
	pid, err := m.start(args, readyWorker)
	_ = readyWorker.Close()
	if err != nil {
		return err
	}
	m.children[pid] = name
	if err := awaitReady(ctx, ready); err != nil {
		return errors.Join(err, m.endChild(pid))
	}
	m.env.Log.Debug("worker started", logkey.Device, name, logkey.PID, pid)
	return nil
}

// start runs the worker command. The new process inherits the namespace of
// the thread that starts it, so it starts inside the host's: its sockets will
// be there.
func (m *maker) start(args workerArgs, ready *os.File) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("start worker: %w", err)
	}
	defer func() { _ = null.Close() }()
	// Appended to: what a predecessor had to say before it broke is in there.
	log, err := os.OpenFile(m.logPath(args.device), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return 0, fmt.Errorf("start worker: %w", err)
	}
	defer func() { _ = log.Close() }()
	attr := &os.ProcAttr{
		Dir: "/",
		// The agent's environment is not the worker's business. A traceback
		// prints arguments, and a key is passed as one.
		Env:   []string{"GOTRACEBACK=none"},
		Files: []*os.File{null, null, log, secureFD: m.env.Secure.File(), readyFD: ready},
		// A session of its own: what stops the agent's terminal or group does
		// not reach the worker.
		Sys: &syscall.SysProcAttr{Setsid: true},
	}
	argv := append(append([]string{}, m.argv...), args.command()...)
	var p *os.Process
	err = m.env.Host.Do(func() (err error) {
		p, err = os.StartProcess(argv[0], argv, attr)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("start worker: %w", err)
	}
	pid := p.Pid
	// It is waited for by number and only while it is known to be a child.
	return pid, p.Release()
}

// awaitReady reads what the worker says until it closes the pipe.
func awaitReady(ctx context.Context, ready *os.File) error {
	end := time.Now().Add(startTime)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	if err := ready.SetReadDeadline(end); err != nil {
		return fmt.Errorf("wait for worker: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })()
	said, err := io.ReadAll(io.LimitReader(ready, 4096))
	switch {
	case err != nil:
		return fmt.Errorf("wait for worker: %w", errors.Join(err, ctx.Err()))
	case string(said) == readyWord:
		return nil
	case len(said) == 0:
		return errors.New("worker ended before it was ready")
	case strings.Contains(string(said), unix.EADDRINUSE.Error()):
		return fmt.Errorf("worker: %s: %w", said, unix.EADDRINUSE)
	}
	return fmt.Errorf("worker: %s", said)
}

// Delete implements wg.Maker: it deletes the link, which ends the worker, and
// waits for that.
func (m *maker) Delete(ctx context.Context, name string) error {
	delete(m.asked, name)
	p, err := m.ownWorker(name)
	if err != nil {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	if p != nil {
		defer p.close()
	}
	if err := wg.DeleteLink(m.secure, name); err != nil {
		return err
	}
	if err := m.end(ctx, name, p); err != nil {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}

// retire ends the worker of a device that has no link.
func (m *maker) retire(ctx context.Context, name string) error {
	p, err := m.ownWorker(name)
	if err != nil {
		return err
	}
	if p != nil {
		defer p.close()
	}
	return m.end(ctx, name, p)
}

// ownWorker returns the device's worker, or nil if there is none. It fails if
// the socket is served for somebody else: a name holds six characters of the
// node ID, the worker's command line all of them.
func (m *maker) ownWorker(name string) (*process, error) {
	p, err := findProcess(name)
	if errors.Is(err, errNoWorker) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !p.carries("/" + m.env.Node.String() + "/") {
		p.close()
		return nil, fmt.Errorf("control socket %s: %w", socketPath(name), errForeign)
	}
	return p, nil
}

// errForeign says that a control socket is not this agent's.
var errForeign = errors.New("belongs to another agent or program")

// end waits for the end of a worker (nil: there is none) and removes what it
// may have left: one that was killed leaves its socket, one that ended as it
// should has nothing of interest in its log.
func (m *maker) end(ctx context.Context, name string, p *process) error {
	if p != nil {
		if err := p.end(ctx); err != nil {
			return err
		}
		delete(m.children, p.pid)
		_ = os.Remove(m.logPath(name))
	}
	return m.removeSocket(name)
}

func (m *maker) logPath(name string) string { return filepath.Join(m.env.RuntimeDir, name+".log") }

// removeSocket removes a socket file that nobody listens on.
func (m *maker) removeSocket(name string) error {
	c, _, err := dial(name)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("delete device %s: somebody listens on its control socket", name)
	}
	if !errors.Is(err, errNoWorker) {
		return err
	}
	if err := os.Remove(socketPath(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}

// endChild kills a worker that did not become ready.
func (m *maker) endChild(pid int) error {
	p, err := openProcess(pid)
	if err != nil { // it was reaped by somebody else: gone
		delete(m.children, pid)
		return nil
	}
	defer p.close()
	p.signal(unix.SIGKILL)
	if err := p.end(context.Background()); err != nil {
		return err
	}
	name := m.children[pid]
	delete(m.children, pid)
	return m.removeSocket(name)
}

// sweep ends this agent's workers that have no link, and removes their
// sockets and log files.
func (m *maker) sweep(ctx context.Context) error {
	prefix := "so" + m.env.Node.Short()
	sockets, err := filepath.Glob(filepath.Join(socketDir, prefix+"*.sock"))
	if err != nil {
		return fmt.Errorf("list control sockets: %w", err)
	}
	var errs []error
	for _, s := range sockets {
		name := strings.TrimSuffix(filepath.Base(s), ".sock")
		if err := m.retire(ctx, name); err != nil && !errors.Is(err, errForeign) {
			errs = append(errs, err)
		}
	}
	logs, err := filepath.Glob(filepath.Join(m.env.RuntimeDir, prefix+"*.log"))
	errs = append(errs, err)
	for _, l := range logs {
		errs = append(errs, os.Remove(l))
	}
	return errors.Join(errs...)
}

// reap collects children that have ended.
func (m *maker) reap() {
	for pid := range m.children {
		if reap(pid) {
			delete(m.children, pid)
		}
	}
}

// Control implements wg.Maker.
func (m *maker) Control() (wg.Control, error) {
	c, err := wgctrl.New()
	if err != nil {
		return nil, fmt.Errorf("open WireGuard control: %w", err)
	}
	return &control{Client: c, patience: m.patience}, nil
}

// control bounds wgctrl's requests in time: it waits for a worker's answer
// without end.
type control struct {
	*wgctrl.Client
	patience time.Duration
}

// Device implements wg.Control.
func (c *control) Device(name string) (*wgtypes.Device, error) {
	var dev *wgtypes.Device
	err := c.bounded(name, func() (err error) {
		dev, err = c.Client.Device(name)
		return err
	})
	return dev, err
}

// ConfigureDevice implements wg.Control.
func (c *control) ConfigureDevice(name string, cfg wgtypes.Config) error {
	err := c.bounded(name, func() error { return c.Client.ConfigureDevice(name, cfg) })
	// The control protocol sends a negative errno and wgctrl makes text of it.
	if err != nil && strings.HasSuffix(err.Error(), fmt.Sprintf("errno=-%d", int(unix.EADDRINUSE))) {
		return unix.EADDRINUSE
	}
	return err
}

// bounded runs a request to a device's worker. A worker that does not answer
// in time is killed, which ends the request: its device is broken, and the
// next Set makes a new one.
func (c *control) bounded(name string, request func() error) error {
	p, err := findProcess(name)
	if err != nil {
		return err
	}
	defer p.close()
	done := make(chan error, 1)
	go func() { done <- request() }()
	timer := time.NewTimer(c.patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		p.signal(unix.SIGKILL)
		err := errors.Join(fmt.Errorf("worker of %s does not answer", name), <-done)
		// Collected here, if it is a child: nothing leads to it any more.
		p.wait(context.Background(), time.Second)
		return err
	}
}
