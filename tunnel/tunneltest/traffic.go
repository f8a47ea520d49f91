package tunneltest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"
)

// headers is what UDP over IPv6 takes of the inner MTU, in bytes.
const headers = 40 + 8

// socket is a UDP socket on an inner address.
type socket struct {
	net.PacketConn
	t *testing.T
}

// listen opens a socket on host i's inner address.
func (m *mesh) listen(i int) *socket {
	m.t.Helper()
	return m.listenOn(i, m.hosts[i].Inner())
}

func (m *mesh) listenOn(i int, inner netip.Addr) *socket {
	m.t.Helper()
	c, err := m.hosts[i].Net.Listen(inner)
	if err != nil {
		m.t.Fatalf("host %d: listen on %s: %v", i, inner, err)
	}
	s := &socket{PacketConn: c, t: m.t}
	m.t.Cleanup(func() { _ = c.Close() })
	return s
}

// send sends one packet. That a route or a session is missing shows at the
// receiver, so only a packet that is too long is an error here.
func (s *socket) send(to *socket, payload []byte) error {
	_, err := s.WriteTo(payload, to.LocalAddr())
	return err
}

// receive returns the next packet, or nil when the time is over.
func (s *socket) receive(end time.Time) []byte {
	s.t.Helper()
	if err := s.SetReadDeadline(end); err != nil {
		s.t.Fatal(err)
	}
	buf := make([]byte, 65536)
	n, _, err := s.ReadFrom(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		s.t.Fatalf("receive on %s: %v", s.LocalAddr(), err)
	}
	return buf[:n]
}

// deliver sends a packet until it arrives, and returns what else arrived
// before it.
func (s *socket) deliver(to *socket, payload []byte) (before [][]byte) {
	s.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		// An error is not final: on a device without a session the kernel
		// answers a write with one.
		_ = s.send(to, payload)
		round := time.Now().Add(200 * time.Millisecond)
		for got := to.receive(round); got != nil; got = to.receive(round) {
			if bytes.Equal(got, payload) {
				return before
			}
			before = append(before, got)
		}
	}
	s.t.Fatalf("nothing from %s arrived at %s in %v", s.LocalAddr(), to.LocalAddr(), patience)
	return nil
}

// text makes a payload of a size that starts with a text.
func text(s string, size int) []byte {
	b := make([]byte, max(size, len(s)))
	copy(b, s)
	return b
}

// flow is a stream of numbered packets.
type flow struct {
	from, to *socket
	stop     chan struct{}
	done     sync.WaitGroup

	mu       sync.Mutex // guards what follows
	sent     uint64
	received map[uint64]int
}

// startFlow sends a numbered packet every two milliseconds until finish.
func startFlow(from, to *socket) *flow {
	f := &flow{from: from, to: to, stop: make(chan struct{}), received: map[uint64]int{}}
	f.done.Add(1)
	go f.sendAll()
	go f.receiveAll()
	return f
}

func (f *flow) sendAll() {
	defer f.done.Done()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-tick.C:
			f.mu.Lock()
			n := f.sent
			f.sent++
			f.mu.Unlock()
			_ = f.from.send(f.to, binary.BigEndian.AppendUint64(text("flow", 8), n))
		}
	}
}

// receiveAll ends when the socket is closed.
func (f *flow) receiveAll() {
	buf := make([]byte, 2048)
	_ = f.to.SetReadDeadline(time.Time{})
	for {
		n, _, err := f.to.ReadFrom(buf)
		if err != nil {
			return
		}
		if n == 16 && bytes.HasPrefix(buf, []byte("flow")) {
			f.mu.Lock()
			f.received[binary.BigEndian.Uint64(buf[8:])]++
			f.mu.Unlock()
		}
	}
}

func (f *flow) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.received)
}

// waitMore waits until n more packets have arrived.
func (f *flow) waitMore(m *mesh, n int) {
	m.t.Helper()
	had := f.count()
	m.waitFor("packets of a flow", func() bool { return f.count() >= had+n })
}

// drain waits until all that was sent until now has arrived: none of it is in the
// queues of a device that the flow's route has left. Agents wait for a time.
func (f *flow) drain(m *mesh) {
	m.t.Helper()
	f.mu.Lock()
	sent := f.sent
	f.mu.Unlock()
	m.waitFor("the packets on the old route", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for n := range sent {
			if f.received[n] == 0 {
				return false
			}
		}
		return true
	})
}

// finish stops the flow and fails the test if a packet was lost or doubled.
func (f *flow) finish(m *mesh) {
	m.t.Helper()
	close(f.stop)
	f.done.Wait()
	m.waitFor("all packets of a flow", func() bool { return f.count() == int(f.sent) })
	f.mu.Lock()
	defer f.mu.Unlock()
	for n, times := range f.received {
		if times != 1 {
			m.t.Errorf("packet %d arrived %d times", n, times)
		}
	}
}
