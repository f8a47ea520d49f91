package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// keys asks a node about its keys.
func (m *machine) keys() api.KeyStatus {
	m.w.t.Helper()
	s, err := m.agent.Keys(context.Background())
	if err != nil {
		m.w.t.Fatal(err)
	}
	return s
}

// on reports whether every pair of a node is on an epoch and has nothing else.
func (m *machine) on(epoch ids.Epoch, pairs int) bool {
	s := m.keys()
	done := 0
	for _, p := range s.Peers {
		if p.Epoch == epoch && p.Step == api.KeyStepDone {
			done++
		}
	}
	return done == pairs && len(s.Devices) == 1 && s.Devices[0].Epoch == epoch
}

func (m *machine) rotate(req api.RotateRequest) api.Rotation {
	m.w.t.Helper()
	r, err := m.agent.Rotate(context.Background(), req)
	if err != nil {
		m.w.t.Fatal(err)
	}
	return r
}

// secretsHeld counts the secrets that a node's agent still has in memory.
func (m *machine) secretsHeld() (n int) {
	m.w.t.Helper()
	if err := m.agent.do(context.Background(), func(_ context.Context, l *loop) { n = len(l.rot.held) }); err != nil {
		m.w.t.Fatal(err)
	}
	return n
}

// TestRotation moves three nodes from epoch to epoch.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var all []*machine
		for i := range 3 {
			all = append(all, w.machine(i+1, blue()).start())
		}
		everywhere := func(epoch ids.Epoch) func() bool {
			return func() bool {
				for _, m := range all {
					if !m.on(epoch, 2) {
						return false
					}
				}
				return true
			}
		}
		w.until("epoch 1", everywhere(1))
		ports := map[uint16]bool{}
		for e := ids.Epoch(2); e <= 6; e++ {
			r := all[int(e)%3].rotate(api.RotateRequest{})
			if r.From != e-1 || r.To != e {
				t.Fatalf("rotation = %+v", r)
			}
			w.until(fmt.Sprint("epoch ", e), everywhere(e))
			for _, m := range all {
				rec := w.board.record(m.id).Tunnels
				if len(rec) != 1 || rec[0].Epoch != e {
					t.Errorf("record has tunnels %+v", rec)
				}
				ports[rec[0].Port] = true
				if n := m.secretsHeld(); n != 0 {
					t.Errorf("%d secrets are held after the rotation", n)
				}
			}
		}
		for p := range ports {
			if p < config.DefaultDataPort || p > config.DefaultDataPort+2 {
				t.Errorf("port %d is used", p)
			}
		}
		for _, p := range all[0].keys().Peers {
			if !p.PQ || !p.FullMTU || p.Switched.IsZero() {
				t.Errorf("pair = %+v", p)
			}
		}
		if c := all[0].keys().Counts; c.Switches != 10 || c.Rotations < 5 {
			t.Errorf("counts = %+v", c)
		}
	})
}

// TestRotationOfTwoAtOnce: two requests of one moment make one epoch.
func TestRotationOfTwoAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		answers := make(chan api.Rotation, 2)
		for _, m := range []*machine{a, b} {
			go func() { answers <- m.rotate(api.RotateRequest{}) }()
		}
		for range 2 {
			if r := <-answers; r.To != 2 {
				t.Errorf("rotation = %+v", r)
			}
		}
		w.until("epoch 2", func() bool { return a.on(2, 1) && b.on(2, 1) })
	})
}

// TestRestartInRotation kills an agent at many moments of a rotation; the next
// one ends it, and no pair loses its route meanwhile.
func TestRestartInRotation(t *testing.T) {
	for _, after := range []time.Duration{0, 5, 50, 120, 260, 320, 400, 600} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
			w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
			b.rotate(api.RotateRequest{})
			<-time.After(after * time.Millisecond)
			a.kill()
			if len(a.guard.spec.Routes) != 1 {
				t.Fatalf("killed after %d ms: routes %v", after, a.guard.spec.Routes)
			}
			<-time.After(2 * time.Second)
			a.start()
			w.until("epoch 2", func() bool { return a.on(2, 1) && b.on(2, 1) })
		})
	}
}

// TestRotationRefused: a node that cannot follow does not send others ahead.
func TestRotationRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.machine(1, blue()).start()
		w.until("a device", func() bool { return len(a.keys().Devices) == 1 })
		_, err := a.agent.Rotate(context.Background(), api.RotateRequest{Driver: config.DriverIPsec})
		if api.CodeOf(err) != api.CodeRefused || !strings.Contains(err.Error(), "ipsec") {
			t.Errorf("rotate to a driver that is not there: %v", err)
		}
		if r := a.rotate(api.RotateRequest{DryRun: true}); r.To != 2 || len(r.Effects) == 0 {
			t.Errorf("dry run = %+v", r)
		}
		if e := a.keys().Target.Epoch; e != 1 {
			t.Errorf("the target is %d after a refusal and a dry run", e)
		}
		// The cluster asks for it all the same: this node stays and says so.
		w.board.set(func() { w.board.target.Epoch, w.board.target.Driver = 2, config.DriverIPsec })
		<-time.After(2 * time.Second)
		s := a.status()
		if len(a.keys().Devices) != 1 || s.State != api.StateDegraded {
			t.Errorf("devices %+v, state %s, problems %v", a.keys().Devices, s.State, s.Problems)
		}
	})
}

// TestCutOffDuringRotations: a node that nobody can talk to comes back to the
// newest epoch at once.
func TestCutOffDuringRotations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.machine(1, blue()).start(), w.machine(2, blue()).start(), w.machine(3, blue()).start()
		w.until("epoch 1", func() bool { return a.on(1, 2) && b.on(1, 2) && c.on(1, 2) })
		w.board.isolate(c.id)
		for e := ids.Epoch(2); e <= 3; e++ {
			a.rotate(api.RotateRequest{})
			w.until("the others on the epoch", func() bool {
				return epochTo(a, b) == e && epochTo(b, a) == e && stepTo(a, b) == api.KeyStepDone
			})
			if epochTo(a, c) != 1 {
				t.Errorf("pair with the node that is cut off is on epoch %d", epochTo(a, c))
			}
		}
		w.board.set(func() { delete(w.board.cut, c.id) })
		w.until("all on epoch 3", func() bool { return a.on(3, 2) && b.on(3, 2) && c.on(3, 2) })
	})
}

func pairOf(a, b *machine) api.KeyPeer {
	for _, p := range a.keys().Peers {
		if p.ID == b.id {
			return p
		}
	}
	return api.KeyPeer{}
}

func epochTo(a, b *machine) ids.Epoch  { return pairOf(a, b).Epoch }
func stepTo(a, b *machine) api.KeyStep { return pairOf(a, b).Step }

// TestScheduledRotation: an issuer asks for the next epoch by itself, once in
// an interval; other nodes do not.
func TestScheduledRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()), w.machine(2, blue())
		a.issuer = true
		a.cfg.Keys.RotateEvery, b.cfg.Keys.RotateEvery = 2*time.Minute, time.Minute
		a.start()
		b.start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		if next := a.keys().NextRotation; next.Before(time.Now().Add(100*time.Second)) || next.After(time.Now().Add(140*time.Second)) {
			t.Errorf("next rotation in %v", time.Until(next))
		}
		if !b.keys().NextRotation.IsZero() {
			t.Error("a node without issuer key will rotate")
		}
		for e := ids.Epoch(2); e <= 4; e++ {
			<-time.After(time.Minute)
			if got := a.keys().Target.Epoch; got != e-1 {
				t.Fatalf("target %d a minute after epoch %d", got, e-1)
			}
			<-time.After(80 * time.Second)
			if !a.on(e, 1) || !b.on(e, 1) || a.keys().Target.Reason != "scheduled" {
				t.Fatalf("not on epoch %d: %+v", e, a.keys())
			}
			<-time.After(time.Until(a.keys().Target.Created.Add(10 * time.Second)))
		}
	})
}

// TestDriverChange moves a live pair from WireGuard to ESP and back; a node
// whose kernel has no ESP stays where it is, and both sides say why.
func TestDriverChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.machine(1, blue()), w.machine(2, blue()), w.machine(3, blue())
		a.ipsec, b.ipsec = true, true
		a.start()
		b.start()
		c.start()
		w.until("epoch 1", func() bool { return a.on(1, 2) && b.on(1, 2) && c.on(1, 2) })
		if _, err := c.agent.Rotate(context.Background(), api.RotateRequest{Driver: config.DriverIPsec}); api.CodeOf(err) != api.CodeRefused {
			t.Errorf("a node without ESP may ask for it: %v", err)
		}
		a.rotate(api.RotateRequest{Driver: config.DriverIPsec})
		w.until("the pair on ESP", func() bool {
			return epochTo(a, b) == 2 && epochTo(b, a) == 2 && pairOf(a, b).Driver == label(config.DriverIPsec)
		})
		if epochTo(a, c) != 1 || epochTo(c, a) != 1 || len(a.keys().Devices) != 2 {
			t.Errorf("pair with the node that cannot follow: epochs %d, %d; devices %+v", epochTo(a, c), epochTo(c, a), a.keys().Devices)
		}
		if s := c.status(); s.State != api.StateDegraded || !strings.Contains(fmt.Sprint(s.Problems), "cannot follow the cluster to key epoch 2") {
			t.Errorf("problems of the node that cannot follow: %+v", s.Problems)
		}
		w.until("a sign of life over ESP", func() bool { return a.status().Networks[0].Peers.OK == 2 })
		a.rotate(api.RotateRequest{Driver: config.DriverAuto})
		w.until("all on epoch 3", func() bool { return a.on(3, 2) && b.on(3, 2) && c.on(3, 2) })
	})
}

// TestWornKey: an ESP key that has carried nearly as much as it may makes its
// node ask for the next epoch, once.
func TestWornKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()), w.machine(2, blue())
		for _, m := range []*machine{a, b} {
			m.ipsec = true
			m.cfg.Keys.ESPMaxPackets, m.cfg.Keys.ESPMaxBytes = 50, 1<<40
			m.start()
		}
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		a.rotate(api.RotateRequest{Driver: config.DriverIPsec})
		w.until("epoch 2", func() bool { return a.on(2, 1) && b.on(2, 1) })
		if err := a.host.Route(b.id.InnerAddr(), tunnel.DeviceName(a.id, 2, lane)); err != nil {
			t.Fatal(err)
		}
		conn, err := a.host.Listen(a.id.InnerAddr())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.id.InnerAddr(), 9))
		send := func(n int) {
			for range n {
				if _, err := conn.WriteTo([]byte("worn"), to); err != nil {
					t.Fatal(err)
				}
			}
		}
		send(49)
		<-time.After(5 * time.Second)
		if e := a.keys().Target.Epoch; e != 2 {
			t.Fatalf("target %d before the key is worn", e)
		}
		send(1)
		w.until("epoch 3", func() bool { return a.on(3, 1) && b.on(3, 1) })
		if k := a.keys().Target; k.Reason != "limit" || k.Driver != config.DriverIPsec {
			t.Errorf("target = %+v", k)
		}
		<-time.After(time.Minute)
		if e := a.keys().Target.Epoch; e != 3 {
			t.Errorf("target %d after an idle time", e)
		}
	})
}
