package tunneltest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
)

// fake is a driver whose devices are in a fabric. It plans as the real
// WireGuard drivers do and applies the plan to a model of the kernel.
type fake struct {
	host     *FakeHost
	applied  map[string]wg.Applied
	sessions map[string]wg.Sessions
	owners   map[keys.TunnelPublic]ids.NodeID
}

func newFake(h *FakeHost) *fake {
	return &fake{host: h, applied: map[string]wg.Applied{}, sessions: map[string]wg.Sessions{}}
}

// Set implements tunnel.Driver.
func (f *fake) Set(ctx context.Context, spec tunnel.Spec) error {
	usable, err := wg.Usable(spec)
	if ctxErr := ctx.Err(); ctxErr != nil {
		return errors.Join(err, ctxErr)
	}
	f.host.fabric.mu.Lock()
	defer f.host.fabric.mu.Unlock()
	errs := []error{err}
	for _, name := range f.host.prune(FakeName, spec.Devices) {
		delete(f.applied, name)
	}
	f.owners = map[keys.TunnelPublic]ids.NodeID{}
	for _, d := range usable.Devices {
		errs = append(errs, f.setDevice(d, usable.Peers))
	}
	return errors.Join(errs...)
}

func (f *fake) setDevice(d tunnel.Device, peers []tunnel.Peer) error {
	dev, err := f.ensure(d)
	if err != nil {
		return err
	}
	want := wg.Want{Port: d.Port}
	var errs []error
	for _, p := range peers {
		for _, k := range p.Keys {
			if k.Epoch != d.Epoch || k.Lane != d.Lane {
				continue
			}
			if k.Public == keys.TunnelPublic(dev.public) {
				errs = append(errs, &tunnel.PeerError{Peer: p.ID, Err: errors.New("the key is this node's own")})
				continue
			}
			f.owners[k.Public] = p.ID
			want.Peers = append(want.Peers, wg.PeerOf(p, k))
		}
	}
	have := dev.read()
	if f.sessions[dev.name] == nil {
		f.sessions[dev.name] = wg.Sessions{}
	}
	change := wg.Plan(want, have, wg.Past{Applied: f.applied[dev.name], Dead: f.sessions[dev.name].See(have.Peers, time.Now())})
	defer change.Wipe()
	if err := dev.configure(change.Config); err != nil {
		return errors.Join(append(errs, fmt.Errorf("configure device %s: %w", dev.name, err))...)
	}
	applied := wg.Applied{}
	for _, p := range want.Peers {
		applied[p.Public] = p.Endpoint
	}
	for _, p := range change.Gone {
		delete(applied, p.Public)
		errs = append(errs, wg.GoneError(p, dev.name))
	}
	f.applied[dev.name] = applied
	dev.mtu = d.MTU
	return errors.Join(errs...)
}

// ensure returns the device and makes it, with a key, if it is not there.
func (f *fake) ensure(d tunnel.Device) (*fakeDevice, error) {
	name := tunnel.DeviceName(f.host.node, d.Epoch, d.Lane)
	if l := f.host.links[name]; l != nil {
		dev, ok := l.(*fakeDevice)
		if !ok {
			return nil, fmt.Errorf("create device %s: %w", name, unix.EEXIST)
		}
		return dev, nil
	}
	if f.host.portTaken(int(d.Port), nil) {
		return nil, fmt.Errorf("create device %s: udp port %d is in use: %w", name, d.Port, unix.EADDRINUSE)
	}
	private, err := wgtypes.GeneratePrivateKey()
	if err != nil {
		return nil, fmt.Errorf("create device %s: %w", name, err)
	}
	dev := &fakeDevice{
		linkBase: f.host.newLink("wg", FakeName, d), port: int(d.Port),
		public: private.PublicKey(), peers: map[wgtypes.Key]*fakePeer{},
	}
	f.host.links[name] = dev
	delete(f.applied, name)
	return dev, nil
}

// State implements tunnel.Driver.
func (f *fake) State(ctx context.Context) (tunnel.State, error) {
	if err := ctx.Err(); err != nil {
		return tunnel.State{}, err
	}
	f.host.fabric.mu.Lock()
	defer f.host.fabric.mu.Unlock()
	var out tunnel.State
	for _, dev := range f.host.devices() {
		// Keepalives go on whether anybody looks or not; looking is when it
		// shows.
		for _, p := range dev.peers {
			if p.keepalive > 0 {
				p.connect()
			}
		}
		s := tunnel.DeviceState{
			Name: dev.name, Epoch: dev.mark.Epoch, Lane: dev.mark.Lane,
			Public: keys.TunnelPublic(dev.public), Port: uint16(dev.port), MTU: dev.mtu, Up: true,
		}
		for _, p := range dev.peers {
			s.Peers = append(s.Peers, p.state(f.owners))
		}
		slices.SortFunc(s.Peers, func(a, b tunnel.PeerState) int { return slices.Compare(a.Public[:], b.Public[:]) })
		out.Devices = append(out.Devices, s)
	}
	slices.SortFunc(out.Devices, compareDevices)
	return out, nil
}

func compareDevices(a, b tunnel.DeviceState) int {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Lane, b.Lane))
}

func (p *fakePeer) state(owners map[keys.TunnelPublic]ids.NodeID) tunnel.PeerState {
	key := keys.TunnelPublic(p.key)
	s := tunnel.PeerState{
		ID: owners[key], Public: key, Endpoint: p.endpoint, RxBytes: uint64(p.rx), TxBytes: uint64(p.tx),
		Key: wg.KeyIDOf(&wgtypes.Peer{PresharedKey: p.preshared}),
	}
	if len(p.allowed) == 1 && p.allowed[0].IsSingleIP() {
		s.Inner = p.allowed[0].Addr()
	}
	if p.session != nil {
		s.LastHandshake = p.session.made
	}
	return s
}

// Remove implements tunnel.Driver.
func (f *fake) Remove(context.Context) error {
	f.host.fabric.mu.Lock()
	defer f.host.fabric.mu.Unlock()
	f.host.prune(FakeName, nil)
	clear(f.applied)
	return nil
}

// Close implements tunnel.Driver.
func (f *fake) Close() error { return nil }
