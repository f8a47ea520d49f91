package ipsec

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/links"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/xfrm"
)

// setDevice makes one device match the spec, and returns its interface ID: zero
// if there is no such device.
func (d *driver) setDevice(dev tunnel.Device, peers []tunnel.Peer, f found) (uint32, error) {
	name := tunnel.DeviceName(d.env.Node, dev.Epoch, dev.Lane)
	var ifID uint32
	if l, exists := f.links[name]; exists {
		ifID = ifIDOf(l.Link)
	} else {
		var err error
		if ifID, err = d.create(name, dev); err != nil {
			return 0, err
		}
	}
	// The link comes up before there is anything to receive: while it is down,
	// decrypted packets have no interface to go to.
	if err := links.Raise(d.secure, name, dev.MTU); err != nil {
		return ifID, err
	}
	wants, errs := d.wantsOf(dev, peers)
	at := place{self: d.self, ifID: ifID, port: d.port}
	steps, more := plan(at, wants, d.have(f, ifID))
	errs = append(append(errs, more...), d.apply(steps, wants)...)
	return ifID, errors.Join(errs...)
}

// create makes and marks a link; if it cannot finish it leaves nothing.
func (d *driver) create(name string, dev tunnel.Device) (uint32, error) {
	ifID, err := d.createLink(name, dev)
	if err != nil {
		return 0, fmt.Errorf("create device %s: %w", name, err)
	}
	if err := links.SetMark(d.secure, name, d.owner.Mark(dev)); err != nil {
		return 0, errors.Join(err, links.Delete(d.secure, name))
	}
	d.log.Info("tunnel device created", logkey.Device, name, logkey.Epoch, dev.Epoch)
	return ifID, nil
}

// wantsOf returns what a device should have for each peer.
func (d *driver) wantsOf(dev tunnel.Device, peers []tunnel.Peer) ([]want, []error) {
	var out []want
	var errs []error
	for _, p := range peers {
		for _, k := range p.Keys {
			if k.Epoch != dev.Epoch || k.Lane != dev.Lane {
				continue
			}
			if k.Key == 0 || k.ESP == (tunnel.ESP{}) {
				err := fmt.Errorf("epoch %d lane %d: names no ESP associations", k.Epoch, k.Lane)
				errs = append(errs, &tunnel.PeerError{Peer: p.ID, Err: err})
				continue
			}
			if k.ESP.InUDP && d.encap == EncapNone {
				err := fmt.Errorf("epoch %d lane %d: is to travel in UDP, and this driver has no socket for it", k.Epoch, k.Lane)
				errs = append(errs, &tunnel.PeerError{Peer: p.ID, Err: err})
				continue
			}
			out = append(out, want{peer: p.ID, inner: p.Inner, key: k, hasSecret: !k.Secret.IsZero()})
		}
	}
	return out, errs
}

// apply carries out steps. When one fails, the later ones of the same peer are
// left out: they depend on it.
func (d *driver) apply(steps []step, wants []want) []error {
	secrets := map[ids.NodeID]tunnel.PeerKey{}
	for _, w := range wants {
		secrets[w.peer] = w.key
	}
	var errs []error
	failed := map[ids.NodeID]bool{}
	for _, s := range steps {
		if failed[s.peer] {
			continue
		}
		err := d.step(s, secrets[s.peer].Secret)
		if err == nil {
			d.log.Debug(string(s.do), logkey.Node, s.peer, logkey.Addr, s.String())
			continue
		}
		if s.peer.IsZero() {
			errs = append(errs, err)
			continue
		}
		failed[s.peer] = true
		errs = append(errs, &tunnel.PeerError{Peer: s.peer, Err: err})
	}
	return errs
}

func (d *driver) step(s step, secret keys.TunnelSecret) error {
	switch s.do {
	case addState:
		return d.add(s, secret)
	case deleteState:
		if err := d.conn.DeleteState(s.state.Name()); err != nil {
			return err
		}
		delete(d.known, s.state.Name())
		return nil
	case setPolicy:
		return d.conn.SetPolicy(s.policy)
	case deletePolicy:
		return d.conn.DeletePolicy(s.policy)
	}
	return fmt.Errorf("unknown step %q", s.do)
}

// add installs an association. Its key is derived here, from the node that
// sends to the node that receives, and is gone when this returns.
func (d *driver) add(s step, secret keys.TunnelSecret) error {
	from, to := s.peer, d.env.Node
	if s.dir == xfrm.Out {
		from, to = to, from
	}
	err := tunnel.ErrSecretGone // if the secret has been wiped
	secret.ExposeESP(from, to, s.state.SPI, func(material []byte) { err = d.conn.AddState(s.state, material) })
	if nl.IsExist(err) {
		// Somebody else has that index on that address, one time in four
		// billion. Another agreement brings another index.
		return fmt.Errorf("%w: %w", tunnel.ErrSecretGone, err)
	}
	if err != nil {
		return err
	}
	d.remember(s.state)
	return nil
}

// useOf names an association of this node for ever.
func (d *driver) useOf(s xfrm.State) use {
	_, dir := place{self: d.self}.peerOf(s.From, s.To)
	return use{keys.KeyID(s.ReqID), s.SPI, dir}
}

// clear removes the associations and policies of an interface ID.
func (d *driver) clear(ifID uint32, f found) error {
	steps, _ := plan(place{self: d.self, ifID: ifID}, nil, d.have(f, ifID))
	err := errors.Join(d.apply(steps, nil)...)
	delete(f.policies, ifID)
	return err
}

// ifIDs lists the interface IDs of our associations and policies.
func (d *driver) ifIDs(f found) []uint32 {
	all := map[uint32]bool{}
	for id := range f.policies {
		all[id] = true
	}
	for _, s := range d.known {
		all[s.IfID] = true
	}
	return slices.Sorted(maps.Keys(all))
}
