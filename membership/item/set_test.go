package item

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestInsert(t *testing.T) {
	b := newBench(t)
	var s Set
	if got := s.Target(); got != FirstTarget() {
		t.Errorf("target of an empty set is %+v", got)
	}
	two, three := b.sign("a", target(t, 2, DriverAuto)), b.sign("a", target(t, 3, DriverIPsec))
	for i, c := range []struct {
		it      *Item
		changed bool
		epoch   uint32
	}{{two, true, 2}, {two, false, 2}, {three, true, 3}, {two, false, 3}} {
		changed, err := s.Insert(c.it)
		if changed != c.changed || err != nil || uint32(s.Target().Epoch) != c.epoch {
			t.Errorf("step %d: changed %v, %v, target %+v", i, changed, err, s.Target())
		}
	}
}

// TestConflict: of two items with one version the root's stays, else the one
// with the lower hash, whichever came first, and it is reported.
func TestConflict(t *testing.T) {
	b := newBench(t)
	x, y := b.sign("a", target(t, 2, DriverAuto)), b.sign("b", target(t, 2, DriverIPsec))
	if string(x.Hash[:]) > string(y.Hash[:]) {
		x, y = y, x
	}
	root := b.root(target(t, 2, DriverUserspace))
	higher := b.sign("a", target(t, 3, DriverAuto))
	for name, c := range map[string]struct{ first, second, stays *Item }{
		"lower hash first":  {x, y, x},
		"lower hash second": {y, x, x},
		"root first":        {root, x, root},
		"root second":       {x, root, root},
	} {
		var s Set
		if _, err := s.Insert(c.first); err != nil {
			t.Fatal(err)
		}
		changed, err := s.Insert(c.second)
		if !errors.Is(err, ErrConflict) || changed != (c.stays == c.second) || s.Get(TargetSlot()) != c.stays {
			t.Errorf("%s: changed %v, %v", name, changed, err)
		}
		if changed, err := s.Insert(higher); !changed || err != nil {
			t.Errorf("%s: higher version: %v, %v", name, changed, err)
		}
	}
}

// TestConvergence merges the same items into several sets, in any order, over
// any detour, with more items than a set holds: all become equal.
func TestConvergence(t *testing.T) {
	b := newBench(t)
	var pool []*Item
	for kind := Kind(100); kind < 103; kind++ {
		for key := range 4 {
			for version := uint64(1); version < 3; version++ {
				for _, by := range []string{"a", "b"} {
					pool = append(pool, b.sign(by, other(kind, fmt.Sprint(key), version)))
				}
			}
		}
	}
	pool = append(pool, b.sign("a", target(t, 2, DriverAuto)), b.sign("b", target(t, 2, DriverAuto)), b.root(target(t, 2, DriverIPsec)))
	// Floors that issuers raised, one of them twice, the root lowered, and an
	// issuer raised again.
	var floors Set
	pool = append(pool, b.raise(&floors, "a", 3), b.raise(&floors, "b", 3), b.raise(&floors, "b", 2))
	lowered := b.rootFloor(Floor{}, 1)
	_, _ = floors.Insert(lowered)
	pool = append(pool, lowered, b.raise(&floors, "b", 2))
	// Fill up with slots of a higher kind, which make room for all of these.
	for i := range MaxItems {
		pool = append(pool, fake(200, fmt.Sprintf("%04d", i), 1))
	}
	var want Set
	for _, it := range pool {
		_, _ = want.Insert(it)
	}
	if want.Len() != MaxItems {
		t.Fatalf("%d items, want %d", want.Len(), MaxItems)
	}
	rapid.Check(t, func(rt *rapid.T) {
		items := rapid.Permutation(pool).Draw(rt, "order")
		cut := rapid.IntRange(0, len(items)).Draw(rt, "cut")
		var x, y Set
		for _, it := range items[:cut] {
			_, _ = x.Insert(it)
		}
		for _, it := range items[cut:] {
			_, _ = y.Insert(it)
		}
		// The detour: y learns what x kept, and the reverse.
		give, _ := x.Compare(y.Heads())
		for _, it := range give {
			_, _ = y.Insert(it)
		}
		give, _ = y.Compare(x.Heads())
		for _, it := range give {
			_, _ = x.Insert(it)
		}
		if x.Digest() != want.Digest() || y.Digest() != want.Digest() {
			rt.Fatal("sets differ")
		}
	})
}

// fake is an item that nobody signed: Set does not look.
func fake(kind Kind, key string, version uint64) *Item {
	it := &Item{Slot: Slot{kind, key}, Version: version}
	copy(it.Hash[:], fmt.Sprint(kind, key, version))
	return it
}

func TestFull(t *testing.T) {
	b := newBench(t)
	var s Set
	for i := range MaxItems {
		if _, err := s.Insert(fake(9, fmt.Sprintf("%04d", i), 1)); err != nil {
			t.Fatal(err)
		}
	}
	if changed, err := s.Insert(fake(9, "9999", 1)); changed || !errors.Is(err, ErrFull) {
		t.Errorf("highest slot: changed %v, %v", changed, err)
	}
	if changed, err := s.Insert(fake(9, "0000", 2)); !changed || err != nil {
		t.Errorf("newer version: changed %v, %v", changed, err)
	}
	if changed, err := s.Insert(b.sign("a", target(t, 2, DriverAuto))); !changed || !errors.Is(err, ErrFull) || s.Target().Epoch != 2 {
		t.Errorf("target: changed %v, %v", changed, err)
	}
	if s.Len() != MaxItems {
		t.Errorf("%d items", s.Len())
	}
}

// TestCompare checks both directions against the definition.
func TestCompare(t *testing.T) {
	var mine, theirs Set
	for _, it := range []*Item{fake(2, "only mine", 1), fake(3, "same", 1), fake(4, "newer mine", 2), fake(5, "newer theirs", 1), fake(7, "conflict", 1)} {
		_, _ = mine.Insert(it)
	}
	conflict := fake(7, "conflict", 1)
	conflict.Hash[31] = 1
	for _, it := range []*Item{fake(1, "only theirs", 1), fake(3, "same", 1), fake(4, "newer mine", 1), fake(5, "newer theirs", 2), conflict} {
		_, _ = theirs.Insert(it)
	}
	give, want := mine.Compare(theirs.Heads())
	var names []string
	for _, it := range give {
		names = append(names, it.Slot.Key)
	}
	if d := cmp.Diff([]string{"only mine", "newer mine", "conflict"}, names); d != "" {
		t.Errorf("give:\n%s", d)
	}
	if d := cmp.Diff([]Slot{{1, "only theirs"}, {5, "newer theirs"}, {7, "conflict"}}, want); d != "" {
		t.Errorf("want:\n%s", d)
	}
	if mine.Digest() == theirs.Digest() {
		t.Error("different sets have one digest")
	}
}

// TestClone: a clone is not changed by later merges.
func TestClone(t *testing.T) {
	var s Set
	_, _ = s.Insert(fake(2, "a", 1))
	c := s.Clone()
	_, _ = s.Insert(fake(2, "b", 1))
	if c.Len() != 1 || s.Len() != 2 {
		t.Errorf("clone has %d items, the set %d", c.Len(), s.Len())
	}
}
