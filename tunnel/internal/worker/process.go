package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// dialPatience is how long a connection may take: the kernel answers for a
// listener, unless its queue is full.
const dialPatience = 20 * time.Second

// ErrNone says that nobody listens on a worker's socket.
var ErrNone = errors.New("no worker listens")

// Process is a worker process, held by a pidfd: signals and waiting meet this
// process or none, never one that got its number later. The caller closes it.
type Process struct {
	PID int
	fd  *os.File
}

// Dial connects to a worker's socket and returns who listens there; ErrNone if
// nobody does.
// The kernel recorded the listener's identity when it called listen(2).
func Dial(socket string) (*net.UnixConn, *unix.Ucred, error) {
	d := net.Dialer{Timeout: dialPatience}
	c, err := d.Dial("unix", socket)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, nil, fmt.Errorf("worker's socket %s: %w", socket, ErrNone)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("worker's socket %s: %w", socket, err)
	}
	conn := c.(*net.UnixConn)
	cred, err := peerCred(conn)
	if err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("worker's socket %s: %w", socket, err)
	}
	// Whoever listens here may be about to be given secrets. Only root can
	// write to the folder; that nobody else does is checked, not assumed.
	if int(cred.Uid) != os.Geteuid() {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("worker's socket %s belongs to user %d", socket, cred.Uid)
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

// Find returns the worker that listens on a socket.
//
// The number alone would not do, it may name another process by the time it
// is used. But a connection succeeds only while the listener lives: if the
// same number listens before and after the pidfd was opened, the pidfd is the
// listener's.
func Find(socket string) (*Process, error) {
	c, before, err := Dial(socket)
	if err != nil {
		return nil, err
	}
	_ = c.Close()
	p, err := Open(int(before.Pid))
	if err != nil {
		return nil, fmt.Errorf("find worker at %s: %w", socket, err)
	}
	c, after, err := Dial(socket)
	if err != nil {
		p.Close()
		return nil, err
	}
	_ = c.Close()
	if after.Pid != before.Pid {
		p.Close()
		return nil, fmt.Errorf("find worker at %s: it changed from %d to %d", socket, before.Pid, after.Pid)
	}
	return p, nil
}

// Open holds a process by its number.
func Open(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &Process{PID: pid, fd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// Close lets the process go; it does not end it.
func (p *Process) Close() { _ = p.fd.Close() }

// Signal sends a signal.
func (p *Process) Signal(s unix.Signal) {
	// ESRCH: it has ended, which is what the signal is for.
	_ = unix.PidfdSendSignal(int(p.fd.Fd()), s, nil, 0)
}

// Wait waits for the end of the process, at most d, and reports whether it
// came. It also collects the exit status if the process is a child.
func (p *Process) Wait(ctx context.Context, d time.Duration) bool {
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
			reap(p.PID)
			return true
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
	}
}

// End waits for the process, asks it to end, and kills it, in this order.
func (p *Process) End(ctx context.Context) error {
	const patience = 2 * time.Second
	if p.Wait(ctx, patience) {
		return nil
	}
	p.Signal(unix.SIGTERM)
	if p.Wait(ctx, patience) {
		return nil
	}
	p.Signal(unix.SIGKILL)
	// Killing is not up to the process, so it is waited for even if ctx is over.
	if p.Wait(context.WithoutCancel(ctx), patience) {
		return nil
	}
	return fmt.Errorf("worker %d does not end", p.PID)
}

// Carries reports whether the process was started with the argument: a worker
// names its mark, hence its agent, on its command line.
func (p *Process) Carries(arg string) bool {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/cmdline")
	return err == nil && bytes.Contains(line, []byte(arg))
}

// Children are the workers that this process has started and not collected
// yet, by process ID. A parent must collect its children's exit status; when
// the agent ends, init does it.
type Children map[int]bool

// Reap collects those that have ended.
func (c Children) Reap() {
	for pid := range c {
		if reap(pid) {
			delete(c, pid)
		}
	}
}

// reap collects the exit status of a child, if pid is one and has ended.
func reap(pid int) bool {
	var st unix.WaitStatus
	got, err := unix.Wait4(pid, &st, unix.WNOHANG, nil)
	return got == pid || errors.Is(err, unix.ECHILD)
}
