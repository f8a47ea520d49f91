package block

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Processors is how many of the runtime's processors (runtime.GOMAXPROCS) a process needs in which
// n goroutines wait here.
func Processors(n int) int { return runtime.NumCPU() + n + 1 }

// Turns counts what a goroutine has done without a pause.
type Turns struct{ n int }

// Next is called after each batch of packets, of which some thousand go through in a second.
func (t *Turns) Next() {
	const often = 16 // giving way may wake a thread, which costs as much as a batch
	if t.n++; t.n%often == 0 {
		runtime.Gosched()
	}
}

// NewFile takes over a file descriptor that blocks, and makes it one that does not. The runtime's
// poller does not learn of it: it would wake a thread for every packet, for nobody.
func NewFile(fd int, name string) (*os.File, error) {
	f := os.NewFile(uintptr(fd), name) // asks whether it blocks, once
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(os.NewSyscallError("fcntl", err), f.Close())
	}
	return f, nil
}

// Alarm ends waits. It stays open as long as the process lives: it is one small file for each
// device, which is what the process is for.
type Alarm struct{ fd int }

// NewAlarm returns an alarm that has not rung.
func NewAlarm() (*Alarm, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make alarm: %w", err)
	}
	return &Alarm{fd: fd}, nil
}

// Ring ends all waits, now and later.
func (a *Alarm) Ring() {
	one := [8]byte{1}
	_, _ = unix.Write(a.fd, one[:]) // fails only if it has rung 2^64 times
}

// Wait waits until there is something to read from a file (unix.POLLIN), or room to write to it
// (unix.POLLOUT); os.ErrClosed if the alarm has rung.
func (a *Alarm) Wait(fd int, events int16) error {
	fds := [2]unix.PollFd{{Fd: int32(fd), Events: events}, {Fd: int32(a.fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds[:], -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return os.NewSyscallError("poll", err)
		case fds[1].Revents != 0:
			return os.ErrClosed
		default:
			return nil
		}
	}
}
