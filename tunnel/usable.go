package tunnel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// MTU limits of a device, in bytes of inner packet. Below 1280 the kernel
// takes IPv6 off the link (RFC 8200 section 5), and with it every route to a
// peer. The upper limit leaves room for the overhead in a 64 KiB datagram.
const (
	MinMTU = 1280
	MaxMTU = 65535 - 80
)

// slot names one device of a node.
type slot struct {
	epoch ids.Epoch
	lane  ids.Lane
}

// Validate reports everything in s that a driver cannot apply.
func (s Spec) Validate() error {
	_, err := s.Usable()
	return err
}

// Usable returns the part of s that a driver can apply, and the joined errors
// about the rest: a *PeerError where a peer is to blame. Every driver starts
// its Set with it, so all of them refuse the same things, and one bad peer
// never stops the others.
func (s Spec) Usable() (Spec, error) {
	var errs []error
	out := Spec{Revision: s.Revision}
	devices, ports := map[slot]bool{}, map[uint16]bool{}
	for _, d := range s.Devices {
		err := checkDevice(d)
		switch {
		case err != nil:
		case devices[slot{d.Epoch, d.Lane}]:
			err = errors.New("is named twice")
		case ports[d.Port]:
			err = fmt.Errorf("port %d belongs to another device", d.Port)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("device of epoch %d lane %d: %w", d.Epoch, d.Lane, err))
			continue
		}
		devices[slot{d.Epoch, d.Lane}], ports[d.Port] = true, true
		out.Devices = append(out.Devices, d)
	}
	c := peerCheck{devices: devices, ids: map[ids.NodeID]bool{}, inner: map[netip.Addr]bool{}, keys: map[keyOn]bool{}}
	for _, p := range s.Peers {
		usable, err := c.check(p)
		if err != nil {
			errs = append(errs, &PeerError{Peer: p.ID, Err: err})
		}
		if usable.Keys != nil {
			out.Peers = append(out.Peers, usable)
		}
	}
	return out, errors.Join(errs...)
}

func checkDevice(d Device) error {
	switch {
	case d.Epoch == 0:
		return errors.New("epoch 0 is none")
	case d.Port == 0:
		return errors.New("has no port")
	case d.MTU < MinMTU || d.MTU > MaxMTU:
		return fmt.Errorf("mtu %d is not in %d..%d", d.MTU, MinMTU, MaxMTU)
	}
	return nil
}

type keyOn struct {
	slot slot
	key  keys.TunnelPublic
}

// peerCheck remembers what earlier peers have taken.
type peerCheck struct {
	devices map[slot]bool
	ids     map[ids.NodeID]bool
	inner   map[netip.Addr]bool
	keys    map[keyOn]bool
}

// check returns p with the keys that are usable, and why others are not. The
// result's Keys are nil if nothing of p can be used.
func (c *peerCheck) check(p Peer) (Peer, error) {
	switch {
	case p.ID.IsZero():
		return Peer{}, errors.New("has no ID")
	case c.ids[p.ID]:
		return Peer{}, errors.New("is named twice")
	case !p.Inner.Is6() || p.Inner.Is4In6() || p.Inner.Zone() != "" || !p.Inner.IsPrivate():
		return Peer{}, fmt.Errorf("inner address %s is not in fc00::/7", p.Inner)
	case c.inner[p.Inner]:
		// An allowed address belongs to one WireGuard peer; giving it to a
		// second takes it from the first. The first one keeps it: a peer must
		// not be able to draw another's traffic by naming its address.
		return Peer{}, fmt.Errorf("inner address %s belongs to another peer", p.Inner)
	}
	c.ids[p.ID], c.inner[p.Inner] = true, true
	var errs []error
	usable := Peer{ID: p.ID, Inner: p.Inner, Keys: []PeerKey{}}
	own := map[slot]bool{}
	for _, k := range p.Keys {
		at := slot{k.Epoch, k.Lane}
		if err := checkEndpoint(k.Endpoint); err != nil {
			// It costs only the endpoint: a session that exists goes on.
			errs = append(errs, fmt.Errorf("epoch %d lane %d: %w", k.Epoch, k.Lane, err))
			k.Endpoint = netip.AddrPort{}
		}
		var err error
		switch {
		case k.Public.IsZero():
			err = errors.New("the public key is zero")
		case !c.devices[at]:
			err = errors.New("there is no such device")
		case own[at]:
			err = errors.New("has two keys")
		case c.keys[keyOn{at, k.Public}]:
			err = errors.New("the key belongs to another peer")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("epoch %d lane %d: %w", k.Epoch, k.Lane, err))
			continue
		}
		own[at], c.keys[keyOn{at, k.Public}] = true, true
		usable.Keys = append(usable.Keys, k)
	}
	return usable, errors.Join(errs...)
}

func checkEndpoint(e netip.AddrPort) error {
	if e == (netip.AddrPort{}) {
		return nil
	}
	if !e.IsValid() || e.Port() == 0 || e.Addr().IsUnspecified() || e.Addr().IsMulticast() {
		return fmt.Errorf("endpoint %s is not a unicast address with a port", e)
	}
	return nil
}
