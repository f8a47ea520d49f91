package keystore

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"
	"time"
)

// TestCrashAtEveryStepOfInit: what a crash leaves is nothing, a member, or
// something that every command refuses by the name of what it is.
func TestCrashAtEveryStepOfInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	d, err := openDir(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	var shots []snapshot
	d.step = func(name, call string) error {
		shots = append(shots, snapshot{name, call, contents(t, dir)})
		return nil
	}
	s, err := finish(d, func(s *Store) error { return s.found(InitOptions{Hostname: "a", Now: time.Now()}) })
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	for _, shot := range shots {
		dir := filepath.Join(t.TempDir(), "d")
		writeAll(t, dir, shot.files)
		_, member := shot.files[nodeCertName]
		_, begun := shot.files[issuerKeyName]
		opened, err := Open(dir)
		switch {
		case member && err != nil:
			t.Errorf("before %s of %s: the certificate is there, but Open: %v", shot.call, shot.name, err)
		case !member && begun && !errors.Is(err, ErrExists):
			t.Errorf("before %s of %s: Open: %v, want ErrExists", shot.call, shot.name, err)
		case !member && !begun && !errors.Is(err, ErrNotInitialised):
			t.Errorf("before %s of %s: Open: %v, want ErrNotInitialised", shot.call, shot.name, err)
		}
		if err == nil {
			closeStore(t, opened)
		}
		again, err := Init(dir, InitOptions{Hostname: "b"})
		if begun != errors.Is(err, ErrExists) {
			t.Errorf("before %s of %s: Init: %v", shot.call, shot.name, err)
		}
		if err == nil {
			closeStore(t, again)
		}
	}
	t.Logf("%d steps", len(shots))
}

// TestFailureAtEveryStepOfJoin: Prepare and Adopt can be repeated from
// whatever a failure at any step left, with the same keys.
func TestFailureAtEveryStepOfJoin(t *testing.T) {
	founder, _ := founded(t)
	issuer := issuerOf(t, founder)
	broken := errors.New("disk is broken")
	for n := 1; ; n++ {
		dir := filepath.Join(t.TempDir(), "j")
		tok := newToken(t, issuer, time.Now())
		step, failed := 0, false
		hook := func(string, string) error {
			if step++; step == n {
				failed = true
				return broken
			}
			return nil
		}
		var first Identity
		attempt := func() (*Store, error) {
			d, err := openDir(dir, true)
			if err != nil {
				t.Fatal(err)
			}
			d.step = hook
			s, err := finish(d, func(s *Store) error { return s.prepare("j") })
			if err != nil {
				return nil, err
			}
			id, err := s.Identity()
			if err != nil {
				t.Fatal(err)
			}
			if first.ID.IsZero() {
				first = id
			} else if id.ID != first.ID {
				t.Errorf("step %d: the second attempt has another identity", n)
			}
			a, err := issuer.Issue(time.Now(), netip.Addr{}, tok.ID, joiner{id.Node, id.Noise}.request("j"))
			if err != nil {
				t.Fatalf("step %d: %v", n, err)
			}
			return s, errors.Join(s.Adopt(tok.Trust(), a), s.Close())
		}
		_, err := attempt()
		if failed != errors.Is(err, broken) {
			t.Fatalf("step %d: %v", n, err)
		}
		if failed {
			s, err := Open(dir)
			if err == nil { // the certificate was in place, its flush failed
				closeStore(t, s)
			} else if _, err := attempt(); err != nil {
				t.Errorf("step %d: second attempt: %v", n, err)
			}
		}
		s, err := Open(dir)
		if err != nil {
			t.Fatalf("step %d: %v", n, err)
		}
		closeStore(t, s)
		if !failed {
			t.Logf("failed at each of %d steps", n-1)
			return
		}
	}
}
