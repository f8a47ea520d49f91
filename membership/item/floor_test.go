package item

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
)

// raise has an issuer raise the floor that a set holds.
func (b bench) raise(s *Set, issuer string, least uint8) *Item {
	b.t.Helper()
	it, err := s.SignFloor(noon, b.Trust, b.issuer(issuer), least)
	if err != nil {
		b.t.Fatal(err)
	}
	return it
}

// rootFloor has the root set the floor after have.
func (b bench) rootFloor(have Floor, least uint8) *Item {
	b.t.Helper()
	key, err := b.Root()
	if err != nil {
		b.t.Fatal(err)
	}
	content, err := FloorContent(have, least, noon)
	if err != nil {
		b.t.Fatal(err)
	}
	raw, err := SignRoot(b.Trust.Cluster, key, content)
	if err != nil {
		b.t.Fatal(err)
	}
	it, err := Verify(b.Trust, noon, raw)
	if err != nil {
		b.t.Fatal(err)
	}
	return it
}

// TestFloor: issuers raise, the root lowers, issuers raise again.
func TestFloor(t *testing.T) {
	b := newBench(t)
	var s Set
	insert := func(it *Item, want uint8, generation uint32) {
		t.Helper()
		if changed, err := s.Insert(it); !changed || err != nil {
			t.Fatalf("floor %d: changed %v, %v", want, changed, err)
		}
		if got := s.Floor(); got != (Floor{want, generation, noon}) {
			t.Errorf("floor is %+v, want %d of generation %d", got, want, generation)
		}
	}
	if s.Floor() != FirstFloor() {
		t.Errorf("an empty set has the floor %+v", s.Floor())
	}
	two := b.raise(&s, "a", 2)
	insert(two, 2, 0)
	insert(b.raise(&s, "b", 4), 4, 0)
	for _, least := range []uint8{0, 1, 3, 4} {
		if _, err := s.SignFloor(noon, b.Trust, b.issuer("a"), least); !errors.Is(err, ErrMalformed) {
			t.Errorf("an issuer sets %d where 4 is: %v", least, err)
		}
	}
	insert(b.rootFloor(s.Floor(), 1), 1, 1)
	insert(b.raise(&s, "a", 3), 3, 1)
	insert(b.raise(&s, "b", 5), 5, 1) // on the base in the item before
	insert(b.rootFloor(s.Floor(), 9), 9, 2)
	if changed, _ := s.Insert(two); changed || s.Floor().Min != 9 {
		t.Errorf("an older item made it %+v", s.Floor())
	}
	if _, ok := two.Target(); ok || two.Slot.Kind.String() != "protocol floor" {
		t.Error("a floor reads as something else")
	}
	if _, err := FloorContent(Floor{Generation: math.MaxUint32}, 1, noon); !errors.Is(err, ErrMalformed) {
		t.Errorf("after the last generation: %v", err)
	}
}

func mustRoot(t testing.TB, b bench) keys.RootPrivate {
	t.Helper()
	key, err := b.Root()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// rawFloor makes an item of any content, well signed by an issuer or the root.
func (b bench) rawFloor(root bool, version uint64, body []byte) []byte {
	b.t.Helper()
	it := Content{Slot: FloorSlot(), Version: version, Created: noon, Body: body}.item()
	if root {
		it.Root, it.Signer = true, b.Trust.Root
		unsigned := encode(b.Trust.Cluster, it)
		sig := mustRoot(b.t, b).Sign(keys.DomainItem, unsigned[len(keys.DomainItem):])
		return append(unsigned, sig[:]...)
	}
	i := b.issuer("a")
	d, err := keys.ParseDelegation(i.Delegation())
	if err != nil {
		b.t.Fatal(err)
	}
	it.Delegation, it.Signer = i.Delegation(), d.Issuer
	raw, err := i.SignItem(noon, "any", version, encode(b.Trust.Cluster, it))
	if err != nil {
		b.t.Fatal(err)
	}
	return raw
}

// TestWeakenedItemsAreInvalid: what an issuer signs to lower the floor is no item,
// whatever version it has and whatever it brings along.
func TestWeakenedItemsAreInvalid(t *testing.T) {
	b := newBench(t)
	base := b.rootFloor(Floor{}, 3).Raw // generation 1
	var s Set
	byIssuer := b.raise(&s, "b", 2).Raw
	_, _ = s.Insert(b.rootFloor(Floor{}, 3))
	onBase := b.raise(&s, "b", 4).Raw
	foreign, err := membertest.New("another", begin)
	if err != nil {
		t.Fatal(err)
	}
	stranger := bench{foreign, t}.rootFloor(Floor{}, 1).Raw
	target := b.root(target(t, 2, DriverAuto)).Raw
	forged := bytes.Clone(base)
	forged[len(forged)-1] ^= 1
	body := func(least uint8, base []byte) []byte { return append([]byte{least}, base...) }
	for name, c := range map[string]struct {
		root    bool
		version uint64
		body    []byte
		want    error
	}{
		"version above the body's":     {false, ranked(0, 9), body(1, nil), ErrMalformed},
		"huge version":                 {false, math.MaxUint64, body(1, nil), ErrMalformed},
		"later generation, no base":    {false, ranked(1, 1), body(1, nil), ErrMalformed},
		"weaker than its base":         {false, ranked(1, 2), body(2, base), ErrWeakens},
		"generation after the base's":  {false, ranked(2, 3), body(3, base), ErrMalformed},
		"generation before the base's": {false, ranked(0, 3), body(3, base), ErrMalformed},
		"base of an issuer":            {false, ranked(1, 3), body(3, byIssuer), ErrMalformed},
		"base of an issuer, on a base": {false, ranked(1, 5), body(5, onBase), ErrMalformed},
		"base of another cluster":      {false, ranked(1, 3), body(3, stranger), keys.ErrWrongCluster},
		"base of another slot":         {false, ranked(1, 3), body(3, target), ErrMalformed},
		"forged base":                  {false, ranked(1, 3), body(3, forged), keys.ErrBadSignature},
		"base cut short":               {false, ranked(1, 3), body(3, base[:len(base)-1]), ErrMalformed},
		"bytes after the base":         {false, ranked(1, 3), append(body(3, base), 0), ErrMalformed},
		"first generation with a base": {false, ranked(0, 3), body(3, base), ErrMalformed},
		"the root's with a base":       {true, ranked(1, 3), body(3, base), ErrMalformed},
		"the root's version":           {true, ranked(1, 2), body(3, nil), ErrMalformed},
		"floor 0":                      {true, ranked(1, 0), body(0, nil), ErrMalformed},
		"no body":                      {true, ranked(1, 0), nil, ErrMalformed},
	} {
		if _, err := Verify(b.Trust, noon, b.rawFloor(c.root, c.version, c.body)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for _, least := range []uint8{3, 4, 255} {
		if _, err := Verify(b.Trust, noon, b.rawFloor(false, ranked(1, uint32(least)), body(least, base))); err != nil {
			t.Errorf("an issuer's %d on the root's 3: %v", least, err)
		}
	}
	withKey := Content{Slot: Slot{KindFloor, "k"}, Version: ranked(0, 2), Created: noon, Body: []byte{2}}
	if _, err := Sign(noon, b.Trust, b.issuer("a"), withKey); !errors.Is(err, ErrMalformed) {
		t.Errorf("floor with a key: %v", err)
	}
}

// TestWeakeningNeedsRoot: issuers sign whatever they like, in any order, with every
// word of the root at hand. Of what verifies, sets merge the same floor in every
// order, and it is never below what an issuer or the root has said, unless the
// root has begun a later generation.
func TestWeakeningNeedsRoot(t *testing.T) {
	b := newBench(t)
	rapid.Check(t, func(rt *rapid.T) {
		var roots []*Item
		var have Floor
		for range rapid.IntRange(0, 3).Draw(rt, "generations") {
			have.Min = uint8(rapid.IntRange(1, 5).Draw(rt, "root's"))
			roots = append(roots, b.rootFloor(have, have.Min))
			have.Generation++
		}
		all := append([]*Item(nil), roots...)
		for range rapid.IntRange(1, 8).Draw(rt, "tries") {
			least := uint8(rapid.IntRange(1, 6).Draw(rt, "least"))
			version := ranked(uint32(rapid.IntRange(0, 4).Draw(rt, "generation")), uint32(least))
			if rapid.IntRange(0, 3).Draw(rt, "lie") == 0 {
				version += uint64(rapid.IntRange(1, 5).Draw(rt, "by"))
			}
			body := []byte{least}
			if n := rapid.IntRange(0, len(roots)).Draw(rt, "base"); n > 0 {
				body = append(body, roots[n-1].Raw...)
			}
			if it, err := Verify(b.Trust, noon, b.rawFloor(false, version, body)); err == nil {
				all = append(all, it)
			}
		}
		var want, got Set
		for _, it := range all {
			_, _ = want.Insert(it)
		}
		for _, it := range rapid.Permutation(all).Draw(rt, "order") {
			_, _ = got.Insert(it)
		}
		if got.Digest() != want.Digest() {
			rt.Fatal("the order makes a difference")
		}
		if len(all) == 0 {
			return
		}
		is := got.Floor()
		if int(is.Generation) > len(roots) {
			rt.Fatalf("generation %d, the root has begun %d", is.Generation, len(roots))
		}
		for _, it := range all {
			if f, _ := it.Floor(); f.Generation >= is.Generation && f.Min > is.Min {
				rt.Fatalf("the floor is %+v, and somebody has said %+v", is, f)
			}
		}
		if n := int(is.Generation); n < len(roots) {
			rt.Fatalf("generation %d, the root has begun %d", n, len(roots))
		}
	})
}

// TestFloorCreated: a base is judged without regard to the clock, as it was when
// it was new.
func TestFloorCreated(t *testing.T) {
	b := newBench(t)
	var s Set
	root := b.rootFloor(Floor{}, 1)
	_, _ = s.Insert(root)
	it := b.raise(&s, "a", 2)
	if _, err := Verify(b.Trust, noon.Add(-keys.ClockTolerance), it.Raw); err != nil {
		t.Errorf("within the tolerance: %v", err)
	}
	if _, err := Verify(b.Trust, noon.Add(-time.Hour), it.Raw); !errors.Is(err, keys.ErrNotYetValid) {
		t.Errorf("an hour early: %v", err)
	}
}

// revokedIssuer has the root revoke an issuer.
func (b bench) revokedIssuer(name string) *Item {
	b.t.Helper()
	c, err := IssuerRevocation{Issuer: b.issuerKey(name), Created: noon}.Content()
	if err != nil {
		b.t.Fatal(err)
	}
	return b.root(c)
}

// TestFloorOfRevokedIssuer: what a revoked issuer has added to the floor is void,
// in any order, and what the root had said under it stands.
func TestFloorOfRevokedIssuer(t *testing.T) {
	b := newBench(t)
	var s Set
	root := b.rootFloor(Floor{}, 2)
	_, _ = s.Insert(root)
	thief := b.raise(&s, "a", 9)
	out := b.revokedIssuer("a")
	for name, order := range map[string][]*Item{
		"revoked after it": {root, thief, out}, "before it": {root, out, thief}, "before all": {out, root, thief},
		"the root's item never seen": {thief, out}, "the root's item last": {thief, out, root},
	} {
		var s Set
		for _, it := range order {
			_, _ = s.Insert(it)
		}
		if got := s.Floor(); got.Min != 2 || got.Generation != 1 || s.Len() != 2 || s.Get(FloorSlot()).Hash != root.Hash {
			t.Errorf("%s: %+v, %d items", name, got, s.Len())
		}
		if got := b.raise(&s, "b", 3); got.Version != ranked(1, 3) {
			t.Errorf("%s: raised to version %d", name, got.Version)
		}
	}
	// A floor that the revocation names stands, and no other of the thief's.
	var named Set
	_, _ = named.Insert(root)
	_, _ = named.Insert(thief)
	stands, err := named.StandsOf(b.issuerKey("a"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := IssuerRevocation{Issuer: b.issuerKey("a"), Stands: stands, Created: noon}.Content()
	if err != nil {
		t.Fatal(err)
	}
	higher := b.raise(&named, "a", 10)
	for _, it := range []*Item{b.root(c), higher} {
		_, _ = named.Insert(it)
	}
	if got := named.Floor(); got.Min != 9 {
		t.Errorf("named: %+v", got)
	}
	// Where the root has said nothing, nothing is left.
	var first Set
	_, _ = first.Insert(b.raise(&first, "a", 9))
	_, _ = first.Insert(out)
	if first.Floor() != FirstFloor() || first.Len() != 1 {
		t.Errorf("%+v, %d items", first.Floor(), first.Len())
	}
}

// TestFloorStaysInAFullSet: revocations without number, which an issuer can make,
// do not push the floor out, nor the reverse.
func TestFloorStaysInAFullSet(t *testing.T) {
	b := newBench(t)
	floor := b.rootFloor(Floor{}, 2)
	for name, early := range map[string]bool{"floor first": true, "floor last": false} {
		var s Set
		if early {
			_, _ = s.Insert(floor)
		}
		for i := range MaxItems {
			_, _ = s.Insert(fake(KindRevocation, fmt.Sprintf("%04d", i), 1))
		}
		if !early {
			if changed, err := s.Insert(floor); !changed || !errors.Is(err, ErrFull) {
				t.Errorf("%s: changed %v, %v", name, changed, err)
			}
		}
		if s.Floor().Min != 2 || s.Len() != MaxItems {
			t.Errorf("%s: %+v, %d items", name, s.Floor(), s.Len())
		}
	}
}
