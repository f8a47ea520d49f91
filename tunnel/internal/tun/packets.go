package tun

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/block"
)

// packets is how packets enter and leave a link: what depends on what the kernel offers.
type packets interface {
	// Next writes the next packet that the link sends to dst and returns its length; 0: there
	// is none, if it may not wait, or one that makes no sense or does not fit. One
	// goroutine calls it.
	Next(dst []byte, wait bool) (int, error)
	// Write lets packets, which begin at offset, arrive on the link, and returns how many
	// did. It may change them. Several goroutines may call it.
	Write(bufs [][]byte, offset int) (int, error)
}

// openPackets makes a TUN link in the namespace of the calling thread, in the fastest
// form that the kernel has, or one packet at a time. The link lives as long as the file. With an
// alarm who reads waits in the kernel, until it rings.
func openPackets(name string, one bool, alarm *block.Alarm) (packets, *os.File, error) {
	if !one {
		p, file, err := openSegmented(name, alarm)
		if err == nil || !errors.Is(err, errNotSegmented) {
			return p, file, err
		}
	}
	p, err := openSingle(name, alarm)
	if err != nil {
		return nil, nil, err
	}
	return p, p.file, nil
}

func openSingle(name string, alarm *block.Alarm) (*single, error) {
	fd, err := openTUN(name, 0)
	if err != nil {
		return nil, err
	}
	r, err := newReader(fd, alarm)
	if err != nil {
		return nil, err
	}
	return &single{r}, nil
}

// reader reads a TUN link's file, waiting or not. One goroutine uses it.
type reader struct {
	file *os.File
	conn syscall.RawConn
	once func(fd uintptr) bool

	alarm *block.Alarm // nil: the runtime's poller waits

	wait bool // whether once waits for a packet
	to   []byte
	n    int
	err  error
}

// newReader takes over a TUN link's file descriptor. The link must be there already: epoll
// on a TUN without one reports an error once and never again.
func newReader(fd int, alarm *block.Alarm) (*reader, error) {
	var file *os.File
	var err error
	if alarm != nil {
		file, err = block.NewFile(fd, clonePath)
	} else if err = unix.SetNonblock(fd, true); err == nil {
		file = os.NewFile(uintptr(fd), clonePath)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", clonePath, err)
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	r := &reader{file: file, conn: conn, alarm: alarm}
	r.once = r.readOnce
	return r, nil
}

// read reads what the link sends next; 0: there is nothing, and it may not wait.
func (r *reader) read(to []byte, wait bool) (int, error) {
	r.wait, r.to, r.n, r.err = wait, to, 0, nil
	if err := r.conn.Read(r.once); err != nil {
		return 0, err
	}
	switch {
	case errors.Is(r.err, unix.EAGAIN):
		return 0, nil
	case errors.Is(r.err, unix.EBADFD), errors.Is(r.err, os.ErrClosed): // the link was deleted
		return 0, os.ErrClosed
	case r.err != nil:
		return 0, os.NewSyscallError("read", r.err)
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

// single exchanges one packet at a time with the link.
//
// It has no virtio header, so that the kernel has no way to take a merged packet. What
// we carry is VXLAN, equal-sized datagrams of one flow: wireguard-go's own TUN would merge
// them as datagrams and switch on UDP offload where the kernel has it (Linux 6.2), and VXLAN
// receivers drop merged datagrams on Linux 6.2 to 6.8.4, or make throughput collapse on
// others.
type single struct{ *reader }

// Next implements packets.
func (s *single) Next(dst []byte, wait bool) (int, error) { return s.read(dst, wait) }

// Write implements packets: packet by packet, never merged.
func (s *single) Write(bufs [][]byte, offset int) (int, error) {
	var errs []error
	written := 0
	for _, b := range bufs {
		_, err := s.file.Write(b[offset:])
		switch {
		case errors.Is(err, unix.EBADFD):
			return written, os.ErrClosed
		case err != nil:
			errs = append(errs, err)
		default:
			written++
		}
	}
	return written, errors.Join(errs...)
}
