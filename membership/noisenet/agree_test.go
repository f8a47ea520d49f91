package noisenet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// agreer is an AgreeHandler that keeps what it is given.
type agreer struct {
	mu      sync.Mutex
	secrets []keys.TunnelSecret
	from    []Peer
}

func (a *agreer) handle(_ context.Context, from Peer, req []byte) ([]byte, func(keys.TunnelSecret), error) {
	if string(req) == "fail" {
		return nil, nil, errors.New("no such epoch")
	}
	return append([]byte("re:"), req...), func(s keys.TunnelSecret) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.secrets, a.from = append(a.secrets, s), append(a.from, from)
	}, nil
}

// last returns the newest secret, which must be the nth.
func (a *agreer) last(t *testing.T, n int) (keys.TunnelSecret, Peer) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.secrets) != n {
		t.Fatalf("the peer took %d secrets, want %d", len(a.secrets), n)
	}
	return a.secrets[n-1], a.from[n-1]
}

func agreePair(t *testing.T, edit func(*Config)) (a, b *running, taken *agreer) {
	t.Helper()
	taken = &agreer{}
	a, b = pair(t, func(c *Config) {
		c.Agree, c.Handler = taken.handle, echo
		c.limits.bucketRate, c.limits.bucketBurst = 1000, 1000
		if edit != nil {
			edit(c)
		}
	})
	return a, b, taken
}

// noStreams waits until no stream is open between two nodes.
func noStreams(t *testing.T, nodes ...*running) {
	t.Helper()
	for _, r := range nodes {
		eventually(t, "no stream is left", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, p := range r.peers {
				if p.accepted != 0 || len(p.controls) != 0 {
					return false
				}
			}
			return len(r.conns) == 0
		})
	}
}

func TestAgree(t *testing.T) {
	a, b, taken := agreePair(t, nil)
	ctx := testContext(t)
	seen := map[keys.KeyID]bool{}
	for n, size := range []int{0, 5, 5, maxChunk, maxChunk + 1, MaxAgree - 3} {
		req := bytes.Repeat([]byte{'q'}, size)
		got, err := a.Agree(ctx, b.node.id, req)
		if err != nil {
			t.Fatalf("agree on %d bytes: %v", size, err)
		}
		// take ran before the response left, so there is nothing to wait for.
		theirs, from := taken.last(t, n+1)
		if got.Secret.IsZero() || !got.Secret.Equal(theirs) || seen[got.Secret.ID()] {
			t.Errorf("agree on %d bytes: secret %v here, %v there", size, got.Secret.ID(), theirs.ID())
		}
		seen[got.Secret.ID()] = true
		if string(got.Response) != "re:"+string(req) || !got.Hybrid || !from.Hybrid || from.ID != a.node.id {
			t.Errorf("agree on %d bytes: %d bytes, hybrid %v and %v, from %v", size, len(got.Response), got.Hybrid, from.Hybrid, from.ID)
		}
	}
	noStreams(t, a, b)
	var remote *RemoteError
	if _, err := a.Agree(ctx, b.node.id, []byte("fail")); !errors.As(err, &remote) || remote.Text != "no such epoch" {
		t.Errorf("agreement that the peer refuses: %v", err)
	}
	if _, err := a.Agree(ctx, b.node.id, make([]byte, MaxAgree)); !errors.As(err, &remote) {
		t.Errorf("response above the limit: %v, want a RemoteError", err)
	}
	if _, err := a.Agree(ctx, b.node.id, make([]byte, MaxAgree+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("request above the limit: %v, want ErrTooLarge", err)
	}
	if _, err := a.Agree(ctx, a.node.id, nil); !errors.Is(err, ErrSelf) {
		t.Errorf("agreement with self: %v, want ErrSelf", err)
	}
	if _, err := a.Agree(ctx, ids.NodeID{1}, nil); !errors.Is(err, ErrUnreachable) {
		t.Errorf("agreement with nobody: %v, want ErrUnreachable", err)
	}
	taken.last(t, 6) // nothing above gave a secret
	noStreams(t, a, b)
}

// TestAgreeUsesStreamOfItsOwn: neither does an agreement use a control stream
// that is there, nor do calls use its stream.
func TestAgreeUsesStreamOfItsOwn(t *testing.T) {
	hold, entered := make(chan struct{}), make(chan struct{})
	a, b := pair(t, func(c *Config) {
		c.Handler = echo
		c.Agree = func(context.Context, Peer, []byte) ([]byte, func(keys.TunnelSecret), error) {
			close(entered)
			<-hold
			return nil, nil, nil
		}
	})
	ctx := testContext(t)
	done := make(chan error, 1)
	go func() {
		_, err := a.Agree(ctx, b.node.id, nil)
		done <- err
	}()
	<-entered
	for _, r := range []*running{a, b} {
		r.mu.Lock()
		for _, p := range r.peers {
			if len(p.controls) != 0 {
				t.Error("the stream of an agreement is among the control streams")
			}
		}
		r.mu.Unlock()
	}
	if _, err := b.Call(ctx, a.node.id, []byte("x")); err != nil {
		t.Errorf("call while an agreement is under way: %v", err)
	}
	close(hold)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestAgreeInParallel(t *testing.T) {
	c := newTestCluster(1)
	fast := func(cfg *Config) { cfg.limits.bucketRate, cfg.limits.bucketBurst = 1000, 1000 }
	a := start(t, c.node(10), fast)
	var others []*running
	var taken []*agreer
	for i := range 3 {
		k := &agreer{}
		o := start(t, c.node(byte(20+i)), func(cfg *Config) { fast(cfg); cfg.Agree = k.handle })
		a.dir.set(o.node.id, o.addr())
		others, taken = append(others, o), append(taken, k)
	}
	ctx := testContext(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[keys.KeyID]bool{}
	for _, o := range others {
		for range 8 {
			wg.Go(func() {
				got, err := a.Agree(ctx, o.node.id, []byte("x"))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				seen[got.Secret.ID()] = true
			})
		}
	}
	wg.Wait()
	if len(seen) != 24 {
		t.Errorf("24 agreements gave %d secrets", len(seen))
	}
	for _, k := range taken {
		k.mu.Lock()
		for _, s := range k.secrets {
			if !seen[s.ID()] {
				t.Error("a peer took a secret that nobody else has")
			}
		}
		k.mu.Unlock()
	}
}

// TestTunnelSecret recomputes it with the reference, and changes each input.
func TestTunnelSecret(t *testing.T) {
	s := secret(raw32(9))
	req, resp := []byte("request"), []byte("response")
	a, b := sha256.Sum256(req), sha256.Sum256(resp)
	want := refExpand(s[:], append(append([]byte("so-tunnel-v1"), a[:]...), b[:]...))
	first := must(tunnelSecret(&s, req, resp))
	first.Expose(func(raw []byte) { equal(t, "tunnel secret", raw, want) })
	other := secret(raw32(8))
	for name, k := range map[string]keys.TunnelSecret{
		"other session":         must(tunnelSecret(&other, req, resp)),
		"other request":         must(tunnelSecret(&s, []byte("requesT"), resp)),
		"other response":        must(tunnelSecret(&s, req, []byte("Response"))),
		"exchanged":             must(tunnelSecret(&s, resp, req)),
		"boundary moved":        must(tunnelSecret(&s, []byte("requestr"), []byte("esponse"))),
		"nothing said":          must(tunnelSecret(&s, nil, nil)),
		"response in a request": must(tunnelSecret(&s, []byte("requestresponse"), nil)),
	} {
		if k.Equal(first) {
			t.Errorf("%s: the same secret", name)
		}
	}
}

func TestAgreeWithoutHandler(t *testing.T) {
	a, b, _ := agreePair(t, func(c *Config) { c.Agree = nil })
	var remote *RemoteError
	if _, err := a.Agree(testContext(t), b.node.id, nil); !errors.As(err, &remote) {
		t.Errorf("agreement with a node without handler: %v, want a RemoteError", err)
	}
	noStreams(t, a, b)
}

// TestAgreeWithoutTake: a handler may have no use for the secret.
func TestAgreeWithoutTake(t *testing.T) {
	a, b, _ := agreePair(t, func(c *Config) {
		c.Agree = func(context.Context, Peer, []byte) ([]byte, func(keys.TunnelSecret), error) { return nil, nil, nil }
	})
	if got, err := a.Agree(testContext(t), b.node.id, nil); err != nil || got.Secret.IsZero() || len(got.Response) != 0 {
		t.Errorf("response %q, %v", got.Response, err)
	}
}
