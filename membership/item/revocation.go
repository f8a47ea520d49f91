package item

import (
	"fmt"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// MaxReason is the longest reason of a revocation, in bytes.
const MaxReason = 200

// Revocation says that a node does not belong to the cluster any more. It
// names the node by its ID, a hash of its identity key: whatever certificate
// that key gets or shows, it is the same node (security.md T16).
type Revocation struct {
	Node    ids.NodeID
	Name    string    // from its certificate, for people; may be empty
	Reason  string    // for people, at most MaxReason bytes of one line; may be empty
	Created time.Time // whole seconds
}

// revocationVersion is the version of every revocation. There is no other, so
// none can be replaced by one that says less: a node that is out stays out.
const revocationVersion = 1

// RevocationSlot returns the slot of a node's revocation.
func RevocationSlot(node ids.NodeID) Slot { return Slot{Kind: KindRevocation, Key: string(node[:])} }

// Content returns r as an item is made from it. ErrMalformed (wrapped) if it
// cannot be said.
func (r Revocation) Content() (Content, error) {
	c := Content{Slot: RevocationSlot(r.Node), Version: revocationVersion, Created: r.Created}
	c.Body = append([]byte{uint8(min(len(r.Name), 255))}, r.Name...)
	c.Body = append(c.Body, r.Reason...)
	if err := r.validate(); err != nil {
		return Content{}, fmt.Errorf("make revocation of node %s: %w", r.Node, err)
	}
	return c, nil
}

func (r Revocation) validate() error {
	if r.Node.IsZero() {
		return malformed("revocation of no node")
	}
	if r.Name != "" {
		if err := keys.ValidHostname(r.Name); err != nil {
			return malformed("revocation: %v", err)
		}
	}
	if len(r.Reason) > MaxReason {
		return malformed("reason of %d bytes, at most %d", len(r.Reason), MaxReason)
	}
	// It is printed on terminals of all nodes.
	if !utf8.ValidString(r.Reason) || slices.ContainsFunc([]rune(r.Reason), func(c rune) bool { return !unicode.IsPrint(c) }) {
		return malformed("reason is no line of printable text")
	}
	return nil
}

// SignRevocation makes the item of r with an issuer's key. The item that comes
// back may have another name and reason, if the issuer has revoked the node
// before.
func SignRevocation(now time.Time, trust keys.Trust, s Signer, r Revocation) (*Item, error) {
	c, err := r.Content()
	if err != nil {
		return nil, err
	}
	return Sign(now, trust, s, c)
}

// parseRevocation reads the body of a revocation: length of the name u8, name,
// reason.
func parseRevocation(it *Item) (Revocation, error) {
	var r Revocation
	if len(it.Slot.Key) != len(r.Node) {
		return r, malformed("revocation with a key of %d bytes, want a node ID of %d", len(it.Slot.Key), len(r.Node))
	}
	copy(r.Node[:], it.Slot.Key)
	if it.Version != revocationVersion {
		return r, malformed("revocation of version %d, there is only %d", it.Version, revocationVersion)
	}
	body := newReader(it.Body)
	r.Name = string(body.Take(int(body.U8())))
	r.Reason = string(body.Rest())
	r.Created = it.Created
	if err := body.Err(); err != nil {
		return r, err
	}
	return r, r.validate()
}

// Revocation reads an item of KindRevocation that Verify returned; false for
// another kind.
func (it *Item) Revocation() (Revocation, bool) {
	if it.Slot.Kind != KindRevocation {
		return Revocation{}, false
	}
	r, err := parseRevocation(it)
	return r, err == nil
}

// Revoked reports whether the set holds a node's revocation.
func (s *Set) Revoked(node ids.NodeID) bool { return s.items[RevocationSlot(node)] != nil }

// Revocations returns all revocations in ascending order of their nodes.
func (s *Set) Revocations() []Revocation {
	var out []Revocation
	for _, it := range s.items {
		if r, ok := it.Revocation(); ok {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b Revocation) int { return a.Node.Compare(b.Node) })
	return out
}
