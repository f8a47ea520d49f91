package keystore

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fullMember is a member with every file that one can have, an issuer key and a
// file of somebody else among them; the root key is where Init has put it.
func fullMember(t *testing.T) (*Store, string) {
	t.Helper()
	s, dir := founded(t)
	i := issuerOf(t, s)
	tok := newToken(t, i, time.Now())
	j := newJoiner(t)
	if _, err := i.Issue(time.Now(), netip.Addr{}, tok.ID, j.request("j")); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		s.SaveSeeds([]netip.AddrPort{netip.MustParseAddrPort("198.18.0.9:7946")}),
		os.WriteFile(filepath.Join(dir, "records.cache"), []byte("records"), fileMode),
		os.WriteFile(filepath.Join(dir, "events.jsonl"), []byte("{}\n"), fileMode),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return reopen(t, s), dir
}

func left(t *testing.T, dir string) []string {
	t.Helper()
	out := names(contents(t, dir))
	slices.Sort(out)
	return out
}

// wantLeft are the files that a node leaves behind: none that makes it a member
// of anything, and none that is not its own to remove.
const wantLeft = "events.jsonl lock root.key"

func TestLeave(t *testing.T) {
	s, dir := fullMember(t)
	first := time.Unix(1767225600, 0).UTC()
	if !s.Departed().IsZero() {
		t.Error("a member has left")
	}
	if err := s.EndDeparture(); err == nil {
		t.Error("a member ends its departure")
	}
	if err := s.Wipe(); err == nil {
		t.Error("a member is wiped")
	}
	if at, err := s.Depart(first.Add(300 * time.Millisecond)); err != nil || at != first {
		t.Fatalf("%v, %v", at, err)
	}
	if err := s.Wipe(); err == nil {
		t.Error("a node that may have told nobody is wiped")
	}
	s = reopen(t, s) // it has to tell the others
	if at, err := s.Depart(first.Add(time.Hour)); err != nil || at != first || s.Departed() != first {
		t.Errorf("once more: %v, %v; departed %v", at, err, s.Departed())
	}
	closeStore(t, s)
	if _, err := Prepare(dir, "again"); !errors.Is(err, ErrLeft) {
		t.Errorf("join before it has left wholly: %v, want ErrLeft", err)
	}
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	was, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.EndDeparture(); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	for name, open := range map[string]func() (*Store, error){
		"Open":    func() (*Store, error) { return Open(dir) },
		"Prepare": func() (*Store, error) { return Prepare(dir, "again") },
		"Init":    func() (*Store, error) { return Init(dir, InitOptions{Hostname: "again"}) },
	} {
		if _, err := open(); !errors.Is(err, ErrLeft) || !strings.Contains(err.Error(), "secure-overlay leave") {
			t.Errorf("%s of a node that has only to be wiped: %v", name, err)
		}
	}
	if n, err := Remains(dir, "records.cache"); err != nil || len(n) < 10 {
		t.Errorf("remains before: %q, %v", n, err)
	}
	if err := Wipe(dir, false, "records.cache"); err != nil {
		t.Fatal(err)
	}
	if n, err := Remains(dir, "records.cache"); err != nil || len(n) != 0 {
		t.Errorf("remains: %q, %v", n, err)
	}
	if got := strings.Join(left(t, dir), " "); got != wantLeft {
		t.Errorf("the directory holds %s, want %s", got, wantLeft)
	}
	if RootKeyIn(dir) != filepath.Join(dir, rootKeyName) || RootKeyIn(filepath.Join(dir, "none")) != "" {
		t.Error("the root key is not found where it is, or where it is not")
	}
	// As a new node.
	again, err := Prepare(dir, "again")
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, again)
	if id, err := again.Identity(); err != nil || id.ID == was.ID {
		t.Errorf("identity after leaving: %v, %v", id.ID, err)
	}
}

// TestWipeClosesTheStore: nothing that still has the store brings a file back.
func TestWipeClosesTheStore(t *testing.T) {
	s, dir := fullMember(t)
	i := issuerOf(t, s)
	if _, err := s.Depart(time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := s.EndDeparture(); err != nil {
		t.Fatal(err)
	}
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Wipe("records.cache"); err != nil {
		t.Fatal(err)
	}
	if !id.Node.IsZero() || !id.Noise.IsZero() || !id.Access.IsZero() {
		t.Error("secrets stay in memory")
	}
	_, seqErr := s.NextSeq()
	_, departErr := s.Depart(time.Now())
	_, _, tokenErr := i.CreateToken(TokenSpec{}, time.Now())
	for n, err := range []error{
		seqErr, departErr, tokenErr, s.EndDeparture(), s.Wipe(), s.SaveSeeds([]netip.AddrPort{netip.MustParseAddrPort("198.18.0.7:1")}),
	} {
		if err == nil {
			t.Errorf("call %d after Wipe did not fail", n)
		}
	}
	if got := strings.Join(left(t, dir), " "); got != wantLeft {
		t.Errorf("the directory holds %s, want %s", got, wantLeft)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close after Wipe: %v", err)
	}
}

// leave does all of it, on an open store.
func leave(s *Store) error {
	if _, err := s.Depart(time.Now()); err != nil {
		return err
	}
	if err := s.EndDeparture(); err != nil {
		return err
	}
	return s.Wipe("records.cache")
}

// finishLeave does what an operator does after a crash: leave once more, with the
// agent if it starts.
func finishLeave(dir string) (was string, err error) {
	s, err := Open(dir)
	switch {
	case errors.Is(err, ErrLeft):
		return "ending", Wipe(dir, false, "records.cache")
	case errors.Is(err, ErrNotInitialised):
		return "gone", nil
	case err != nil:
		return "broken", err
	}
	was = "telling"
	if s.Departed().IsZero() {
		was = "member"
	}
	return was, errors.Join(leave(s), s.Close())
}

// TestCrashAtEveryStepOfLeave stops at each step with what is on disk then, and
// with what is flushed for certain: the directory is a member's, or one of a node
// that has left and finishes; the states come in order; and in the end it is empty.
func TestCrashAtEveryStepOfLeave(t *testing.T) {
	s, dir := fullMember(t)
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	var secrets []string
	id.Node.Expose(func(raw []byte) { secrets = append(secrets, fmt.Sprintf("%x", raw)) })
	id.Noise.Expose(func(raw []byte) { secrets = append(secrets, fmt.Sprintf("%x", raw)) })
	id.Access.Expose(func(raw []byte) { secrets = append(secrets, fmt.Sprintf("%x", raw)) })
	var shots []snapshot
	s.dir.step = func(name, call string) error {
		shots = append(shots, snapshot{name, call, contents(t, dir)})
		return nil
	}
	if err := leave(s); err != nil {
		t.Fatal(err)
	}
	shots = append(shots, snapshot{"", "the end", contents(t, dir)})
	order := []string{"member", "telling", "ending", "gone"}
	reached := map[string]int{}
	for k, shot := range shots {
		flushed := 0
		for m := range k {
			if shots[m].call == "sync directory" {
				flushed = m
			}
		}
		states := map[string]map[string]string{"all written": shot.files}
		if k > 0 && shots[k-1].call == "sync directory" { // else it was looked at before
			states["flushed only"] = shots[flushed].files
		}
		for what, files := range states {
			when := fmt.Sprintf("before %s of %q, %s", shot.call, shot.name, what)
			copied := filepath.Join(t.TempDir(), "copy")
			writeAll(t, copied, files)
			was, err := finishLeave(copied)
			if err != nil {
				t.Errorf("%s: %s, %v", when, was, err)
				continue
			}
			if what == "all written" {
				if reached[was]++; len(reached) != slices.Index(order, was)+1 {
					t.Errorf("%s: the node is %s again", when, was)
				}
			}
			if got := strings.Join(left(t, copied), " "); got != wantLeft {
				t.Errorf("%s: in the end the directory holds %s", when, got)
			}
			for name, content := range contents(t, copied) {
				for _, secret := range secrets {
					if name != rootKeyName && strings.Contains(content, secret) {
						t.Errorf("%s: %s holds a key", when, name)
					}
				}
			}
			if again, err := Prepare(copied, "again"); err != nil {
				t.Errorf("%s: join: %v", when, err)
			} else {
				closeStore(t, again)
			}
		}
	}
	t.Logf("%d steps: %v", len(shots), reached)
	for _, state := range order {
		if reached[state] == 0 {
			t.Errorf("no step leaves a node that is %s", state)
		}
	}
}

// TestDiskErrorAtEveryStepOfLeave: the process lives on, the write fails; what it
// could not do is done the next time.
func TestDiskErrorAtEveryStepOfLeave(t *testing.T) {
	broken := errors.New("disk is broken")
	member, of := fullMember(t)
	closeStore(t, member)
	files := contents(t, of)
	for n := 1; ; n++ {
		s := restore(t, files)
		dir, step := s.Dir(), 0
		s.dir.step = func(string, string) error {
			if step++; step == n {
				return broken
			}
			return nil
		}
		err := leave(s)
		closeStore(t, s)
		if err == nil {
			t.Logf("failed at each of %d steps", n-1)
			if n < 20 {
				t.Errorf("only %d steps", n-1)
			}
			return
		}
		if !errors.Is(err, broken) {
			t.Fatalf("step %d: %v", n, err)
		}
		if _, err := finishLeave(dir); err != nil {
			t.Errorf("step %d: once more: %v", n, err)
		}
		if got := strings.Join(left(t, dir), " "); got != wantLeft {
			t.Errorf("step %d: in the end the directory holds %s", n, got)
		}
	}
}

func TestWipeWithoutAgent(t *testing.T) {
	depart := func(s *Store) error { _, err := s.Depart(time.Now()); return err }
	end := func(s *Store) error { return errors.Join(depart(s), s.EndDeparture()) }
	damage := func(s *Store) error {
		return os.WriteFile(filepath.Join(s.Dir(), leftName), []byte("so-left:?\n"), fileMode)
	}
	for name, c := range map[string]struct {
		before func(*Store) error
		force  bool
		want   error
	}{
		"member":                   {nil, false, ErrExists},
		"member, forced":           {nil, true, nil},
		"nobody told":              {depart, false, ErrLeft},
		"nobody told, forced":      {depart, true, nil},
		"told":                     {end, false, nil},
		"damaged":                  {damage, false, ErrCorrupt},
		"damaged, forced":          {damage, true, nil},
		"in use":                   {nil, true, ErrLocked},
		"open to others":           {func(s *Store) error { return os.Chmod(s.Dir(), 0o755) }, true, ErrUnsafe},
		"told, state is damaged":   {func(s *Store) error { return errors.Join(end(s), os.Truncate(filepath.Join(s.Dir(), stateName), 3)) }, false, nil},
		"forced, state is damaged": {func(s *Store) error { return os.Truncate(filepath.Join(s.Dir(), stateName), 3) }, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, dir := fullMember(t)
			if c.before != nil {
				if err := c.before(s); err != nil {
					t.Fatal(err)
				}
			}
			if !errors.Is(c.want, ErrLocked) {
				closeStore(t, s)
			}
			before := contents(t, dir)
			err := Wipe(dir, c.force, "records.cache")
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if c.want != nil {
				if after := contents(t, dir); len(after) != len(before) {
					t.Errorf("a refusal has changed the directory: %q, then %q", names(before), names(after))
				}
				return
			}
			if got := strings.Join(left(t, dir), " "); got != wantLeft {
				t.Errorf("the directory holds %s, want %s", got, wantLeft)
			}
			if err := Wipe(dir, c.force); !errors.Is(err, ErrNotInitialised) {
				t.Errorf("once more: %v, want ErrNotInitialised", err)
			}
		})
	}
	if err := Wipe(filepath.Join(t.TempDir(), "none"), true); !errors.Is(err, ErrNotInitialised) {
		t.Errorf("without a directory: %v", err)
	}
}

// TestKeysAreOverwritten: where a key stood, the disk holds zeros.
func TestKeysAreOverwritten(t *testing.T) {
	s, dir := fullMember(t)
	elsewhere := t.TempDir()
	for _, name := range []string{nodeKeyName, noiseKeyName, accessKeyName, issuerKeyName, tokensName} {
		if err := os.Link(filepath.Join(dir, name), filepath.Join(elsewhere, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := leave(s); err != nil {
		t.Fatal(err)
	}
	for name, content := range contents(t, elsewhere) {
		if len(content) == 0 || strings.Trim(content, "\x00") != "" {
			t.Errorf("%s: %d bytes that are not all zero", name, len(content))
		}
	}
}
