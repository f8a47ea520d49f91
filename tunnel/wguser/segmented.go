package wguser

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/gso"
)

// segmented exchanges packets of up to 64 KiB with the link, VXLAN with a TCP or UDP packet
// inside that is yet to be split, and splits and joins them itself (package gso).
type segmented struct {
	file *os.File
	conn syscall.RawConn
	lag  uint16 // for gso.Joined.Header

	// Of the one goroutine that reads.
	in    []byte
	split gso.Segmenter
	read  func(fd uintptr) bool
	wait  bool // whether read waits for a packet
	n     int  // what it read
	err   error

	outputs sync.Pool // of *output; several peers' goroutines write
}

// readBuffer holds the largest packet that the kernel hands over: its GSO limit is 64 KiB
// with all headers, unless somebody raises that of the link.
const readBuffer = gso.HeaderLen + 1<<16 + 1<<10

// errNotSegmented: the kernel has no offload of tunnels for TUN links (Linux 6.17).
var errNotSegmented = errors.New("no segmentation offload for VXLAN on TUN links")

// openSegmented makes a TUN link that takes and gives VXLAN packets that are yet to be split.
// It looks whether the kernel takes one before the link is up, so that nothing gets in.
func openSegmented(name string) (packets, *os.File, error) {
	fd, err := openTUN(name, unix.IFF_VNET_HDR)
	if err != nil {
		return nil, nil, err
	}
	lag, err := offload(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, nil, err
	}
	// Only now may the runtime poll the file: epoll on a TUN without a link
	// reports an error once and never again.
	file := os.NewFile(uintptr(fd), clonePath)
	conn, err := file.SyscallConn()
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	s := &segmented{file: file, conn: conn, lag: lag, in: make([]byte, readBuffer)}
	s.read = s.readOnce
	return s, file, nil
}

// offload asks for packets that are yet to be split, in both directions, and returns what
// gso.Joined.Header must be told.
func offload(fd int) (lag uint16, err error) {
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, gso.HeaderLen); err != nil {
		return 0, fmt.Errorf("set length of virtio headers: %w", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, gso.Offload); err != nil {
		return 0, fmt.Errorf("%w: %w", errNotSegmented, err)
	}
	for _, lag := range []uint16{ethernetLen, 0} {
		// A link that is down refuses with another error than a header that makes no sense,
		// and only after it has understood the header.
		if _, err = unix.Write(fd, gso.Sample(lag)); errors.Is(err, unix.EIO) {
			return lag, nil
		}
	}
	return 0, fmt.Errorf("%w: a sample is refused: %w", errNotSegmented, err)
}

// ethernetLen is by how much Linux 6.17 and 6.18 want places on a TUN link to be too large.
const ethernetLen = 14

// BatchSize implements packets.
func (*segmented) BatchSize() int { return conn.IdealBatchSize }

// Read implements packets. It waits for a first packet and takes what else is there, as
// far as it fits: the more go into one batch, the fewer system calls sending takes.
func (s *segmented) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	for {
		for ; n < len(bufs) && s.split.More(); n++ {
			size, err := s.split.Next(bufs[n][offset:])
			if err != nil {
				size = 0 // wireguard-go passes over empty ones
			}
			sizes[n] = size
		}
		if n == len(bufs) {
			return n, nil
		}
		p, err := s.next(n == 0)
		if err != nil || p == nil {
			return n, err
		}
		h, err := gso.Decode(p)
		if err == nil {
			// What the kernel could not have meant is dropped: there is nobody to tell.
			_ = s.split.Start(h, p[gso.HeaderLen:])
		}
	}
}

// next returns the next packet, with its header; nil if there is none and it may not wait.
func (s *segmented) next(wait bool) ([]byte, error) {
	s.wait, s.n, s.err = wait, 0, nil
	if err := s.conn.Read(s.read); err != nil {
		return nil, err
	}
	switch {
	case errors.Is(s.err, unix.EAGAIN):
		return nil, nil
	case s.err != nil:
		return nil, closedIf(os.NewSyscallError("read", s.err))
	}
	return s.in[:s.n], nil
}

// readOnce reads what is there, and reports whether that was anything to go on with.
func (s *segmented) readOnce(fd uintptr) bool {
	s.n, s.err = unix.Read(int(fd), s.in)
	return !s.wait || !errors.Is(s.err, unix.EAGAIN)
}

// output is what one call of Write needs.
type output struct {
	join   gso.Coalescer
	header [gso.HeaderLen]byte
	vector [][]byte
	write  func(fd uintptr) bool
	err    error
}

func newOutput() *output {
	o := &output{}
	o.write = func(fd uintptr) bool {
		_, o.err = unix.Writev(int(fd), o.vector)
		return !errors.Is(o.err, unix.EAGAIN)
	}
	return o
}

// Write implements packets: segments of one connection that follow each other go as one.
func (s *segmented) Write(bufs [][]byte, offset int) (int, error) {
	o, ok := s.outputs.Get().(*output)
	if !ok {
		o = newOutput()
	}
	defer s.outputs.Put(o)
	written := 0
	var errs []error
	for _, j := range o.join.Join(bufs, offset) {
		j.Header(s.lag).Put(o.header[:])
		o.vector = append(append(o.vector[:0], o.header[:]), j.Parts...)
		err := s.conn.Write(o.write)
		if err == nil {
			err = o.err
		}
		switch {
		case errors.Is(err, unix.EBADFD):
			return written, os.ErrClosed
		case err != nil:
			errs = append(errs, os.NewSyscallError("writev", err))
		default:
			written += len(j.Parts)
		}
	}
	clear(o.vector[:cap(o.vector)])
	return written, errors.Join(errs...)
}
