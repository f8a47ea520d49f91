package netlab

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

const (
	// headMax is how much is kept of a frame for people.
	headMax = 128
	// settleLimit bounds the wait for frames that the kernel has captured and the
	// matcher has not seen. It takes retireAfter, and what the matcher takes.
	settleLimit = 10 * time.Second
)

// Counts is what a capture has seen.
type Counts struct {
	Frames  uint64 // frames examined, both directions
	Bytes   uint64 // their length in total
	Matched uint64 // frames for which the matcher said yes
	// Dropped is how many frames were not examined, or not whole: they came
	// while the ring was full, or were longer than a block of it.
	Dropped uint64
}

// add sums two counts.
func (c Counts) add(d Counts) Counts {
	return Counts{c.Frames + d.Frames, c.Bytes + d.Bytes, c.Matched + d.Matched, c.Dropped + d.Dropped}
}

// Capture examines every frame of one link, whole, in both directions.
// A claim that something was not on the wire holds only if Dropped is 0 and a
// positive control has matched.
//
// It sees a frame as it was on the link, however late it looks: the kernel copies
// the frame when it taps the link (see ring). A packet socket without a ring
// queues references to the frame's pages instead. On a veth the receiver has the
// same pages, and one that decrypts ESP in UDP does so in place: whoever reads
// such a queue late finds plaintext that never was on the wire.
type Capture struct {
	ring   *ring
	match  Matcher
	settle time.Duration // settleLimit, but for tests
	stop   sync.Once
	done   chan struct{} // the reader has ended

	frames, bytes, matched, cut atomic.Uint64
	first                       atomic.Pointer[[]byte] // of the matched frames
	final                       atomic.Pointer[Counts] // once Stop has them
}

// OpenCapture starts to examine the frames of a link of ns, of any link type.
// It has begun when OpenCapture returns. The caller calls Stop.
func OpenCapture(ns *nl.Namespace, link string, match Matcher) (*Capture, error) {
	return openCapture(ns, link, match, false, sharedRing(1))
}

func openCapture(ns *nl.Namespace, link string, match Matcher, incoming bool, size ringSize) (*Capture, error) {
	c := &Capture{match: match, settle: settleLimit, done: make(chan struct{})}
	err := ns.Do(func() error {
		index, err := linkIndex(link)
		if err != nil {
			return err
		}
		c.ring, err = openRing(index, incoming, size)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture on link %s: %w", link, err)
	}
	go func() {
		defer close(c.done)
		c.ring.read(c.examine)
	}()
	return c, nil
}

// examine looks at one frame. It must be whole: what a frame does not hold is
// not known from its beginning.
func (c *Capture) examine(frame []byte, whole bool) {
	if !whole {
		c.cut.Add(1)
		return
	}
	c.bytes.Add(uint64(len(frame)))
	if c.match(frame) && c.matched.Add(1) == 1 {
		head := slices.Clone(frame[:min(len(frame), headMax)])
		c.first.Store(&head)
	}
	c.frames.Add(1)
}

// Counts returns what was captured until now. It waits until the matcher has
// seen all of that, and counts as Dropped what it does not see in time.
func (c *Capture) Counts() Counts {
	put, _ := c.ring.arrived()
	return c.until(put)
}

// until returns the counts when the first put frames have been examined.
func (c *Capture) until(put uint64) Counts {
	if final := c.final.Load(); final != nil {
		return *final
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.settle)
	defer cancel()
	// Frames are read in the order in which the kernel counted them.
	_ = waitFor(ctx, func() bool {
		select {
		case <-c.done: // it examines no more
			return true
		default:
			return c.read() >= put
		}
	}, func() string { return "frames are in the ring" })
	unseen := put - min(put, c.read())
	_, refused := c.ring.arrived()
	return Counts{c.frames.Load(), c.bytes.Load(), c.matched.Load(), refused + c.cut.Load() + unseen}
}

// read returns how many frames have left the ring.
func (c *Capture) read() uint64 { return c.frames.Load() + c.cut.Load() }

// WaitMatched waits until n frames have matched, or ctx ends.
func (c *Capture) WaitMatched(ctx context.Context, n uint64) error {
	return waitFor(ctx, func() bool { return c.matched.Load() >= n },
		func() string { return fmt.Sprintf("%d of %d frames matched", c.matched.Load(), n) })
}

// Stop examines what is already captured, ends the capture and returns the
// final counts. It may be called more than once.
func (c *Capture) Stop() Counts {
	c.stop.Do(func() {
		c.ring.detach()
		// A frame that another processor is about to put in comes after this.
		final := c.Counts()
		_ = c.ring.close()
		<-c.done
		_ = c.ring.unmap()
		c.final.Store(&final)
	})
	return *c.final.Load()
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
		c, err := openCapture(l.sw.ns, h.port, match, incoming, sharedRing(len(l.hosts)))
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

// Counts returns the sum over all links of what was captured until now. Like
// Capture.Counts it waits, for all links at once.
func (cs *Captures) Counts() Counts {
	put := make(map[*Capture]uint64, len(cs.byPort))
	for _, c := range cs.byPort {
		put[c], _ = c.ring.arrived()
	}
	var sum Counts
	for c, n := range put {
		sum = sum.add(c.until(n))
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
	for _, c := range cs.byPort {
		c.ring.detach() // then the rings settle at the same time
	}
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
