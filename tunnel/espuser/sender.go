package espuser

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/block"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/esp"
)

const (
	// arenaLen is how many bytes of packets are sealed before they are sent. They lie one
	// behind the other, so that they stay in the processor's cache and the kernel
	// takes many of them in one call.
	arenaLen = 256 << 10
	// longest is the longest packet that may come from the link.
	longest = 1<<16 - 1
	// runBytes and runPackets are what the kernel takes in one call: an IP packet's length,
	// without headers, and UDP_MAX_SEGMENTS.
	runBytes   = 1<<16 - 1 - 40 - 8
	runPackets = 64
)

// source gives the packets that are to be sent.
type source interface {
	// Next writes the next packet to dst and returns its length; 0: there is none that can
	// be used, or none yet, if it may not wait.
	Next(dst []byte, wait bool) (int, error)
}

// sealed is a packet in the arena.
type sealed struct {
	from, to int
	ecn      ecn
	by       *outbound
}

// sender takes packets from the link, seals them and sends them, in one goroutine: from the read to
// the send a packet stays in the cache of one core, and nobody waits for a lock.
type sender struct {
	in      source
	table   *atomic.Pointer[table]
	ends    *atomic.Pointer[ends]
	dropped *drops

	out     *transmission
	arena   []byte
	batch   []sealed
	control []byte
	// whole: the kernel or a link refuses several packets in one call.
	whole bool
}

func newSender(in source, t *atomic.Pointer[table], e *atomic.Pointer[ends], dropped *drops) *sender {
	return &sender{
		in: in, table: t, ends: e, dropped: dropped, out: newTransmission(),
		arena: make([]byte, arenaLen+longest+esp.MaxOverhead), batch: make([]sealed, 0, 256), control: make([]byte, 0, controlRoom),
	}
}

// run sends until the link is gone, and returns why.
func (s *sender) run() error {
	for turns := (block.Turns{}); ; turns.Next() {
		if err := s.fill(); err != nil {
			return err
		}
		s.flush()
	}
}

// fill waits for a packet, takes what else is there as far as there is room, and seals it.
func (s *sender) fill() error {
	s.batch = s.batch[:0]
	t := s.table.Load()
	at := 0
	for first := true; at < arenaLen && len(s.batch) < cap(s.batch); first = false {
		b := s.arena[at:]
		n, err := s.in.Next(b[esp.HeaderLen:esp.HeaderLen+longest], first)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		if first {
			t = s.table.Load() // it may have waited for long
		}
		by, why := t.route(b[esp.HeaderLen : esp.HeaderLen+n])
		if by == nil {
			s.dropped.count(why)
			continue
		}
		mark := ecnOf(b[esp.HeaderLen : esp.HeaderLen+n])
		size, err := by.sealer.Seal(b, n)
		if err != nil {
			s.dropped.count(dropExhausted)
			continue
		}
		by.add(1, n)
		s.batch = append(s.batch, sealed{at, at + size, mark, by})
		at += size
	}
	return nil
}

// route finds whose a packet from the link is. That it comes from this node's inner address is
// looked at where it arrives, by a node that does not trust this one.
func (t *table) route(p []byte) (*outbound, reason) {
	if len(p) < ipv6Len || p[0]>>4 != 6 {
		return nil, dropForeign
	}
	by := t.out(innerAddr(p[24:40]))
	if by == nil {
		return nil, dropNoPeer
	}
	return by, 0
}

// flush sends the batch: packets that follow each other, to one peer, of one length and ECN, in one
// call; the last of them may be shorter.
func (s *sender) flush() {
	e := s.ends.Load()
	for i := 0; i < len(s.batch); {
		run := s.batch[i : i+s.runFrom(i)]
		i += len(run)
		s.send(e.of(run[0].by.remote.Addr()), run)
	}
}

// runFrom returns how many packets from the i-th on go in one call.
func (s *sender) runFrom(i int) int {
	first := s.batch[i]
	size, end := first.to-first.from, min(len(s.batch), i+runPackets)
	if s.whole {
		return 1
	}
	n := i + 1
	for ; n < end; n++ {
		p := s.batch[n]
		if p.by != first.by || p.ecn != first.ecn || p.to-p.from > size || p.to-first.from > runBytes {
			break
		}
		if p.to-p.from < size {
			n++
			break
		}
	}
	return n - i
}

func (s *sender) send(c *socket, run []sealed) {
	first, last := run[0], run[len(run)-1]
	control := append(s.control[:0], first.by.source...)
	if len(run) > 1 {
		control = segmentMessage(control, first.to-first.from)
	}
	if first.ecn != notECT {
		control = ecnMessage(control, first.by.remote.Addr().Is4(), first.ecn)
	}
	err := s.out.send(c, s.arena[first.from:last.to], control, first.by.to)
	switch {
	case err == nil:
	case len(run) == 1:
		s.dropped.count(dropUnsent)
	default:
		// A link that computes no checksums for what is cut (EIO), a kernel that cannot cut, or
		// a path that got too narrow for a packet, which is then fragmented: each by itself.
		s.whole = s.whole || errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOPROTOOPT)
		for i := range run {
			s.send(c, run[i:i+1])
		}
	}
}
