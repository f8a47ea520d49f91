package agent

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// toggling is a world of nodes with an endpoint each on one network.
type toggling struct {
	*world
	nodes []*machine
}

func newToggling(t *testing.T, nodes int, plaintext bool) *toggling {
	t.Helper()
	g := &toggling{world: newWorld(t)}
	for i := range nodes {
		g.nodes = append(g.nodes, g.machine(i+1).start())
	}
	if _, err := g.nodes[0].create(api.NetworkRequest{Name: "green", Subnets: []string{"10.99.0.0/16"}, Plaintext: plaintext}); err != nil {
		t.Fatal(err)
	}
	for _, m := range g.nodes {
		m.mustAttach("green", "/ns/1")
	}
	g.until("all are connected", func() bool { return g.whole() == "" })
	return g
}

// whole says what keeps a frame of some endpoint from some other: who sends in a
// form that the receiver has not, or whose guard does not let it in. It is empty at
// every moment of a migration.
func (g *toggling) whole() string {
	synctest.Wait()
	for _, from := range g.nodes {
		s := from.overlay.spec("green")
		if len(s.Remotes) != len(g.nodes)-1 {
			return from.cfg.RuntimeDir + " does not know all endpoints"
		}
		for _, r := range s.Remotes {
			encrypted := s.Encrypted != r.Other
			for _, to := range g.nodes {
				is := to.overlay.spec("green").Way(encrypted)
				if r.VTEP != to.id.InnerAddr() && r.VTEP != v4(to.n).Addr() {
					continue
				}
				to.guard.mu.Lock()
				in := slices.Contains(to.guard.spec.Members, secure.Member{Inner: from.id.InnerAddr(), VNI: s.VNI})
				to.guard.mu.Unlock()
				if is == nil || is.Local != r.VTEP || encrypted && !in {
					return "what " + from.cfg.RuntimeDir + " sends to " + to.cfg.RuntimeDir + " is not received"
				}
				if encrypted && !from.routes(to) {
					return from.cfg.RuntimeDir + " has no route yet to " + to.cfg.RuntimeDir
				}
				if !slices.Contains(s.Way(encrypted).Flood, r.VTEP) {
					return "what is for all does not go to " + to.cfg.RuntimeDir
				}
			}
		}
	}
	return ""
}

// routes reports whether a node's secure namespace has a way to another, which it
// gets when a probe has come back.
func (m *machine) routes(to *machine) bool {
	m.guard.mu.Lock()
	defer m.guard.mu.Unlock()
	return slices.ContainsFunc(m.guard.spec.Routes, func(r secure.Route) bool { return r.Peer == to.id.InnerAddr() })
}

// clear reports whether some node has the network in clear.
func (g *toggling) clear() bool {
	synctest.Wait()
	return slices.ContainsFunc(g.nodes, func(m *machine) bool { return m.overlay.spec("green").Way(false) != nil })
}

func (g *toggling) update(req api.NetworkUpdate) api.Network {
	g.t.Helper()
	n, err := g.nodes[0].agent.UpdateNetwork(context.Background(), "green", req)
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// change is what a node shows of the change under way.
func (g *toggling) change(m *machine) *api.NetworkChange {
	g.t.Helper()
	n, err := m.agent.network(context.Background(), "green")
	if err != nil {
		g.t.Fatal(err)
	}
	return n.Change
}

// TestMigrate: a network goes from one form to the other, and no frame is sent at
// any moment in a form that its receiver does not have. Nodes that restart, and one
// that comes to it, do not disturb that.
func TestMigrate(t *testing.T) {
	for name, toClear := range map[string]bool{"to encrypted": false, "to plaintext": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newToggling(t, 3, !toClear)
				if toClear {
					g.update(api.NetworkUpdate{Item: []byte("+green")})
				} else {
					g.update(api.NetworkUpdate{Encrypted: true, Migrate: true})
				}
				for i := 0; ; i++ {
					if why := g.whole(); why != "" {
						t.Fatalf("while it moves: %s", why)
					}
					c := g.change(g.nodes[1])
					if c == nil || c.Encrypted == toClear || !c.Migrate {
						t.Fatalf("%+v", c)
					}
					if len(c.Waiting) == 0 && i > 20 {
						break
					}
					if i > 10000 {
						t.Fatalf("after ten seconds it waits for %+v", c.Waiting)
					}
					if i == 5 {
						g.nodes[2].kill()
						g.nodes[2].start()
					}
					<-time.After(time.Millisecond)
				}
				for _, m := range g.nodes {
					s := m.overlay.spec("green")
					if s.Encrypted == toClear || s.Other == nil || len(s.Other.Flood) != 0 || slices.ContainsFunc(s.Remotes, func(r vxlan.Remote) bool { return r.Other }) {
						t.Errorf("it has moved, and %+v", s)
					}
				}
				if list, err := g.nodes[0].agent.Networks(context.Background()); err != nil || list[0].Encrypted {
					t.Errorf("a network in both forms counts as encrypted: %v", err)
				}
				// One that comes to it now holds it up until it has followed.
				late := g.machine(4).start()
				late.mustAttach("green", "/ns/1")
				g.nodes = append(g.nodes, late)
				g.until("it is connected", func() bool { return g.whole() == "" })
				g.within(10*time.Second, "it has followed", func() bool { return len(g.change(g.nodes[1]).Waiting) == 0 })
				if toClear {
					g.update(api.NetworkUpdate{Item: []byte("green")})
				} else {
					g.update(api.NetworkUpdate{Encrypted: true})
				}
				g.watch("frames arrive", 3*time.Second, func() bool { return g.whole() == "" })
				if c := g.change(g.nodes[1]); c != nil || g.clear() != toClear {
					t.Errorf("%+v, clear %v", c, g.clear())
				}
			})
		})
	}
}

// TestStrict: once no node is waited for, none has the network in clear; and back.
func TestStrict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newToggling(t, 3, true)
		for range 3 {
			for _, encrypt := range []bool{true, false} {
				var n api.Network
				if encrypt {
					n = g.update(api.NetworkUpdate{Encrypted: true, Driver: config.DriverAuto})
				} else {
					n = g.update(api.NetworkUpdate{Item: []byte("green")})
				}
				if n.Change != nil && (n.Change.Migrate || n.Change.Encrypted != encrypt || n.Change.Nodes.Total != 3) {
					t.Fatalf("%+v", n.Change)
				}
				g.until("all have followed", func() bool { return g.change(g.nodes[0]) == nil })
				if g.clear() == encrypt {
					t.Fatalf("all have followed, and clear is %v", encrypt)
				}
				g.until("all are connected", func() bool { return g.whole() == "" })
			}
		}
	})
}

// TestToggleWaitsForTheKernel: a node whose device cannot be changed does not say
// that it was.
func TestToggleWaitsForTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newToggling(t, 2, true)
		stuck := g.nodes[1]
		stuck.overlay.fail(&vxlan.Error{Network: "green", Err: errors.New("device is busy")})
		g.update(api.NetworkUpdate{Encrypted: true})
		g.watch("it is waited for", 5*time.Second, func() bool {
			c := g.change(g.nodes[0])
			return c != nil && len(c.Waiting) > 0
		})
		c := g.change(g.nodes[0])
		if len(c.Waiting) != 1 || c.Waiting[0].Name != "web-2" || c.Waiting[0].Form != "plaintext" {
			t.Errorf("%+v", c.Waiting)
		}
		stuck.overlay.fail(nil)
		g.within(30*time.Second, "it has followed", func() bool { return g.change(g.nodes[0]) == nil })
	})
}

// TestStrictAfterRestart: an agent that was away while its network was encrypted, and
// cannot take the old device away, does not say that it has followed.
func TestStrictAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newToggling(t, 2, true)
		away := g.nodes[1]
		away.kill()
		g.update(api.NetworkUpdate{Encrypted: true})
		away.overlay.fail(&vxlan.Error{Network: "green", Err: errors.New("device is busy")})
		away.start()
		g.watch("it is waited for", 10*time.Second, func() bool { return g.change(g.nodes[0]) != nil })
		away.overlay.fail(nil)
		g.within(30*time.Second, "it has followed", func() bool { return g.change(g.nodes[0]) == nil && !g.clear() })
	})
}

// TestMigrateWaitsForTheKernel: nobody sends to a node by a device that it could not
// make.
func TestMigrateWaitsForTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newToggling(t, 3, true)
		stuck := g.nodes[1]
		stuck.overlay.fail(&vxlan.Error{Network: "green", Err: errors.New("device is busy")})
		g.update(api.NetworkUpdate{Encrypted: true, Migrate: true})
		g.watch("frames arrive", 5*time.Second, func() bool { return g.whole() == "" })
		if c := g.change(g.nodes[0]); len(c.Waiting) != 1 || c.Waiting[0].Name != "web-2" || c.Waiting[0].Form != "plaintext" {
			t.Errorf("%+v", c.Waiting)
		}
		stuck.overlay.fail(nil)
		g.within(30*time.Second, "it has followed", func() bool { return g.whole() == "" && len(g.change(g.nodes[0]).Waiting) == 0 })
	})
}

// TestMovedIsWhatTheKernelDoes: a node whose entries could not be replaced does not
// say that it sends by the new form only.
func TestMovedIsWhatTheKernelDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newToggling(t, 3, true)
		g.nodes[2].kill() // so that nobody can finish
		g.update(api.NetworkUpdate{Encrypted: true, Migrate: true})
		stuck := g.nodes[1]
		g.until("it has both forms", func() bool { return stuck.overlay.spec("green").Other != nil })
		<-time.After(2 * time.Second)
		stuck.overlay.fail(&vxlan.Error{Network: "green", Err: errors.New("device is busy")})
		g.nodes[2].start()
		g.watch("it does not say so", 20*time.Second, func() bool { return len(g.change(g.nodes[0]).Waiting) > 0 })
		if c := g.change(g.nodes[0]); len(c.Waiting) != 1 || c.Waiting[0].Name != "web-2" || c.Waiting[0].Form != "both" {
			t.Errorf("%+v", c.Waiting)
		}
		stuck.overlay.fail(nil)
		g.within(30*time.Second, "it has followed", func() bool { return len(g.change(g.nodes[0]).Waiting) == 0 })
	})
}

// TestMigrateNamesWhoHasNotBegun: a node that is away is named, and not those whom
// it keeps from finishing.
func TestMigrateNamesWhoHasNotBegun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newToggling(t, 3, true)
		g.nodes[2].kill()
		g.update(api.NetworkUpdate{Encrypted: true, Migrate: true})
		g.until("it alone is named", func() bool {
			c := g.change(g.nodes[0])
			return len(c.Waiting) == 1 && c.Waiting[0].Name == "web-3" && c.Waiting[0].Form == "plaintext"
		})
		g.watch("frames arrive at its kernel", 5*time.Second, func() bool { return g.whole() == "" })
		g.nodes[2].start()
		g.within(20*time.Second, "all have followed", func() bool { return len(g.change(g.nodes[0]).Waiting) == 0 })
	})
}

func TestUpdateNetworkRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.machine(1, blue()).start()
		if _, err := m.create(api.NetworkRequest{Name: "green", Subnets: []string{"10.99.0.0/16"}}); err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]struct {
			network string
			req     api.NetworkUpdate
			code    api.Code
			says    string
		}{
			"no such network":          {"gren", api.NetworkUpdate{Encrypted: true}, api.CodeNotFound, "green"},
			"of a file":                {"blue", api.NetworkUpdate{Encrypted: true}, api.CodeRefused, "of this node's configuration"},
			"another driver":           {"green", api.NetworkUpdate{Encrypted: true, Driver: "ipsec"}, api.CodeRefused, "keys rotate --driver ipsec"},
			"a driver that is none":    {"green", api.NetworkUpdate{Encrypted: true, Driver: "ipsek"}, api.CodeInvalid, `ipsec`},
			"not signed by the root":   {"green", api.NetworkUpdate{Item: []byte("?")}, api.CodeInvalid, "root key"},
			"nothing changes, allowed": {"green", api.NetworkUpdate{Encrypted: true, Migrate: true}, "", ""},
		} {
			_, err := m.agent.UpdateNetwork(context.Background(), c.network, c.req)
			var e *api.Error
			switch {
			case c.code == "" && err == nil:
			case !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Message+e.Fix, c.says):
				t.Errorf("%s: %v", name, err)
			}
		}
		w.board.set(func() { w.board.noRevoker = true })
		if _, err := m.agent.UpdateNetwork(context.Background(), "green", api.NetworkUpdate{Encrypted: true}); api.CodeOf(err) != api.CodeRefused {
			t.Errorf("without an issuer key: %v", err)
		}
	})
}

// TestMovingAndFiles: a file that has in clear what the cluster is encrypting goes on
// until the cluster allows no cleartext any more.
func TestMovingAndFiles(t *testing.T) {
	file := []config.Network{{Name: "green", VNI: 7, Subnets: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}, Driver: config.DriverAuto}}
	cluster := item.Network{Network: record.Network{Name: "green", VNI: 7, Encrypted: true, Subnets: file[0].Subnets}, Moving: true, Driver: config.DriverAuto}
	never := func(string) bool { return false }
	if nets, problems := networksHere(file, []item.Network{cluster}, never); len(nets) != 1 || len(problems) != 1 {
		t.Errorf("while it moves: %+v, %+v", nets, problems)
	}
	cluster.Moving = false
	if nets, problems := networksHere(file, []item.Network{cluster}, never); len(nets) != 0 || len(problems) != 1 {
		t.Errorf("encrypted: %+v, %+v", nets, problems)
	}
}
