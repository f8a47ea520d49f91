package membership

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// TestGreedyPeer: requests of one member, however many, leave room for the
// others, and none is lost.
func TestGreedyPeer(t *testing.T) {
	l := newLab(t)
	c, err := New(Options{Identity: l.identity(0), NextSeq: func() (uint64, error) { return 1, nil }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	const greedy = 50
	// Pushes wait for the loop, which does not run: they stay at work.
	rogue := l.identity(1)
	raw, err := record.Sign(record.Node{ID: rogue.ID, Seq: 1}, rogue.Node)
	if err != nil {
		t.Fatal(err)
	}
	push := pushRequest([32]byte{}, []record.Entry{{Credential: rogue.Credential, Record: raw}})
	done := make(chan error, greedy)
	for range greedy {
		go func() {
			_, err := c.serve(ctx, noisenet.Peer{ID: rogue.ID}, push)
			done <- err
		}()
	}
	users := func() int {
		c.turns.mu.Lock()
		defer c.turns.mu.Unlock()
		if p := c.turns.of[rogue.ID]; p != nil {
			return p.users
		}
		return 0
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for users() < greedy || len(c.serving) < maxServingPeer {
		<-tick.C
	}
	if n := len(c.serving); n > maxServingPeer {
		t.Errorf("%d requests of one peer at work, at most %d", n, maxServingPeer)
	}
	honest, stop := context.WithTimeout(ctx, deadline)
	defer stop()
	if _, err := c.serve(honest, noisenet.Peer{ID: l.identity(2).ID}, getRequest([]ids.NodeID{rogue.ID})); err != nil {
		t.Errorf("another peer: %v", err)
	}
	cancel()
	for range greedy {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("greedy request: %v", err)
		}
	}
	if len(c.turns.of) != 0 || len(c.serving) != 0 {
		t.Errorf("%d turns and %d tokens are left", len(c.turns.of), len(c.serving))
	}
}
