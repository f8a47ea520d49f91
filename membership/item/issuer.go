package item

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// IssuerRevocation says that an issuer key signs nothing for the cluster any
// more. Only the root says so: an issuer that could would be the one that a
// thief of its key uses first.
//
// Time does not tell what the key signed before it was lost from what a thief
// signs now: the thief writes any time. So everything that it signed is void, but
// for what the cluster has acted upon and must not go back behind: targets up to
// Target, access keys up to Access, what Stands names, and, unless Undo is set,
// its revocations of nodes, because a node that is out stays out in doubt.
type IssuerRevocation struct {
	Issuer  keys.IssuerPublic
	Undo    bool      // its revocations of nodes are void, too
	Target  ids.Epoch // the highest of its targets that stays
	Access  uint64    // the highest version of its access keys that stays
	Stands  []Stand   // its items of other kinds that stay, ascending; at most MaxStands
	Reason  string    // for people, at most MaxReason bytes of one line; may be empty
	Created time.Time // whole seconds
}

// Stand names an item by the first bytes of its SHA-256. To make another one of
// the same name takes 2^64 attempts.
type Stand [8]byte

// MaxStands is how many items the revocation of an issuer can name.
const MaxStands = 96

// ErrTooMany: more items of the issuer would have to be named than a revocation
// holds.
var ErrTooMany = errors.New("issuer has signed more items than its revocation can name")

// StandsOf lists the items in a set that only a name can keep when their issuer is
// revoked. ErrTooMany (wrapped).
func (s *Set) StandsOf(issuer keys.IssuerPublic) ([]Stand, error) {
	var out []Stand
	for _, it := range s.items {
		switch it.Slot.Kind {
		case KindTarget, KindAccess, KindRevocation:
			continue // versions and Undo say which of them stay
		}
		if !it.Root && it.Signer == issuer {
			out = append(out, Stand(it.Hash[:8]))
		}
	}
	if len(out) > MaxStands {
		return nil, fmt.Errorf("list what stands of issuer %s: %d items, at most %d: %w", issuer.Fingerprint(), len(out), MaxStands, ErrTooMany)
	}
	slices.SortFunc(out, compareStand)
	return out, nil
}

func compareStand(a, b Stand) int { return bytes.Compare(a[:], b[:]) }

// The versions of an issuer revocation. The root may go from the first to the
// second, and nobody back.
const (
	issuerKeeps = 1 // nodes that the issuer revoked stay out
	issuerUndo  = 2
)

// issuerFixed is the length in bytes of an issuer revocation's body before what
// stands and the reason.
const issuerFixed = 4 + 8 + 1

// IssuerSlot returns the slot of an issuer's revocation.
func IssuerSlot(issuer keys.IssuerPublic) Slot { return Slot{Kind: KindIssuer, Key: string(issuer[:])} }

// Content returns r as an item is made from it. ErrMalformed (wrapped) if it
// cannot be said.
func (r IssuerRevocation) Content() (Content, error) {
	if err := r.validate(); err != nil {
		return Content{}, fmt.Errorf("make revocation of issuer %s: %w", r.Issuer.Fingerprint(), err)
	}
	c := Content{Slot: IssuerSlot(r.Issuer), Version: issuerKeeps, Created: r.Created}
	if r.Undo {
		c.Version = issuerUndo
	}
	c.Body = binary.BigEndian.AppendUint32(c.Body, uint32(r.Target))
	c.Body = binary.BigEndian.AppendUint64(c.Body, r.Access)
	c.Body = append(c.Body, uint8(len(r.Stands)))
	for _, s := range r.Stands {
		c.Body = append(c.Body, s[:]...)
	}
	c.Body = append(c.Body, r.Reason...)
	return c, nil
}

func (r IssuerRevocation) validate() error {
	if r.Issuer.IsZero() {
		return malformed("revocation of no issuer")
	}
	if len(r.Stands) > MaxStands {
		return malformed("revocation of an issuer that names %d items, at most %d", len(r.Stands), MaxStands)
	}
	for i := 1; i < len(r.Stands); i++ {
		if compareStand(r.Stands[i-1], r.Stands[i]) >= 0 {
			return malformed("what stands of an issuer is not in ascending order without duplicates")
		}
	}
	return validReason(r.Reason)
}

// parseIssuer reads the body of an issuer revocation: target u32, version of the
// access key u64, number of items that stand u8, their names, reason.
func parseIssuer(it *Item) (IssuerRevocation, error) {
	var r IssuerRevocation
	switch {
	case len(it.Slot.Key) != len(r.Issuer):
		return r, malformed("issuer revocation with a key of %d bytes, want %d", len(it.Slot.Key), len(r.Issuer))
	case it.Version != issuerKeeps && it.Version != issuerUndo:
		return r, malformed("issuer revocation of version %d, there are %d and %d", it.Version, issuerKeeps, issuerUndo)
	case !it.Root:
		// No issuer takes another's place away, nor its own back.
		return r, malformed("issuer revocation that the root did not sign")
	}
	copy(r.Issuer[:], it.Slot.Key)
	body := newReader(it.Body)
	r.Target, r.Access = ids.Epoch(body.U32()), body.U64()
	for range body.Count("items that stand", int(body.U8()), MaxStands, len(Stand{})) {
		r.Stands = append(r.Stands, Stand(body.Take(len(Stand{}))))
	}
	r.Reason = string(body.Rest())
	r.Undo, r.Created = it.Version == issuerUndo, it.Created
	if err := body.Err(); err != nil {
		return r, err
	}
	return r, r.validate()
}

// IssuerRevocation reads an item of KindIssuer that Verify returned; false for
// another kind.
func (it *Item) IssuerRevocation() (IssuerRevocation, bool) {
	if it.Slot.Kind != KindIssuer {
		return IssuerRevocation{}, false
	}
	r, err := parseIssuer(it)
	return r, err == nil
}

// keeps reports whether an item of the revoked issuer stays.
func (r IssuerRevocation) keeps(it *Item) bool {
	switch it.Slot.Kind {
	case KindTarget:
		return it.Version <= uint64(r.Target)
	case KindAccess:
		return it.Version <= r.Access
	case KindRevocation:
		return !r.Undo
	}
	// What a thief may have said is no word of the cluster, and that includes
	// kinds that this build does not know.
	_, stands := slices.BinarySearchFunc(r.Stands, Stand(it.Hash[:8]), compareStand)
	return stands
}

// Unsigned returns the bytes of r that the root key has to sign.
func (r IssuerRevocation) Unsigned(trust keys.Trust) ([]byte, error) {
	c, err := r.Content()
	if err != nil {
		return nil, err
	}
	return c.Unsigned(trust)
}
