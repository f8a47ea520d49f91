package item

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// MaxItems bounds a set. A full set, heads or items, fits one control message.
const MaxItems = 2048

// Set holds the newest verified item of each slot but heartbeats, without those of
// revoked issuers that became void. The zero value is empty and ready. Merging is
// commutative, associative and idempotent: any two nodes that have merged the
// same items hold the same set, whatever the order. One thing takes an exchange
// more: an item that a void one had displaced is lost where that happened, and
// comes back from where it did not.
//
// A set has one owner; nothing in it is locked. Clone gives others a copy.
type Set struct {
	items map[Slot]*Item

	// What follows is derived from items.
	out     map[ids.NodeID]*Item // revocations; of several of a node that of the lowest slot
	revoked map[keys.IssuerPublic]IssuerRevocation
}

// Insert merges an item that Verify returned. changed reports whether the set
// is another one now. The error is nil; ErrConflict (wrapped; changed tells
// which of the two items stayed); ErrVoid (wrapped); or ErrFull (wrapped), if an
// item, this one or another, found no room.
//
// Of too many items the revocations of issuers and the protocol floor stay, and
// then those of the lowest slots. That is a function of all items that were ever merged, so it
// does not depend on their order; a flood of other kinds cannot displace the
// target epoch, whose slot is the lowest; and a flood by a stolen issuer key
// cannot displace its revocation, nor the floor, which only the root lowers.
func (s *Set) Insert(it *Item) (changed bool, err error) {
	if s.Void(it) {
		return false, fmt.Errorf("insert %s, version %d: %w", it.Slot, it.Version, ErrVoid)
	}
	if it.Slot.Kind == KindHeartbeat {
		// Sets are compared by digest, kept on disk and bounded: a heartbeat a
		// minute would make all nodes exchange and write theirs, and in the end
		// push out what a node needs.
		return false, nil
	}
	have := s.items[it.Slot]
	switch {
	case have == nil:
		return s.add(it)
	case have.Hash == it.Hash:
		return false, nil
	}
	if changed = compare(it, have) > 0; changed {
		s.put(it)
	}
	if it.Version == have.Version {
		err = fmt.Errorf("insert %s, version %d: %w", it.Slot, it.Version, ErrConflict)
	}
	return changed, err
}

func (s *Set) add(it *Item) (changed bool, err error) {
	if len(s.items) >= MaxItems {
		last := slices.MaxFunc(slices.Collect(maps.Keys(s.items)), compareRank)
		err = fmt.Errorf("insert %s, version %d: %w", it.Slot, it.Version, ErrFull)
		if compareRank(it.Slot, last) > 0 {
			return false, err
		}
		delete(s.items, last)
		s.derive()
	}
	s.put(it)
	return true, err
}

// put takes an item in, and what follows from it.
func (s *Set) put(it *Item) {
	if s.items == nil {
		s.items = make(map[Slot]*Item)
		s.out = make(map[ids.NodeID]*Item)
		s.revoked = make(map[keys.IssuerPublic]IssuerRevocation)
	}
	s.items[it.Slot] = it
	if it.Slot.Kind == KindRevocation {
		s.noteOut(it)
	}
	if r, ok := it.IssuerRevocation(); ok {
		s.revoked[r.Issuer] = r
		s.dropVoid()
		s.derive()
	}
}

// dropVoid drops what is void. With the issuer goes what it has added; what the
// root had said before, and the item stood on, comes back.
func (s *Set) dropVoid() {
	for slot, it := range s.items {
		if !s.Void(it) {
			continue
		}
		delete(s.items, slot)
		if base, err := Parse(it.base()); err == nil { // Verify has accepted it with the item
			s.items[slot] = base
		}
	}
}

// derive finds out anew who is revoked, after items went.
func (s *Set) derive() {
	clear(s.out)
	for slot, it := range s.items {
		if slot.Kind == KindRevocation {
			s.noteOut(it)
		}
	}
}

func (s *Set) noteOut(it *Item) {
	r, ok := it.Revocation()
	if !ok {
		return
	}
	if have := s.out[r.Node]; have == nil || it.Slot.Compare(have.Slot) <= 0 {
		s.out[r.Node] = it
	}
}

// compareRank orders slots by what stays in a full set: the lower one.
func compareRank(a, b Slot) int {
	rank := func(s Slot) int {
		if s.Kind == KindIssuer || s.Kind == KindFloor {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Compare(b))
}

// Void reports whether an item's issuer is revoked and the item does not outlive
// that.
func (s *Set) Void(it *Item) bool {
	if it.Root {
		return false
	}
	r, ok := s.revoked[it.Signer]
	return ok && !r.keeps(it)
}

// IssuerRevoked reports whether the root has revoked an issuer key.
func (s *Set) IssuerRevoked(issuer keys.IssuerPublic) bool {
	_, ok := s.revoked[issuer]
	return ok
}

// RevokedIssuers returns the revocations of issuers in ascending order of their
// keys.
func (s *Set) RevokedIssuers() []IssuerRevocation {
	return slices.SortedFunc(maps.Values(s.revoked), func(a, b IssuerRevocation) int {
		return bytes.Compare(a.Issuer[:], b.Issuer[:])
	})
}

// compare orders two items of one slot; the greater one stays. A higher version
// wins. Of two with one version the root's wins, then the lower hash: two issuers
// that do not see each other may both sign a version, and all nodes must come to
// the same one. What an item allows is no part of the order, because where that
// matters it is a part of the version (weaken.go).
func compare(a, b *Item) int {
	return cmp.Or(cmp.Compare(a.Version, b.Version), rootFirst(a, b), bytes.Compare(b.Hash[:], a.Hash[:]))
}

func rootFirst(a, b *Item) int {
	switch {
	case a.Root == b.Root:
		return 0
	case a.Root:
		return 1
	}
	return -1
}

// Get returns the item of a slot, or nil.
func (s *Set) Get(slot Slot) *Item { return s.items[slot] }

// Len returns how many items the set holds.
func (s *Set) Len() int { return len(s.items) }

// Target returns the target epoch, FirstTarget if there is no item.
func (s *Set) Target() Target {
	if it := s.items[TargetSlot()]; it != nil {
		if t, ok := it.Target(); ok {
			return t
		}
	}
	return FirstTarget()
}

// Items returns all items in ascending order of their slots.
func (s *Set) Items() []*Item {
	out := slices.Collect(maps.Values(s.items))
	slices.SortFunc(out, func(a, b *Item) int { return a.Slot.Compare(b.Slot) })
	return out
}

// Heads returns all heads in ascending order of their slots.
func (s *Set) Heads() []Head {
	items := s.Items()
	out := make([]Head, len(items))
	for i, it := range items {
		out[i] = it.Head()
	}
	return out
}

// Digest is equal for two sets exactly if they hold the same items:
// SHA-256("so-items-v1" || encoded heads in ascending order of slots).
func (s *Set) Digest() [32]byte {
	h := sha256.New()
	h.Write([]byte("so-items-v1"))
	buf := make([]byte, 0, maxHead)
	for _, head := range s.Heads() {
		h.Write(AppendHead(buf, head))
	}
	return [32]byte(h.Sum(nil))
}

// Clone returns a set that later merges into s do not change.
func (s *Set) Clone() Set { return Set{maps.Clone(s.items), maps.Clone(s.out), maps.Clone(s.revoked)} }

// Compare returns, for ascending heads of another set, the items that it lacks
// or has older ones of, and the slots of which it has newer ones. A version
// that both have with different hashes goes both ways: hashes do not tell which
// item stays.
func (s *Set) Compare(theirs []Head) (give []*Item, want []Slot) {
	for _, it := range s.Items() {
		i, found := slices.BinarySearchFunc(theirs, it.Slot, func(h Head, slot Slot) int { return h.Slot.Compare(slot) })
		if !found || theirs[i].Version < it.Version || theirs[i].Version == it.Version && theirs[i].Hash != it.Hash {
			give = append(give, it)
		}
	}
	for _, h := range theirs {
		have := s.items[h.Slot]
		if have == nil || have.Version < h.Version || have.Version == h.Version && have.Hash != h.Hash {
			want = append(want, h.Slot)
		}
	}
	return give, want
}

// Head tells which item a set holds in a slot.
type Head struct {
	Slot    Slot
	Version uint64
	Hash    [32]byte // SHA-256 of the item
}

// Head returns the item's head.
func (it *Item) Head() Head { return Head{it.Slot, it.Version, it.Hash} }

// maxHead is the length in bytes of the largest encoded head.
const maxHead = 1 + 1 + MaxKey + 8 + 32

// AppendSlot appends a slot: kind u8, key length u8, key.
func AppendSlot(b []byte, s Slot) []byte {
	b = append(b, uint8(s.Kind), uint8(len(s.Key)))
	return append(b, s.Key...)
}

// CutSlot takes a slot off the front of b.
func CutSlot(b []byte) (Slot, []byte, error) {
	r := newReader(b)
	s := r.slot()
	return s, r.Rest(), r.Err()
}

func (r reader) slot() Slot {
	s := Slot{Kind: Kind(r.U8())}
	s.Key = string(r.Take(int(r.U8())))
	if r.Err() == nil && (s.Kind == 0 || len(s.Key) > MaxKey) {
		r.Fail("slot of kind %d with a key of %d bytes", s.Kind, len(s.Key))
	}
	return s
}

// AppendHead appends a head: the slot, version u64, hash.
func AppendHead(b []byte, h Head) []byte {
	b = binary.BigEndian.AppendUint64(AppendSlot(b, h.Slot), h.Version)
	return append(b, h.Hash[:]...)
}

// CutHead takes a head off the front of b.
func CutHead(b []byte) (Head, []byte, error) {
	r := newReader(b)
	h := Head{Slot: r.slot(), Version: r.U64()}
	r.Fill(h.Hash[:])
	return h, r.Rest(), r.Err()
}
