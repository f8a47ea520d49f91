package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/tun"
)

// DefaultPatience is how long a worker may take to answer a request. The
// request takes a millisecond; but a machine can be so busy that nobody gets
// a turn for seconds (5 s were too few in an emulated machine), and giving up
// on a worker that only waits for its turn costs its sessions.
const DefaultPatience = 20 * time.Second

// ErrForeign says that a worker's socket is not this agent's.
var ErrForeign = errors.New("belongs to another agent or program")

// Fleet are a driver's workers, one for each device, by the device's name. It holds
// nothing that a successor could not find out from links and sockets, except whom to
// reap. One goroutine uses it; the caller closes it.
type Fleet struct {
	env      tunnel.Env
	argv     []string
	sockets  string // folder
	patience time.Duration
	driver   string
	single   bool
	form     tun.Form // of links, once a worker was started
	children Children
	// asked are the questions whether a worker works that have no good answer
	// yet, by device. They are goroutines, which stop ends and asking counts.
	asked  map[string]*question
	life   context.Context //nolint:containedctx // of the questions: from OpenFleet to Close
	stop   context.CancelFunc
	asking sync.WaitGroup
}

// Options make a Fleet.
type Options struct {
	Argv    []string      // the command that calls RunDevice with the arguments that follow it
	Sockets string        // folder in which workers listen
	Timeout time.Duration // how long a worker may take to answer; 0: DefaultPatience
	Driver  string        // whose they are
	// Single makes workers exchange one packet at a time with their links, as on a kernel that
	// cannot do more.
	Single bool
}

// OpenFleet returns the workers of a driver. Those that its predecessor has started are among them.
func OpenFleet(env tunnel.Env, o Options) (*Fleet, error) {
	if len(o.Argv) == 0 {
		return nil, errors.New("no worker command")
	}
	if err := os.MkdirAll(env.RuntimeDir, 0o750); err != nil {
		return nil, err
	}
	f := &Fleet{
		env: env, argv: o.Argv, sockets: o.Sockets, patience: cmp.Or(o.Timeout, DefaultPatience),
		driver: o.Driver, single: o.Single, children: Children{}, asked: map[string]*question{},
	}
	f.life, f.stop = context.WithCancel(context.Background())
	return f, nil
}

// Close forgets the workers, which carry on.
func (f *Fleet) Close() {
	f.Reap()
	f.stop()
	f.asking.Wait()
}

// Reap collects the exit status of workers that have ended.
func (f *Fleet) Reap() { f.children.Reap() }

// socket is where the worker of a device listens.
func (f *Fleet) socket(device string) string { return filepath.Join(f.sockets, device+".sock") }

func (f *Fleet) log(device string) string { return filepath.Join(f.env.RuntimeDir, device+".log") }

// Start starts the worker of a device, which has no link, and waits until it is ready. What
// form the link has and where the worker listens is the fleet's to say.
func (f *Fleet) Start(ctx context.Context, d Device) error {
	if f.form == "" {
		var err error
		if f.form, err = tun.FormFor(ctx, f.driver, f.single); err != nil {
			return err
		}
	}
	// A worker that has lost its link is on its way out; when it goes it
	// removes the socket by its path, so the successor must not be there yet.
	if err := f.retire(ctx, d.Name); err != nil {
		return err
	}
	d.Form, d.Socket = f.form, f.socket(d.Name)
	pid, err := Command{
		Argv: append(append([]string{}, f.argv...), d.command()...), Host: f.env.Host, Log: f.log(d.Name), Files: []*os.File{f.env.Secure.File()},
	}.Start(ctx)
	if err != nil {
		return errors.Join(err, f.removeSocket(d.Name))
	}
	f.children[pid] = true
	f.env.Log.Debug("worker started", logkey.Device, d.Name, logkey.PID, pid)
	return nil
}

// retire ends the worker of a device that has no link. That there is none is no error.
func (f *Fleet) retire(ctx context.Context, device string) error {
	return f.End(ctx, device, func() error { return nil })
}

// End lets cause do what makes the worker of a device end, and waits for that. It removes what
// the worker may have left: one that was killed leaves its socket, one that ended as it
// should has nothing of interest in its log.
func (f *Fleet) End(ctx context.Context, device string, cause func() error) error {
	delete(f.asked, device)
	p, err := f.own(device)
	if err != nil {
		return err
	}
	if p != nil {
		defer p.Close()
	}
	if err := cause(); err != nil {
		return err
	}
	if p != nil {
		if err := p.End(ctx); err != nil {
			return err
		}
		delete(f.children, p.PID)
		_ = os.Remove(f.log(device))
	}
	return f.removeSocket(device)
}

// own returns the device's worker, or nil if there is none. It fails if
// the socket is served for somebody else: a name holds six characters of the
// node ID, the worker's command line all of them.
func (f *Fleet) own(device string) (*Process, error) {
	p, err := Find(f.socket(device))
	if errors.Is(err, ErrNone) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !p.Carries("/" + f.env.Node.String() + "/") {
		p.Close()
		return nil, fmt.Errorf("control socket %s: %w", f.socket(device), ErrForeign)
	}
	return p, nil
}

// removeSocket removes a socket file that nobody listens on.
func (f *Fleet) removeSocket(device string) error {
	socket := f.socket(device)
	c, _, err := Dial(socket)
	if err == nil {
		_ = c.Close()
		return errors.New("somebody listens on its control socket")
	}
	if !errors.Is(err, ErrNone) {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Sweep ends this agent's workers that have no link, and removes their
// sockets and log files.
func (f *Fleet) Sweep(ctx context.Context) error {
	prefix := "so" + f.env.Node.Short()
	sockets, err := filepath.Glob(filepath.Join(f.sockets, prefix+"*.sock"))
	if err != nil {
		return fmt.Errorf("list control sockets: %w", err)
	}
	var errs []error
	for _, s := range sockets {
		name := strings.TrimSuffix(filepath.Base(s), ".sock")
		if err := f.retire(ctx, name); err != nil && !errors.Is(err, ErrForeign) {
			errs = append(errs, fmt.Errorf("end the worker of %s: %w", name, err))
		}
	}
	logs, err := filepath.Glob(filepath.Join(f.env.RuntimeDir, prefix+"*.log"))
	errs = append(errs, err)
	for _, l := range logs {
		errs = append(errs, os.Remove(l))
	}
	return errors.Join(errs...)
}

// Ask lets exchange write a request to a device's worker and read the answer. A
// worker that does not answer in time is killed: its device is broken, and the
// next Set makes a new one.
func (f *Fleet) Ask(device string, exchange func(net.Conn) error) error {
	conn, cred, err := Dial(f.socket(device))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err = conn.SetDeadline(time.Now().Add(f.patience)); err == nil {
		err = exchange(conn)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.Join(fmt.Errorf("worker of %s does not answer", device), f.kill(device, cred.Pid), err)
	}
	if err != nil {
		return fmt.Errorf("worker of %s: %w", device, err)
	}
	return nil
}

// kill ends the worker of a device if it still is the process that was asked.
func (f *Fleet) kill(device string, pid int32) error {
	p, err := Find(f.socket(device))
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
