package item

import (
	"fmt"
	"math"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// Floor is the lowest protocol version of member streams (PROTOCOL.md, 5.1)
// that the cluster's nodes speak. Issuers raise it; only the root lowers it.
type Floor struct {
	Min        uint8     // at least 1
	Generation uint32    // how often the root has set it
	Created    time.Time // whole seconds; zero for the first floor
}

// FirstFloor is the floor of a cluster that has never set one: every version.
func FirstFloor() Floor { return Floor{Min: 1} }

// FloorSlot returns the slot of the floor.
func FloorSlot() Slot { return Slot{Kind: KindFloor} }

// floorSize is the length in bytes of a floor's body without base.
const floorSize = 1

// Floor returns the floor that the set holds, FirstFloor if there is no item.
func (s *Set) Floor() Floor {
	if it := s.items[FloorSlot()]; it != nil {
		if f, ok := it.Floor(); ok {
			return f
		}
	}
	return FirstFloor()
}

// SignFloor makes the item with which an issuer raises the floor that a set
// holds. What comes back may be another item, if the issuer has signed a higher
// floor before. ErrMalformed (wrapped) if the floor would not be higher.
func (s *Set) SignFloor(now time.Time, trust keys.Trust, by Signer, least uint8) (*Item, error) {
	have := s.Floor()
	if least <= have.Min {
		return nil, fmt.Errorf("raise protocol floor to %d: %w", least, malformed("it is %d", have.Min))
	}
	return Sign(now, trust, by, Content{
		Slot: FloorSlot(), Version: ranked(have.Generation, uint32(least)), Created: now.UTC().Truncate(time.Second),
		Body: append([]byte{least}, s.items[FloorSlot()].base()...),
	})
}

// FloorContent is what the root signs to set the floor, higher or
// lower, in the generation after that of have.
func FloorContent(have Floor, least uint8, created time.Time) (Content, error) {
	if have.Generation == math.MaxUint32 {
		return Content{}, fmt.Errorf("set protocol floor to %d: %w", least, malformed("generations are used up"))
	}
	return Content{
		Slot: FloorSlot(), Version: ranked(have.Generation+1, uint32(least)), Created: created.UTC().Truncate(time.Second), Body: []byte{least},
	}, nil
}

// parseFloor reads the body of a floor: version u8, base.
func parseFloor(it *Item) (Floor, error) {
	switch {
	case it.Slot != FloorSlot():
		return Floor{}, malformed("protocol floor has a key")
	case len(it.Body) < floorSize:
		return Floor{}, malformed("protocol floor of %d bytes", len(it.Body))
	case it.Body[0] == 0:
		return Floor{}, malformed("protocol floor is 0")
	}
	return Floor{Min: it.Body[0], Generation: generationOf(it.Version), Created: it.Created}, it.validateRank()
}

// Floor reads an item of KindFloor that Verify returned; false for another kind.
func (it *Item) Floor() (Floor, bool) {
	if it.Slot != FloorSlot() {
		return Floor{}, false
	}
	f, err := parseFloor(it)
	return f, err == nil
}
