package item

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

func nodeOf(n byte) ids.NodeID { return ids.NodeIDOf([32]byte{n}) }

// revocation is what a signer says about a node.
func (b bench) revocation(signer [32]byte, node ids.NodeID, reason string) Content {
	b.t.Helper()
	c, err := Revocation{Node: node, Name: "db-1", Reason: reason, Created: noon}.Content(signer)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// revoke signs the same with an issuer's key.
func (b bench) revoke(by string, node ids.NodeID, reason string) *Item {
	b.t.Helper()
	return b.sign(by, b.revocation(b.issuer(by).Public(), node, reason))
}

func TestRevocation(t *testing.T) {
	b := newBench(t)
	for _, want := range []Revocation{
		{Node: nodeOf(1), Name: "db-1", Reason: "disk was stolen", Created: noon},
		{Node: nodeOf(2), Created: noon}, // a node that nobody knew
		{Node: nodeOf(3), Name: strings.Repeat("n", 63), Reason: strings.Repeat("ü", MaxReason/2), Created: noon},
	} {
		it, err := SignRevocation(noon, b.Trust, b.issuer("a"), want)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := it.Revocation()
		if d := cmp.Diff(want, got); d != "" || !ok {
			t.Errorf("%v: %s", ok, d)
		}
		if _, ok := it.Target(); ok || len(it.Raw) > 1024 {
			t.Errorf("it is a target, or too long for gossip: %d bytes", len(it.Raw))
		}
		var s Set
		if _, err := s.Insert(it); err != nil || !s.Revoked(want.Node) || s.Revoked(nodeOf(9)) {
			t.Errorf("in a set: %v", err)
		}
		if d := cmp.Diff([]Revocation{want}, s.Revocations()); d != "" {
			t.Error(d)
		}
	}
}

func TestRevocationRefuses(t *testing.T) {
	b := newBench(t)
	for name, r := range map[string]Revocation{
		"no node":         {Created: noon},
		"a name with a /": {Node: nodeOf(1), Name: "a/b", Created: noon},
		"a long reason":   {Node: nodeOf(1), Reason: strings.Repeat("x", MaxReason+1), Created: noon},
		"two lines":       {Node: nodeOf(1), Reason: "a\nb", Created: noon},
		"an escape":       {Node: nodeOf(1), Reason: "\x1b[2J", Created: noon},
		"no UTF-8":        {Node: nodeOf(1), Reason: "\xff", Created: noon},
		"reversed text":   {Node: nodeOf(1), Reason: "\u202eabc", Created: noon},
	} {
		if _, err := SignRevocation(noon, b.Trust, b.issuer("a"), r); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := b.revocation(b.issuer("a").Public(), nodeOf(1), "")
	for name, edit := range map[string]func(*Content){
		"a second version": func(c *Content) { c.Version = 2 },
		"a short key":      func(c *Content) { c.Slot.Key = c.Slot.Key[1:] },
		"a long key":       func(c *Content) { c.Slot.Key += "x" },
		"another's slot":   func(c *Content) { c.Slot = RevocationSlot(nodeOf(1), b.issuer("b").Public()) },
		"no body":          func(c *Content) { c.Body = nil },
		"a cut name":       func(c *Content) { c.Body = []byte{9, 'a'} },
	} {
		c := good
		edit(&c)
		if _, err := Sign(noon, b.Trust, b.issuer("a"), c); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		root, err := b.Root()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := SignRoot(b.Trust.Cluster, root, c); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s, by the root: %v", name, err)
		}
	}
}

// TestRevocationStays: whatever else is merged, in whatever order, a revoked node
// stays revoked, and a set that is full of later slots makes room for it.
func TestRevocationStays(t *testing.T) {
	b := newBench(t)
	first, second := b.revoke("a", nodeOf(1), "one"), b.revoke("b", nodeOf(1), "two")
	root := b.root(b.revocation(b.Trust.Root, nodeOf(1), "root's"))
	for name, c := range map[string][]*Item{
		"twice, two issuers": {first, second},
		"the other order":    {second, first},
		"the root's last":    {first, root},
		"the root's first":   {root, second},
	} {
		var s, other Set
		for i := range c {
			_, _ = s.Insert(c[i])
			_, _ = other.Insert(c[len(c)-1-i])
			if !s.Revoked(nodeOf(1)) {
				t.Errorf("%s: not revoked after item %d", name, i)
			}
		}
		if s.Digest() != other.Digest() {
			t.Errorf("%s: the order makes a difference", name)
		}
		if len(s.Revocations()) != 1 || s.Len() != 2 {
			t.Errorf("%s: %d nodes are revoked by %d items", name, len(s.Revocations()), s.Len())
		}
	}
	var full Set
	for i := range MaxItems {
		if _, err := full.Insert(fake(200, strings.Repeat("k", i%60)+string(rune('a'+i/60)), 1)); err != nil {
			t.Fatal(err)
		}
	}
	if changed, err := full.Insert(first); !changed || !errors.Is(err, ErrFull) || !full.Revoked(nodeOf(1)) || full.Len() != MaxItems {
		t.Errorf("into a full set: changed %v, %v, %d items", changed, err, full.Len())
	}
}
