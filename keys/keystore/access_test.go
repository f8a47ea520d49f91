package keystore

import (
	"errors"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

func accessKey(t *testing.T) keys.AccessKey {
	t.Helper()
	k, err := keys.NewAccessKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// wantAccess compares the keys in force.
func wantAccess(t *testing.T, s *Store, at time.Time, want ...keys.AccessKey) {
	t.Helper()
	got, err := s.AccessKeys(at)
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d keys, want %d: %v", len(got), len(want), err)
	}
	for i := range want {
		if !got[i].Equal(want[i]) {
			t.Errorf("key %d is another one", i)
		}
	}
}

func TestReplaceAccess(t *testing.T) {
	s := first(t)
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	zero, now := id.Access.Clone(), time.Now()
	one, two := accessKey(t), accessKey(t)
	wantAccess(t, s, now, zero)
	if err := errors.Join(s.ReplaceAccess(one, now.Add(time.Hour)), s.ReplaceAccess(two, now.Add(2*time.Hour))); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		wantAccess(t, s, now, two, one, zero)
		wantAccess(t, s, now.Add(90*time.Minute), two, one)
		wantAccess(t, s, now.Add(3*time.Hour), two)
		if id, err := s.Identity(); err != nil || !id.Access.Equal(two) {
			t.Errorf("the identity has another key: %v", err)
		}
		s = reopen(t, s)
	}
	// The same again changes nothing; back to a former one does not double it.
	if err := s.ReplaceAccess(two, now.Add(9*time.Hour)); err != nil {
		t.Fatal(err)
	}
	wantAccess(t, s, now, two, one, zero)
	if err := s.ReplaceAccess(one, now.Add(3*time.Hour)); err != nil {
		t.Fatal(err)
	}
	wantAccess(t, s, now, one, two, zero)
	for range 2 * maxFormer {
		if err := s.ReplaceAccess(accessKey(t), now.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.AccessKeys(now); err != nil || len(got) != 1+maxFormer {
		t.Errorf("%d keys are kept: %v", len(got), err)
	}
	// A newcomer gets the one in force.
	a, err := issuerOf(t, s).Issue(now, anywhere, newToken(t, issuerOf(t, s), now).ID, newJoiner(t).request("x"))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := s.AccessKeys(now); !a.Access.Equal(got[0]) {
		t.Error("a newcomer gets another key")
	}
}

// TestReplaceAccessCrash: after a crash at any write the former key or the new one
// is in force, whole.
func TestReplaceAccessCrash(t *testing.T) {
	for n := 1; ; n++ {
		s := first(t)
		id, err := s.Identity()
		if err != nil {
			t.Fatal(err)
		}
		before, after, left := id.Access.Clone(), accessKey(t), n
		s.dir.step = func(string, string) error {
			if left--; left <= 0 {
				return errors.New("crash")
			}
			return nil
		}
		err = s.ReplaceAccess(after, time.Now().Add(time.Hour))
		s.dir.step = nil
		if err == nil {
			if n < 5 {
				t.Errorf("only %d steps were cut", n)
			}
			return
		}
		s = reopen(t, s)
		got, err := s.AccessKeys(time.Now())
		if err != nil || !got[0].Equal(before) && !got[0].Equal(after) {
			t.Fatalf("cut at step %d: %v", n, err)
		}
		if got[0].Equal(after) && (len(got) < 2 || !got[1].Equal(before)) {
			t.Errorf("cut at step %d: the former key is forgotten", n)
		}
	}
}
