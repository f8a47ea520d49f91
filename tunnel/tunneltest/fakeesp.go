package tunneltest

import (
	"cmp"
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
// keeps them, or the device of a process that does the same.
type espDevice struct {
	linkBase
	port uint16 // of ESP in UDP; 0: none
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
		if !ok {
			continue
		}
		q := far.pairs[p.esp.Out]
		if q == nil || !d.reaches(far, p, q) || !q.secret.Equal(p.secret) {
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

// reaches reports whether what d sends to a pair p comes to far's pair q: both name
// the other's addresses, form and, in UDP, port.
func (d *espDevice) reaches(far *espDevice, p, q *espPair) bool {
	if q.esp.Local != p.esp.Remote || q.esp.Remote != p.esp.Local || q.esp.InUDP != p.esp.InUDP {
		return false
	}
	return !p.esp.InUDP || d.peerPort(p) == far.port && far.peerPort(q) == d.port
}

// peerPort is the port of a pair's other end, 0 if it is not in UDP.
func (d *espDevice) peerPort(p *espPair) uint16 {
	if !p.esp.InUDP {
		return 0
	}
	return cmp.Or(p.esp.Port, d.port)
}

// fakeESP is an ESP driver whose devices are in a fabric.
type fakeESP struct {
	host   *FakeHost
	name   string // of the driver
	port   uint16 // of ESP in UDP, of devices that the spec gives none; 0: none
	owners map[ids.SPI]ids.NodeID
}

func newFakeESP(h *FakeHost, name string, port uint16) *fakeESP {
	return &fakeESP{host: h, name: name, port: port}
}

// Set implements tunnel.Driver.
func (f *fakeESP) Set(ctx context.Context, spec tunnel.Spec) error {
	usable, err := spec.Usable()
	if ctxErr := ctx.Err(); ctxErr != nil {
		return errors.Join(err, ctxErr)
	}
	f.host.fabric.mu.Lock()
	defer f.host.fabric.mu.Unlock()
	errs := []error{err}
	f.host.prune(f.name, spec.Devices)
	f.owners = map[ids.SPI]ids.NodeID{}
	for _, d := range usable.Devices {
		errs = append(errs, f.setDevice(d, usable.Peers))
	}
	return errors.Join(errs...)
}

func (f *fakeESP) setDevice(d tunnel.Device, peers []tunnel.Peer) error {
	name := tunnel.DeviceName(f.host.node, d.Epoch, d.Lane)
	port := cmp.Or(d.Port, f.port)
	if port == 0 && f.name == FakeUserESPName {
		return fmt.Errorf("device %s: has no port", name)
	}
	if f.host.links[name] == nil {
		f.host.links[name] = &espDevice{linkBase: f.host.newLink("esp", f.name, d), pairs: map[ids.SPI]*espPair{}}
	}
	dev, ok := f.host.links[name].(*espDevice)
	if !ok || dev.mark.Driver != f.name {
		return fmt.Errorf("create device %s: %w", name, unix.EEXIST)
	}
	dev.mtu, dev.port = d.MTU, port
	var errs []error
	stays := map[ids.SPI]bool{}
	for _, p := range peers {
		for _, k := range p.Keys {
			if k.Epoch != d.Epoch || k.Lane != d.Lane {
				continue
			}
			if err := dev.takes(k.ESP); err != nil {
				errs = append(errs, &tunnel.PeerError{Peer: p.ID, Err: err})
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

// takes reports why the device cannot have such associations.
func (d *espDevice) takes(e tunnel.ESP) error {
	switch {
	case e == (tunnel.ESP{}):
		return errors.New("has no outer addresses")
	case e.InUDP && d.port == 0:
		return errors.New("is to travel in UDP, and the device has no port")
	}
	return nil
}

// setPair makes a peer's associations as k says. An error leaves the receiving
// half, if k names it.
func (d *espDevice) setPair(p tunnel.Peer, k tunnel.PeerKey) error {
	have := d.pairs[k.ESP.In]
	gone := &tunnel.PeerError{Peer: p.ID, Err: fmt.Errorf("key %s on device %s: %w", k.Key, d.name, tunnel.ErrSecretGone)}
	same := have != nil && have.key == k.Key && have.inner == p.Inner &&
		have.esp.Local == k.ESP.Local && have.esp.Remote == k.ESP.Remote && have.esp.InUDP == k.ESP.InUDP &&
		d.peerPort(have) == d.peerPort(&espPair{esp: k.ESP})
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
		if !ok || d.mark.Driver != f.name {
			continue
		}
		s := tunnel.DeviceState{
			Name: d.name, Epoch: d.mark.Epoch, Lane: d.mark.Lane, Port: d.port, MTU: d.mtu, Up: true,
		}
		for spi, p := range d.pairs {
			s.Peers = append(s.Peers, tunnel.PeerState{
				ID: f.owners[spi], Inner: p.inner, Key: p.key, In: p.esp.In, Out: p.esp.Out,
				Local: p.esp.Local, Endpoint: netip.AddrPortFrom(p.esp.Remote, d.peerPort(p)), InUDP: p.esp.InUDP,
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
	f.host.prune(f.name, nil)
	return nil
}

// Close implements tunnel.Driver.
func (f *fakeESP) Close() error { return nil }
