package tun

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/block"
)

// packets is how packets enter and leave a link: what depends on its form.
type packets interface {
	// Next writes the next packet that the link sends to dst and returns its length; 0: there
	// is none, if it may not wait, or one that makes no sense or does not fit. One
	// goroutine calls it.
	Next(dst []byte, wait bool) (int, error)
	// Write lets packets, which begin at offset, arrive on the link, and returns how many
	// did. It may change them. Several goroutines may call it.
	Write(bufs [][]byte, offset int) (int, error)
	// Overflowed returns how many packets that the link has sent found no room to wait for this
	// process. Several goroutines may call it.
	Overflowed() uint64
	// File is what the link lives by.
	File() *os.File
}

// gone turns what the kernel says of a link that was deleted into os.ErrClosed.
func gone(err error) error {
	switch {
	case errors.Is(err, unix.EBADFD), // of a TUN
		errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENXIO): // of a packet socket: once, and from then on
		return os.ErrClosed
	}
	return err
}

// reader reads a file, waiting or not. One goroutine uses it.
type reader struct {
	file *os.File
	conn block.Conn
	once func(fd uintptr) bool

	alarm *block.Alarm // nil: the runtime's poller waits

	wait bool // whether once waits for a packet
	to   []byte
	n    int
	err  error
}

// newReader takes over a file descriptor. A TUN's link must be there already: epoll
// on a TUN without one reports an error once and never again.
func newReader(fd int, name string, alarm *block.Alarm) (*reader, error) {
	var file *os.File
	var err error
	if alarm != nil {
		file, err = block.NewFile(fd, name)
	} else if err = unix.SetNonblock(fd, true); err == nil {
		file = os.NewFile(uintptr(fd), name)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	conn, err := block.NewConn(file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	r := &reader{file: file, conn: conn, alarm: alarm}
	r.once = r.readOnce
	return r, nil
}

// File implements packets.
func (r *reader) File() *os.File { return r.file }

// read reads what the link sends next; 0: there is nothing, and it may not wait.
func (r *reader) read(to []byte, wait bool) (int, error) {
	r.wait, r.to, r.n, r.err = wait, to, 0, nil
	if err := r.conn.Read(r.once); err != nil {
		return 0, err
	}
	switch err := gone(r.err); {
	case errors.Is(err, unix.EAGAIN):
		return 0, nil
	case errors.Is(err, os.ErrClosed):
		return 0, err
	case err != nil:
		return 0, os.NewSyscallError("read", err)
	}
	return r.n, nil
}

// readOnce reads what is there, and reports whether that was anything to go on with.
func (r *reader) readOnce(fd uintptr) bool {
	for {
		r.n, r.err = unix.Read(int(fd), r.to)
		switch {
		case !r.wait || !errors.Is(r.err, unix.EAGAIN):
			return true
		case r.alarm == nil:
			return false
		}
		if r.err = r.alarm.Wait(int(fd), unix.POLLIN); r.err != nil {
			return true
		}
	}
}
