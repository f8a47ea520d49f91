package item

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/netdef"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// Network is a network of the whole cluster, as a command defined it. A node is
// on it as soon as something there uses it.
//
// An encrypted network allows less than a plaintext one: issuers encrypt, and only
// the root takes encryption away, also by way of removing the network and making
// another one of its name (weaken.go). One on its way (Moving) allows cleartext,
// whatever it is on its way to.
type Network struct {
	record.Network           // without Blocks, which are a node's
	Driver         string    // DriverAuto and so on; DriverAuto for a plaintext network
	MTU            uint16    // of IP packets in it; 0: what the underlay leaves
	Labels         []string  // for people and their programs, ascending
	Moving         bool      // nodes have it both ways, until all send as Encrypted says
	Removed        bool      // it is gone; the name and Encrypted stay
	Edit           uint32    // how often it was changed in its generation, below 2^31
	Generation     uint32    // how often the root has taken encryption away
	Created        time.Time // of this state, whole seconds
}

// ErrNameTaken: the cluster has a network of that name.
var ErrNameTaken = errors.New("there is such a network")

// ErrLongNetwork: a definition with its labels has too many bytes.
var ErrLongNetwork = errors.New("the definition of the network is too long")

// NetworkSlot returns the slot of the network of a name.
func NetworkSlot(name string) Slot { return Slot{Kind: KindNetwork, Key: name} }

const (
	flagRemoved = 0x01
	flagMoving  = 0x02

	// networkFixed is the length in bytes of a network's body before its
	// definition: flags u8, edit u32, driver u8, MTU u16.
	networkFixed = 1 + 4 + 1 + 2

	// maxDefinition bounds a definition with its labels, in bytes, so that an item
	// of it has room for another one of it, its base.
	maxDefinition = 400

	// encryptedStep makes every state of a network that allows no cleartext weigh
	// more than every one of its generation that does.
	encryptedStep = 1 << 31
)

// Network reads an item of KindNetwork that Verify returned; false for another
// kind.
func (it *Item) Network() (Network, bool) {
	if it.Slot.Kind != KindNetwork {
		return Network{}, false
	}
	n, _, err := parseNetworkBody(it.Body)
	n.Generation, n.Created = generationOf(it.Version), it.Created
	return n, err == nil
}

// Clear reports whether frames of the network may be readable on the underlay.
func (n Network) Clear() bool { return !n.Encrypted || n.Moving }

// step is what the network weighs within its generation.
func (n Network) step() uint32 {
	if !n.Clear() {
		return n.Edit | encryptedStep
	}
	return n.Edit
}

// body returns the network's body without base.
func (n Network) body() ([]byte, error) {
	driver, err := DriverNumber(n.Driver)
	if err != nil {
		return nil, err
	}
	n.Blocks = nil
	var flags uint8
	if n.Removed {
		flags |= flagRemoved
	}
	if n.Moving {
		flags |= flagMoving
	}
	b := binary.BigEndian.AppendUint32([]byte{flags}, n.Edit)
	b = binary.BigEndian.AppendUint16(append(b, driver), n.MTU)
	n.Options = n.Options.Canonical()
	n.Labels = slices.Sorted(slices.Values(n.Labels))
	if err := n.validate(); err != nil {
		return nil, err
	}
	b = append(record.AppendNetwork(b, n.Network), uint8(len(n.Labels))) //nolint:gosec // at most MaxLabels
	for _, l := range n.Labels {
		b = append(append(b, uint8(len(l))), l...) //nolint:gosec // at most MaxLabel
	}
	if size := len(b) - networkFixed; size > maxDefinition {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrLongNetwork, size, maxDefinition)
	}
	return b, nil
}

func (n Network) validate() error {
	switch {
	case n.Edit >= encryptedStep:
		return malformed("network %q was changed %d times", n.Name, n.Edit)
	case !n.Encrypted && n.Driver != DriverAuto:
		return malformed("plaintext network %q with driver %s", n.Name, n.Driver)
	case n.Driver == DriverAutoESP: // of epochs only
		return malformed("network %q with driver %s", n.Name, n.Driver)
	case n.Moving && n.Removed:
		return malformed("network %q is removed and on its way", n.Name)
	case len(n.Blocks) != 0 || n.Both || n.Moved:
		return malformed("network %q with what only a node can say", n.Name)
	case len(n.Subnets) == 0:
		return malformed("network %q without subnets", n.Name)
	}
	if err := n.Network.Validate(); err != nil {
		return malformed("%v", err)
	}
	if len(n.Labels) > netdef.MaxLabels {
		return malformed("network %q with %d labels, at most %d", n.Name, len(n.Labels), netdef.MaxLabels)
	}
	for i, l := range n.Labels {
		if !netdef.ValidLabel(l) {
			return malformed("network %q with a label that is none", n.Name)
		}
		if i > 0 && n.Labels[i-1] >= l {
			return malformed("network %q: labels are not in ascending order without duplicates", n.Name)
		}
	}
	return nil
}

// parseNetworkBody reads a body and returns what follows the definition, which is
// the base.
func parseNetworkBody(body []byte) (Network, []byte, error) {
	r := newReader(body)
	flags := r.U8()
	n := Network{Removed: flags&flagRemoved != 0, Moving: flags&flagMoving != 0, Edit: r.U32()}
	n.Driver, n.MTU = DriverName(r.U8()), r.U16()
	if flags&^(flagRemoved|flagMoving) != 0 {
		r.Fail("network flags %#x", flags)
	}
	if r.Err() != nil {
		return Network{}, nil, r.Err()
	}
	var base []byte
	var err error
	if n.Network, base, err = record.CutNetwork(r.Rest()); err != nil {
		return Network{}, nil, malformed("%v", err)
	}
	r = newReader(base)
	for range r.Count("labels", int(r.U8()), netdef.MaxLabels, 1+1) {
		n.Labels = append(n.Labels, string(r.Take(r.Count("bytes of a label", int(r.U8()), netdef.MaxLabel, 1))))
	}
	if r.Err() != nil {
		return Network{}, nil, r.Err()
	}
	base = r.Rest()
	if size := len(body) - networkFixed - len(base); size > maxDefinition {
		return Network{}, nil, malformed("definition of %d bytes, at most %d", size, maxDefinition)
	}
	return n, base, n.validate()
}

// parseNetwork checks an item of KindNetwork.
func parseNetwork(it *Item) (Network, error) {
	n, _, err := parseNetworkBody(it.Body)
	if err != nil {
		return Network{}, err
	}
	if it.Slot != NetworkSlot(n.Name) {
		return Network{}, malformed("network %q in the slot of %q", n.Name, it.Slot.Key)
	}
	n.Generation, n.Created = generationOf(it.Version), it.Created
	return n, it.validateRank()
}

// Network returns the network of a name, also one that was removed; false if there
// never was one.
func (s *Set) Network(name string) (Network, bool) {
	it := s.items[NetworkSlot(name)]
	if it == nil {
		return Network{}, false
	}
	return it.Network()
}

// Networks returns the networks that are not removed, by name.
func (s *Set) Networks() []Network {
	var out []Network
	for slot, it := range s.items {
		if slot.Kind != KindNetwork {
			continue
		}
		if n, ok := it.Network(); ok && !n.Removed {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b Network) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// SignNetwork makes the item with which an issuer defines a network, changes it, or
// removes it. Edit, Generation and Created of n are ignored. ErrWeakens (wrapped)
// if the network allows, or last allowed, no cleartext, and n does.
func (s *Set) SignNetwork(now time.Time, trust keys.Trust, by Signer, n Network) (*Item, error) {
	have, known := s.Network(n.Name)
	n.Edit, n.Generation, n.Created = 1, 0, now.UTC().Truncate(time.Second)
	if known {
		if !have.Clear() && n.Clear() {
			return nil, fmt.Errorf("sign network %q: %w", n.Name, ErrWeakens)
		}
		if have.Edit+1 >= encryptedStep || have.Edit == math.MaxUint32 {
			return nil, fmt.Errorf("sign network %q: %w", n.Name, malformed("it was changed too often"))
		}
		n.Edit, n.Generation = have.Edit+1, have.Generation
	}
	body, err := n.body()
	if err != nil {
		return nil, fmt.Errorf("sign network %q: %w", n.Name, err)
	}
	return Sign(now, trust, by, Content{
		Slot: NetworkSlot(n.Name), Version: ranked(n.Generation, n.step()), Created: n.Created,
		Body: append(body, s.items[NetworkSlot(n.Name)].base()...),
	})
}

// NetworkContent is what the root signs to change a network, to what
// issuers may not make of it as well, in the generation after that of have. Edit,
// Generation and Created of n are ignored.
func NetworkContent(have, n Network, created time.Time) (Content, error) {
	if have.Generation == math.MaxUint32 {
		return Content{}, fmt.Errorf("change network %q: %w", n.Name, malformed("generations are used up"))
	}
	n.Edit, n.Generation = 0, have.Generation+1
	body, err := n.body()
	if err != nil {
		return Content{}, fmt.Errorf("change network %q: %w", n.Name, err)
	}
	return Content{
		Slot: NetworkSlot(n.Name), Version: ranked(n.Generation, n.step()), Created: created.UTC().Truncate(time.Second), Body: body,
	}, nil
}
