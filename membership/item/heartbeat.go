package item

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// Heartbeat is an issuer's sign of life. It says what the issuer knew at a time,
// so that a node from which news is withheld finds out.
type Heartbeat struct {
	Issuer  keys.IssuerPublic
	Digest  [32]byte  // of the issuer's Set
	Created time.Time // whole seconds
}

// MaxHeartbeats is how many issuers' heartbeats a node keeps. A cluster has one
// to three issuers.
const MaxHeartbeats = 16

// HeartbeatSlot returns the slot of an issuer's heartbeat.
func HeartbeatSlot(issuer keys.IssuerPublic) Slot {
	return Slot{Kind: KindHeartbeat, Key: string(issuer[:])}
}

// SignHeartbeat makes a heartbeat with an issuer's key. after is the version of
// the newest one that is known of it, or 0.
//
// The version is the time, so it needs no memory. Where the clock went back, or
// another process of the issuer had one that was ahead, it goes on from what the
// others have heard, which after says.
func SignHeartbeat(now time.Time, trust keys.Trust, s Signer, after uint64, digest [32]byte) (*Item, error) {
	d, err := keys.ParseDelegation(s.Delegation())
	if err != nil {
		return nil, fmt.Errorf("sign heartbeat: %w", err)
	}
	if after == math.MaxUint64 {
		return nil, fmt.Errorf("sign heartbeat: %w", malformed("versions are used up"))
	}
	c := Content{
		Slot: HeartbeatSlot(d.Issuer), Version: max(uint64(now.Unix()), after+1),
		Created: now.UTC().Truncate(time.Second), Body: digest[:],
	}
	return sign(now, trust, s, c, func(unsigned []byte) ([]byte, error) { return s.SignHeartbeat(now, unsigned) })
}

func parseHeartbeat(it *Item) (Heartbeat, error) {
	h := Heartbeat{Created: it.Created}
	switch {
	case it.Root:
		return h, malformed("heartbeat of the root")
	case it.Slot.Key != string(it.Signer[:]):
		// One issuer could otherwise speak for another that is silent.
		return h, malformed("heartbeat of another issuer than its signer")
	case len(it.Body) != len(h.Digest):
		return h, malformed("heartbeat of %d bytes, want %d", len(it.Body), len(h.Digest))
	}
	h.Issuer, h.Digest = it.Signer, [32]byte(it.Body)
	return h, nil
}

// Heartbeat reads an item of KindHeartbeat that Verify returned; false for
// another kind.
func (it *Item) Heartbeat() (Heartbeat, bool) {
	if it.Slot.Kind != KindHeartbeat {
		return Heartbeat{}, false
	}
	h, err := parseHeartbeat(it)
	return h, err == nil
}

// VerifyHeartbeat is Verify for heartbeats, whose issuer must be delegated now:
// unlike what an issuer has decided, its sign of life ends with it.
func VerifyHeartbeat(trust keys.Trust, now time.Time, raw []byte) (*Item, error) {
	it, err := Verify(trust, now, raw)
	if err != nil {
		return nil, err
	}
	if it.Slot.Kind != KindHeartbeat {
		return nil, fmt.Errorf("verify heartbeat: %w", malformed("it is a %s", it.Slot.Kind))
	}
	if _, err := trust.VerifyDelegation(it.Delegation, now); err != nil {
		return nil, fmt.Errorf("verify heartbeat: %w", err)
	}
	return it, nil
}

// Heartbeats holds the newest heartbeat of each issuer, MaxHeartbeats at most.
// The zero value is empty and ready. It has one owner; nothing in it is locked.
//
// Unlike Sets, those of two nodes need not become equal, so a full one may keep
// whom it has heard of last.
type Heartbeats struct {
	items map[Slot]*Item
}

// Insert takes in a heartbeat that VerifyHeartbeat returned, and reports whether
// it is news. An older one of its issuer is none, nor is another one of the same
// version: the first stays.
func (h *Heartbeats) Insert(it *Item) bool {
	have := h.items[it.Slot]
	switch {
	case it.Slot.Kind != KindHeartbeat || have != nil && have.Version >= it.Version:
		return false
	case have == nil && len(h.items) >= MaxHeartbeats:
		last := slices.MinFunc(h.Items(), byCreated)
		if byCreated(it, last) <= 0 {
			return false
		}
		delete(h.items, last.Slot)
	}
	if h.items == nil {
		h.items = make(map[Slot]*Item)
	}
	h.items[it.Slot] = it
	return true
}

func byCreated(a, b *Item) int {
	return cmp.Or(a.Created.Compare(b.Created), bytes.Compare(a.Hash[:], b.Hash[:]))
}

// Outdated reports whether a heartbeat is no news.
func (h *Heartbeats) Outdated(it *Item) bool {
	have := h.items[it.Slot]
	return have != nil && have.Version >= it.Version
}

// Get returns the heartbeat of a slot, or nil.
func (h *Heartbeats) Get(slot Slot) *Item { return h.items[slot] }

// Items returns all heartbeats in ascending order of their issuers' keys.
func (h *Heartbeats) Items() []*Item {
	out := slices.Collect(maps.Values(h.items))
	slices.SortFunc(out, func(a, b *Item) int { return a.Slot.Compare(b.Slot) })
	return out
}

// Drop removes the heartbeats of issuers whose delegation has ended, or that the
// root has revoked, as a set says.
func (h *Heartbeats) Drop(now time.Time, set *Set) {
	maps.DeleteFunc(h.items, func(_ Slot, it *Item) bool {
		d, err := keys.ParseDelegation(it.Delegation)
		return err != nil || set.IssuerRevoked(d.Issuer) || now.After(d.NotAfter.Add(keys.ClockTolerance))
	})
}

// Clone returns heartbeats that later changes of h do not touch.
func (h *Heartbeats) Clone() Heartbeats { return Heartbeats{items: maps.Clone(h.items)} }
