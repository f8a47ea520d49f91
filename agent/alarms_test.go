package agent

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/events"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

func hasWarning(s api.Status, code string) bool {
	return slices.ContainsFunc(s.Warnings, func(p api.Problem) bool { return p.Code == code })
}

// TestSlowDriver: a driver that has to do without something is a warning, for as long as it is
// the one that is used.
func TestSlowDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.machine(1, blue())
		m.slower = errors.New("driver x: an offload is missing")
		m.start()
		w.until("the warning", func() bool { return hasWarning(m.status(), "driver-slow") })
		if s := m.status(); s.State != api.StateOK || s.Warnings[0].Message != "encryption is slower than it could be: driver x: an offload is missing" {
			t.Errorf("%s, %+v", s.State, s.Warnings)
		}
		m.cfg.Networks[0].Encrypted = false
		m.kill()
		m.start()
		w.until("no warning", func() bool { return !hasWarning(m.status(), "driver-slow") })
	})
}

// TestAlarms: that no issuer is heard is a warning, and leaves the state as it is;
// that something is withheld is a problem; both and conflicts are events, once, and
// nothing else changes.
func TestAlarms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, err := events.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = log.Close() }()
		w := newWorld(t)
		a, b := w.machine(1, blue()), w.machine(2, blue())
		a.events = log
		for _, m := range []*machine{a, b} {
			m.start()
		}
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		w.until("state ok", func() bool { return a.status().State == api.StateOK })
		kinds := func() (out []string) {
			all, err := log.Read(events.Query{})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range all {
				switch k := api.EventKind(e.Kind); k {
				case api.EventStale, api.EventStaleOver, api.EventItemConflict:
					out = append(out, e.Kind)
				}
			}
			return out
		}
		if s := a.status(); len(s.Warnings) != 0 || len(s.Problems) != 0 || !s.Heartbeat.IsZero() {
			t.Errorf("at the start: %+v %+v", s.Warnings, s.Problems)
		}
		turns := func() bool { return a.knows(b.id) && a.on(1, 1) }
		since := time.Now().Add(-time.Hour)

		w.board.set(func() { w.board.stale, w.board.heartbeat = []membership.Stale{{Since: since}}, since })
		w.until("a warning", func() bool { return hasWarning(a.status(), "stale") })
		if s := a.status(); s.State != api.StateOK || len(s.Problems) != 0 || !s.Heartbeat.Equal(since) || !strings.Contains(s.Warnings[0].Message, since.UTC().Format(time.RFC3339)) {
			t.Errorf("no issuer is heard: %s, %+v, %+v", s.State, s.Problems, s.Warnings)
		}
		w.watch("the pair stays, and the event is one", 5*time.Second, func() bool { return turns() && len(kinds()) == 1 })
		w.board.set(func() { w.board.stale = []membership.Stale{{Since: since.Add(time.Minute)}} }) // another time, the same alarm
		w.watch("it is still one event", 5*time.Second, func() bool { return len(kinds()) == 1 })

		key := keys.IssuerPublic{7}
		w.board.set(func() { w.board.stale = []membership.Stale{{Issuer: key, Since: since}} })
		w.until("a problem", func() bool { return hasProblem(a.status(), "stale") })
		if s := a.status(); s.State != api.StateDegraded || len(s.Warnings) != 0 || s.Problems[0].Subject != key.Fingerprint() {
			t.Errorf("something is withheld: %s, %+v, %+v", s.State, s.Problems, s.Warnings)
		}
		w.watch("the pair stays", 5*time.Second, turns)
		w.board.set(func() { w.board.stale = nil })
		w.until("state ok, and the event", func() bool { return a.status().State == api.StateOK && len(kinds()) == 4 })

		c := membership.Conflict{Slot: item.TargetSlot(), Version: 3, Kept: membership.ItemSigner{Key: key}, Lost: membership.ItemSigner{Root: true}, At: time.Now()}
		twice := membership.Conflict{Slot: item.AccessSlot(), Version: 9, Kept: membership.ItemSigner{Key: key}, Lost: membership.ItemSigner{Key: key}, At: time.Now()}
		w.board.set(func() { w.board.conflicts = []membership.Conflict{c, twice} })
		w.until("two warnings, and their events", func() bool { return len(a.status().Warnings) == 2 && len(kinds()) == 6 })
		s := a.status()
		for i, want := range [][]string{{"version 3", "issuer " + key.Fingerprint(), "by the root"}, {"version 9", "restored"}} {
			for _, part := range want {
				if p := s.Warnings[i]; p.Code != "item-conflict" || !strings.Contains(p.Message, part) || p.Fix == "" {
					t.Errorf("no %q in %+v", part, p)
				}
			}
		}
		if s.State != api.StateOK || s.Warnings[0].Subject != "target epoch" || s.Warnings[1].Subject != "access key" {
			t.Errorf("conflicts: %s, %+v", s.State, s.Warnings)
		}
		w.board.set(func() { w.board.conflicts = nil })
		w.until("no warning", func() bool { return len(a.status().Warnings) == 0 })
		if d := cmp.Diff([]string{"stale", "stale", "stale-over", "stale-over", "item-conflict", "item-conflict"}, kinds()); d != "" {
			t.Errorf("events:\n%s", d)
		}
	})
}

// TestIssuerName: an issuer is named by the node that shows its role and has its
// certificate from itself.
func TestIssuerName(t *testing.T) {
	key := keys.IssuerPublic{7}
	snap := membership.Snapshot{Members: []membership.Member{
		{Hostname: "member", Cert: keys.Cert{Issuer: key}},
		{Hostname: "other", Cert: keys.Cert{Issuer: keys.IssuerPublic{8}, Roles: keys.RoleIssuer}},
		{Hostname: "founder", Cert: keys.Cert{Issuer: key, Roles: keys.RoleIssuer}},
	}}
	if got, want := issuerName(snap, key), "issuer "+key.Fingerprint()+" (founder)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got, want := signerName(membership.Snapshot{}, membership.ItemSigner{Key: key}), "issuer "+key.Fingerprint(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
