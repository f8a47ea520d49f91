package noisenet

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

func TestCall(t *testing.T) {
	a, b := pair(t, func(c *Config) { c.Handler = echo })
	ctx := testContext(t)
	for _, n := range []int{0, 1, maxChunk, maxChunk + 1, MaxMessage - 7} {
		req := bytes.Repeat([]byte{'q'}, n)
		resp, err := a.Call(ctx, b.node.id, req)
		if err != nil {
			t.Fatalf("call with %d bytes: %v", n, err)
		}
		if want := append([]byte(a.node.id.Short()+":"), req...); !bytes.Equal(resp, want) {
			t.Errorf("call with %d bytes: %d bytes came back, want %d", n, len(resp), len(want))
		}
	}
	var remote *RemoteError
	if _, err := a.Call(ctx, b.node.id, []byte("fail")); !errors.As(err, &remote) || remote.Text != "no such thing" {
		t.Errorf("failing call: %v", err)
	}
	if _, err := a.Call(ctx, b.node.id, make([]byte, MaxMessage+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("request above the limit: %v, want ErrTooLarge", err)
	}
	// The response would be 7 bytes too long; the stream survives that.
	if _, err := a.Call(ctx, b.node.id, make([]byte, MaxMessage)); !errors.As(err, &remote) {
		t.Errorf("response above the limit: %v, want a RemoteError", err)
	}
	if _, err := a.Call(ctx, a.node.id, nil); !errors.Is(err, ErrSelf) {
		t.Errorf("call to self: %v, want ErrSelf", err)
	}
	if _, err := a.Call(ctx, ids.NodeID{1}, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("call to nobody: %v, want ErrUnreachable", err)
	}
}

func TestCallsInParallel(t *testing.T) {
	a, b := pair(t, func(c *Config) { c.Handler = echo })
	ctx := testContext(t)
	var wg sync.WaitGroup
	for i := range 60 {
		from, to := a, b
		if i%2 == 1 {
			from, to = b, a
		}
		wg.Go(func() {
			req := bytes.Repeat([]byte{byte(i)}, 1+i*3000)
			resp, err := from.Call(ctx, to.node.id, req)
			if err != nil || !bytes.HasSuffix(resp, req) {
				t.Errorf("call %d: %d bytes, %v", i, len(resp), err)
			}
		})
	}
	wg.Wait()
	// One dial at a time: at most one stream per direction came up.
	a.mu.Lock()
	n := len(a.peers[b.node.id].controls)
	a.mu.Unlock()
	if n > 2 {
		t.Errorf("%d control streams between two nodes", n)
	}
}

func TestCallRetriesBrokenStream(t *testing.T) {
	a, b := pair(t, func(c *Config) { c.Handler = echo })
	ctx := testContext(t)
	if _, err := a.Call(ctx, b.node.id, []byte("x")); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	for _, c := range a.peers[b.node.id].controls {
		_ = c.conn.raw.(interface{ CloseWrite() error }).CloseWrite()
	}
	a.mu.Unlock()
	if _, err := a.Call(ctx, b.node.id, []byte("again")); err != nil {
		t.Errorf("call on a broken stream: %v", err)
	}
}

func TestCallTimeout(t *testing.T) {
	release := make(chan struct{})
	a, b := pair(t, func(c *Config) {
		c.Handler = func(ctx context.Context, _ Peer, _ []byte) ([]byte, error) {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil, nil
		}
	})
	defer close(release)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := a.Call(ctx, b.node.id, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("call to a handler that hangs: %v", err)
	}
}

func TestIdleStreamCloses(t *testing.T) {
	a, b := pair(t, func(c *Config) { c.Handler = echo; c.limits.controlIdle = 200 * time.Millisecond })
	if _, err := a.Call(testContext(t), b.node.id, nil); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*running{a, b} {
		eventually(t, "the idle stream is closed", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return len(r.conns) == 0
		})
	}
	if _, err := a.Call(testContext(t), b.node.id, nil); err != nil {
		t.Errorf("call after the idle close: %v", err)
	}
}

// TestCallEndsInTime: a peer that lets the stream back up holds nobody longer
// than the caller has said it will wait.
func TestCallEndsInTime(t *testing.T) {
	a, b := pair(t, func(c *Config) { c.Handler = echo })
	if _, err := a.Call(testContext(t), b.node.id, []byte("x")); err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	c := a.peers[b.node.id].controls[0]
	a.mu.Unlock()
	// As a message does that does not get through.
	c.sendMu.Lock()
	go func() {
		<-c.done // the stream must end: half a message may have left
		c.sendMu.Unlock()
	}()
	ctx, cancel := context.WithTimeout(testContext(t), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := a.Call(ctx, b.node.id, []byte("y")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("call: %v, want the deadline", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("call took %v", took)
	}
	if _, err := a.Call(testContext(t), b.node.id, []byte("z")); err != nil {
		t.Errorf("next call: %v", err)
	}
}

// TestOtherFamily: a node bound to an IPv4 address does not open a stream to an
// IPv6 one, over which it could never send a datagram.
func TestOtherFamily(t *testing.T) {
	c := newTestCluster(1)
	for bind, want := range map[string]struct{ v4, v6 bool }{
		"127.0.0.1:0": {v4: true},
		"0.0.0.0:0":   {v4: true},
		"[::1]:0":     {v6: true},
		"[::]:0":      {v4: true, v6: true},
	} {
		n := c.node(30)
		tr := New(Config{Node: n.id, Trust: c.trust, Bind: netip.MustParseAddrPort(bind)})
		if got := tr.sameFamily(netip.MustParseAddr("198.18.0.1")) == nil; got != want.v4 {
			t.Errorf("bound to %s: IPv4 %v", bind, got)
		}
		if got := tr.sameFamily(netip.MustParseAddr("2001:db8::1")) == nil; got != want.v6 {
			t.Errorf("bound to %s: IPv6 %v", bind, got)
		}
	}
	a, b := start(t, c.node(10), nil), startAt(t, c.node(20), netip.MustParseAddrPort("[::]:0"), nil)
	if _, err := a.Contact(testContext(t), netip.AddrPortFrom(netip.IPv6Loopback(), b.Port())); !errors.Is(err, ErrUnreachable) {
		t.Errorf("contact over IPv6: %v, want ErrUnreachable", err)
	}
	if _, err := a.Contact(testContext(t), netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), b.Port())); err != nil {
		t.Errorf("contact over IPv4: %v", err)
	}
}
