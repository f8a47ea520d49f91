package item

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// Kind says what an item is about. Unknown kinds are kept and passed on: a
// newer node may need them.
type Kind uint8

// The kinds. A full set keeps issuer revocations, the floor, and then the lowest
// ones.
const (
	KindTarget     Kind = 1 // the target epoch of rotation
	KindRevocation Kind = 2 // a node is out, for good
	KindAccess     Kind = 3 // which access key the cluster uses
	KindIssuer     Kind = 4 // an issuer key signs nothing any more
	KindFloor      Kind = 5 // the lowest protocol version that members speak
	KindNetwork    Kind = 7 // a network of the whole cluster

	// KindHeartbeat is an issuer's sign of life. No Set holds one: they stand
	// in Heartbeats.
	KindHeartbeat Kind = keys.ItemHeartbeat
)

// String returns a word for people.
func (k Kind) String() string {
	switch k {
	case KindTarget:
		return "target epoch"
	case KindRevocation:
		return "revocation"
	case KindAccess:
		return "access key"
	case KindIssuer:
		return "issuer revocation"
	case KindNetwork:
		return "network"
	case KindFloor:
		return "protocol floor"
	case KindHeartbeat:
		return "heartbeat"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Agreed reports whether two items of this kind with one slot and version say the
// same, so that it does not matter which of them stays: a revoked node is out, and
// the version of a floor says what it is.
func (k Kind) Agreed() bool { return k == KindRevocation || k == KindFloor }

// Limits of the format.
const (
	MaxKey  = 64   // bytes of a slot's key
	MaxBody = 1024 // bytes of a body
)

// Slot is what an item is the newest word about. There is one target epoch, so
// its key is empty; a revocation has the ID of its node and its signer's public key
// as key, that of an issuer the issuer's public key.
type Slot struct {
	Kind Kind
	Key  string // at most MaxKey bytes, any
}

// Compare orders slots by kind, then by the bytes of the key: -1, 0 or +1.
func (s Slot) Compare(o Slot) int {
	return cmp.Or(cmp.Compare(s.Kind, o.Kind), cmp.Compare(s.Key, o.Key))
}

// String returns a text for logs and errors.
func (s Slot) String() string {
	if s.Key == "" {
		return s.Kind.String()
	}
	return fmt.Sprintf("%s %x", s.Kind, s.Key)
}

// Item is one statement of the cluster. Verify makes it; its fields are then
// never written to.
type Item struct {
	Slot    Slot
	Version uint64    // from 1; grows with each item of the slot
	Created time.Time // whole seconds, as the signer says
	Body    []byte    // at most MaxBody bytes, by kind
	Root    bool      // the root signed it; else an issuer

	Delegation []byte   // of the issuer; nil if Root
	Signer     [32]byte // public key of the root or the issuer

	Raw  []byte   // the signed bytes
	Hash [32]byte // SHA-256 of Raw
}

// Errors about items. ErrMalformed and those of keys.Trust.VerifyDelegation
// (wrong cluster, signature, expired, not yet valid) are the others.
var (
	// ErrMalformed is wrapped by every error about bytes or content that
	// cannot be an item, whoever signed it.
	ErrMalformed = errors.New("cluster item is malformed")
	// ErrWeakens: an issuer's item allows more than the root has said.
	ErrWeakens = errors.New("cluster item allows more than the root has")
	// ErrOtherSigner: the item names another key than the root's or the
	// delegation's.
	ErrOtherSigner = errors.New("cluster item names another key than its signer's")
	// ErrConflict: two items of one slot have one version. The same one of
	// them is kept everywhere.
	ErrConflict = errors.New("two cluster items have one version")
	// ErrFull: the set holds MaxItems items.
	ErrFull = errors.New("set of cluster items is full")
	// ErrVoid: the item's issuer is revoked.
	ErrVoid = errors.New("cluster item was signed by a revoked issuer")
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}
