package ipsec

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/links"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/xfrm"
)

// driver is a tunnel.Driver. One goroutine at a time uses it.
type driver struct {
	env    tunnel.Env
	log    *slog.Logger
	self   netip.Addr // this node's inner address
	owner  links.Owner
	encap  Encap
	port   uint16 // of ESP in UDP, this node's; 0: there is none
	holder holder
	secure *nl.Handle // links
	host   *nl.Handle // addresses, to know their devices
	conn   *xfrm.Conn // associations and policies of the host namespace
	// known are the associations that this node has. Nil: they have not been
	// searched for yet.
	known map[xfrm.Name]association
	// used are the associations that were ever installed, by interface ID.
	used map[uint32]map[use]bool
	// owners is who has which inner address, by the last Set.
	owners map[netip.Addr]ids.NodeID
}

// association is one that exists, and what the kernel counted on it.
type association struct {
	xfrm.State
	usage xfrm.Usage
}

// open returns a driver. It reads nothing yet: what a predecessor left is
// found when it is needed.
func open(env tunnel.Env, o Options) (tunnel.Driver, error) {
	if o.Encap != EncapNone && len(o.Worker) == 0 {
		return nil, fmt.Errorf("open driver %s: no worker command", Name)
	}
	d := &driver{
		env: env, log: env.Log.With(logkey.Driver, Name), self: env.Node.InnerAddr(),
		owner: links.Owner{Node: env.Node, Protocol: protocol, Driver: Name, Type: linkType},
		encap: o.Encap, port: o.port(), used: map[uint32]map[use]bool{}, owners: map[netip.Addr]ids.NodeID{},
	}
	d.holder = holder{env: env, port: d.port, children: worker.Children{}}
	if o.Encap != EncapNone {
		d.holder.argv = o.Worker
	}
	if err := d.openHandles(); err != nil {
		return nil, errors.Join(fmt.Errorf("open driver %s: %w", Name, err), d.Close())
	}
	return d, nil
}

func (d *driver) openHandles() (err error) {
	if d.host, err = d.env.Host.Handle(); err != nil {
		return err
	}
	if d.secure, err = d.env.Secure.Handle(); err != nil {
		return err
	}
	if err := d.env.Secure.OpenRaw(d.secure); err != nil {
		return err
	}
	d.conn, err = xfrm.Open(d.env.Host)
	return err
}

// Close implements tunnel.Driver.
func (d *driver) Close() error {
	d.holder.children.Reap()
	if d.host != nil {
		d.host.Close()
	}
	if d.secure != nil {
		d.secure.Close()
	}
	if d.conn != nil {
		d.conn.Close()
	}
	return nil
}

// ours tells our associations and policies from others by their selectors:
// exactly one of the two inner addresses is this node's, which is derived from
// the node ID, so nobody else's selector has it.
func (d *driver) ours(from, to netip.Addr) bool { return (from == d.self) != (to == d.self) }

// refresh brings d.known up to date. It lists all associations once, since
// nothing else leads to one that a predecessor left without a policy; after
// that it asks for each that it knows, which brings no key into this process,
// neither ours nor those of other programs.
func (d *driver) refresh() error {
	if d.known == nil {
		all, err := d.conn.States()
		if err != nil {
			return err
		}
		d.known = map[xfrm.Name]association{}
		for _, s := range all {
			// The kernel makes one without an index for a packet whose
			// association is missing, and ends it by itself.
			if d.ours(s.From, s.To) && s.IfID != 0 && s.SPI.Valid() {
				d.remember(s)
			}
		}
	}
	for n, a := range d.known {
		u, exists, err := d.conn.Usage(n)
		if err != nil {
			return err
		}
		if !exists || u.IfID != a.IfID || u.ReqID != a.ReqID || u.Src != a.Src {
			delete(d.known, n)
			continue
		}
		a.usage = u
		d.known[n] = a
	}
	return nil
}

// remember takes note of an association that exists.
func (d *driver) remember(s xfrm.State) {
	d.known[s.Name()] = association{State: s}
	if d.used[s.IfID] == nil {
		d.used[s.IfID] = map[use]bool{}
	}
	d.used[s.IfID][d.useOf(s)] = true
}

// policies lists our policies by interface ID.
func (d *driver) policies() (map[uint32][]xfrm.Listed, error) {
	all, err := d.conn.Policies()
	if err != nil {
		return nil, err
	}
	out := map[uint32][]xfrm.Listed{}
	for _, p := range all {
		if d.ours(p.From, p.To) && p.IfID != 0 {
			out[p.IfID] = append(out[p.IfID], p)
		}
	}
	return out, nil
}

// found is everything of ours that exists.
type found struct {
	links    map[string]links.Link
	policies map[uint32][]xfrm.Listed
}

// look finds what exists.
func (d *driver) look() (found, error) {
	have, err := d.owner.List(d.secure)
	if err != nil {
		return found{}, err
	}
	policies, err := d.policies()
	if err != nil {
		return found{}, err
	}
	return found{links: have, policies: policies}, d.refresh()
}

// have returns what exists under an interface ID.
func (d *driver) have(f found, ifID uint32) have {
	h := have{policies: f.policies[ifID], states: map[xfrm.Name]xfrm.State{}, used: d.used[ifID]}
	for n, a := range d.known {
		if a.IfID == ifID {
			h.states[n] = a.State
		}
	}
	return h
}

// Set implements tunnel.Driver.
func (d *driver) Set(ctx context.Context, spec tunnel.Spec) error {
	usable, err := spec.Usable()
	errs := []error{err}
	f, err := d.look()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	peers, refused, err := d.guarded(usable.Peers)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, refused...)
	errs = append(errs, d.hold(ctx, d.needsHolder(spec))) // before the first association in UDP
	for _, name := range d.owner.Unwanted(spec, f.links) {
		errs = append(errs, d.deleteDevice(name, f, "not in the spec"))
		delete(f.links, name)
	}
	d.owners = map[netip.Addr]ids.NodeID{}
	for _, p := range peers {
		d.owners[p.Inner] = p.ID
	}
	live := map[uint32]bool{}
	for _, l := range f.links {
		live[ifIDOf(l.Link)] = true
	}
	for _, dev := range usable.Devices {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		ifID, err := d.setDevice(dev, peers, f)
		live[ifID], errs = true, append(errs, err)
		if ifID == 0 {
			for attempt := range uint8(attempts) { // it may come back
				live[deriveIfID(d.env.Node, dev.Epoch, dev.Lane, attempt)] = true
			}
		}
	}
	return errors.Join(append(errs, d.sweep(live, f))...)
}

// sweep removes associations and policies that belong to no device: those of
// one that somebody deleted and that the spec does not name any more.
func (d *driver) sweep(live map[uint32]bool, f found) error {
	var errs []error
	for _, id := range d.ifIDs(f) {
		if !live[id] {
			errs = append(errs, d.clear(id, f))
		}
	}
	if len(d.used) > maxRemembered {
		maps.DeleteFunc(d.used, func(id uint32, _ map[use]bool) bool { return !live[id] })
	}
	return errors.Join(errs...)
}

// maxRemembered is of how many devices, living or not, the driver remembers
// which associations they had. At most three live; whoever still has a secret
// of the others' has had it for an hour.
const maxRemembered = 16

// Remove implements tunnel.Driver.
func (d *driver) Remove(ctx context.Context) error {
	f, err := d.look()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range links.Names(f.links) {
		errs = append(errs, d.deleteDevice(name, f, "remove"))
	}
	for _, id := range d.ifIDs(f) {
		errs = append(errs, d.clear(id, f))
	}
	return errors.Join(append(errs, d.hold(ctx, false))...)
}

// needsHolder reports whether the sockets of ESP in UDP are needed: by all of the
// driver's devices, or, where pairs choose, by one that has chosen it. Their port
// is the one that every IKE daemon wants, so whoever can do without leaves it.
func (d *driver) needsHolder(spec tunnel.Spec) bool {
	switch d.encap {
	case EncapNone:
		return false
	case EncapUDP:
		return len(spec.Devices) > 0
	default:
		return anyInUDP(spec)
	}
}

func anyInUDP(spec tunnel.Spec) bool {
	for _, p := range spec.Peers {
		for _, k := range p.Keys {
			if k.ESP.InUDP {
				return true
			}
		}
	}
	return false
}

// hold starts or ends the holder of the UDP sockets.
func (d *driver) hold(ctx context.Context, wanted bool) error {
	if wanted {
		return d.holder.ensure(ctx)
	}
	return d.holder.end(ctx)
}

// deleteDevice removes a device's policies and associations, and then its
// link: the other way round, decrypted packets would for a moment have no
// interface to go to and come up in the host namespace, where only the missing
// policy stops them.
func (d *driver) deleteDevice(name string, f found, reason string) error {
	err := d.clear(ifIDOf(f.links[name].Link), f)
	if err := errors.Join(err, links.Delete(d.secure, name)); err != nil {
		return err
	}
	d.log.Info("tunnel device removed", logkey.Device, name, logkey.Reason, reason)
	return nil
}
