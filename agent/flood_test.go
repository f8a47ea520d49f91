package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
)

// TestPairFlood: a peer that talks without end costs far fewer turns than it
// sends messages.
func TestPairFlood(t *testing.T) {
	for _, c := range []struct {
		name    string
		n       int
		pause   time.Duration
		message func(i uint64) rotate.Message
		most    ids.Revision // turns
	}{
		// One turn in a second comes by itself.
		{"the same again", 200, 10 * time.Millisecond, func(uint64) rotate.Message { return rotate.Message{Boot: 5, Seq: 1} }, 10},
		{"nothing new", 200, 10 * time.Millisecond, func(i uint64) rotate.Message { return rotate.Message{Boot: 5, Seq: i} }, 10},
		{"the same again at once", 1000, 0, func(uint64) rotate.Message { return rotate.Message{Boot: 5, Seq: 1} }, 10},
		{"news at once", 1000, 0, func(i uint64) rotate.Message { return rotate.Message{Boot: 5, Seq: i, Tx: ids.Epoch(i)} }, 10},
		// 100 ms, a turn each 5 ms and what they bring about.
		{"news", 1000, 100 * time.Microsecond, func(i uint64) rotate.Message { return rotate.Message{Boot: 5, Seq: i, Tx: ids.Epoch(i)} }, 50},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
				w.until("the pair", func() bool { return a.on(1, 1) && b.on(1, 1) })
				r := a.rogue()
				// Words of another process count from when it has heard this one.
				r.boot = 5
				var before, after ids.Revision
				b.look(func(l *loop) { before = l.round })
				for i := range c.n {
					msg := c.message(uint64(i) + 1)
					if i > 0 {
						msg.AckBoot, msg.AckSeq = r.heard.Boot, r.heard.Seq
					}
					raw, err := r.Pair(context.Background(), b.id, msg.Encode())
					if err != nil {
						t.Fatal(err)
					}
					if i == 0 {
						r.heard, _ = rotate.ParseMessage(raw)
					}
					<-time.After(c.pause)
				}
				b.look(func(l *loop) { after = l.round })
				if turns := after - before; turns > c.most {
					t.Errorf("%d messages made %d turns", c.n, turns)
				}
			})
		})
	}
}

// TestFloodAndAttach: a peer that talks without end does not keep others from
// what they want of the agent.
func TestFloodAndAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		w.until("the pair", func() bool { return a.on(1, 1) && b.on(1, 1) })
		r := a.rogue()
		r.settle(t, b.id)
		attached := make(chan error, 1)
		go func() {
			_, err := b.attach("blue", "/run/netns/c1")
			attached <- err
		}()
		synctest.Wait()
		again := rotate.Message{Boot: r.boot, Seq: 1}
		for range 500 {
			if _, err := r.Pair(context.Background(), b.id, again.Encode()); err != nil {
				t.Fatal(err)
			}
			<-time.After(10 * time.Millisecond)
		}
		select {
		case err := <-attached:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("not attached within 5 s")
			<-attached
		}
	})
}

// TestAgreeFlood: agreements that are repeated for ever leave nothing behind.
func TestAgreeFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		w.until("the pair", func() bool { return a.on(1, 1) && b.on(1, 1) })
		r := a.rogue()
		offer := w.board.offer(a.id, b.id)
		r.settle(t, b.id)
		for range 200 {
			_, secret, _, err := r.Agree(context.Background(), b.id, offer.Encode())
			if err != nil {
				t.Fatal(err)
			}
			secret.Wipe()
			<-time.After(time.Millisecond)
		}
		b.look(func(l *loop) {
			if len(l.rot.hybrid) > 3 || len(l.rot.held) > 1 {
				t.Errorf("after 200 agreements with one peer: %d keys remembered, %d secrets held", len(l.rot.hybrid), len(l.rot.held))
			}
		})
	})
}
