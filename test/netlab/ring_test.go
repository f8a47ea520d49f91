package netlab

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// sender sends frames of an EtherType of its own on one link. The link's taps
// have run when send returns.
type sender struct {
	t         *testing.T
	fd, index int
}

func newSender(t *testing.T, ns *nl.Namespace, link string) *sender {
	t.Helper()
	s := &sender{t: t, fd: packetSocket(t, ns)} // blocks when too much is on the way
	if err := ns.Do(func() (err error) { s.index, err = linkIndex(link); return err }); err != nil {
		t.Fatal(err)
	}
	return s
}

// packetSocket opens a packet socket without a ring that receives nothing yet.
func packetSocket(t *testing.T, ns *nl.Namespace) int {
	t.Helper()
	fd := -1
	if err := ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func (s *sender) send(payload []byte) {
	s.t.Helper()
	// To nobody, and of EtherType 0x88b5, for experiments (IEEE 802).
	frame := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5}, payload...)
	if err := unix.Sendto(s.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: s.index}); err != nil {
		s.t.Fatal(err)
	}
}

// isSent picks a sender's frames.
func isSent(frame []byte) bool { return len(frame) > 14 && frame[12] == 0x88 && frame[13] == 0xb5 }

// ringCapture opens a capture with a ring of any size on a host's link.
func ringCapture(t *testing.T, h *Host, size ringSize, match Matcher) *Capture {
	t.Helper()
	c, err := openCapture(h.NS(), HostLink, match, false, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Stop() })
	return c
}

// gate is a matcher that keeps the reader between shut and open.
type gate struct {
	reached, opened chan struct{}
	once            sync.Once
}

func newGate() *gate { return &gate{reached: make(chan struct{}), opened: make(chan struct{})} }

func (g *gate) match(frame []byte) bool {
	if bytes.Contains(frame, []byte("gate")) {
		close(g.reached)
		<-g.opened
	}
	return isSent(frame)
}

// shut sends the frame that keeps the reader, and waits until it does. It is
// called when the capture is there, and so the cleanup opens the gate before Stop.
func (g *gate) shut(s *sender) {
	s.t.Cleanup(g.open)
	s.send([]byte("gate"))
	<-g.reached
}

func (g *gate) open() { g.once.Do(func() { close(g.opened) }) }

// Stop must see what was captured before it, also what lies in a block that the
// kernel has not handed over yet, and so must Counts.
func TestStopSeesAllThatCameBefore(t *testing.T) {
	l := newLab(t, "stop")
	a := newHost(t, l, "a")
	s := newSender(t, a.NS(), HostLink)
	const n = 10000
	for round := range 3 {
		var next, wrong uint64
		c := ringCapture(t, a, sharedRing(1), func(frame []byte) bool {
			if !isSent(frame) {
				return false
			}
			if binary.BigEndian.Uint64(frame[14:]) != next {
				wrong++
			}
			next++
			return true
		})
		payload := make([]byte, 400)
		for i := range uint64(n) {
			binary.BigEndian.PutUint64(payload, i)
			s.send(payload)
			if i == n/2 {
				if got := c.Counts(); got.Matched != i+1 || got.Dropped != 0 {
					t.Errorf("round %d: in between %+v, want %d matched", round, got, i+1)
				}
			}
		}
		got := c.Stop()
		if got.Matched != n || got.Dropped != 0 || wrong != 0 {
			t.Errorf("round %d: %+v, %d of them not in order, want %d", round, got, wrong, n)
		}
		s.send(payload)
		if again := c.Stop(); again != got || c.Counts() != got {
			t.Errorf("round %d: a second Stop says %+v, the first %+v", round, again, got)
		}
	}
}

// What finds no room in the ring must be counted, and the capture go on
// afterwards.
func TestFullRing(t *testing.T) {
	l := newLab(t, "full")
	a := newHost(t, l, "a")
	s := newSender(t, a.NS(), HostLink)
	g := newGate()
	c := ringCapture(t, a, ringSize{block: 4096, blocks: 4}, g.match)
	g.shut(s)
	const n = 200
	for range n {
		s.send(make([]byte, 500))
	}
	c.settle = time.Millisecond
	// What is in the ring and not examined counts as dropped.
	if got := c.Counts(); got.Matched != 0 || got.Dropped < n {
		t.Errorf("while the reader is kept: %+v, want %d dropped", got, n)
	}
	c.settle = settleLimit
	g.open()
	got := c.Counts()
	if got.Dropped < n/2 || got.Matched < 2 || got.Dropped+got.Matched < n+1 {
		t.Errorf("after an overload: %+v, want %d together, most of them dropped", got, n+1)
	}
	s.send([]byte("later"))
	if err := c.WaitMatched(within(t, 10*time.Second), got.Matched+1); err != nil {
		t.Errorf("after an overload: %v", err)
	}
}

// A frame that does not fit into a block must not count as examined.
func TestFrameLargerThanBlock(t *testing.T) {
	l := newLab(t, "large")
	a := newHost(t, l, "a", WithMTU(9000))
	s := newSender(t, a.NS(), HostLink)
	c := ringCapture(t, a, ringSize{block: 8192, blocks: 128}, isSent)
	const n = 20
	for range n {
		s.send(make([]byte, 8500))
		s.send(make([]byte, 7900))
	}
	if got := c.Stop(); got.Matched != n || got.Dropped != n || got.Bytes >= 2*n*7914 {
		t.Errorf("%+v, want %d matched and %d dropped", got, n, n)
	}
}

// A capture goes on when its link comes back.
func TestCaptureOutlivesLinkDown(t *testing.T) {
	l := newLab(t, "down")
	a := newHost(t, l, "a")
	h, err := a.NS().Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByName(HostLink)
	if err != nil {
		t.Fatal(err)
	}
	c := ringCapture(t, a, sharedRing(1), isSent)
	for n := range uint64(3) {
		if err := h.LinkSetDown(link); err != nil {
			t.Fatal(err)
		}
		if err := h.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
		newSender(t, a.NS(), HostLink).send([]byte("up again"))
		if err := c.WaitMatched(within(t, 10*time.Second), n+1); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCapturedFrameIsACopy changes the pages of a frame after it was sent, as a
// receiver does that decrypts in place, and lets the capture look only then. The
// control is a packet socket without a ring, which sees the change.
func TestCapturedFrameIsACopy(t *testing.T) {
	l := newLab(t, "copy")
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	conn := connect(t, a, b)
	before, after := bytes.Repeat([]byte("before "), 100), bytes.Repeat([]byte("after! "), 100)
	g := newGate()
	var saw [2]bool
	c := ringCapture(t, a, sharedRing(1), func(frame []byte) bool {
		saw[0] = saw[0] || bytes.Contains(frame, before)
		saw[1] = saw[1] || bytes.Contains(frame, after[:7])
		return g.match(frame)
	})
	s := newSender(t, a.NS(), HostLink)
	plain := packetSocket(t, a.NS())
	if err := unix.Bind(plain, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: s.index}); err != nil {
		t.Fatal(err)
	}
	g.shut(s)
	file, err := unix.MemfdCreate("pages", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(file) }()
	write := func(b []byte) {
		if n, err := unix.Pwrite(file, b, 0); err != nil || n != len(b) {
			t.Fatalf("write = %d, %v", n, err)
		}
	}
	write(before)
	sendFile(t, conn, file, len(before))
	write(after)
	g.open()
	if got := c.Stop(); !saw[0] || saw[1] || got.Dropped != 0 {
		t.Errorf("the capture saw the frame as sent: %v, as changed later: %v; %+v", saw[0], saw[1], got)
	}
	buf, changed := make([]byte, 2000), false
	for {
		n, _, err := unix.Recvfrom(plain, buf, unix.MSG_DONTWAIT)
		if err != nil {
			break
		}
		changed = changed || bytes.Contains(buf[:n], after)
	}
	if !changed {
		t.Error("control: the frame without a ring was not changed: nothing is shown")
	}
}

// connect makes a TCP connection between two hosts and returns its one end.
func connect(t *testing.T, a, b *Host) syscall.RawConn {
	t.Helper()
	var lis net.Listener
	if err := b.NS().Do(func() (err error) {
		lis, err = net.Listen("tcp", netip.AddrPortFrom(b.V4(), 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	var conn net.Conn
	if err := a.NS().Do(func() (err error) {
		conn, err = net.Dial("tcp", lis.Addr().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// sendFile sends the file's beginning in a packet that refers to the file's
// pages, and returns when it will not be sent again.
func sendFile(t *testing.T, conn syscall.RawConn, file, size int) {
	t.Helper()
	var err error
	if cerr := conn.Control(func(fd uintptr) { _, err = unix.Sendfile(int(fd), file, new(int64), size) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if err := waitFor(within(t, 10*time.Second), func() bool {
		left := -1
		_ = conn.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		return left == 0
	}, func() string { return "it is not acknowledged" }); err != nil {
		t.Fatal(err)
	}
}
