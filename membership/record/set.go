package record

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// MaxMembers bounds a set. Heads of a full set fit one control message.
const MaxMembers = 16384

// Set holds the newest verified entry of each node. The zero value is empty
// and ready. Merging is commutative, associative and idempotent: any two nodes
// that have merged the same entries hold the same set, whatever the order.
//
// A set has one owner; nothing in it is locked. Clone gives others a copy.
type Set struct {
	items map[ids.NodeID]*Item
}

// Merge verifies e and merges it. changed reports whether the set is another
// one now. The error is nil, ErrConflict (wrapped; changed tells which of the
// two records stayed), or says why the entry was refused, in which case the
// set is as before.
func (s *Set) Merge(trust keys.Trust, now time.Time, e Entry) (changed bool, err error) {
	// The ID that the entry claims only selects what to compare with: Verify
	// fails if certificate and record do not both belong to it.
	it, err := Verify(trust, now, e, s.Claimed(e))
	if err != nil {
		return false, err
	}
	return s.Insert(it)
}

// Claimed returns the item of the node that e says it belongs to, for Verify.
// It is nil for a node not yet known.
func (s *Set) Claimed(e Entry) *Item { return s.items[e.ClaimedID()] }

// Insert merges an item that Verify returned, record and credential each by
// its own order, and reports like Merge.
func (s *Set) Insert(it *Item) (changed bool, err error) {
	have := s.items[it.Head.ID]
	if have == nil {
		if len(s.items) >= MaxMembers {
			return false, fmt.Errorf("insert record of node %s: %w", it.Head.ID, ErrFull)
		}
		s.put(it)
		return true, nil
	}
	merged := *have
	if compareCredential(it, have) > 0 {
		merged.Entry.Credential, merged.Cert, merged.delegated = it.Entry.Credential, it.Cert, it.delegated
		merged.Head.Credential = it.Head.Credential
		changed = true
	}
	if compareRecord(it.Head, have.Head) > 0 {
		merged.Entry.Record, merged.Node = it.Entry.Record, it.Node
		merged.Head.Seq, merged.Head.Record = it.Head.Seq, it.Head.Record
		changed = true
	}
	if changed {
		s.put(&merged)
	}
	if it.Head.Seq == have.Head.Seq && it.Head.Record != have.Head.Record {
		err = fmt.Errorf("insert record %d of node %s: %w", it.Head.Seq, it.Head.ID, ErrConflict)
	}
	return changed, err
}

func (s *Set) put(it *Item) {
	if s.items == nil {
		s.items = make(map[ids.NodeID]*Item)
	}
	s.items[it.Head.ID] = it
}

// Delete takes a node out of the set. A later Merge or Insert brings it back:
// who must stay out is not this set's to know.
func (s *Set) Delete(id ids.NodeID) { delete(s.items, id) }

// compareRecord orders records of one node: the higher sequence number wins,
// of two with the same number the lower hash.
func compareRecord(a, b Head) int {
	return cmp.Or(cmp.Compare(a.Seq, b.Seq), bytes.Compare(b.Record[:], a.Record[:]))
}

// compareCredential orders credentials of one node: the certificate that
// begins later wins (serial numbers of two issuers do not compare), then the
// higher serial, the later delegation, the lower hash.
func compareCredential(a, b *Item) int {
	return cmp.Or(a.Cert.NotBefore.Compare(b.Cert.NotBefore), cmp.Compare(a.Cert.Serial, b.Cert.Serial),
		a.delegated.Compare(b.delegated), bytes.Compare(b.Head.Credential[:], a.Head.Credential[:]))
}

// Missing compares the heads of one node in two sets. give reports whether
// the holder of mine has something that the holder of theirs lacks, take the
// reverse. A zero Head stands for a node that a set does not hold.
func Missing(mine, theirs Head) (give, take bool) {
	switch {
	case theirs.ID.IsZero():
		return true, false
	case mine.ID.IsZero():
		return false, true
	}
	order := compareRecord(mine, theirs)
	// Hashes do not tell which credential is newer: exchange both.
	differ := mine.Credential != theirs.Credential
	return order > 0 || differ, order < 0 || differ
}

// Get returns the item of a node, or nil.
func (s *Set) Get(id ids.NodeID) *Item { return s.items[id] }

// Len returns how many nodes the set holds.
func (s *Set) Len() int { return len(s.items) }

// Items returns all items in ascending order of their IDs.
func (s *Set) Items() []*Item {
	out := slices.Collect(maps.Values(s.items))
	slices.SortFunc(out, func(a, b *Item) int { return a.Head.ID.Compare(b.Head.ID) })
	return out
}

// Summary returns all heads in ascending order of their IDs.
func (s *Set) Summary() []Head {
	items := s.Items()
	out := make([]Head, len(items))
	for i, it := range items {
		out[i] = it.Head
	}
	return out
}

// Digest is equal for two sets exactly if they hold the same entries:
// SHA-256("so-set-v1" || encoded heads in ascending order of IDs).
func (s *Set) Digest() [32]byte {
	h := sha256.New()
	h.Write([]byte("so-set-v1"))
	buf := make([]byte, 0, HeadSize)
	for _, head := range s.Summary() {
		h.Write(AppendHead(buf, head))
	}
	return [32]byte(h.Sum(nil))
}

// Clone returns a set that later merges into s do not change.
func (s *Set) Clone() Set { return Set{items: maps.Clone(s.items)} }
