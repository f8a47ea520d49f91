package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// TestTwoNodesMeet starts two nodes and checks the whole way: tunnel, guard,
// endpoint on one side, forwarding on the other, status on both.
func TestTwoNodesMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue(), lab()).start(), w.machine(2, blue(), lab()).start()
		w.until("tunnels", func() bool {
			return a.status().Networks[0].Peers.OK == 1 && b.status().Networks[0].Peers.OK == 1
		})
		e := a.mustAttach("blue", "/run/netns/c1")
		if len(e.Addresses) != 2 || e.Ifname != "eth0" || e.MTU != 1370 || e.State != api.StateOK {
			t.Errorf("endpoint = %+v", e)
		}
		w.until("the endpoint on the other node", func() bool { return len(b.overlay.spec("blue").Remotes) == 1 })
		r := b.overlay.spec("blue").Remotes[0]
		if r.MAC != e.MAC || r.VTEP != a.id.InnerAddr() {
			t.Errorf("remote = %+v, endpoint %+v", r, e)
		}
		want := []secure.Member{{Inner: a.id.InnerAddr(), VNI: 4097}}
		if got := b.guard.spec.Members; !slices.Equal(got, want) {
			t.Errorf("guard admits %v, want %v", got, want)
		}
		s := b.status()
		if s.State != api.StateOK || !s.Ready || len(s.Problems) != 0 {
			t.Errorf("status = %s, ready %v, problems %v", s.State, s.Ready, s.Problems)
		}
		if n := s.Networks[1]; n.Encrypted || n.Driver != api.PlaintextLabel || n.Peers.OK != 1 {
			t.Errorf("plaintext network = %+v", n)
		}
		if n := s.Networks[0]; !n.Encrypted || n.EndpointsTotal != 1 || n.EndpointsHere != 0 {
			t.Errorf("encrypted network = %+v", n)
		}
		list, err := b.agent.Endpoints(context.Background())
		if err != nil || len(list) != 1 || list[0].Node.Name != "web-1" {
			t.Errorf("endpoints on the other node = %+v, %v", list, err)
		}
		if err := a.agent.Detach(context.Background(), e.ID[:6]); err != nil {
			t.Fatal(err)
		}
		w.until("the endpoint gone from the other node", func() bool { return len(b.overlay.spec("blue").Remotes) == 0 })
	})
}

// TestRestartKeepsEverything restarts an agent that cannot reach anybody and
// has no record cache: nothing may be taken away until another member answers
// or the grace is over.
func TestRestartKeepsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		e := b.mustAttach("blue", "/run/netns/c1")
		own := a.mustAttach("blue", "/run/netns/c2")
		w.until("the remote endpoint and the tunnel", func() bool { return len(a.overlay.spec("blue").Remotes) == 1 && a.on(1, 1) })
		before := a.overlay.spec("blue")
		key := w.board.record(a.id).Tunnels[0]

		a.kill()
		w.board.set(func() { w.board.hidden = true })
		a.start()
		w.until("the new agent", func() bool { return a.status().Ready })
		<-time.After(grace / 2)
		if got := a.overlay.spec("blue"); fmt.Sprint(got) != fmt.Sprint(before) {
			t.Errorf("after the restart\n%+v\nbefore\n%+v", got, before)
		}
		if a.peers() != 1 {
			t.Errorf("%d peers after the restart, want 1", a.peers())
		}
		rec := w.board.record(a.id)
		if len(rec.Attached) != 1 || len(rec.Tunnels) != 1 || rec.Tunnels[0] != key {
			t.Errorf("record after the restart = %+v", rec)
		}
		if s := a.status(); s.Networks[0].EndpointsHere != 1 {
			t.Errorf("network after the restart = %+v", s.Networks[0])
		}

		// Meanwhile the other endpoint goes; when records are known again it
		// must go here, too.
		if err := b.agent.Detach(context.Background(), e.ID); err != nil {
			t.Fatal(err)
		}
		w.board.set(func() { w.board.hidden = false })
		w.until("the stale endpoint to go", func() bool { return len(a.overlay.spec("blue").Remotes) == 0 })
		if a.peers() != 1 || len(a.overlay.spec("blue").Endpoints) != 1 || a.overlay.spec("blue").Endpoints[0].ID != own.ID {
			t.Errorf("peers %d, spec %+v", a.peers(), a.overlay.spec("blue"))
		}
	})
}

// TestGraceEnds: a node that nobody answers after a restart gives up what it
// cannot account for.
func TestGraceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, _ := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		w.until("a peer", func() bool { return a.peers() == 1 })
		a.kill()
		w.board.set(func() { w.board.hidden = true })
		a.start()
		<-time.After(grace - time.Second)
		if a.peers() != 1 {
			t.Fatalf("%d peers within the grace", a.peers())
		}
		<-time.After(3 * time.Second)
		if a.peers() != 0 {
			t.Errorf("%d peers after the grace", a.peers())
		}
	})
}

// TestRepair deletes the tunnel device behind the agent's back.
func TestRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		w.until("tunnels", func() bool { return a.status().Networks[0].Peers.OK == 1 })
		if err := a.host.DeleteLink(tunnel.DeviceName(a.id, 1, lane)); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		w.until("a new device", func() bool {
			tunnels := w.board.record(a.id).Tunnels
			return len(tunnels) == 1 && tunnels[0].Instance == 2
		})
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("repaired after %v", d)
		}
		w.until("the tunnel again", func() bool {
			return a.status().Networks[0].Peers.OK == 1 && b.status().Networks[0].Peers.OK == 1
		})
	})
}

// blindDriver cannot read its state any more from some moment on.
type blindDriver struct {
	tunnel.Driver
	blind *bool
}

func (d blindDriver) State(ctx context.Context) (tunnel.State, error) {
	if *d.blind {
		return tunnel.State{}, errors.New("read device: worker does not answer")
	}
	return d.Driver.State(ctx)
}

// TestUnreadableDriver: a driver that does not answer for a while must not
// make the node publish that it has no tunnel.
func TestUnreadableDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		blind := false
		a, b := w.machine(1, blue()), w.machine(2, blue()).start()
		a.driver = func(d tunnel.Driver) tunnel.Driver { return blindDriver{d, &blind} }
		a.start()
		w.until("tunnels", func() bool { return b.status().Networks[0].Peers.OK == 1 })
		if err := a.agent.do(context.Background(), func(context.Context, *loop) { blind = true }); err != nil {
			t.Fatal(err)
		}
		<-time.After(5 * time.Second)
		if len(w.board.record(a.id).Tunnels) != 1 {
			t.Error("the node published that it has no tunnel")
		}
		if s := a.status(); s.State != api.StateDegraded || !hasProblem(s, "tunnel-unreadable") {
			t.Errorf("status = %s %v", s.State, s.Problems)
		}
	})
}

func hasProblem(s api.Status, code string) bool {
	return slices.ContainsFunc(s.Problems, func(p api.Problem) bool { return p.Code == code })
}

// TestForeignLink: the intrusion is reported and nothing is weakened.
func TestForeignLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.machine(1, blue()).start()
		w.until("ready", func() bool { return a.status().Ready })
		before := a.overlay.spec("blue")
		a.guard.mu.Lock()
		a.guard.verify = fmt.Errorf("%w: veth eth9", secure.ErrForeignLink)
		a.guard.mu.Unlock()
		w.until("a report", func() bool { return hasProblem(a.status(), "foreign-link") })
		if got := a.overlay.spec("blue"); fmt.Sprint(got) != fmt.Sprint(before) || a.peers() < 0 {
			t.Errorf("network changed to %+v", got)
		}
	})
}

// TestEncryptedIsObserved: status says what the kernel says.
func TestEncryptedIsObserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.machine(1, blue()).start()
		w.until("ready", func() bool { return a.status().Ready })
		for _, born := range []vxlan.Birthplace{vxlan.BornHost, vxlan.BornUnknown} {
			a.overlay.mu.Lock()
			a.overlay.born = born
			a.overlay.mu.Unlock()
			s := a.status()
			if n := s.Networks[0]; n.Encrypted || n.State != api.StateFailed || n.Driver != api.PlaintextLabel {
				t.Errorf("born in %s: %+v", born, n)
			}
			if !hasProblem(s, "wrong-birthplace") {
				t.Errorf("born in %s: no problem in %v", born, s.Problems)
			}
		}
	})
}

// TestDown removes everything, tells the others and ends the loop.
func TestDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		a.mustAttach("blue", "/run/netns/c1")
		w.until("the endpoint", func() bool { return len(b.overlay.spec("blue").Remotes) == 1 })
		r, err := a.agent.Down(context.Background(), api.DownRequest{})
		if err != nil || len(r.Removed) != 3 {
			t.Errorf("down = %v, %v", r.Removed, err)
		}
		if err := <-a.done; err != nil {
			t.Errorf("loop ended with %v", err)
		}
		a.done <- nil
		if a.peers() != -1 || !a.guard.removed || a.overlay.specs != nil {
			t.Errorf("left: %d peers, guard removed %v, networks %v", a.peers(), a.guard.removed, a.overlay.specs)
		}
		if _, found := (files{dir: a.cfg.RuntimeDir}).loadApplied(); found {
			t.Error("applied.json is still there")
		}
		if _, err := a.agent.Status(context.Background()); api.CodeOf(err) != api.CodeNotRunning {
			t.Errorf("status after down: %v", err)
		}
		w.until("the other node to know", func() bool { return len(b.overlay.spec("blue").Flood) == 0 })
	})
}

// TestSecondAgent is refused and told who runs.
func TestSecondAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.machine(1, blue()).start()
		_, err := New(Options{Config: a.cfg}).lock(files{dir: a.cfg.RuntimeDir})
		if api.CodeOf(err) != api.CodeRefused || !strings.Contains(err.Error(), "PID") {
			t.Errorf("second lock: %v", err)
		}
		a.kill()
		a.start() // the lock is free again
	})
}

// TestConcurrentAttach attaches many namespaces at once on two nodes that
// share a small subnet: every endpoint gets an address of its own.
func TestConcurrentAttach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		small := lab()
		nodes := []*machine{w.machine(1, small).start(), w.machine(2, small).start()}
		var mu sync.Mutex
		seen := map[netip.Addr]bool{}
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				e, err := nodes[i%2].attach("lab", fmt.Sprint("/run/netns/c", i))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				if seen[e.Addresses[0].Addr()] {
					t.Errorf("address %s twice", e.Addresses[0])
				}
				seen[e.Addresses[0].Addr()] = true
			})
		}
		wg.Wait()
		for _, n := range nodes {
			w.until("all endpoints on the other side", func() bool { return len(n.overlay.spec("lab").Remotes) == 30 })
			if s := n.status(); hasProblem(s, "address-dispute") {
				t.Errorf("problems: %v", s.Problems)
			}
		}
	})
}
