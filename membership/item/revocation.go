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

// RevocationSlot returns the slot of a node's revocation by a signer. Each signer
// has its own: when one of them turns out to be a thief, what another said about
// the same node must still be there.
func RevocationSlot(node ids.NodeID, signer [32]byte) Slot {
	return Slot{Kind: KindRevocation, Key: string(node[:]) + string(signer[:])}
}

// Content returns r as an item of a signer, an issuer's or the root's public key,
// is made from it. ErrMalformed (wrapped) if it cannot be said.
func (r Revocation) Content(signer [32]byte) (Content, error) {
	c := Content{Slot: RevocationSlot(r.Node, signer), Version: revocationVersion, Created: r.Created}
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
	return validReason(r.Reason)
}

// validReason checks a text that is printed on terminals of all nodes.
func validReason(reason string) error {
	if len(reason) > MaxReason {
		return malformed("reason of %d bytes, at most %d", len(reason), MaxReason)
	}
	if !utf8.ValidString(reason) || slices.ContainsFunc([]rune(reason), func(c rune) bool { return !unicode.IsPrint(c) }) {
		return malformed("reason is no line of printable text")
	}
	return nil
}

// SignRevocation makes the item of r with an issuer's key. The item that comes
// back may have another name and reason, if the issuer has revoked the node
// before.
func SignRevocation(now time.Time, trust keys.Trust, s Signer, r Revocation) (*Item, error) {
	d, err := keys.ParseDelegation(s.Delegation())
	if err != nil {
		return nil, fmt.Errorf("sign revocation of node %s: %w", r.Node, err)
	}
	c, err := r.Content(d.Issuer)
	if err != nil {
		return nil, err
	}
	return Sign(now, trust, s, c)
}

// parseRevocation reads the body of a revocation: length of the name u8, name,
// reason.
func parseRevocation(it *Item) (Revocation, error) {
	var r Revocation
	if want := len(r.Node) + len(it.Signer); len(it.Slot.Key) != want {
		return r, malformed("revocation with a key of %d bytes, want %d of node ID and signer", len(it.Slot.Key), want)
	}
	copy(r.Node[:], it.Slot.Key)
	// Else one signer could take another's slot.
	if it.Slot != RevocationSlot(r.Node, it.Signer) {
		return r, malformed("revocation in the slot of another signer")
	}
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
func (s *Set) Revoked(node ids.NodeID) bool { return s.out[node] != nil }

// Revocation returns a node's revocation; of several that of the lowest slot.
func (s *Set) Revocation(node ids.NodeID) (Revocation, bool) {
	it := s.out[node]
	if it == nil {
		return Revocation{}, false
	}
	return it.Revocation()
}

// Revocations returns one revocation of each node that is revoked, in ascending
// order of the nodes.
func (s *Set) Revocations() []Revocation {
	var out []Revocation
	for _, it := range s.out {
		if r, ok := it.Revocation(); ok {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b Revocation) int { return a.Node.Compare(b.Node) })
	return out
}
