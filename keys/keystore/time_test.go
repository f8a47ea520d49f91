package keystore

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// timed is a member whose trusted time was saved twice, so that there is a copy
// before it.
func timed(t *testing.T) (s *Store, dir string, first, second time.Time) {
	t.Helper()
	s, dir = founded(t)
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	if got := s.TrustedTime(); !got.Equal(id.Cert.NotBefore) {
		t.Errorf("before anything is saved: %v, want the begin of the certificate, %v", got, id.Cert.NotBefore)
	}
	first, second = id.Cert.NotBefore.Add(time.Hour), id.Cert.NotBefore.Add(2*time.Hour)
	if err := errors.Join(s.SaveTrustedTime(first.Add(time.Millisecond)), s.SaveTrustedTime(second)); err != nil {
		t.Fatal(err)
	}
	return s, dir, first, second
}

func TestTrustedTimeNeverGoesBack(t *testing.T) {
	s, _, _, second := timed(t)
	steps := 0
	for _, at := range []time.Time{second, second.Add(-time.Hour), time.Unix(0, 0), {}} {
		s.dir.step = func(string, string) error { steps++; return nil }
		if err := s.SaveTrustedTime(at); err != nil {
			t.Error(err)
		}
		s.dir.step = nil
		if got := s.TrustedTime(); !got.Equal(second) {
			t.Errorf("saved %v: the trusted time is %v", at, got)
		}
	}
	if steps != 0 {
		t.Errorf("%d writes for nothing new", steps)
	}
	if got := reopen(t, s).TrustedTime(); !got.Equal(second) {
		t.Errorf("after reopening: %v, want %v", got, second)
	}
}

func TestTrustedTimeAfterDamage(t *testing.T) {
	s, dir, first, second := timed(t)
	begin, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	files := contents(t, dir)
	for name, c := range map[string]struct {
		damage func(map[string]string)
		want   time.Time
		warns  bool
	}{
		"whole":        {func(map[string]string) {}, second, false},
		"truncated":    {func(f map[string]string) { f[timeName] = f[timeName][:20] }, first, true},
		"missing":      {func(f map[string]string) { delete(f, timeName) }, first, true},
		"changed":      {func(f map[string]string) { f[timeName] = strings.Replace(f[timeName], ":", ";", 1) }, first, true},
		"both damaged": {func(f map[string]string) { f[timeName], f[timeName+prevSuffix] = "x", "y" }, begin.Cert.NotBefore, true},
		"no copy":      {func(f map[string]string) { f[timeName] = "x"; delete(f, timeName+prevSuffix) }, begin.Cert.NotBefore, true},
		"both missing": {func(f map[string]string) { delete(f, timeName); delete(f, timeName+prevSuffix) }, begin.Cert.NotBefore, false},
	} {
		t.Run(name, func(t *testing.T) {
			damaged := maps.Clone(files)
			c.damage(damaged)
			r := restore(t, damaged)
			if got := r.TrustedTime(); !got.Equal(c.want) {
				t.Errorf("trusted time %v, want %v", got, c.want)
			}
			if w := r.Warnings(); (len(w) == 1) != c.warns {
				t.Errorf("warnings %q", w)
			}
			// It is whole again after the next write, even one with nothing new.
			next := c.want.Add(time.Minute)
			if err := r.SaveTrustedTime(next); err != nil {
				t.Fatal(err)
			}
			r = reopen(t, r)
			if got := r.TrustedTime(); !got.Equal(next) || len(r.Warnings()) != 0 {
				t.Errorf("written anew: %v, want %v; warnings %q", got, next, r.Warnings())
			}
		})
	}
	newer := maps.Clone(files)
	newer[timeName] = strings.Replace(newer[timeName], `"version": 1`, `"version": 2`, 1)
	if got := restore(t, newer).TrustedTime(); !got.Equal(first) {
		t.Errorf("a version that the checksum does not cover: %v, want the copy, %v", got, first)
	}
}

// TestTrustedTimeAtEveryStep: whatever step a process dies at, or a disk fails
// at, the next one finds the time before or the new one, and no step back.
func TestTrustedTimeAtEveryStep(t *testing.T) {
	s, dir, _, second := timed(t)
	next := second.Add(time.Hour)
	var shots []map[string]string
	s.dir.step = func(string, string) error {
		shots = append(shots, contents(t, dir))
		return nil
	}
	if err := s.SaveTrustedTime(next); err != nil {
		t.Fatal(err)
	}
	shots = append(shots, contents(t, dir))
	if len(shots) < 7 {
		t.Fatalf("only %d steps", len(shots))
	}
	for n, files := range shots {
		got := restore(t, files).TrustedTime()
		if !got.Equal(second) && !got.Equal(next) || n == len(shots)-1 && !got.Equal(next) {
			t.Errorf("killed before step %d: %v", n+1, got)
		}
	}
	broken := errors.New("disk is broken")
	for n := 1; n < len(shots); n++ {
		last := s.TrustedTime()
		step := 0
		s.dir.step = func(string, string) error {
			if step++; step == n {
				return broken
			}
			return nil
		}
		if err := s.SaveTrustedTime(last.Add(time.Minute)); !errors.Is(err, broken) {
			t.Errorf("step %d: %v, want the error", n, err)
		}
		if got := s.TrustedTime(); !got.Equal(last) {
			t.Errorf("step %d: a write that failed left %v", n, got)
		}
		s.dir.step = nil
		if err := s.SaveTrustedTime(last.Add(2 * time.Minute)); err != nil {
			t.Error(err)
		}
	}
}

// TestStoreWithoutClock: a machine that starts in 1970 opens its store, and what
// the store decides by itself it decides with the trusted time.
func TestStoreWithoutClock(t *testing.T) {
	s, _, _, second := timed(t)
	s.clock = func() time.Time { return time.Unix(0, 0) }
	one, two := accessKey(t), accessKey(t)
	// A former key whose time is over by the trusted time is not kept.
	if err := errors.Join(s.ReplaceAccess(one, second.Add(-time.Minute)), s.ReplaceAccess(two, second.Add(time.Hour))); err != nil {
		t.Fatal(err)
	}
	wantAccess(t, s, time.Unix(0, 0), two, one)
	// A renewal that is newer than anything the store has seen.
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	later := id.Cert.NotBefore.Add(20 * 24 * time.Hour)
	cred, err := issuerOf(t, s).Renew(later, id.Cert, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(id.Trust, keys.JoinAnswer{Credential: cred, Access: id.Access}); err != nil {
		t.Error(err)
	}
	closeStore(t, s)
	if err := s.SaveTrustedTime(later); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}
