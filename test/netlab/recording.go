package netlab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// recordBuffer is the socket buffer of one recorded link in bytes: half a
	// second of a fast veth.
	recordBuffer = 64 << 20
	// frameMax holds the largest frame the kernel can hand over: a GSO
	// packet of a BIG TCP link is at most 512 KiB.
	frameMax = 512 << 10
)

// vnetHeader is the length of struct virtio_net_hdr in front of each frame: it
// carries what the kernel left undone, checksums and segmentation, so that a
// frame sent again is the same packets on the wire (packet(7), virtio 1.2
// section 5.1.6).
const vnetHeader = 10

// Frame is one recorded frame, as Lab.Replay takes it.
type Frame struct{ raw []byte }

// Bytes returns the frame itself; the caller must not change it.
func (f Frame) Bytes() []byte { return f.raw[vnetHeader:] }

// Recording keeps what hosts send, to send it again later. It reads a queue of
// references to pages, not a ring of copies (see Capture): it shows frames of up to a
// page as they were, larger ones perhaps not.
type Recording struct {
	match Matcher
	files []*os.File
	wg    sync.WaitGroup
	stop  sync.Once

	mu     sync.Mutex // guards what follows
	frames []Frame
	missed int
}

// Record keeps every matching frame that any host sends from now on. A frame is
// kept once, where it enters the switch. The caller calls Stop.
func (l *Lab) Record(match Matcher) (*Recording, error) {
	l.mu.Lock()
	hosts := slices.Clone(l.hosts)
	l.mu.Unlock()
	r := &Recording{match: match}
	for _, h := range hosts {
		fd := -1
		err := l.sw.ns.Do(func() error {
			index, err := linkIndex(h.port)
			if err != nil {
				return err
			}
			fd, err = vnetSocket(index)
			return err
		})
		if err != nil {
			r.Stop()
			return nil, fmt.Errorf("record what %s sends: %w", h.name, err)
		}
		r.files = append(r.files, os.NewFile(uintptr(fd), "recording "+h.port))
	}
	for _, f := range r.files {
		r.wg.Go(func() { r.read(f) })
	}
	return r, nil
}

// vnetSocket opens a packet socket that gets what comes in by a link, and its
// virtio header.
func vnetSocket(index int) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open packet socket: %w", err)
	}
	for _, set := range []func() error{
		func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, recordBuffer) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1) },
		func() error { return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1) },
		func() error {
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
		},
	} {
		if err := set(); err != nil {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("set up packet socket: %w", err)
		}
	}
	return fd, nil
}

// read keeps frames until Stop. A frame that the kernel cannot describe in a
// virtio header (before Linux 6.2, UDP that waits for segmentation) is an error
// of the one read and counts as missed.
func (r *Recording) read(f *os.File) {
	buf := make([]byte, vnetHeader+frameMax)
	for {
		n, err := f.Read(buf)
		if pathErr, ok := err.(*os.PathError); ok && pathErr.Err == unix.EINVAL {
			r.mu.Lock()
			r.missed++
			r.mu.Unlock()
			continue
		}
		if err != nil {
			return
		}
		if n > vnetHeader && r.match(buf[vnetHeader:n]) {
			r.mu.Lock()
			r.frames = append(r.frames, Frame{bytes.Clone(buf[:n])})
			r.mu.Unlock()
		}
	}
}

// Len returns how many frames were kept until now.
func (r *Recording) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.frames)
}

// Stop ends the recording and returns the frames in the order of their arrival, and
// how many could not be kept. It may be called more than once.
func (r *Recording) Stop() (frames []Frame, missed int) {
	r.stop.Do(func() {
		for _, f := range r.files {
			_ = f.Close()
		}
		r.wg.Wait()
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.frames, r.missed
}

// Replay sends recorded frames again, each toward the host that it was for, at
// a steady rate in frames per second. It is what somebody on the wire can do.
func (l *Lab) Replay(ctx context.Context, frames []Frame, rate int) error {
	fd, index := -1, 0
	err := l.sw.ns.Do(func() (err error) {
		// The bridge itself forwards what it is given by its table of addresses.
		if index, err = linkIndex(bridgeName); err != nil {
			return err
		}
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("replay frames: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return fmt.Errorf("replay frames: %w", err)
	}
	start := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for done := 0; done < len(frames); {
		due := min(len(frames), int(time.Since(start).Seconds()*float64(rate)))
		for ; done < due; done++ {
			if err := unix.Sendto(fd, frames[done].raw, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
				return fmt.Errorf("replay frame %d of %d: %w", done, len(frames), err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("replay frames: %w", ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}
