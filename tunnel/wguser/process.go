package wguser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
)

// socketDir is where wireguard-go and wg(8) keep control sockets.
const socketDir = "/var/run/wireguard"

func socketPath(device string) string { return filepath.Join(socketDir, device+".sock") }

// defaultPatience is how long a worker may take to answer a request. The
// request takes a millisecond; but a machine can be so busy that nobody gets
// a turn for seconds (5 s were too few in an emulated machine), and giving up
// on a worker that only waits for its turn costs its sessions.
const defaultPatience = 20 * time.Second

// errNoWorker says that nobody listens on a device's control socket.
var errNoWorker = errors.New("no worker listens")

// process is a worker process, held by a pidfd: signals and waiting meet this
// process or none, never one that got its number later.
type process struct {
	pid int
	fd  *os.File
}

// dial connects to a device's control socket and returns who listens there.
// The kernel recorded the listener's identity when it called listen(2).
func dial(device string) (*net.UnixConn, *unix.Ucred, error) {
	d := net.Dialer{Timeout: defaultPatience}
	c, err := d.Dial("unix", socketPath(device))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, nil, fmt.Errorf("control socket of %s: %w", device, errNoWorker)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("control socket of %s: %w", device, err)
	}
	conn := c.(*net.UnixConn)
	cred, err := peerCred(conn)
	if err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("control socket of %s: %w", device, err)
	}
	// Whoever listens here is about to be given a private key. Only root can
	// write to the folder; that nobody else does is checked, not assumed.
	if int(cred.Uid) != os.Geteuid() {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("control socket of %s belongs to user %d", device, cred.Uid)
	}
	return conn, cred, nil
}

func peerCred(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(err, credErr)
}

// ping asks the worker for an answer: an empty set changes nothing and its
// answer, unlike get's, holds no key.
func ping(ctx context.Context, device string, patience time.Duration) error {
	c, _, err := dial(device)
	if err != nil && !errors.Is(err, errNoWorker) {
		return fmt.Errorf("%w: %w", wg.ErrUnclear, err) // such as no file descriptor left here
	}
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return fmt.Errorf("ask worker of %s: %w", device, err)
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := c.Write([]byte("set=1\n\n")); err != nil {
		return fmt.Errorf("ask worker of %s: %w", device, err)
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil {
		return fmt.Errorf("ask worker of %s: %w", device, errors.Join(err, ctx.Err()))
	}
	if got := bytes.TrimSpace(buf[:n]); string(got) != "errno=0" {
		return fmt.Errorf("ask worker of %s: answered %q", device, got)
	}
	return nil
}

// findProcess returns the worker that listens on a device's control socket.
//
// The number alone would not do, it may name another process by the time it
// is used. But a connection succeeds only while the listener lives: if the
// same number listens before and after the pidfd was opened, the pidfd is the
// listener's.
func findProcess(device string) (*process, error) {
	c, before, err := dial(device)
	if err != nil {
		return nil, err
	}
	_ = c.Close()
	p, err := openProcess(int(before.Pid))
	if err != nil {
		return nil, fmt.Errorf("find worker of %s: %w", device, err)
	}
	c, after, err := dial(device)
	if err != nil {
		p.close()
		return nil, err
	}
	_ = c.Close()
	if after.Pid != before.Pid {
		p.close()
		return nil, fmt.Errorf("find worker of %s: it changed from %d to %d", device, before.Pid, after.Pid)
	}
	return p, nil
}

func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

func (p *process) close() { _ = p.fd.Close() }

func (p *process) signal(s unix.Signal) {
	// ESRCH: it has ended, which is what the signal is for.
	_ = unix.PidfdSendSignal(int(p.fd.Fd()), s, nil, 0)
}

// wait waits for the end of the process, at most d, and reports whether it
// came. It also collects the exit status if the process is a child.
func (p *process) wait(ctx context.Context, d time.Duration) bool {
	end := time.Now().Add(d)
	for {
		left := time.Until(end)
		if left <= 0 || ctx.Err() != nil {
			return false
		}
		// Short rounds, so that an ended context is noticed.
		round := min(left, 100*time.Millisecond)
		fds := []unix.PollFd{{Fd: int32(p.fd.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(round/time.Millisecond)+1)
		if n > 0 {
			reap(p.pid)
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
	}
}

// end waits for the process, asks it to end, and kills it, in this order.
func (p *process) end(ctx context.Context) error {
	const patience = 2 * time.Second
	if p.wait(ctx, patience) {
		return nil
	}
	p.signal(unix.SIGTERM)
	if p.wait(ctx, patience) {
		return nil
	}
	p.signal(unix.SIGKILL)
	// Killing is not up to the process, so it is waited for even if ctx is over.
	if p.wait(context.WithoutCancel(ctx), patience) {
		return nil
	}
	return fmt.Errorf("worker %d does not end", p.pid)
}

// carries reports whether the process was started with the argument: a worker
// names its mark, hence its agent, on its command line.
func (p *process) carries(arg string) bool {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/cmdline")
	return err == nil && bytes.Contains(line, []byte(arg))
}

// reap collects the exit status of a child, if pid is one and has ended.
func reap(pid int) bool {
	var st unix.WaitStatus
	got, err := unix.Wait4(pid, &st, unix.WNOHANG, nil)
	return got == pid || errors.Is(err, unix.ECHILD)
}
