package wguser

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
)

// maker makes devices by starting workers. It holds nothing that a successor
// could not find out from links and sockets, except whom to reap.
type maker struct {
	env    tunnel.Env
	argv   []string
	secure *nl.Handle
	// patience is how long a worker may take to answer.
	patience time.Duration
	single   bool // Options.Single
	children worker.Children
	// asked are the questions whether a worker works that have no good answer
	// yet, by device. They are goroutines, which stop ends and asking counts.
	asked  map[string]*question
	life   context.Context //nolint:containedctx // of the questions: from open to close
	stop   context.CancelFunc
	asking sync.WaitGroup
}

func newMaker(env tunnel.Env, o Options, secure *nl.Handle) *maker {
	m := &maker{
		env: env, argv: o.Worker, secure: secure, children: worker.Children{},
		patience: cmp.Or(o.Patience, defaultPatience), single: o.Single, asked: map[string]*question{},
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
	args := workerArgs{device: name, mark: mark.String(), port: uint(d.Port), mtu: d.MTU, single: m.single}
	pid, err := worker.Command{
		Argv: append(append([]string{}, m.argv...), args.command()...),
		Host: m.env.Host, Log: m.logPath(name), Files: []*os.File{m.env.Secure.File()},
	}.Start(ctx)
	if err != nil {
		return errors.Join(err, m.removeSocket(name))
	}
	m.children[pid] = true
	m.env.Log.Debug("worker started", logkey.Device, name, logkey.PID, pid)
	return nil
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
		defer p.Close()
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
		defer p.Close()
	}
	return m.end(ctx, name, p)
}

// ownWorker returns the device's worker, or nil if there is none. It fails if
// the socket is served for somebody else: a name holds six characters of the
// node ID, the worker's command line all of them.
func (m *maker) ownWorker(name string) (*worker.Process, error) {
	p, err := worker.Find(socketPath(name))
	if errors.Is(err, worker.ErrNone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !p.Carries("/" + m.env.Node.String() + "/") {
		p.Close()
		return nil, fmt.Errorf("control socket %s: %w", socketPath(name), errForeign)
	}
	return p, nil
}

// errForeign says that a control socket is not this agent's.
var errForeign = errors.New("belongs to another agent or program")

// end waits for the end of a worker (nil: there is none) and removes what it
// may have left: one that was killed leaves its socket, one that ended as it
// should has nothing of interest in its log.
func (m *maker) end(ctx context.Context, name string, p *worker.Process) error {
	if p != nil {
		if err := p.End(ctx); err != nil {
			return err
		}
		delete(m.children, p.PID)
		_ = os.Remove(m.logPath(name))
	}
	return m.removeSocket(name)
}

func (m *maker) logPath(name string) string { return filepath.Join(m.env.RuntimeDir, name+".log") }

// removeSocket removes a socket file that nobody listens on.
func (m *maker) removeSocket(name string) error {
	c, _, err := worker.Dial(socketPath(name))
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("delete device %s: somebody listens on its control socket", name)
	}
	if !errors.Is(err, worker.ErrNone) {
		return err
	}
	if err := os.Remove(socketPath(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
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
