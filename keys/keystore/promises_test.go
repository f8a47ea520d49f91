package keystore

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

var promisesExample = Promises{
	List: []Promise{
		{Network: "blue", Block: netip.MustParsePrefix("10.77.0.0/26"), To: ids.NodeID{1}, Seq: 1001},
		{Network: "blue", Block: netip.MustParsePrefix("fd00::/122"), To: ids.NodeID{2}, Settled: true},
	},
	Voters: []Voter{{ID: ids.NodeID{1}, Serial: 1, Ends: 1 << 40}, {ID: ids.NodeID{2}, Serial: 2}},
	Joined: true, Met: true,
}

var promisesEqual = cmp.Options{cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()}

func TestPromises(t *testing.T) {
	s, _ := founded(t)
	for _, want := range []Promises{{}, promisesExample, {Joined: true}} {
		if !want.Joined && len(want.List) == 0 {
			// Never saved.
		} else if err := s.SavePromises(want); err != nil {
			t.Fatal(err)
		}
		s = reopen(t, s)
		got, err := s.Promises()
		if diff := cmp.Diff(want, got, promisesEqual...); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.SavePromises(promisesExample); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestPromisesDamaged: a file that cannot be read is not taken for one that says
// nothing, and named.
func TestPromisesDamaged(t *testing.T) {
	s, dir := founded(t)
	if err := s.SavePromises(promisesExample); err != nil {
		t.Fatal(err)
	}
	files := contents(t, dir)
	for name, damage := range map[string]func(string) string{
		"empty":     func(string) string { return "" },
		"cut":       func(f string) string { return f[:len(f)/2] },
		"changed":   func(f string) string { return strings.Replace(f, "1001", "1002", 1) },
		"not text":  func(string) string { return "\x00\x00\x00" },
		"bad lines": func(string) string { return "" },
	} {
		t.Run(name, func(t *testing.T) {
			damaged := maps.Clone(files)
			damaged[promisesName] = damage(files[promisesName])
			if name == "bad lines" {
				b, err := seal(promisesBody{Promises: []string{"blue 10.77.0.1/26 x 7"}})
				if err != nil {
					t.Fatal(err)
				}
				damaged[promisesName] = string(b)
			}
			p, err := restore(t, damaged).Promises()
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), promisesName) || len(p.List) != 0 {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
}

// TestPromisesAtEveryStep: whatever step a process dies at, or the disk fails at, the
// next one finds the promises before or the new ones.
func TestPromisesAtEveryStep(t *testing.T) {
	s, dir := founded(t)
	before := Promises{Joined: true}
	if err := s.SavePromises(before); err != nil {
		t.Fatal(err)
	}
	var shots []map[string]string
	s.dir.step = func(string, string) error {
		shots = append(shots, contents(t, dir))
		return nil
	}
	if err := s.SavePromises(promisesExample); err != nil {
		t.Fatal(err)
	}
	s.dir.step = nil
	if len(shots) < 4 {
		t.Fatalf("%d steps", len(shots))
	}
	for i, files := range shots {
		got, err := restore(t, files).Promises()
		if err != nil || !cmp.Equal(got, before, promisesEqual...) && !cmp.Equal(got, promisesExample, promisesEqual...) {
			t.Errorf("step %d: %+v, %v", i, got, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, promisesName)); err != nil {
		t.Error(err)
	}
}

func FuzzParsePromise(f *testing.F) {
	for _, p := range promisesExample.List {
		f.Add(p.text())
	}
	f.Add(promisesExample.Voters[0].text())
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := parsePromise(s); err == nil && p.text() != s {
			t.Errorf("promise %q is written %q", s, p.text())
		}
		if v, err := parseVoter(s); err == nil && v.text() != s {
			t.Errorf("voter %q is written %q", s, v.text())
		}
	})
}
