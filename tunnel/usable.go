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
// never stops the others. What only one protocol needs, such as a UDP port or a
// public key, is for its drivers to ask for.
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
		case d.Port != 0 && ports[d.Port]:
			err = fmt.Errorf("port %d belongs to another device", d.Port)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("device of epoch %d lane %d: %w", d.Epoch, d.Lane, err))
			continue
		}
		devices[slot{d.Epoch, d.Lane}], ports[d.Port] = true, true
		out.Devices = append(out.Devices, d)
	}
	c := peerCheck{
		devices: devices, ids: map[ids.NodeID]bool{}, inner: map[netip.Addr]bool{},
		keys: map[keyOn]bool{}, associations: map[association]bool{},
	}
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
	case d.MTU < MinMTU || d.MTU > MaxMTU:
		return fmt.Errorf("mtu %d is not in %d..%d", d.MTU, MinMTU, MaxMTU)
	}
	return nil
}

type keyOn struct {
	slot slot
	key  keys.TunnelPublic
}

// association is what tells ESP security associations apart: they are looked
// up by destination and index (RFC 4303 section 2.1).
type association struct {
	to  netip.Addr
	spi ids.SPI
}

// peerCheck remembers what earlier peers have taken.
type peerCheck struct {
	devices      map[slot]bool
	ids          map[ids.NodeID]bool
	inner        map[netip.Addr]bool
	keys         map[keyOn]bool
	associations map[association]bool
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
		case !c.devices[at]:
			err = errors.New("there is no such device")
		case own[at]:
			err = errors.New("has two keys")
		default:
			if err = checkSecret(k); err == nil {
				err = c.take(at, k)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("epoch %d lane %d: %w", k.Epoch, k.Lane, err))
			continue
		}
		own[at] = true
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

// checkSecret keeps a secret from being installed under another's name: State
// would report it under its own, so every Set would replace it again.
func checkSecret(k PeerKey) error {
	switch {
	case k.Secret.IsZero():
		return nil
	case k.Key == 0:
		return errors.New("has a secret that no key ID names")
	case k.Secret.ID() != k.Key:
		return fmt.Errorf("the secret is not the one that key ID %s names", k.Key)
	}
	return nil
}

// take checks what tells k apart on the wire, a public key or ESP's addresses
// and indices, and keeps it from other peers.
func (c *peerCheck) take(at slot, k PeerKey) error {
	if k.ESP == (ESP{}) {
		on := keyOn{at, k.Public}
		switch {
		case k.Public.IsZero():
			return errors.New("the public key is zero")
		case c.keys[on]:
			return errors.New("the key belongs to another peer")
		}
		c.keys[on] = true
		return nil
	}
	if err := checkESP(k); err != nil {
		return err
	}
	in, out := association{k.ESP.Local, k.ESP.In}, association{k.ESP.Remote, k.ESP.Out}
	switch {
	case c.associations[in]:
		return fmt.Errorf("SPI %s to %s is used already", in.spi, in.to)
	case out.spi != 0 && c.associations[out]:
		// The peer has chosen this pair. Whoever has it first keeps it: a peer
		// must not be able to take over what is sent to another by claiming
		// its address and index.
		return fmt.Errorf("SPI %s to %s belongs to another peer", out.spi, out.to)
	}
	c.associations[in], c.associations[out] = true, true
	return nil
}

func checkESP(k PeerKey) error {
	e := k.ESP
	switch {
	case !k.Public.IsZero():
		return errors.New("has a public key, which ESP has not")
	case k.Key == 0:
		return errors.New("has no key ID: ESP needs a secret")
	case !isOuter(e.Local) || !isOuter(e.Remote) || e.Local.Is4() != e.Remote.Is4() || e.Local == e.Remote:
		return fmt.Errorf("outer addresses %s and %s are not two unicast addresses of one family", e.Local, e.Remote)
	case !e.In.Valid():
		return fmt.Errorf("receiving SPI %s is below %s", e.In, ids.MinSPI)
	case e.Out != 0 && !e.Out.Valid():
		return fmt.Errorf("sending SPI %s is below %s", e.Out, ids.MinSPI)
	case e.Port != 0 && !e.InUDP:
		return fmt.Errorf("has UDP port %d and does not travel in UDP", e.Port)
	}
	return nil
}

// isOuter says whether a security association can begin or end at a.
func isOuter(a netip.Addr) bool {
	return a.IsValid() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast()
}
