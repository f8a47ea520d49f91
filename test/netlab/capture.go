package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

const (
	// captureBuffer is the socket buffer of one capture in bytes: half a
	// second of a fast veth.
	captureBuffer = 64 << 20
	// frameMax holds the largest frame the kernel can hand over: a GSO
	// packet of a BIG TCP link is at most 512 KiB.
	frameMax = 512 << 10
	// headMax is how much is kept of a frame for people.
	headMax = 128
)

// Counts is what a capture has seen.
type Counts struct {
	Frames  uint64 // frames examined, both directions
	Bytes   uint64 // their length in total
	Matched uint64 // frames for which the matcher said yes
	Dropped uint64 // frames that came while the buffer was full: not examined
}

// add sums two counts.
func (c Counts) add(d Counts) Counts {
	return Counts{c.Frames + d.Frames, c.Bytes + d.Bytes, c.Matched + d.Matched, c.Dropped + d.Dropped}
}

// Capture examines every frame of one link, whole, in both directions.
// A claim that something was not on the wire holds only if Dropped is 0 and a
// positive control has matched.
//
// The kernel queues references to a frame's pages, not copies. On a veth the
// receiver has the same pages, and one that decrypts ESP in UDP does so in place:
// a large frame that is read late may then look readable from its second page on,
// behind a ciphertext head (see First). It errs on the loud side; a ring
// (PACKET_RX_RING) would copy in time.
type Capture struct {
	file  *os.File
	match Matcher
	stop  sync.Once
	done  chan struct{}

	frames, bytes, matched, dropped atomic.Uint64
	first                           atomic.Pointer[[]byte] // of the matched frames
}

// OpenCapture starts to examine the frames of a link of ns, of any link type.
// It has begun when OpenCapture returns. The caller calls Stop.
func OpenCapture(ns *nl.Namespace, link string, match Matcher) (*Capture, error) {
	return openCapture(ns, link, match, false)
}

func openCapture(ns *nl.Namespace, link string, match Matcher, incoming bool) (*Capture, error) {
	var fd int
	err := ns.Do(func() error {
		index, err := linkIndex(link)
		if err != nil {
			return err
		}
		fd, err = captureSocket(index, incoming)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture on link %s: %w", link, err)
	}
	c := &Capture{file: os.NewFile(uintptr(fd), "capture "+link), match: match, done: make(chan struct{})}
	go c.read()
	return c, nil
}

// captureSocket opens a packet socket on a link of the calling thread's
// namespace, for what comes in only or for both directions.
func captureSocket(index int, incoming bool) (int, error) {
	// Protocol 0 receives nothing until bind names the link: no frame of
	// another link slips in.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open packet socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("size packet socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, btoi(incoming)); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("direct packet socket: %w", err)
	}
	sa := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index}
	if err := unix.Bind(fd, sa); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind packet socket: %w", err)
	}
	return fd, nil
}

// read examines frames until Stop.
func (c *Capture) read() {
	defer close(c.done)
	buf := make([]byte, frameMax)
	for {
		n, err := c.file.Read(buf)
		switch {
		case err == nil:
			c.examine(buf[:n])
		case errors.Is(err, unix.ENETDOWN):
			// The link went down or away; the socket reports it once.
		default:
			return
		}
	}
}

func (c *Capture) examine(frame []byte) {
	c.bytes.Add(uint64(len(frame)))
	if c.match(frame) && c.matched.Add(1) == 1 {
		head := slices.Clone(frame[:min(len(frame), headMax)])
		c.first.Store(&head)
	}
	c.frames.Add(1)
}

// Counts returns what was seen until now.
func (c *Capture) Counts() Counts {
	c.statistics()
	return Counts{c.frames.Load(), c.bytes.Load(), c.matched.Load(), c.dropped.Load()}
}

// statistics adds the kernel's drop counter, which reading resets.
func (c *Capture) statistics() {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			c.dropped.Add(uint64(st.Drops))
		}
	})
}

// WaitMatched waits until n frames have matched, or ctx ends.
func (c *Capture) WaitMatched(ctx context.Context, n uint64) error {
	return waitFor(ctx, func() bool { return c.matched.Load() >= n },
		func() string { return fmt.Sprintf("%d of %d frames matched", c.matched.Load(), n) })
}

// Stop examines what is already in the buffer, ends the capture and returns
// the final counts. It may be called more than once.
func (c *Capture) Stop() Counts {
	c.stop.Do(func() {
		c.drain()
		c.statistics()
		_ = c.file.Close()
		<-c.done
	})
	return Counts{c.frames.Load(), c.bytes.Load(), c.matched.Load(), c.dropped.Load()}
}

// drain lets the reader finish the frames that are queued now. The reader
// empties the queue before it sees the deadline only if the deadline is not
// past, so the queue length itself is watched.
func (c *Capture) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	raw, err := c.file.SyscallConn()
	if err != nil {
		return
	}
	// The link's traffic may go on for ever: stop listening first.
	_ = raw.Control(func(fd uintptr) { _ = detachAll(int(fd)) })
	_ = waitFor(ctx, func() bool {
		select {
		case <-c.done:
			return true
		default:
		}
		queued := 0
		_ = raw.Control(func(fd uintptr) { queued, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) })
		return queued == 0
	}, func() string { return "frames are still queued" })
}

// detachAll makes the socket accept no further frame: a classic BPF program
// that returns 0 for every one. (Binding to another link would not do: it
// reports an error to the reader.)
func detachAll(fd int) error {
	reject := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: 1, Filter: &reject[0]})
}

// Captures is one capture per link of the underlay.
type Captures struct {
	byPort map[string]*Capture
}

// CaptureAll watches every host's port on the switch, and so every underlay
// link that exists now. A packet from one host to another is seen twice: where
// it enters the switch and where it leaves. Lab.Close stops what Stop has not.
func (l *Lab) CaptureAll(match Matcher) (*Captures, error) { return l.captureAll(match, false) }

// CaptureSent is CaptureAll for what hosts send only: each packet is seen once,
// for half the work. What the switch itself sends is not seen.
func (l *Lab) CaptureSent(match Matcher) (*Captures, error) { return l.captureAll(match, true) }

func (l *Lab) captureAll(match Matcher, incoming bool) (*Captures, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	cs := &Captures{byPort: make(map[string]*Capture)}
	for _, h := range l.hosts {
		c, err := openCapture(l.sw.ns, h.port, match, incoming)
		if err != nil {
			cs.Stop()
			return nil, err
		}
		cs.byPort[h.name] = c
	}
	l.captures = append(l.captures, cs)
	return cs, nil
}

// Host returns the capture of one host's port, or nil.
func (cs *Captures) Host(name string) *Capture { return cs.byPort[name] }

// Counts returns the sum over all links.
func (cs *Captures) Counts() Counts {
	var sum Counts
	for _, c := range cs.byPort {
		sum = sum.add(c.Counts())
	}
	return sum
}

// First returns the head of one frame that matched, the first of its link, nil
// if none has: its headers say what it is.
func (cs *Captures) First() []byte {
	for _, c := range cs.byPort {
		if head := c.first.Load(); head != nil {
			return *head
		}
	}
	return nil
}

// Stop ends all captures and returns the sum over all links.
func (cs *Captures) Stop() Counts {
	var sum Counts
	for _, c := range cs.byPort {
		sum = sum.add(c.Stop())
	}
	return sum
}

// linkIndex looks a link up in the calling thread's namespace.
func linkIndex(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("find link %s: %w", name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("find link %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req); err != nil {
		return 0, fmt.Errorf("find link %s: %w", name, err)
	}
	return int(req.Uint32()), nil
}

// htons returns v in network byte order, as the kernel's packet sockets want it.
func htons(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// waitFor polls cond until it holds or ctx ends; then the error says what was
// still missing.
func waitFor(ctx context.Context, cond func() bool, missing func() string) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait: %s: %w", missing(), ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}
