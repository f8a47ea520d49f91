package item

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// revokeIssuer makes the root's item that revokes an issuer of the bench.
func (b bench) revokeIssuer(r IssuerRevocation) *Item {
	b.t.Helper()
	r.Created = noon
	c, err := r.Content()
	if err != nil {
		b.t.Fatal(err)
	}
	return b.root(c)
}

func TestIssuerRevocation(t *testing.T) {
	b := newBench(t)
	root, err := b.Root()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []IssuerRevocation{
		{Issuer: b.issuer("a").Public(), Created: noon},
		{Issuer: b.issuer("b").Public(), Undo: true, Target: 1<<32 - 1, Access: 1<<64 - 1, Stands: manyStands(MaxStands), Reason: strings.Repeat("ü", MaxReason/2), Created: noon},
	} {
		unsigned, err := want.Unsigned(b.Trust)
		if err != nil {
			t.Fatal(err)
		}
		trust, claim, err := ParseUnsigned(unsigned)
		if err != nil || trust != b.Trust {
			t.Fatalf("%+v, %v", trust, err)
		}
		said, ok := claim.IssuerRevocation()
		if d := cmp.Diff(want, said); d != "" || !ok {
			t.Error(ok, d)
		}
		raw, err := SignUnsigned(root, unsigned)
		if err != nil {
			t.Fatal(err)
		}
		it, err := Verify(b.Trust, noon, raw)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := it.IssuerRevocation()
		if d := cmp.Diff(want, got); d != "" || !ok || len(raw) > MaxSize {
			t.Errorf("%v, %d bytes: %s", ok, len(raw), d)
		}
		// As every signed object: no byte of it can be another one.
		for i := range raw {
			altered := bytes.Clone(raw)
			altered[i] ^= 1
			if _, err := Verify(b.Trust, noon, altered); err == nil {
				t.Errorf("byte %d altered: accepted", i)
			}
		}
	}
}

// manyStands is n names, ascending.
func manyStands(n int) []Stand {
	out := make([]Stand, n)
	for i := range out {
		out[i][7] = byte(i)
	}
	return out
}

// TestIssuerRevocationNeedsRoot: no issuer revokes an issuer, and the root key
// signs by request nothing else.
func TestIssuerRevocationNeedsRoot(t *testing.T) {
	b := newBench(t)
	c, err := IssuerRevocation{Issuer: b.issuer("a").Public(), Created: noon}.Content()
	if err != nil {
		t.Fatal(err)
	}
	for _, by := range []string{"a", "b"} {
		if _, err := Sign(noon, b.Trust, b.issuer(by), c); !errors.Is(err, ErrMalformed) {
			t.Errorf("by issuer %s: %v", by, err)
		}
	}
	root, err := b.Root()
	if err != nil {
		t.Fatal(err)
	}
	target := b.root(target(t, 9, DriverAuto)).Raw
	if _, err := SignUnsigned(root, target[:len(target)-keys.SignatureSize]); !errors.Is(err, ErrMalformed) {
		t.Errorf("a target is signed: %v", err)
	}
	other, err := keys.RootPrivateFromRaw32(bytes.Repeat([]byte{5}, 32))
	if err != nil {
		t.Fatal(err)
	}
	unsigned, err := IssuerRevocation{Issuer: b.issuer("a").Public(), Created: noon}.Unsigned(b.Trust)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SignUnsigned(other, unsigned); !errors.Is(err, keys.ErrBadSignature) {
		t.Errorf("with another root key: %v", err)
	}
	for name, edit := range map[string]func(*Content){
		"no key":     func(c *Content) { c.Slot.Key = "" },
		"key 0":      func(c *Content) { c.Slot.Key = string(make([]byte, 32)) },
		"version 3":  func(c *Content) { c.Version = 3 },
		"short body": func(c *Content) { c.Body = c.Body[:issuerFixed-1] },
		"unsorted": func(c *Content) {
			c.Body = append(append(bytes.Clone(c.Body[:issuerFixed-1]), 2), make([]byte, 16)...)
		},
		"too many stand": func(c *Content) {
			c.Body = append(append(bytes.Clone(c.Body[:issuerFixed-1]), MaxStands+1), make([]byte, 8*(MaxStands+1))...)
		},
		"two lines": func(c *Content) { c.Body = append(bytes.Clone(c.Body), "a\nb"...) },
	} {
		c := c
		edit(&c)
		if _, err := SignRoot(b.Trust.Cluster, root, c); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestVoid lists what of a revoked issuer's word stands.
func TestVoid(t *testing.T) {
	b := newBench(t)
	issuer := b.issuer("a").Public()
	access := func(version uint64) Content {
		return Content{Slot: AccessSlot(), Version: version, Created: noon, Body: make([]byte, 32)}
	}
	named := b.sign("a", other(250, "named", 1))
	var held Set
	for _, it := range []*Item{named, b.sign("a", target(t, 7, DriverAuto)), b.revoke("a", nodeOf(1), ""), b.sign("b", other(250, "other", 1))} {
		_, _ = held.Insert(it)
	}
	stands, err := held.StandsOf(issuer)
	if err != nil || len(stands) != 1 {
		t.Fatalf("%d items stand: %v", len(stands), err)
	}
	for name, c := range map[string]struct {
		it         *Item
		kept, undo bool // stays after the revocation; after one that undoes
	}{
		"its target up to the limit": {b.sign("a", target(t, 7, DriverAuto)), true, true},
		"its target beyond it":       {b.sign("a", target(t, 8, DriverAuto)), false, false},
		"its access key":             {b.sign("a", access(3)), true, true},
		"a later one":                {b.sign("a", access(4)), false, false},
		"its revocation":             {b.revoke("a", nodeOf(1), ""), true, false},
		"of a kind to come":          {b.sign("a", other(250, "k", 1)), false, false},
		"one that is named":          {named, true, true},
		"another issuer's target":    {b.sign("b", target(t, 8, DriverAuto)), true, true},
		"another's revocation":       {b.revoke("b", nodeOf(1), ""), true, true},
		"the root's":                 {b.root(other(250, "k", 1)), true, true},
	} {
		keep := b.revokeIssuer(IssuerRevocation{Issuer: issuer, Target: 7, Access: 3, Stands: stands})
		undo := b.revokeIssuer(IssuerRevocation{Issuer: issuer, Target: 7, Access: 3, Stands: stands, Undo: true})
		var before, after Set
		for _, it := range []*Item{c.it, keep} {
			_, _ = before.Insert(it)
		}
		for _, it := range []*Item{keep, c.it} {
			_, err := after.Insert(it)
			if errors.Is(err, ErrVoid) == c.kept && it == c.it {
				t.Errorf("%s: insert gave %v", name, err)
			}
		}
		if got := before.Get(c.it.Slot) != nil; got != c.kept || before.Digest() != after.Digest() {
			t.Errorf("%s: stays %v, want %v; the order makes a difference: %v", name, got, c.kept, before.Digest() != after.Digest())
		}
		if _, err := before.Insert(undo); err != nil {
			t.Errorf("%s: undo: %v", name, err)
		}
		if got := before.Get(c.it.Slot) != nil; got != c.undo {
			t.Errorf("%s: after undo stays %v, want %v", name, got, c.undo)
		}
		// Nobody goes back from the second to the first.
		if changed, err := before.Insert(keep); changed || err != nil || !before.RevokedIssuers()[0].Undo {
			t.Errorf("%s: the first revocation again: %v, %v", name, changed, err)
		}
	}
}

// TestVoidConvergence: sets that have merged the same items in any order are the
// same after an exchange, and nothing in them is void.
func TestVoidConvergence(t *testing.T) {
	b := newBench(t)
	var pool []*Item
	for _, by := range []string{"a", "b", "c"} {
		for epoch := ids.Epoch(2); epoch < 9; epoch++ {
			pool = append(pool, b.sign(by, target(t, epoch, DriverAuto)))
		}
		for n := range byte(4) {
			pool = append(pool, b.revoke(by, nodeOf(n), by), b.sign(by, other(200, fmt.Sprint(n), uint64(n)+1)))
		}
	}
	pool = append(pool,
		b.revokeIssuer(IssuerRevocation{Issuer: b.issuer("a").Public(), Target: 4}),
		b.revokeIssuer(IssuerRevocation{Issuer: b.issuer("b").Public(), Target: 6}),
		b.revokeIssuer(IssuerRevocation{Issuer: b.issuer("b").Public(), Target: 6, Undo: true}))
	rapid.Check(t, func(rt *rapid.T) {
		sets := make([]Set, 3)
		for i := range sets {
			for _, it := range rapid.Permutation(pool).Draw(rt, "order") {
				_, _ = sets[i].Insert(it)
			}
		}
		for range 2 { // there and back
			for i := range sets {
				from, to := &sets[i], &sets[(i+1)%len(sets)]
				give, _ := from.Compare(to.Heads())
				for _, it := range give {
					_, _ = to.Insert(it)
				}
			}
		}
		for i := range sets {
			if sets[i].Digest() != sets[0].Digest() {
				rt.Fatal("sets differ")
			}
			for _, it := range sets[i].Items() {
				if sets[i].Void(it) {
					rt.Fatalf("%s, version %d, is void", it.Slot, it.Version)
				}
			}
			for n := range byte(4) {
				if !sets[i].Revoked(nodeOf(n)) {
					rt.Fatalf("node %d is back although another issuer revoked it, too", n)
				}
			}
		}
	})
}

// TestFullSetKeepsIssuerRevocations: a stolen key that fills the set with
// revocations does not keep its own out.
func TestFullSetKeepsIssuerRevocations(t *testing.T) {
	b := newBench(t)
	var s Set
	issuer := b.issuer("a").Public()
	for i := range MaxItems {
		it := fake(KindRevocation, fmt.Sprint(i), 1)
		it.Signer = issuer
		if _, err := s.Insert(it); err != nil {
			t.Fatal(err)
		}
	}
	changed, err := s.Insert(b.revokeIssuer(IssuerRevocation{Issuer: b.issuer("a").Public(), Undo: true}))
	if !changed || !errors.Is(err, ErrFull) || !s.IssuerRevoked(b.issuer("a").Public()) || s.Len() != 1 {
		t.Errorf("changed %v, %v, %d items", changed, err, s.Len())
	}
}

func TestStandsOfTooMany(t *testing.T) {
	var s Set
	issuer := keys.IssuerPublic{7}
	for i := range MaxStands + 1 {
		it := fake(250, fmt.Sprint(i), 1)
		it.Signer = issuer
		_, _ = s.Insert(it)
	}
	if _, err := s.StandsOf(issuer); !errors.Is(err, ErrTooMany) {
		t.Errorf("%v", err)
	}
}
