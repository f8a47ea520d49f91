package item

import (
	"fmt"

	"github.com/secure-overlay/secure-overlay/keys"
)

// Some items allow more or less than others of their slot. An issuer may make
// such a slot stricter; who makes it weaker must be the root, whatever version it
// gives (security.md 2.3). Merging knows nothing of that. It takes the higher
// version, and nothing else would do: nodes tell each other versions, not bodies,
// and an order that looks at more than the two items at hand depends on which of
// them came first. So the rule is in the version:
//
//	version = generation (32 bits) || step (32 bits)
//
// The step follows from the body and is higher the less the item allows: within a
// generation a higher version never allows more. A generation is begun by the
// root. An issuer's item of one later than the first carries in its body the
// root's item that began it, the base, which must allow no less than it does.
//
// So an item that allows more than another either has a lower version, and loses
// everywhere, or belongs to a later generation and proves by itself that the
// root wanted one. What is no such item is not valid, on no node and in no order.
//
// A kind takes part by an entry in weakenable, and by refusing, when it is
// parsed, a version that its body does not give.

// weakenable returns what the body of an item of such a kind says: the step, and
// the base, empty if it has none. ok is false for kinds of which no item allows
// more than another.
func (it *Item) weakenable() (step uint32, base []byte, ok bool) {
	switch it.Slot.Kind {
	case KindFloor:
		if len(it.Body) < floorSize {
			return 0, nil, false // refused when it is parsed
		}
		return uint32(it.Body[0]), it.Body[floorSize:], true
	case KindNetwork:
		n, base, err := parseNetworkBody(it.Body)
		if err != nil {
			return 0, nil, false // refused when it is parsed
		}
		return n.step(), base, true
	}
	return 0, nil, false
}

// ranked is the version of a step in a generation.
func ranked(generation, step uint32) uint64 { return uint64(generation)<<32 | uint64(step) }

// generationOf is the generation of a version.
func generationOf(version uint64) uint32 { return uint32(version >> 32) }

// validateRank checks everything about version and base but the base's signature.
func (it *Item) validateRank() error {
	step, base, ok := it.weakenable()
	generation := generationOf(it.Version)
	switch {
	case !ok:
		return nil
	case it.Version != ranked(generation, step):
		return malformed("%s of step %d has version %d", it.Slot, step, it.Version)
	case it.Root || generation == 0:
		if len(base) != 0 {
			return malformed("%s has a base, and needs none", it.Slot)
		}
	case len(base) == 0:
		return malformed("%s of generation %d has no base", it.Slot, generation)
	}
	return nil
}

// verifyBase checks that an issuer's item rests on what the root has said.
func (it *Item) verifyBase(trust keys.Trust) error {
	_, raw, ok := it.weakenable()
	if !ok || len(raw) == 0 {
		return nil
	}
	base, err := Reverify(trust, raw)
	switch {
	case err != nil:
		return fmt.Errorf("base: %w", err)
	case !base.Root || base.Slot != it.Slot || generationOf(base.Version) != generationOf(it.Version):
		// An issuer's item would prove nothing, nor would the root's word about
		// something else or in another generation.
		return malformed("base is no item of the root of that slot and generation")
	case base.Version > it.Version:
		return ErrWeakens
	}
	return nil
}

// base returns the root's item that an item of its generation needs, as bytes:
// itself, the one in its body, or none in the first generation.
func (it *Item) base() []byte {
	if it == nil || generationOf(it.Version) == 0 {
		return nil
	}
	if it.Root {
		return it.Raw
	}
	_, raw, _ := it.weakenable()
	return raw
}
