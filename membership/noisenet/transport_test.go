package noisenet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

func echo(_ context.Context, from Peer, req []byte) ([]byte, error) {
	if string(req) == "fail" {
		return nil, errors.New("no such thing")
	}
	return append([]byte(from.ID.Short()+":"), req...), nil
}

// pair starts two transports that know each other's address by record.
func pair(t *testing.T, edit func(*Config)) (a, b *running) {
	t.Helper()
	c := newTestCluster(1)
	a, b = start(t, c.node(10), edit), start(t, c.node(20), edit)
	a.dir.set(b.node.id, b.addr())
	b.dir.set(a.node.id, a.addr())
	return a, b
}

func address(n *testNode) memberlist.Address {
	return memberlist.Address{Name: n.id.String(), Addr: netip.AddrPortFrom(n.id.InnerAddr(), VirtualPort).String()}
}

// user is a gossip packet that passes the inner filter.
func user(text string) []byte { return append([]byte{mlUser}, text...) }

func (r *running) send(t *testing.T, to *testNode, text string) {
	t.Helper()
	if _, err := r.WriteToAddress(user(text), address(to)); err != nil {
		t.Fatalf("write to %s: %v", to.id, err)
	}
}

func (r *running) expectPacket(t *testing.T, from *testNode, text string) {
	t.Helper()
	select {
	case p := <-r.PacketCh():
		if string(p.Buf) != string(user(text)) || p.From.String() != virtualAddr(from.id).String() {
			t.Fatalf("received %q from %v, want %q from %v", p.Buf, p.From, text, virtualAddr(from.id))
		}
		if time.Since(p.Timestamp) > 10*time.Second {
			t.Errorf("packet has time stamp %v", p.Timestamp)
		}
	case <-time.After(15 * time.Second):
		t.Fatalf("packet %q did not arrive", text)
	}
}

func TestPackets(t *testing.T) {
	a, b := pair(t, nil)
	a.send(t, b.node, "first") // waits in the queue while the session opens
	b.expectPacket(t, a.node, "first")
	b.send(t, a.node, "back")
	a.expectPacket(t, b.node, "back")
	for i := range 50 {
		a.send(t, b.node, fmt.Sprint(i))
		b.expectPacket(t, a.node, fmt.Sprint(i))
	}
	if p, ok := b.Peer(a.node.id); !ok || p.Addr != a.addr() || p.ID != a.node.id {
		t.Errorf("b knows a as %v, %v; want address %v", p.Addr, ok, a.addr())
	}
}

func TestPacketLimits(t *testing.T) {
	a, b := pair(t, nil)
	big := bytes.Repeat([]byte{mlUser}, maxPacket)
	if _, err := a.WriteToAddress(big, address(b.node)); err != nil {
		t.Fatal(err)
	}
	select {
	case p := <-b.PacketCh():
		if len(p.Buf) != maxPacket {
			t.Errorf("received %d bytes, want %d", len(p.Buf), maxPacket)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("largest packet did not arrive")
	}
	if _, err := a.WriteToAddress(append(big, 0), address(b.node)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("one byte more: %v, want ErrTooLarge", err)
	}
	// Compression is filtered out; the packet after it arrives.
	if _, err := a.WriteToAddress([]byte{9, 1, 2}, address(b.node)); err != nil {
		t.Fatal(err)
	}
	a.send(t, b.node, "after")
	b.expectPacket(t, a.node, "after")
}

func TestVirtualAddresses(t *testing.T) {
	a, b := pair(t, nil)
	right := address(b.node)
	for _, bad := range []memberlist.Address{
		{Name: right.Name, Addr: "127.0.0.1:7946"},
		{Name: right.Name, Addr: address(a.node).Addr},
		{Name: right.Name, Addr: netip.AddrPortFrom(b.node.id.InnerAddr(), 53).String()},
		{Name: "nobody", Addr: right.Addr},
		{Name: right.Name, Addr: "victim.example:7946"},
	} {
		if _, err := a.WriteToAddress(user("x"), bad); !errors.Is(err, ErrNotVirtual) {
			t.Errorf("write to %v: %v, want ErrNotVirtual", bad, err)
		}
		if _, err := a.DialAddressTimeout(bad, time.Second); !errors.Is(err, ErrNotVirtual) {
			t.Errorf("dial %v: %v, want ErrNotVirtual", bad, err)
		}
	}
	// An unknown node is dropped, as a network drops.
	stranger := newTestCluster(1).node(77)
	if _, err := a.WriteToAddress(user("x"), address(stranger)); err != nil {
		t.Errorf("write to an unknown node: %v", err)
	}
	if _, err := a.DialAddressTimeout(address(stranger), time.Second); !errors.Is(err, ErrUnreachable) {
		t.Errorf("dial an unknown node: %v, want ErrUnreachable", err)
	}
	a.sessMu.Lock()
	n := len(a.sess.peers)
	a.sessMu.Unlock()
	if n != 0 {
		t.Errorf("%d entries for nodes nobody knows", n)
	}
	// Without a name, an address leads to a peer that has authenticated.
	if _, err := a.Contact(testContext(t), b.addr()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.WriteTo(user("unnamed"), right.Addr); err != nil {
		t.Fatal(err)
	}
	b.expectPacket(t, a.node, "unnamed")
}

func TestGossipStream(t *testing.T) {
	a, b := pair(t, nil)
	conn, err := a.DialAddressTimeout(address(b.node), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	sent := append([]byte{mlPing}, bytes.Repeat([]byte("state "), 20000)...)
	go func() { _, _ = conn.Write(sent) }()
	var in io.ReadWriteCloser
	select {
	case c := <-b.StreamCh():
		if c.RemoteAddr().String() != virtualAddr(a.node.id).String() || c.LocalAddr().String() != virtualAddr(b.node.id).String() {
			t.Errorf("stream from %v to %v", c.RemoteAddr(), c.LocalAddr())
		}
		in = c
	case <-time.After(15 * time.Second):
		t.Fatal("stream did not arrive")
	}
	defer func() { _ = in.Close() }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(in, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("read %v, equal %v", err, bytes.Equal(got, sent))
	}
	if _, err := in.Write([]byte{mlAck, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, 4)
	if _, err := io.ReadFull(conn, back); err != nil || !bytes.Equal(back, []byte{mlAck, 1, 2, 3}) {
		t.Fatalf("answer %x, %v", back, err)
	}
	_ = in.Close()
	if _, err := conn.Read(back); err != io.EOF {
		t.Errorf("read after close: %v, want EOF", err)
	}
}

func TestGossipStreamDeadline(t *testing.T) {
	a, b := pair(t, nil)
	conn, err := a.DialAddressTimeout(address(b.node), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte{mlPing}); err != nil {
		t.Fatal(err)
	}
	in := <-b.StreamCh()
	defer func() { _ = in.Close() }()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	buf := make([]byte, 8)
	var timeout interface{ Timeout() bool }
	if _, err := conn.Read(buf); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Fatalf("read: %v, want a timeout", err)
	}
	// A timeout is not the end of the stream.
	_ = conn.SetReadDeadline(time.Time{})
	if _, err := in.Write([]byte{mlAck, 7}); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(buf); err != nil || !bytes.Equal(buf[:n], []byte{mlAck, 7}) {
		t.Errorf("read after the timeout: %x, %v", buf[:n], err)
	}
}

// TestStreamFilter sends heads of gossip streams that must not reach memberlist.
func TestStreamFilter(t *testing.T) {
	a, b := pair(t, nil)
	for name, head := range map[string][]byte{
		"compressed":     {9, 0x82},
		"encrypted":      {10, 0, 0, 0, 1},
		"label":          {244, 1, 'x'},
		"million nodes":  append([]byte{mlPushPull}, "\x83\xa4Join\xc3\xa5Nodes\xd2\x00\x10\x00\x00\xacUserStateLen\x00"...),
		"negative nodes": append([]byte{mlPushPull}, "\x83\xa4Join\xc3\xa5Nodes\xff\xacUserStateLen\x00"...),
	} {
		conn, err := a.DialAddressTimeout(address(b.node), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(head)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: the stream was answered", name)
		}
		_ = conn.Close()
		select {
		case <-b.StreamCh():
			t.Errorf("%s: the stream reached memberlist", name)
		default:
		}
	}
}

func TestContact(t *testing.T) {
	c := newTestCluster(1)
	a, b := start(t, c.node(10), nil), start(t, c.node(20), func(c *Config) { c.Handler = echo })
	p, err := a.Contact(testContext(t), b.addr())
	if err != nil {
		t.Fatal(err)
	}
	if p.ID != b.node.id || p.Addr != b.addr() || p.Cert.Hostname != "host" {
		t.Errorf("contact gave %s at %v", p.ID, p.Addr)
	}
	// Both know each other's address now, without any record.
	if _, err := a.Call(testContext(t), b.node.id, nil); err != nil {
		t.Error(err)
	}
	b.send(t, a.node, "hello")
	a.expectPacket(t, b.node, "hello")
	if _, err := a.Contact(testContext(t), a.addr()); !errors.Is(err, ErrSelf) {
		t.Errorf("contact with self: %v, want ErrSelf", err)
	}
}

func TestWrongPeer(t *testing.T) {
	a, b := pair(t, nil)
	other := newTestCluster(1).node(30)
	a.dir.set(other.id, b.addr())
	if _, err := a.Call(testContext(t), other.id, nil); !errors.Is(err, ErrWrongPeer) {
		t.Errorf("call through another node's address: %v, want ErrWrongPeer", err)
	}
}

func TestDropAndRefuse(t *testing.T) {
	var mu sync.Mutex
	refused := map[ids.NodeID]bool{}
	a, b := pair(t, func(c *Config) {
		c.Handler = echo
		self := c.Node
		c.Refuse = func(cert keys.Cert, _ keys.Credential) bool {
			id := cert.ID()
			mu.Lock()
			defer mu.Unlock()
			return refused[id] && self != id
		}
	})
	ctx := testContext(t)
	a.send(t, b.node, "one")
	b.expectPacket(t, a.node, "one")
	mu.Lock()
	refused[a.node.id] = true // only b is asked about a
	mu.Unlock()
	b.Drop(a.node.id)
	if _, ok := b.Peer(a.node.id); ok {
		t.Error("b still knows a")
	}
	b.sessMu.Lock()
	n := len(b.sess.byLocal)
	b.sessMu.Unlock()
	if n != 0 {
		t.Errorf("b still has %d sessions", n)
	}
	eventually(t, "streams are closed", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.conns) == 0
	})
	if _, err := a.Call(ctx, b.node.id, nil); !errors.Is(err, ErrHandshake) {
		t.Errorf("call of a refused node: %v, want ErrHandshake", err)
	}
	if _, err := b.Call(ctx, a.node.id, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("call to a refused node: %v, want ErrRefused", err)
	}
}

func TestRestartedPeerRecovers(t *testing.T) {
	c := newTestCluster(1)
	short := func(c *Config) { c.limits.hintQuiet, c.limits.hintDial = 100*time.Millisecond, 200*time.Millisecond }
	a, b := start(t, c.node(10), short), start(t, c.node(20), short)
	a.dir.set(b.node.id, b.addr())
	a.send(t, b.node, "before")
	b.expectPacket(t, a.node, "before")
	at := b.addr()
	b.stop()
	// The new process knows nothing of a: only its HINT can tell a.
	b2 := startAt(t, b.node, at, short)
	got := false
	eventually(t, "packets reach the restarted peer", func() bool {
		a.send(t, b2.node, "after")
		select {
		case <-b2.PacketCh():
			got = true
		default:
		}
		return got
	})
	b2.send(t, a.node, "back")
	a.expectPacket(t, b2.node, "back")
}

func TestShutdown(t *testing.T) {
	n := newTestCluster(1).node(10)
	if err := New(Config{Node: n.id}).Shutdown(); err != nil {
		t.Errorf("shutdown before open: %v", err)
	}
	a, b := pair(t, func(c *Config) { c.Handler = echo })
	a.send(t, b.node, "x")
	if _, err := a.Call(testContext(t), b.node.id, nil); err != nil {
		t.Fatal(err)
	}
	conn, err := a.DialAddressTimeout(address(b.node), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	a.stop()
	a.stop()
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("read after shutdown succeeded")
	}
	_ = conn.Close()
	if _, err := a.Call(testContext(t), b.node.id, nil); err == nil {
		t.Error("call after shutdown succeeded")
	}
	if err := a.Open(); !errors.Is(err, ErrClosed) {
		t.Errorf("open after shutdown: %v, want ErrClosed", err)
	}
}
