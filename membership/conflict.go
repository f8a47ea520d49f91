package membership

import (
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// Conflict is an item of which two with one version came to this node. All nodes
// keep the same one, so it breaks nothing; but somebody's word did not count, or
// one issuer gave two.
type Conflict struct {
	Slot       item.Slot
	Version    uint64
	Kept, Lost ItemSigner
	At         time.Time // when the second one came
}

// ItemSigner is who signed an item.
type ItemSigner struct {
	Root bool
	Key  keys.IssuerPublic // zero for the root
}

// String returns a text for people.
func (s ItemSigner) String() string {
	if s.Root {
		return "the root"
	}
	return "issuer " + s.Key.Fingerprint()
}

func signerOf(it *item.Item) ItemSigner {
	if it.Root {
		return ItemSigner{Root: true}
	}
	return ItemSigner{Key: it.Signer}
}

// conflictShown is how long a conflict is shown, unless a newer version ends it.
const conflictShown = 24 * time.Hour

// maxConflicts bounds those that are remembered: a lost issuer key can make any
// number.
const maxConflicts = 64

// newConflict tells of items a and b, of which kept is one.
func newConflict(now time.Time, kept, a, b *item.Item) Conflict {
	lost := a
	if a == kept {
		lost = b
	}
	return Conflict{Slot: kept.Slot, Version: kept.Version, Kept: signerOf(kept), Lost: signerOf(lost), At: now}
}

// conflicts are those that this process has seen, by slot.
type conflicts map[item.Slot]Conflict

// add takes up new ones. One that comes again, from a node that has missed the
// better item, is no news.
func (c *conflicts) add(list []Conflict) {
	for _, n := range list {
		have, known := (*c)[n.Slot]
		if known && have.Version >= n.Version || !known && len(*c) >= maxConflicts {
			continue
		}
		if *c == nil {
			*c = make(conflicts)
		}
		(*c)[n.Slot] = n
	}
}

// shown forgets what is over and lists the others in the order of their slots.
func (c conflicts) shown(now time.Time, set *item.Set) []Conflict {
	var out []Conflict
	for slot, n := range c {
		if have := set.Get(slot); have == nil || have.Version != n.Version || now.Sub(n.At) >= conflictShown {
			delete(c, slot)
			continue
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b Conflict) int { return a.Slot.Compare(b.Slot) })
	return out
}
