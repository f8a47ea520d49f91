package item

import (
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// Access says which cluster access key is in force. The key itself travels on
// streams between members only; the item names it by its commitment.
type Access struct {
	Version    uint64    // from 1; the key that init made has none
	Commitment [32]byte  // keys.AccessKey.Commitment
	Created    time.Time // whole seconds
}

// AccessSlot returns the slot of the access key.
func AccessSlot() Slot { return Slot{Kind: KindAccess} }

// SignAccess makes the item of a with an issuer's key. What comes back may name
// another key, if the issuer has signed that version before.
func SignAccess(now time.Time, trust keys.Trust, s Signer, a Access) (*Item, error) {
	return Sign(now, trust, s, Content{Slot: AccessSlot(), Version: a.Version, Created: a.Created, Body: a.Commitment[:]})
}

func parseAccess(it *Item) (Access, error) {
	if it.Slot != AccessSlot() {
		return Access{}, malformed("access key has a key of its own")
	}
	if len(it.Body) != len(Access{}.Commitment) {
		return Access{}, malformed("access key of %d bytes, want %d", len(it.Body), len(Access{}.Commitment))
	}
	return Access{Version: it.Version, Commitment: [32]byte(it.Body), Created: it.Created}, nil
}

// Access reads an item of KindAccess that Verify returned; false for another
// kind.
func (it *Item) Access() (Access, bool) {
	if it.Slot != AccessSlot() {
		return Access{}, false
	}
	a, err := parseAccess(it)
	return a, err == nil
}
