package noisenet

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// hanging is an AgreeHandler that waits for the end of its context.
type hanging struct {
	entered chan struct{}
	ended   chan error // why, and an error if the secret was taken all the same
}

func newHanging() *hanging {
	return &hanging{entered: make(chan struct{}, 100), ended: make(chan error, 100)}
}

func (h *hanging) handle(ctx context.Context, _ Peer, _ []byte) ([]byte, func(keys.TunnelSecret), error) {
	h.entered <- struct{}{}
	<-ctx.Done()
	h.ended <- ctx.Err()
	return nil, func(keys.TunnelSecret) { h.ended <- errors.New("took a secret") }, nil
}

// TestAgreeCancelled: a caller that gives up ends the handler, and there is no
// secret.
func TestAgreeCancelled(t *testing.T) {
	h := newHanging()
	a, b, _ := agreePair(t, func(c *Config) { c.Agree = h.handle })
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := a.Agree(ctx, b.node.id, nil)
		done <- err
	}()
	<-h.entered
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled agreement: %v", err)
	}
	if err := <-h.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("its handler's context: %v", err)
	}
	noStreams(t, a, b)
	if len(h.ended) != 0 {
		t.Error("the secret of a cancelled agreement was taken")
	}
}

// TestAgreeHandlerTimesOut: a peer whose handler hangs holds the caller for a
// bounded time, although the caller set no deadline.
func TestAgreeHandlerTimesOut(t *testing.T) {
	h := newHanging()
	a, b, _ := agreePair(t, func(c *Config) {
		c.Agree = h.handle
		if c.Node == newTestCluster(1).node(20).id { // the acceptor only
			c.limits.agree = 200 * time.Millisecond
		}
	})
	if _, err := a.Agree(context.Background(), b.node.id, nil); err == nil || !strings.Contains(err.Error(), "closed the stream") {
		t.Errorf("agreement with a handler that hangs: %v", err)
	}
	<-h.ended // by the deadline, or by the stream that it closed
	noStreams(t, a, b)
}

// TestAgreePeerSilent: so does a peer that never answers.
func TestAgreePeerSilent(t *testing.T) {
	c := newTestCluster(1)
	a := start(t, c.node(10), func(cfg *Config) { cfg.limits.agree = 200 * time.Millisecond })
	peer := c.node(20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	gone := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			gone <- err
			return
		}
		defer func() { _ = raw.Close() }()
		conn, err := respondRaw(raw, peer.party())
		for err == nil {
			_, _, err = conn.readFrame() // takes the request, says nothing
		}
		gone <- nil
	}()
	a.dir.set(peer.id, must(parseAddr(l.Addr())))
	if _, err := a.Agree(context.Background(), peer.id, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("agreement with a silent peer: %v", err)
	}
	if err := <-gone; err != nil {
		t.Error(err)
	}
	noStreams(t, a)
}

// TestAgreeNotRepeated: a peer that breaks off after the request is not asked a
// second time, at no address.
func TestAgreeNotRepeated(t *testing.T) {
	c := newTestCluster(1)
	a := start(t, c.node(10), nil)
	peer := c.node(20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan int, 1)
	go func() {
		n := 0
		defer func() { asked <- n }()
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			if conn, err := respondRaw(raw, peer.party()); err == nil {
				_, _, _ = conn.readFrame()
				n++
			}
			_ = raw.Close()
		}
	}()
	at := must(parseAddr(l.Addr()))
	a.dir.set(peer.id, at)
	if _, err := a.Agree(testContext(t), peer.id, []byte("x")); err == nil {
		t.Error("agreement with a peer that breaks off succeeded")
	}
	_ = l.Close()
	if n := <-asked; n != 1 {
		t.Errorf("the peer was asked %d times", n)
	}
}

// TestHostileAgree: whatever an enrolled peer sends out of order on a stream
// of an agreement ends it, and gives no secret.
func TestHostileAgree(t *testing.T) {
	c := newTestCluster(1)
	hang := newHanging()
	victim := start(t, c.node(10), func(cfg *Config) {
		cfg.limits.bucketRate, cfg.limits.bucketBurst = 1000, 1000
		cfg.Agree = hang.handle
	})
	ask := func(id uint32, last bool, n int) controlFrame {
		return controlFrame{kind: controlAgree, id: id, last: last, data: make([]byte, n)}
	}
	for name, tc := range map[string]struct {
		frames []controlFrame
		runs   bool // the handler, until the stream ends
	}{
		"second AGREE":       {[]controlFrame{ask(1, true, 1), ask(1, true, 1)}, true},
		"AGREE with a next":  {[]controlFrame{ask(1, true, 1), ask(2, true, 1)}, true},
		"REQUEST after":      {[]controlFrame{ask(1, true, 1), {kind: controlRequest, id: 1, last: true}}, true},
		"REQUEST first":      {[]controlFrame{{kind: controlRequest, id: 1, last: true}}, false},
		"REQUEST in between": {[]controlFrame{ask(1, false, 1), {kind: controlRequest, id: 1, last: true}}, false},
		"HELLO":              {[]controlFrame{{kind: controlHello}}, false},
		"OPEN":               {[]controlFrame{{kind: controlOpen, id: 1, index: 7}}, false},
		"AGREED":             {[]controlFrame{{kind: controlAgreed, id: 1, last: true}}, false},
		"FAILURE":            {[]controlFrame{{kind: controlFailure, id: 1, last: true}}, false},
		"other number":       {[]controlFrame{ask(2, true, 1)}, false},
		"empty frame":        {[]controlFrame{ask(1, false, 0)}, false},
		"too long":           {[]controlFrame{ask(1, false, maxChunk), ask(1, true, MaxAgree-maxChunk+1)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			raw := rawDial(t, victim.addr())
			h := &hostile{must(newSecureConn(raw, must(initiate(raw, c.node(20).party(), victim.node.id)), Peer{}))}
			for _, f := range tc.frames {
				_ = h.writeFrame(channelAgree, f.encode(nil), true)
			}
			h.closed(t)
			if tc.runs {
				<-hang.ended
			}
			noStreams(t, victim)
			if len(hang.ended) != 0 {
				t.Error("the handler ran, or its secret was taken")
			}
		})
	}
	t.Run("AGREE on a control stream", func(t *testing.T) {
		h := newHostile(t, victim, c.node(20))
		h.frame(t, ask(1, true, 1))
		h.closed(t)
	})
	t.Run("never says anything", func(t *testing.T) {
		h := newHostile(t, victim, c.node(20))
		_ = h.raw.Close()
	})
	noStreams(t, victim)
	if len(hang.ended) != 0 {
		t.Error("a handler ran")
	}
}

// TestHostileAgreed: the same for who answers.
func TestHostileAgreed(t *testing.T) {
	c := newTestCluster(1)
	a, peer := start(t, c.node(10), nil), c.node(20)
	for name, frames := range map[string][]controlFrame{
		"RESPONSE":     {{kind: controlResponse, id: 1, last: true}},
		"AGREE":        {{kind: controlAgree, id: 1, last: true}},
		"other number": {{kind: controlAgreed, id: 2, last: true}},
		"changed mind": {{kind: controlAgreed, id: 1, data: []byte("x")}, {kind: controlFailure, id: 1, last: true}},
		"too long": {{kind: controlAgreed, id: 1, data: make([]byte, maxChunk)},
			{kind: controlAgreed, id: 1, last: true, data: make([]byte, maxChunk)}},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			served := make(chan error, 1)
			go func() {
				raw, err := l.Accept()
				if err != nil {
					served <- err
					return
				}
				defer func() { _ = raw.Close() }()
				conn, err := respondRaw(raw, peer.party())
				if err == nil {
					_, _, err = conn.readFrame()
				}
				for _, f := range frames {
					if err == nil {
						_ = conn.writeFrame(channelAgree, f.encode(nil), true)
					}
				}
				served <- err
			}()
			conn, err := a.dialStream(testContext(t), must(parseAddr(l.Addr())), peer.id)
			if err != nil {
				t.Fatal(err)
			}
			defer a.untrack(conn.raw)
			if got, err := conn.askAgree([]byte("x")); !errors.Is(err, errAgree) && !errors.Is(err, errControl) || !got.Secret.IsZero() {
				t.Errorf("error %v", err)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestAgreeLimits: streams of agreements count as accepted streams of the
// member, and free their places.
func TestAgreeLimits(t *testing.T) {
	h := newHanging()
	a, b, _ := agreePair(t, func(c *Config) { c.Agree, c.limits.streamsPerPeer = h.handle, 3 })
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() { _, _ = a.Agree(ctx, b.node.id, nil) })
	}
	for range 3 {
		<-h.entered
	}
	if _, err := a.Agree(testContext(t), b.node.id, nil); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a fourth agreement at once: %v", err)
	}
	cancel()
	wg.Wait()
	noStreams(t, a, b)
}

// TestAgreeEnds: Drop on either side, and Shutdown of either side, end an
// agreement that is under way, without a secret.
func TestAgreeEnds(t *testing.T) {
	for name, end := range map[string]func(a, b *running){
		"dropped by the acceptor": func(a, b *running) { b.Drop(a.node.id) },
		"dropped by the dialler":  func(a, b *running) { a.Drop(b.node.id) },
		"acceptor stops":          func(_, b *running) { b.stop() },
		"dialler stops":           func(a, _ *running) { a.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHanging()
			a, b, _ := agreePair(t, func(c *Config) { c.Agree = h.handle })
			done := make(chan error, 1)
			go func() {
				_, err := a.Agree(testContext(t), b.node.id, nil)
				done <- err
			}()
			<-h.entered
			end(a, b)
			if err := <-done; err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("agreement: %v", err)
			}
			if err := <-h.ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the handler's context: %v", err)
			}
			noStreams(t, a, b)
			if len(h.ended) != 0 {
				t.Error("the secret was taken")
			}
			if name != "dialler stops" {
				return
			}
			if _, err := a.Agree(testContext(t), b.node.id, nil); !errors.Is(err, ErrClosed) {
				t.Errorf("agreement after Shutdown: %v, want ErrClosed", err)
			}
		})
	}
}
