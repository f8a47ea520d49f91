package membership

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// echoes answers with who asked and what.
func echoes(o *Options) {
	o.Pair = func(_ context.Context, from ids.NodeID, msg []byte) ([]byte, error) {
		if bytes.Equal(msg, []byte("fail")) {
			return nil, errors.New("secret reason")
		}
		if bytes.Equal(msg, []byte("large")) {
			return make([]byte, MaxPair+1), nil
		}
		return append(from[:], msg...), nil
	}
}

func TestPair(t *testing.T) {
	l := newLab(t)
	nodes := []*node{l.start(0, echoes), l.start(1, echoes), l.start(2)}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 3)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	for _, msg := range [][]byte{{}, []byte("hello"), make([]byte, MaxPair-16)} {
		got, err := nodes[0].Pair(ctx, nodes[1].self, msg)
		if want := append(nodes[0].self[:], msg...); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d, %v", len(msg), len(got), err)
		}
	}
	if _, err := nodes[0].Pair(ctx, nodes[1].self, make([]byte, MaxPair+1)); !errors.Is(err, noisenet.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	req := append([]byte{kindPair, version}, make([]byte, MaxPair+1)...)
	if _, err := nodes[1].serve(ctx, noisenet.Peer{ID: nodes[0].self}, req); !errors.Is(err, errMessage) {
		t.Errorf("too large, sent all the same: %v", err)
	}
	for _, msg := range []string{"fail", "large"} {
		_, err := nodes[0].Pair(ctx, nodes[1].self, []byte(msg))
		if err == nil || strings.Contains(err.Error(), "secret reason") {
			t.Errorf("%s: %v, want an error without the reason", msg, err)
		}
	}
	if _, err := nodes[0].Pair(ctx, nodes[2].self, nil); err == nil {
		t.Error("a node without handler answered")
	}
	if _, err := nodes[0].Pair(ctx, l.identity(9).ID, nil); !errors.Is(err, noisenet.ErrUnreachable) {
		t.Errorf("unknown node: %v", err)
	}
	c, err := New(nodes[2].opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pair(ctx, nodes[0].self, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before Run: %v", err)
	}
	if _, _, _, err := c.Agree(ctx, nodes[0].self, nil); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before Run: %v", err)
	}
}

// TestClaim: claims have a handler of their own, and their own limit.
func TestClaim(t *testing.T) {
	l := newLab(t)
	answers := func(o *Options) {
		o.Claim = func(_ context.Context, from ids.NodeID, msg []byte) ([]byte, error) {
			if len(msg) == 0 {
				return nil, errors.New("secret reason")
			}
			return append(from[:1], msg...), nil
		}
	}
	nodes := []*node{l.start(0, answers), l.start(1)}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 2)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	for _, msg := range [][]byte{[]byte("hello"), make([]byte, MaxClaim-1)} {
		got, err := nodes[1].Claim(ctx, nodes[0].self, msg)
		if want := append(nodes[1].self[:1:1], msg...); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %d, %v", len(msg), len(got), err)
		}
	}
	if _, err := nodes[1].Claim(ctx, nodes[0].self, make([]byte, MaxClaim+1)); !errors.Is(err, noisenet.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	req := append([]byte{kindClaim, version}, make([]byte, MaxClaim+1)...)
	if _, err := nodes[0].serve(ctx, noisenet.Peer{ID: nodes[1].self}, req); !errors.Is(err, errMessage) {
		t.Errorf("too large, sent all the same: %v", err)
	}
	if _, err := nodes[1].Claim(ctx, nodes[0].self, nil); err == nil || strings.Contains(err.Error(), "secret reason") {
		t.Errorf("refused: %v, want an error without the reason", err)
	}
	if _, err := nodes[0].Claim(ctx, nodes[1].self, []byte("hello")); err == nil {
		t.Error("a node without handler answered")
	}
}

// TestPairPassesBulk: pair messages are answered while pages of the same peer,
// and of others, hold every place for such requests; and a peer with many pair
// messages keeps only itself waiting.
func TestPairPassesBulk(t *testing.T) {
	l := newLab(t)
	block := make(chan struct{})
	slow := l.identity(7).ID
	opts := Options{Identity: l.identity(0), NextSeq: func() (uint64, error) { return 1, nil },
		Pair: func(ctx context.Context, from ids.NodeID, msg []byte) ([]byte, error) {
			if from == slow {
				select {
				case <-block:
				case <-ctx.Done():
				}
			}
			return msg, nil
		}}
	c, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	// Pushes wait for the loop, which does not run: they stay at work.
	for i := range maxServing {
		id := l.identity(20 + i/maxServingPeer)
		raw, err := record.Sign(record.Node{ID: id.ID, Seq: 1}, id.Node)
		if err != nil {
			t.Fatal(err)
		}
		push := pushRequest([32]byte{}, []record.Entry{{Credential: id.Credential, Record: raw}})
		wg.Go(func() { _, _ = c.serve(ctx, noisenet.Peer{ID: id.ID}, push) })
	}
	eventually(t, "pushes hold every place", func() bool { return len(c.serving) == maxServing })
	for range 50 {
		wg.Go(func() { _, _ = c.serve(ctx, noisenet.Peer{ID: slow}, []byte{kindPair, version}) })
	}
	eventually(t, "pair messages are at work", func() bool { return len(c.pairing) == maxServingPeer })
	fast, stop := context.WithTimeout(ctx, deadline)
	defer stop()
	if got, err := c.serve(fast, noisenet.Peer{ID: l.identity(20).ID}, []byte{kindPair, version, 7}); err != nil || !bytes.Equal(got, []byte{kindPair | kindAnswer, version, 7}) {
		t.Errorf("pair message: %x, %v", got, err)
	}
	if n := len(c.pairing); n != maxServingPeer {
		t.Errorf("%d pair messages of one peer at work, want %d", n, maxServingPeer)
	}
	close(block)
}

// sharer takes secrets and remembers their names.
type sharer struct {
	mu    sync.Mutex
	taken map[keys.KeyID]int
}

func (s *sharer) options(o *Options) {
	o.Agree = func(_ context.Context, from ids.NodeID, hybrid bool, req []byte) ([]byte, func(keys.TunnelSecret), error) {
		if !hybrid || string(req) == "no" {
			return nil, nil, errors.New("refused")
		}
		return append(from[:], req...), func(secret keys.TunnelSecret) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.taken == nil {
				s.taken = make(map[keys.KeyID]int)
			}
			s.taken[secret.ID()]++
			secret.Wipe()
		}, nil
	}
}

func (s *sharer) tookOnce(id keys.KeyID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken[id] == 1
}

// TestAgree: both ends get one secret, another one each time.
func TestAgree(t *testing.T) {
	l := newLab(t)
	var s sharer
	nodes := []*node{l.start(0, s.options), l.start(1), l.start(2)}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	checkAgree(t, nodes, s.tookOnce)
}

// checkAgree runs agreements with the first of three nodes, which shares
// secrets; the others do not.
func checkAgree(t *testing.T, nodes []*node, taken func(keys.KeyID) bool) {
	t.Helper()
	converge(t, nodes, 3)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	var last keys.KeyID
	for range 3 {
		resp, secret, hybrid, err := nodes[1].Agree(ctx, nodes[0].self, []byte("tunnel"))
		if err != nil {
			t.Fatal(err)
		}
		if want := append(nodes[1].self[:], "tunnel"...); !bytes.Equal(resp, want) || !hybrid {
			t.Errorf("response %q, hybrid %v", resp, hybrid)
		}
		if !taken(secret.ID()) || secret.ID() == last {
			t.Errorf("secret %v is not the one that the peer took once", secret.ID())
		}
		last = secret.ID()
		secret.Wipe()
	}
	if _, _, _, err := nodes[1].Agree(ctx, nodes[0].self, []byte("no")); err == nil {
		t.Error("a refused agreement gave a secret")
	}
	if _, _, _, err := nodes[0].Agree(ctx, nodes[1].self, nil); err == nil {
		t.Error("a node without handler shares a secret")
	}
	for _, n := range nodes {
		n.until("hybrid handshakes", func(s Snapshot) bool {
			for _, m := range s.Members {
				if m.ID != s.Self && !m.Hybrid {
					return false
				}
			}
			return true
		})
	}
}
