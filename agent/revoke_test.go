package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// knows reports whether a node's kernel still has anything of a node: a peer, a
// filter, a route, a forwarding entry.
func (m *machine) knows(id ids.NodeID) bool {
	inner := id.InnerAddr()
	found := false
	for _, line := range m.installed() {
		found = found || strings.Contains(line, inner.String())
	}
	m.guard.mu.Lock()
	for _, r := range slices.Concat(m.guard.spec.Routes, m.guard.spec.Probes) {
		found = found || r.Peer == inner
	}
	for _, f := range m.guard.spec.Members {
		found = found || f.Inner == inner
	}
	m.guard.mu.Unlock()
	s := m.overlay.spec("blue")
	found = found || slices.Contains(s.Flood, inner)
	for _, r := range s.Remotes {
		found = found || r.VTEP == inner
	}
	return found
}

func (m *machine) revoke(node, reason string) (api.Revocation, error) {
	return m.agent.Revoke(context.Background(), api.RevokeRequest{Node: node, Reason: reason})
}

// three starts nodes with an endpoint each, and waits until they are connected.
func (w *world) three() (a, b, c *machine) {
	a, b, c = w.machine(1, blue()), w.machine(2, blue()), w.machine(3, blue())
	for _, m := range []*machine{a, b, c} {
		m.start()
	}
	w.until("epoch 1", func() bool { return a.on(1, 2) && b.on(1, 2) && c.on(1, 2) })
	for _, m := range []*machine{a, b, c} {
		m.mustAttach("blue", "/ns/1")
	}
	w.until("entries of all", func() bool {
		return len(a.overlay.spec("blue").Remotes) == 2 && len(b.overlay.spec("blue").Remotes) == 2 && len(c.overlay.spec("blue").Remotes) == 2
	})
	return a, b, c
}

func TestRevoke(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.three()
		if !a.knows(c.id) || !b.knows(c.id) {
			t.Fatal("the test finds nothing to lose")
		}
		r, err := a.revoke("web-3", "stolen")
		if err != nil || r.Node != (api.NodeRef{ID: c.id, Name: "web-3"}) || r.Reason != "stolen" || r.Applied.Total != 2 {
			t.Fatalf("%+v, %v", r, err)
		}
		w.within(time.Second, "the others have nothing of it", func() bool { return !a.knows(c.id) && !b.knows(c.id) })
		w.within(time.Second, "it has nothing of them", func() bool { return !c.knows(a.id) && !c.knows(b.id) })
		if !a.on(1, 1) || !b.on(1, 1) || !a.knows(b.id) || !b.knows(a.id) {
			t.Error("the others are not connected any more")
		}
		if s := c.status(); !hasProblem(s, "node-revoked") || len(s.Peers) != 0 {
			t.Errorf("the revoked node says %+v", s.Problems)
		}
		if s := a.status(); hasProblem(s, "node-revoked") {
			t.Errorf("another node says %+v", s.Problems)
		}
		list, err := b.agent.Revocations(context.Background())
		if err != nil || len(list) != 1 || list[0].Node.ID != c.id {
			t.Errorf("%+v, %v", list, err)
		}
		w.watch("it stays so over a rotation", 5*time.Second, func() bool { return !a.knows(c.id) && !b.knows(c.id) })
		a.rotate(api.RotateRequest{})
		w.until("epoch 2", func() bool { return a.on(2, 1) && b.on(2, 1) })
	})
}

// fullText is what a person sees of an error.
func fullText(err error) string {
	var e *api.Error
	if !errors.As(err, &e) {
		return fmt.Sprint(err)
	}
	return e.Message + " " + e.Fix
}

// TestRevokeWhileHolding: what an agent holds on to after a restart, because it
// may not know all records, does not cover whom it knows to be out.
func TestRevokeWhileHolding(t *testing.T) {
	for name, c := range map[string]struct {
		early bool // the agent starts with the revocation
		ipsec bool
		left  bool // it is none: the node has left
	}{
		"while it holds": {}, "from the start": {early: true}, "ESP while it holds": {ipsec: true}, "ESP from the start": {early: true, ipsec: true},
		"left while it holds": {left: true}, "left from the start": {left: true, early: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a, b, victim := w.machine(1, blue()), w.machine(2, blue()), w.machine(3, blue())
				for _, m := range []*machine{a, b, victim} {
					m.ipsec = c.ipsec
					m.start()
				}
				w.until("epoch 1", func() bool { return a.on(1, 2) && b.on(1, 2) && victim.on(1, 2) })
				if c.ipsec {
					a.rotate(api.RotateRequest{Driver: config.DriverIPsec})
					w.until("epoch 2", func() bool { return a.on(2, 2) && b.on(2, 2) && victim.on(2, 2) })
				}
				b.kill()
				w.board.set(func() { w.board.unsync = true })
				out := func() {
					w.board.set(func() {
						if c.left {
							w.board.left = append(w.board.left, membership.Departed{ID: victim.id})
						} else {
							w.board.revoked = append(w.board.revoked, item.Revocation{Node: victim.id})
						}
					})
				}
				if c.early {
					out()
				}
				b.start()
				if !c.early {
					w.watch("it holds", time.Second, func() bool { return b.knows(victim.id) })
					out()
				}
				w.within(time.Second, "nothing is left of the victim", func() bool { return !b.knows(victim.id) })
				b.look(func(l *loop) {
					if l.holdUntil.IsZero() {
						t.Error("the agent does not hold any more: this shows nothing")
					}
				})
				w.watch("the other stays", 2*time.Second, func() bool { return b.knows(a.id) && !b.knows(victim.id) })
			})
		})
	}
}

func TestRevokeRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, _ := w.three()
		for name, c := range map[string]struct {
			node, reason, want string
			code               api.Code
		}{
			"unknown":   {"db-1", "", `there is no node "db-1"`, api.CodeNotFound},
			"misspelt":  {"webb-2", "", "did you mean web-2?", api.CodeNotFound},
			"two lines": {"web-2", "a\nb", "one line", api.CodeInvalid},
			"several":   {"a", "", "means", api.CodeInvalid},
			"itself":    {"web-1", "", "does not revoke itself", api.CodeRefused},
		} {
			node := c.node
			if name == "several" {
				// What all three IDs begin with, if anything.
				x, y := a.id.String(), b.id.String()
				for node = ""; len(node) < len(x) && x[len(node)] == y[len(node)]; {
					node = x[:len(node)+1]
				}
				if node == "" {
					continue
				}
			}
			_, err := a.revoke(node, c.reason)
			if api.CodeOf(err) != c.code || !strings.Contains(fullText(err), c.want) {
				t.Errorf("%s: %s, %v", name, api.CodeOf(err), fullText(err))
			}
		}
		w.board.set(func() { w.board.noRevoker = true })
		if _, err := b.revoke("web-3", ""); api.CodeOf(err) != api.CodeRefused || !strings.Contains(fullText(err), "issuer key") {
			t.Errorf("without issuer key: %v", err)
		}
		// A node that nobody knows can be named by its whole ID.
		w.board.set(func() { w.board.noRevoker = false })
		stranger := ids.NodeID{9, 9, 9}
		if r, err := a.revoke(stranger.String(), ""); err != nil || r.Node.ID != stranger {
			t.Errorf("a stranger: %+v, %v", r, err)
		}
	})
}

// TestObserver: a node that is an observer by its certificate gets no tunnel, no
// filter and no entry of a network, whatever its record says.
func TestObserver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, o := w.machine(1, blue()), w.machine(2, blue()), w.machine(3, blue())
		o.roles = keys.RoleObserver             // and yet it runs as if it were none
		for _, subnet := range blue().Subnets { // nobody grants it a block, so it says that it has some
			block, _ := pickBlock(o.id, netdef.Options{}, subnet, nil)
			o.disk.kept.List = append(o.disk.kept.List, keystore.Promise{Network: "blue", Block: block, To: o.id, Settled: true})
		}
		for _, m := range []*machine{a, b, o} {
			m.start()
			m.mustAttach("blue", "/ns/1")
		}
		w.until("the others are connected", func() bool { return a.on(1, 1) && b.on(1, 1) && a.knows(b.id) })
		w.until("its record says blue", func() bool { return len(w.board.record(o.id).Attached) == 1 })
		w.watch("nobody has anything of it", 3*time.Second, func() bool { return !a.knows(o.id) && !b.knows(o.id) })
		list, err := a.agent.Members(context.Background())
		if err != nil || len(list) != 3 || list[2].Role != api.RoleObserver || list[0].Role != "" {
			t.Errorf("%+v, %v", list, err)
		}
	})
}
