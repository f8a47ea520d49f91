package agent

import (
	"context"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
)

// deafProber gets no answer through one device while deaf is set.
type deafProber struct {
	prober
	device string
	deaf   *atomic.Bool
}

func (p deafProber) Probe(ctx context.Context, device string, from, to netip.Addr, size int) error {
	if device == p.device && p.deaf.Load() {
		return os.ErrDeadlineExceeded
	}
	return p.prober.Probe(ctx, device, from, to, size)
}

// TestProbeRouteFails: a new epoch's device that takes no routes, and so lets
// no probe through, leaves the route where it is, all the time.
func TestProbeRouteFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		broken := tunnel.DeviceName(a.id, 2, lane)
		var deaf atomic.Bool
		deaf.Store(true)
		a.look(func(l *loop) { l.rot.prober = deafProber{l.rot.prober, broken, &deaf} })
		a.guard.broken("", broken)
		sets := len(a.guard.since(0))
		a.rotate(api.RotateRequest{})
		w.watch("the pair on epoch 1", 10*time.Second, func() bool { return epochTo(a, b) == 1 && epochTo(b, a) == 1 })
		main := secure.Route{Peer: b.id.InnerAddr(), Device: tunnel.DeviceName(a.id, 1, lane)}
		tried := false
		for _, s := range a.guard.since(sets) {
			if len(s.Routes) != 1 || s.Routes[0] != main {
				t.Fatalf("routes %v, want %v", s.Routes, main)
			}
			tried = tried || len(s.Probes) > 0
		}
		if !tried {
			t.Error("no route for probes was wanted")
		}
		if s := a.status(); !hasProblem(s, "secure-failed") {
			t.Errorf("problems %v", s.Problems)
		}
		a.guard.broken("", "")
		deaf.Store(false)
		<-time.After(30 * time.Second) // at most between two probes
		w.until("epoch 2", func() bool { return a.on(2, 1) && b.on(2, 1) })
	})
}

// TestMainRouteFails: a route that cannot move to the new epoch's device still
// leads into the old one, so this node goes on there, and says so to the peer.
func TestMainRouteFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		a.guard.broken(tunnel.DeviceName(a.id, 2, lane), "")
		a.rotate(api.RotateRequest{})
		w.until("a wants its route to move", func() bool {
			return epochTo(b, a) == 2 && hasProblem(a.status(), "secure-failed")
		})
		w.watch("a on epoch 1, which b keeps", 10*time.Second, func() bool {
			return epochTo(a, b) == 1 && len(a.keys().Devices) == 2 && len(b.keys().Devices) == 2
		})
		a.guard.broken("", "")
		w.until("epoch 2", func() bool { return a.on(2, 1) && b.on(2, 1) })
	})
}
