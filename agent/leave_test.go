package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/keys"
)

func (m *machine) leave(force bool) (api.Departure, error) {
	return m.agent.Leave(context.Background(), api.LeaveRequest{Force: force})
}

// finished waits for the loop's end and returns what the agent ends with.
func (m *machine) finished() error {
	err := <-m.done
	m.done <- nil
	return err
}

// member is what a node shows of another.
func (m *machine) member(of *machine) (api.Member, bool) {
	m.w.t.Helper()
	list, err := m.agent.Members(context.Background())
	if err != nil {
		m.w.t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(a api.Member) bool { return a.ID == of.id })
	if i < 0 {
		return api.Member{}, false
	}
	return list[i], true
}

func TestLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.three()
		if !a.knows(c.id) || !b.knows(c.id) {
			t.Fatal("the test finds nothing to lose")
		}
		w.board.set(func() { w.board.untold[b.id] = true })
		guards, syncs := len(a.guard.since(0)), len(a.overlay.since(0))
		before := time.Now()
		d, err := c.leave(false)
		if err != nil || d.Node != (api.NodeRef{ID: c.id, Name: "web-3"}) || d.Left.Before(before) {
			t.Fatalf("%+v, %v", d, err)
		}
		if d.Told != (api.Count{OK: 1, Total: 2}) || len(d.Waiting) != 1 || d.Waiting[0].ID != b.id || d.Waiting[0].State != "alive" {
			t.Errorf("who knows: %+v", d)
		}
		w.within(time.Second, "the others have nothing of it", func() bool { return !a.knows(c.id) && !b.knows(c.id) })
		w.within(time.Second, "it has nothing of them", func() bool { return !c.knows(a.id) && !c.knows(b.id) })
		// All of it in one round: the first word that each part of the kernel hears.
		inner := c.id.InnerAddr()
		for _, s := range a.guard.since(guards)[:1] {
			for _, r := range slices.Concat(s.Routes, s.Probes) {
				if r.Peer == inner {
					t.Error("the first round leaves a route")
				}
			}
			for _, f := range s.Members {
				if f.Inner == inner {
					t.Error("the first round leaves a filter")
				}
			}
		}
		for _, specs := range a.overlay.since(syncs)[:1] {
			if s := specs[0]; slices.Contains(s.Flood, inner) || len(s.Remotes) != 1 {
				t.Errorf("the first round leaves forwarding: %+v", s)
			}
		}
		if !a.on(1, 1) || !b.on(1, 1) || !a.knows(b.id) || !b.knows(a.id) {
			t.Error("the others are not connected any more")
		}
		if s := c.status(); !hasProblem(s, "node-left") || len(s.Peers) != 0 {
			t.Errorf("the node that left says %+v", s.Problems)
		}
		if s := a.status(); hasProblem(s, "node-left") || s.Members != (api.Count{OK: 2, Total: 2}) {
			t.Errorf("another node says %+v, %+v", s.Members, s.Problems)
		}
		for _, m := range []*machine{a, c} {
			if got, ok := m.member(c); !ok || got.State != stateLeft || !got.Left.Equal(d.Left) || got.Self != (m == c) {
				t.Errorf("node %d shows %+v", m.n, got)
			}
		}

		w.board.set(func() { delete(w.board.untold, b.id) })
		if d, err := c.agent.Departure(context.Background()); err != nil || d.Told != (api.Count{OK: 2, Total: 2}) || len(d.Waiting) != 0 {
			t.Errorf("%+v, %v", d, err)
		}
		again, err := c.leave(false)
		if err != nil || !again.Left.Equal(d.Left) {
			t.Errorf("once more: %+v, %v", again, err)
		}
		if _, err := c.agent.Rotate(context.Background(), api.RotateRequest{DryRun: true}); err != nil {
			t.Errorf("the agent does not work any more: %v", err)
		}
		if c.disk.ending || c.disk.wiped != nil {
			t.Error("the keys go before the command has ended")
		}
		r, err := c.agent.FinishLeave(context.Background())
		if err != nil || len(r.Removed) != 3 || r.Told.OK != 2 || !r.Left.Equal(d.Left) {
			t.Errorf("%+v, %v", r, err)
		}
		if err := c.finished(); err != nil {
			t.Errorf("the agent ends with %v", err)
		}
		if !c.disk.ending || !slices.Equal(c.disk.wiped, CacheFiles()) || !c.guard.removed || c.overlay.specs != nil || c.peers() != -1 {
			t.Errorf("it leaves %+v, guard removed %v, networks %v, %d peers", c.disk, c.guard.removed, c.overlay.specs, c.peers())
		}
		w.watch("it stays so", 5*time.Second, func() bool { return !a.knows(c.id) && !b.knows(c.id) && a.on(1, 1) })
	})
}

// TestLeaveAfterCrash: an agent that ended in the middle of a leave goes on with
// it, and is no member meanwhile.
func TestLeaveAfterCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.three()
		c.disk.left = time.Now().Add(-time.Minute) // on disk, but nobody was told
		c.kill()
		c.start()
		w.within(time.Second, "the others have nothing of it", func() bool { return !a.knows(c.id) && !b.knows(c.id) })
		w.watch("it holds on to nothing", 2*time.Second, func() bool { return !c.knows(a.id) && !c.knows(b.id) })
		d, err := c.leave(false)
		if err != nil || !d.Left.Equal(c.disk.left) {
			t.Errorf("%+v, %v", d, err)
		}
		if _, err := c.agent.FinishLeave(context.Background()); err != nil {
			t.Error(err)
		}
		if err := c.finished(); err != nil || c.disk.wiped == nil {
			t.Errorf("%v, wiped %v", err, c.disk.wiped)
		}
	})
}

func TestLeaveRefuses(t *testing.T) {
	broken := errors.New("disk is broken")
	for name, c := range map[string]struct {
		set  func(w *world, a, b *machine)
		with bool // force
		code api.Code
		want string
	}{
		"the only issuer":            {func(*world, *machine, *machine) {}, false, api.CodeRefused, "secure-overlay issuer request"},
		"the only issuer, forced":    {func(*world, *machine, *machine) {}, true, "", ""},
		"one of two issuers":         {func(w *world, _, b *machine) { w.addRole(b) }, false, "", ""},
		"no issuer":                  {func(_ *world, a, _ *machine) { a.look(func(l *loop) { l.canIssue = false }) }, false, "", ""},
		"the disk fails":             {func(_ *world, a, _ *machine) { a.disk.broken = broken }, true, api.CodeFailed, "disk is broken"},
		"nobody can be told, so far": {func(w *world, _, _ *machine) { w.board.noDepart = errors.New("not running") }, true, api.CodeFailed, "once more"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a, b := w.machine(1, blue()), w.machine(2, blue())
				a.issuer = true
				a.start()
				b.start()
				w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
				if _, err := a.agent.Departure(context.Background()); api.CodeOf(err) != api.CodeRefused {
					t.Errorf("a member's departure: %v", err)
				}
				if _, err := a.agent.FinishLeave(context.Background()); api.CodeOf(err) != api.CodeRefused || a.disk.ending {
					t.Errorf("a member finishes: %v", err)
				}
				c.set(w, a, b)
				_, err := a.leave(c.with)
				if c.code == "" {
					if err != nil {
						t.Fatal(err)
					}
					w.within(time.Second, "it is out", func() bool { return !b.knows(a.id) })
					return
				}
				if api.CodeOf(err) != c.code || !strings.Contains(fullText(err), c.want) {
					t.Errorf("%s, %s", api.CodeOf(err), fullText(err))
				}
				w.watch("it is a member", 2*time.Second, func() bool { return a.on(1, 1) && b.on(1, 1) && b.knows(a.id) })
				// When it is put right, the same command does it.
				a.disk.broken = nil
				w.board.set(func() { w.board.noDepart = nil })
				if _, err := a.leave(true); err != nil {
					t.Error(err)
				}
				w.within(time.Second, "it is out", func() bool { return !b.knows(a.id) })
			})
		})
	}
}

// addRole gives another node an issuer key.
func (w *world) addRole(m *machine) {
	w.board.set(func() {
		e := w.board.members[m.id]
		e.Cert.Roles |= keys.RoleIssuer
		w.board.members[m.id] = e
	})
}

// TestLeaveCannotRemove: what stays in the kernel keeps the keys on the disk, so
// that the command can be repeated; the node has left all the same.
func TestLeaveCannotRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		if _, err := a.leave(false); err != nil {
			t.Fatal(err)
		}
		a.disk.breaks(errors.New("disk is broken"))
		if _, err := a.agent.FinishLeave(context.Background()); err == nil || a.guard.removed {
			t.Errorf("the disk does not know: %v, removed %v", err, a.guard.removed)
		}
		a.disk.breaks(nil)
		a.guard.stuck = errors.New("namespace is busy")
		if _, err := a.agent.FinishLeave(context.Background()); err == nil {
			t.Error("a failure to remove is not told")
		}
		if err := a.finished(); err == nil || !a.disk.ending || a.disk.wiped != nil {
			t.Errorf("the agent ends with %v, disk %+v", err, a.disk)
		}
	})
}
