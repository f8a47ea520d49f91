package agent

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// emptyDriver installs no peers.
type emptyDriver struct{ tunnel.Driver }

func (d emptyDriver) Set(ctx context.Context, s tunnel.Spec) error {
	s.Peers = nil
	return d.Driver.Set(ctx, s)
}

// TestHeldSecretsAreWiped: what no device has taken when the loop ends is lost,
// and so is a secret that comes after that.
func TestHeldSecretsAreWiped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()), w.machine(2, blue())
		for _, m := range []*machine{a, b} {
			m.driver = func(d tunnel.Driver) tunnel.Driver { return emptyDriver{d} }
			m.start()
		}
		w.until("a secret on both nodes", func() bool { return a.secretsHeld() == 1 && b.secretsHeld() == 1 })
		var held []keys.TunnelSecret // copies of a secret are wiped with it
		for _, m := range []*machine{a, b} {
			m.look(func(l *loop) {
				for _, h := range l.rot.held {
					held = append(held, h.Secret)
				}
			})
			m.kill()
		}
		for i, s := range held {
			if !s.IsZero() {
				t.Errorf("secret %d of %d outlives the loop", i+1, len(held))
			}
		}
	})
}

// latePairs gives its answer to an AGREE when the loop has ended.
type latePairs struct {
	pairs
	secret keys.TunnelSecret
	asked  chan struct{}
}

func (p *latePairs) Agree(ctx context.Context, _ ids.NodeID, _ []byte) ([]byte, keys.TunnelSecret, bool, error) {
	p.asked <- struct{}{}
	<-ctx.Done()
	<-time.After(time.Second)
	return rotate.Consent{}.Encode(), p.secret, true, nil
}

func someSecret(t *testing.T) keys.TunnelSecret {
	t.Helper()
	s, err := keys.TunnelSecretFromRaw32([]byte("a secret that nobody ever takes."))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestUntakenSecretsAreWiped: an agreement that the loop, or its machine, does
// not take any more leaves no secret, on either side.
func TestUntakenSecretsAreWiped(t *testing.T) {
	for name, untaken := range map[string]func(w *world, a, b *machine) keys.TunnelSecret{
		"a device was made anew meanwhile": func(w *world, a, b *machine) keys.TunnelSecret {
			s := someSecret(w.t)
			b.look(func(l *loop) {
				l.agreed(rotate.Wanted{Peer: a.id, Epoch: 1, Mine: 2, Theirs: 1}, Held{Secret: s}, true)
				if len(l.rot.held) != 0 || !s.IsZero() { // at once, not with the next turn
					w.t.Error("it is held")
				}
			})
			return s
		},
		"the dialler has ended": func(w *world, a, _ *machine) keys.TunnelSecret {
			late := &latePairs{secret: someSecret(w.t), asked: make(chan struct{}, 1)}
			a.look(func(l *loop) { late.pairs, l.rot.pairs = l.rot.pairs, late })
			a.rotate(api.RotateRequest{})
			<-late.asked
			a.kill()
			return late.secret
		},
		"the answerer has ended": func(w *world, a, b *machine) keys.TunnelSecret {
			a.rogue().settle(w.t, b.id)
			offer := w.board.offer(a.id, b.id)
			_, take, err := b.agent.agree(context.Background(), a.id, true, offer.Encode())
			if err != nil {
				w.t.Fatal(err)
			}
			b.kill()
			s := someSecret(w.t)
			take(s)
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
				w.until("the pair", func() bool { return a.on(1, 1) && b.on(1, 1) })
				if s := untaken(w, a, b); !s.IsZero() {
					t.Error("the secret is not wiped")
				}
			})
		})
	}
}

// TestCallsAfterTheLoop: whoever calls when the loop has ended is told so at
// once, although Run may still wait for others, such as the caller.
func TestCallsAfterTheLoop(t *testing.T) {
	a := New(Options{})
	close(a.ended)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := a.do(ctx, func(context.Context, *loop) { t.Error("a call runs") }); api.CodeOf(err) != api.CodeNotRunning || ctx.Err() != nil {
		t.Errorf("call: %v", err)
	}
}
