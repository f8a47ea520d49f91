package tunneltest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// espOverhead is what ESP adds to an inner packet, without the outer IP
// header, in bytes: SPI and sequence number, initialisation vector, trailer,
// check value.
const espOverhead = 8 + 8 + 2 + 16

// espDevice is an xfrm interface with its security associations, as the kernel
// keeps them.
type espDevice struct {
	linkBase
	port uint16
	// pairs are the associations by the index this host has chosen.
	pairs map[ids.SPI]*espPair
}

// espPair is the two associations with a peer. Keys derive from the secret and
// the direction, so it stands for both of them.
type espPair struct {
	inner            netip.Addr
	esp              tunnel.ESP
	key              keys.KeyID
	secret           keys.TunnelSecret
	rx, tx, txPacket uint64
}

// send implements fakeLink.
func (d *espDevice) send(from, to netip.Addr, size int) *FakeHost {
	var p *espPair
	for _, q := range d.pairs {
		if q.inner == to && q.esp.Out != 0 {
			p = q
		}
	}
	if p == nil {
		return nil
	}
	p.tx += uint64(size + espOverhead)
	p.txPacket++
	there := d.host.fabric.where[p.esp.Remote]
	if there == nil {
		return nil
	}
	for _, l := range there.links {
		far, ok := l.(*espDevice)
		if !ok || far.port != d.port {
			continue
		}
		q := far.pairs[p.esp.Out]
		if q == nil || q.esp.Local != p.esp.Remote || q.esp.Remote != p.esp.Local || q.esp.InUDP != p.esp.InUDP || !q.secret.Equal(p.secret) {
			continue
		}
		q.rx += uint64(size + espOverhead)
		// The policy: the source must be the one that the association is for.
		if q.inner != from {
			return nil
		}
		return there
	}
	return nil
}

// fakeESP is an ESP driver whose devices are in a fabric.
type fakeESP struct {
	host   *FakeHost
	owners map[ids.SPI]ids.NodeID
}

func newFakeESP(h *FakeHost) *fakeESP { return &fakeESP{host: h} }

// Set implements tunnel.Driver.
func (f *fakeESP) Set(ctx context.Context, spec tunnel.Spec) error {
	usable, err := spec.Usable()
	if ctxErr := ctx.Err(); ctxErr != nil {
		return errors.Join(err, ctxErr)
	}
	f.host.fabric.mu.Lock()
	defer f.host.fabric.mu.Unlock()
	errs := []error{err}
	f.host.prune(FakeESPName, spec.Devices)
	f.owners = map[ids.SPI]ids.NodeID{}
	for _, d := range usable.Devices {
		errs = append(errs, f.setDevice(d, usable.Peers))
	}
	return errors.Join(errs...)
}

func (f *fakeESP) setDevice(d tunnel.Device, peers []tunnel.Peer) error {
	name := tunnel.DeviceName(f.host.node, d.Epoch, d.Lane)
	if f.host.links[name] == nil {
		f.host.links[name] = &espDevice{linkBase: f.host.newLink("esp", FakeESPName, d), pairs: map[ids.SPI]*espPair{}}
	}
	dev, ok := f.host.links[name].(*espDevice)
	if !ok {
		return fmt.Errorf("create device %s: %w", name, unix.EEXIST)
	}
	dev.mtu, dev.port = d.MTU, d.Port
	var errs []error
	stays := map[ids.SPI]bool{}
	for _, p := range peers {
		for _, k := range p.Keys {
			if k.Epoch != d.Epoch || k.Lane != d.Lane {
				continue
			}
			if k.ESP == (tunnel.ESP{}) {
				errs = append(errs, &tunnel.PeerError{Peer: p.ID, Err: errors.New("has no outer addresses")})
				continue
			}
			f.owners[k.ESP.In] = p.ID
			errs = append(errs, dev.setPair(p, k))
			stays[k.ESP.In] = true
		}
	}
	for spi, p := range dev.pairs {
		if !stays[spi] {
			p.secret.Wipe()
			delete(dev.pairs, spi)
		}
	}
	return errors.Join(errs...)
}

// setPair makes a peer's associations as k says. An error leaves the receiving
// half, if k names it.
func (d *espDevice) setPair(p tunnel.Peer, k tunnel.PeerKey) error {
	have := d.pairs[k.ESP.In]
	gone := &tunnel.PeerError{Peer: p.ID, Err: fmt.Errorf("key %s on device %s: %w", k.Key, d.name, tunnel.ErrSecretGone)}
	same := have != nil && have.key == k.Key && have.inner == p.Inner &&
		have.esp.Local == k.ESP.Local && have.esp.Remote == k.ESP.Remote && have.esp.InUDP == k.ESP.InUDP
	switch {
	case same && (k.ESP.Out == have.esp.Out || k.ESP.Out == 0 || !k.Secret.IsZero()):
		have.esp.Out = k.ESP.Out
		return nil
	case same:
		return gone
	case have != nil:
		have.secret.Wipe()
		delete(d.pairs, k.ESP.In)
	}
	if k.Secret.IsZero() {
		return gone
	}
	d.pairs[k.ESP.In] = &espPair{inner: p.Inner, esp: k.ESP, key: k.Key, secret: k.Secret.Clone()}
	return nil
}

// State implements tunnel.Driver.
func (f *fakeESP) State(ctx context.Context) (tunnel.State, error) {
	if err := ctx.Err(); err != nil {
		return tunnel.State{}, err
	}
	f.host.fabric.mu.Lock()
	defer f.host.fabric.mu.Unlock()
	var out tunnel.State
	for _, l := range f.host.links {
		d, ok := l.(*espDevice)
		if !ok {
			continue
		}
		s := tunnel.DeviceState{
			Name: d.name, Epoch: d.mark.Epoch, Lane: d.mark.Lane, Port: d.port, MTU: d.mtu, Up: true,
		}
		for spi, p := range d.pairs {
			s.Peers = append(s.Peers, tunnel.PeerState{
				ID: f.owners[spi], Inner: p.inner, Key: p.key, In: p.esp.In, Out: p.esp.Out,
				Local: p.esp.Local, Endpoint: netip.AddrPortFrom(p.esp.Remote, 0), InUDP: p.esp.InUDP,
				RxBytes: p.rx, TxBytes: p.tx, TxPackets: p.txPacket,
			})
		}
		slices.SortFunc(s.Peers, func(a, b tunnel.PeerState) int { return a.Inner.Compare(b.Inner) })
		out.Devices = append(out.Devices, s)
	}
	slices.SortFunc(out.Devices, compareDevices)
	return out, nil
}

// Remove implements tunnel.Driver.
func (f *fakeESP) Remove(context.Context) error {
	f.host.fabric.mu.Lock()
	defer f.host.fabric.mu.Unlock()
	f.host.prune(FakeESPName, nil)
	return nil
}

// Close implements tunnel.Driver.
func (f *fakeESP) Close() error { return nil }
