package item

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Drivers that a target can ask for. A newer node's driver reads as "driver N".
const (
	DriverAuto      = "auto" // kernel WireGuard, else userspace
	DriverWireGuard = "wireguard"
	DriverUserspace = "userspace"
	DriverIPsec     = "ipsec"
	DriverIPsecUser = "ipsec-userspace"
	// DriverAutoESP is what "auto" has come to where userspace ESP is the best that all nodes
	// can do. It differs from DriverIPsecUser in what comes next: an epoch that follows
	// without a driver of its own is chosen anew.
	DriverAutoESP = "auto-esp"
)

// Automatic reports whether a driver stands for a choice that is made by what nodes are able to.
func Automatic(driver string) bool { return driver == DriverAuto || driver == DriverAutoESP }

// KnownDriver reports whether a target can name the driver.
func KnownDriver(name string) bool {
	_, err := DriverNumber(name)
	return err == nil
}

// DriverName returns the driver with a number on the wire.
func DriverName(n uint8) string {
	switch n {
	case 0:
		return DriverAuto
	case 1:
		return DriverWireGuard
	case 2:
		return DriverUserspace
	case 3:
		return DriverIPsec
	case 4:
		return DriverIPsecUser
	case 5:
		return DriverAutoESP
	}
	return fmt.Sprintf("driver %d", n)
}

// DriverNumber returns the number of a driver on the wire; ErrMalformed
// (wrapped) if this build does not know it.
func DriverNumber(name string) (uint8, error) {
	for n := range uint8(6) {
		if DriverName(n) == name {
			return n, nil
		}
	}
	return 0, malformed("driver %q: want auto, wireguard, userspace, ipsec or ipsec-userspace", name)
}

// Reason says why a target was made. It is for people and changes nothing.
type Reason uint8

// The reasons. Others are from newer nodes.
const (
	ReasonManual    Reason = 1 // somebody asked for it
	ReasonScheduled Reason = 2 // the old keys were old enough
	ReasonLimit     Reason = 3 // a key has carried nearly as much as it may
	ReasonClock     Reason = 4 // a node's clock went back, and its tunnels would end
	ReasonDriver    Reason = 5 // another driver has become the best for all nodes
)

// String returns the lower-case word for r.
func (r Reason) String() string {
	switch r {
	case 0:
		return "none"
	case ReasonManual:
		return "manual"
	case ReasonScheduled:
		return "scheduled"
	case ReasonLimit:
		return "limit"
	case ReasonClock:
		return "clock"
	case ReasonDriver:
		return "driver"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Target is the epoch that every node moves to, and the driver of its devices.
type Target struct {
	Epoch   ids.Epoch // at least 1
	Driver  string    // DriverAuto, ...; "driver N" if this build does not know it
	Reason  Reason    // 0 for the first epoch, which nobody asked for
	Created time.Time // whole seconds; zero for the first epoch
}

// FirstTarget is the target of a cluster that has never rotated.
func FirstTarget() Target { return Target{Epoch: 1, Driver: DriverAuto} }

// TargetSlot returns the slot of the target epoch.
func TargetSlot() Slot { return Slot{Kind: KindTarget} }

const targetSize = 4 + 1 + 1

// Content returns t as an item is made from it. ErrMalformed (wrapped) if t
// cannot be said: no epoch, or an unknown driver.
func (t Target) Content() (Content, error) {
	driver, err := DriverNumber(t.Driver)
	if err != nil {
		return Content{}, fmt.Errorf("make target epoch %d: %w", t.Epoch, err)
	}
	body := binary.BigEndian.AppendUint32(nil, uint32(t.Epoch))
	return Content{Slot: TargetSlot(), Version: uint64(t.Epoch), Created: t.Created, Body: append(body, driver, uint8(t.Reason))}, nil
}

// SignTarget makes the item of t with an issuer's key. The target of the item
// that comes back may be another one, of the same epoch or a higher one, if the
// issuer has signed that before.
func SignTarget(now time.Time, trust keys.Trust, s Signer, t Target) (*Item, error) {
	c, err := t.Content()
	if err != nil {
		return nil, err
	}
	return Sign(now, trust, s, c)
}

// parseTarget reads the body of a target epoch. Unknown drivers and reasons are
// read: their item must reach the nodes that know them.
func parseTarget(it *Item) (Target, error) {
	if it.Slot != TargetSlot() {
		return Target{}, malformed("target epoch has a key")
	}
	if len(it.Body) != targetSize {
		return Target{}, malformed("target epoch of %d bytes, want %d", len(it.Body), targetSize)
	}
	t := Target{
		Epoch:   ids.Epoch(binary.BigEndian.Uint32(it.Body)),
		Driver:  DriverName(it.Body[4]),
		Reason:  Reason(it.Body[5]),
		Created: it.Created,
	}
	// One number, so that the order of versions is the order of epochs.
	if uint64(t.Epoch) != it.Version {
		return Target{}, malformed("target epoch %d has version %d", t.Epoch, it.Version)
	}
	return t, nil
}

// Target reads an item of KindTarget that Verify returned; false for another
// kind.
func (it *Item) Target() (Target, bool) {
	if it.Slot != TargetSlot() {
		return Target{}, false
	}
	t, err := parseTarget(it)
	return t, err == nil
}
