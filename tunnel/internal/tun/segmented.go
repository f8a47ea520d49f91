package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/block"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/gso"
)

// segmented exchanges packets of up to 64 KiB with the link, VXLAN with a TCP or UDP packet
// inside that is yet to be split, and splits and joins them itself (package gso).
type segmented struct {
	*reader
	lag uint16 // for gso.Joined.Header

	// Of the one goroutine that reads.
	in    []byte
	split gso.Segmenter

	outputs sync.Pool // of *output
}

// readBuffer holds the largest packet that the kernel hands over: its GSO limit is 64 KiB
// with all headers, unless somebody raises that of the link.
const readBuffer = gso.HeaderLen + 1<<16 + 1<<10

// errNotSegmented: the kernel has no offload of tunnels for TUN links (Linux 6.17).
var errNotSegmented = errors.New("no segmentation offload for VXLAN on TUN links")

// openSegmented makes a TUN link that takes and gives VXLAN packets that are yet to be split.
// It looks whether the kernel takes one before the link is up, so that nothing gets in.
func openSegmented(name string, alarm *block.Alarm) (packets, *os.File, error) {
	fd, err := openTUN(name, unix.IFF_VNET_HDR)
	if err != nil {
		return nil, nil, err
	}
	lag, err := offload(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, nil, err
	}
	r, err := newReader(fd, alarm)
	if err != nil {
		return nil, nil, err
	}
	return &segmented{reader: r, lag: lag, in: make([]byte, readBuffer)}, r.file, nil
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

// Next implements packets.
func (s *segmented) Next(dst []byte, wait bool) (int, error) {
	for !s.split.More() {
		n, err := s.read(s.in, wait)
		if err != nil || n == 0 {
			return 0, err
		}
		h, err := gso.Decode(s.in[:n])
		if err == nil {
			// What the kernel could not have meant is dropped: there is nobody to tell.
			_ = s.split.Start(h, s.in[gso.HeaderLen:n])
		}
	}
	n, err := s.split.Next(dst)
	if err != nil {
		return 0, nil //nolint:nilerr // likewise: what fits the link's MTU fits
	}
	return n, nil
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
