package espuser

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/esp"
)

// feed gives packets as a TUN does, several at a time; then it is closed.
type feed struct {
	bursts [][][]byte
}

func (f *feed) Next(dst []byte, wait bool) (int, error) {
	if len(f.bursts) == 0 {
		return 0, io.EOF
	}
	if len(f.bursts[0]) == 0 {
		if !wait {
			return 0, nil
		}
		f.bursts = f.bursts[1:]
		return f.Next(dst, wait)
	}
	p := f.bursts[0][0]
	f.bursts[0] = f.bursts[0][1:]
	return copy(dst, p), nil
}

// heap collects what arrives.
type heap struct{ packets chan []byte }

func (h *heap) Write(packets [][]byte, offset int) (int, error) {
	for _, p := range packets {
		h.packets <- slices.Clone(p[offset:])
	}
	return len(packets), nil
}

// innerPacket is an IPv6 packet of n bytes.
func innerPacket(from, to netip.Addr, n int, fill byte) []byte {
	p := make([]byte, n)
	p[0], p[6] = 6<<4, 59
	binary.BigEndian.PutUint16(p[4:], uint16(n-ipv6Len))
	copy(p[8:], from.AsSlice())
	copy(p[24:], to.AsSlice())
	for i := ipv6Len; i < n; i++ {
		p[i] = fill + byte(i)
	}
	return p
}

// end is one node of a lab over loopback: what it is made of, without TUN and process.
type end struct {
	self    netip.Addr
	table   atomic.Pointer[table]
	ends    atomic.Pointer[ends]
	dropped drops
	heap    heap
}

func newEnd(t *testing.T, self netip.Addr) *end {
	t.Helper()
	e := &end{self: self, heap: heap{make(chan []byte, 10_000)}}
	v4, err := newSocket(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	if err != nil {
		t.Fatal(err)
	}
	e.ends.Store(&ends{v4: v4})
	return e
}

// receive lets the end receive until the test ends.
func (e *end) receive(t *testing.T) {
	t.Helper()
	r := &receiver{in: newReception(e.ends.Load().v4), is4: true, self: e.self.As16(), table: &e.table, out: &e.heap, dropped: &e.dropped}
	done := make(chan struct{})
	go func() { r.run(); close(done) }()
	t.Cleanup(func() { e.ends.Load().close(); <-done })
}

// TestReceiverEnds: also if the socket is closed while the receiver has something to do, and comes back to find it so. It
// would run for ever, and a change of port wait for it.
func TestReceiverEnds(t *testing.T) {
	e := newEnd(t, labSelf)
	s := e.ends.Load().v4
	s.close()
	ended := make(chan struct{})
	go func() {
		(&receiver{in: newReception(s), is4: true, table: &e.table, out: &e.heap, dropped: &e.dropped}).run()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the receiver goes on, and its socket is closed")
	}
	if err := newTransmission().send(s, []byte{1}, sourceMessage(labSelf), rawAddr(netip.AddrPortFrom(labSelf, 9))); !errors.Is(err, os.ErrClosed) {
		t.Errorf("send: %v, want %v", err, os.ErrClosed)
	}
}

func (e *end) addr(t *testing.T) netip.AddrPort {
	t.Helper()
	at, err := unix.Getsockname(int(e.ends.Load().v4.file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	v4 := at.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port))
}

// send lets the end send bursts of packets.
func (e *end) send(t *testing.T, bursts [][][]byte, whole bool) {
	t.Helper()
	s := newSender(&feed{bursts}, &e.table, &e.ends, &e.dropped)
	s.whole = whole
	if err := s.run(); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

// lab joins two ends.
func lab(t *testing.T) (a, b *end) {
	t.Helper()
	a, b = newEnd(t, labSelf), newEnd(t, labPeer)
	join := func(e, o *end, in, out byte) {
		w := labWanted()
		w.inner, w.local, w.remote = o.self, e.addr(t), o.addr(t)
		w.in, w.out, w.inMaterial, w.outMaterial = 0x1100, 0x1100, material(in), material(out)
		bld := newBuilder()
		if _, err := bld.set([]wanted{w}); err != nil {
			t.Fatal(err)
		}
		e.table.Store(bld.now)
	}
	join(a, b, 1, 2)
	join(b, a, 2, 1)
	b.receive(t)
	t.Cleanup(func() { a.ends.Load().close() })
	return a, b
}

// next returns what arrives next.
func (h *heap) next(t *testing.T) []byte {
	t.Helper()
	select {
	case p := <-h.packets:
		return p
	case <-time.After(10 * time.Second):
		t.Fatal("nothing arrived")
		return nil
	}
}

// TestEveryByteArrives sends packets of all kinds of lengths in all kinds of bursts, cut by the
// kernel and one by one: each arrives once, as it was, in order.
func TestEveryByteArrives(t *testing.T) {
	for _, whole := range []bool{false, true} {
		a, b := lab(t)
		r := rand.New(rand.NewPCG(5, 6))
		for round := range 30 {
			var bursts [][][]byte
			var want [][]byte
			for range 1 + r.IntN(3) {
				var burst [][]byte
				for range 1 + r.IntN(90) {
					size := []int{1400, 1400, 1400, 1400, 700, ipv6Len, 1399, 8900}[r.IntN(8)]
					if round%3 == 0 {
						size = 1400 // as a TCP stream's
					}
					burst = append(burst, innerPacket(labSelf, labPeer, size, byte(len(want))))
					want = append(want, burst[len(burst)-1])
				}
				bursts = append(bursts, burst)
			}
			a.send(t, bursts, whole)
			for i, w := range want {
				if got := b.heap.next(t); !bytes.Equal(got, w) {
					t.Fatalf("packet %d of %d: %d bytes arrived, %d were sent, or others", i, len(want), len(got), len(w))
				}
			}
		}
		if d := b.dropped.read(); d != [reasons]uint64{} {
			t.Errorf("dropped %v", d)
		}
		p := b.table.Load().peers()[0]
		if q := a.table.Load().peers()[0]; p.rxPackets != q.txPackets || p.rxBytes != q.txBytes || p.rxPackets == 0 {
			t.Errorf("counted %d packets and %d bytes here, %d and %d there", p.rxPackets, p.rxBytes, q.txPackets, q.txBytes)
		}
	}
}

// TestRuns: what goes in one call.
func TestRuns(t *testing.T) {
	a, b := &outbound{}, &outbound{}
	lay := func(sizes ...int) (batch []sealed) {
		at := 0
		for _, n := range sizes {
			batch = append(batch, sealed{from: at, to: at + n, by: a})
			at += n
		}
		return batch
	}
	other := lay(100, 100, 100)
	other[1].by = b
	marked := lay(100, 100, 100)
	marked[1].ecn, marked[2].ecn = ce, ce
	for name, c := range map[string]struct {
		batch []sealed
		whole bool
		want  []int
	}{
		"equal":           {batch: lay(100, 100, 100), want: []int{3}},
		"short end":       {batch: lay(100, 100, 60, 100), want: []int{3, 1}},
		"longer":          {batch: lay(60, 100, 100), want: []int{1, 2}},
		"other peer":      {batch: other, want: []int{1, 1, 1}},
		"other mark":      {batch: marked, want: []int{1, 2}},
		"one by one":      {batch: lay(100, 100), whole: true, want: []int{1, 1}},
		"64 KiB":          {batch: lay(slices.Repeat([]int{1500}, 50)...), want: []int{43, 7}},
		"too many":        {batch: lay(slices.Repeat([]int{100}, 130)...), want: []int{64, 64, 2}},
		"end is too long": {batch: lay(60_000, 6_000), want: []int{1, 1}},
	} {
		s := &sender{batch: c.batch, whole: c.whole}
		var got []int
		for i := 0; i < len(s.batch); i += got[len(got)-1] {
			got = append(got, s.runFrom(i))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// TestDropped: each packet that must not arrive is counted under its reason, and does not.
func TestDropped(t *testing.T) {
	a, b := lab(t)
	third := netip.MustParseAddr("fd00::3")
	good := innerPacket(labSelf, labPeer, 200, 1)
	short := slices.Clone(good)
	binary.BigEndian.PutUint16(short[4:], 500) // says to be longer than it is
	v4 := slices.Clone(good)
	v4[0] = 0x45
	// Sent from here, found out here.
	a.send(t, [][][]byte{{innerPacket(labSelf, third, 100, 1), v4, make([]byte, 10), nil}}, false)
	if d := a.dropped.read(); d[dropNoPeer] != 1 || d[dropForeign] != 2 {
		t.Errorf("at the sender: %v", d)
	}
	// Sent by a member that does what it likes, found out there.
	seal := func(p []byte) []byte {
		w := make([]byte, len(p)+esp.MaxOverhead)
		copy(w[esp.HeaderLen:], p)
		n, err := a.table.Load().out(labPeer.As16()).sealer.Seal(w, len(p))
		if err != nil {
			t.Fatal(err)
		}
		return w[:n]
	}
	repeated := seal(good)
	broken := seal(good)
	broken[40] ^= 1
	unknown := seal(good)
	unknown[1]++
	raw := func(p []byte) {
		at := b.addr(t)
		err := unix.Sendto(int(a.ends.Load().v4.file.Fd()), p, 0, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range [][]byte{
		seal(innerPacket(third, labPeer, 100, 1)), seal(innerPacket(labSelf, third, 100, 1)), seal(short), seal(v4), seal(nil), seal(good[:30]),
		repeated, repeated, broken, unknown, {0, 0, 0, 0, 1, 2}, {0xff}, {}, unknown[:20],
	} {
		raw(p)
	}
	if got := b.heap.next(t); !bytes.Equal(got, good) {
		t.Errorf("% x arrived", got)
	}
	a.send(t, [][][]byte{{good}}, false) // what arrives last says that all of them were looked at
	b.heap.next(t)
	want := [reasons]uint64{dropForeign: 6, dropReplay: 1, dropForged: 1, dropUnknown: 4} // an empty one is nothing
	if d := b.dropped.read(); d != want {
		t.Errorf("at the receiver: %v, want %v", d, want)
	}
	if len(b.heap.packets) != 0 {
		t.Errorf("%d more packets arrived", len(b.heap.packets))
	}
}

// TestPaddingForFlowConfidentiality: bytes behind the inner packet are not part of it.
func TestPaddingForFlowConfidentiality(t *testing.T) {
	a, b := lab(t)
	good := innerPacket(labSelf, labPeer, 200, 1)
	a.send(t, [][][]byte{{append(slices.Clone(good), 1, 2, 3, 4, 5)}}, false)
	if got := b.heap.next(t); !bytes.Equal(got, good) {
		t.Errorf("%d bytes arrived, %d were sent", len(got), len(good))
	}
}

// FuzzReceive: whatever comes out of a socket, nothing of it arrives and nothing breaks.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{0, 0, 0x10, 1, 0, 0, 0, 1}, 8)
	f.Add(make([]byte, 100), 33)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		bld := newBuilder()
		if _, err := bld.set([]wanted{labWanted()}); err != nil {
			t.Fatal(err)
		}
		var tab atomic.Pointer[table]
		tab.Store(bld.now)
		h := heap{make(chan []byte, 1)}
		r := &receiver{is4: true, self: labSelf.As16(), table: &tab, out: &h, dropped: &drops{}}
		r.take(b, max(size, 1), ecn(size&ecnMask))
		if len(h.packets) > 0 {
			t.Fatalf("% x arrived", <-h.packets)
		}
	})
}
