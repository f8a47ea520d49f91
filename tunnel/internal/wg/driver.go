package wg

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/links"
)

// Maker makes and ends devices: what differs between kernel and user space.
// Names are link names in the secure namespace.
type Maker interface {
	// Create makes the device, without key or peers, its link down.
	Create(ctx context.Context, name string, m tunnel.Mark, d tunnel.Device) error
	// Check says why an existing device cannot be kept, or nil. An error that
	// matches tunnel.ErrUnclear says that this cannot be told now.
	Check(ctx context.Context, name string) error
	// Delete ends the device and returns when nothing of it is left. A
	// missing one is no error.
	Delete(ctx context.Context, name string) error
	// Control opens the way to configure devices.
	Control() (Control, error)
}

// Control configures devices. Device leaves the private key out, and the public
// one if there is no private key; the caller clears the preshared keys that it
// returns. ConfigureDevice applies the peers of cfg in order; neither keeps
// anything of what it is given, nor a copy of it.
type Control interface {
	Device(name string) (*wgtypes.Device, error)
	ConfigureDevice(name string, cfg wgtypes.Config) error
	Close() error
}

// Options make a Driver.
type Options struct {
	Env      tunnel.Env
	Driver   string // Kind.Name, part of the mark
	LinkType string // netlink.Link.Type of its devices
	Maker    Maker
}

// Driver is a tunnel.Driver over a Maker. One goroutine at a time uses it.
type Driver struct {
	o      Options
	log    *slog.Logger
	secure *nl.Handle
	// past is what the last Set left, by device name; owners is whose key is
	// whose.
	past   map[string]*history
	owners map[keys.TunnelPublic]ids.NodeID
}

// history is what the driver remembers of one device.
type history struct {
	applied  Applied
	knocks   knocker
	sessions Sessions
}

// Open returns a driver. It reads nothing yet: devices of a predecessor are
// found by their marks in each Set.
func Open(o Options) (*Driver, error) {
	h, err := o.Env.Secure.Handle()
	if err != nil {
		return nil, fmt.Errorf("open driver %s: %w", o.Driver, err)
	}
	return &Driver{
		o: o, secure: h, log: o.Env.Log.With(logkey.Driver, o.Driver),
		past: map[string]*history{}, owners: map[keys.TunnelPublic]ids.NodeID{},
	}, nil
}

// target is one device of a spec with its peers.
type target struct {
	name   string
	mark   tunnel.Mark
	device tunnel.Device
	want   Want
}

// targets sorts a spec's peers to its devices.
func (d *Driver) targets(spec tunnel.Spec) []target {
	var out []target
	for _, dev := range spec.Devices {
		t := target{
			name:   tunnel.DeviceName(d.o.Env.Node, dev.Epoch, dev.Lane),
			mark:   d.owner().Mark(dev),
			device: dev,
			want:   Want{Port: dev.Port},
		}
		for _, p := range spec.Peers {
			for _, k := range p.Keys {
				if k.Epoch == dev.Epoch && k.Lane == dev.Lane {
					t.want.Peers = append(t.want.Peers, PeerOf(p, k))
				}
			}
		}
		out = append(out, t)
	}
	return out
}

// PeerOf describes a peer of a spec on the device of one of its keys.
func PeerOf(p tunnel.Peer, k tunnel.PeerKey) Peer {
	return Peer{ID: p.ID, Public: k.Public, Inner: p.Inner, Endpoint: k.Endpoint, Key: k.Key, Secret: k.Secret}
}

// Set implements tunnel.Driver.
func (d *Driver) Set(ctx context.Context, spec tunnel.Spec) error {
	usable, err := Usable(spec)
	errs := []error{err}
	have, err := d.links()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, d.prune(ctx, spec, have))
	d.owners = map[keys.TunnelPublic]ids.NodeID{}
	for _, t := range d.targets(usable) {
		if err := ctx.Err(); err != nil {
			errs = append(errs, err)
			break
		}
		for _, p := range t.want.Peers {
			d.owners[p.Public] = p.ID
		}
		_, exists := have[t.name]
		errs = append(errs, d.setDevice(ctx, t, exists))
	}
	return errors.Join(errs...)
}

// prune deletes what spec does not name.
func (d *Driver) prune(ctx context.Context, spec tunnel.Spec, have map[string]links.Link) error {
	var errs []error
	for _, name := range d.owner().Unwanted(spec, have) {
		errs = append(errs, d.delete(ctx, name, "not in the spec"))
		delete(have, name)
	}
	return errors.Join(errs...)
}

func (d *Driver) delete(ctx context.Context, name, reason string) error {
	delete(d.past, name)
	if err := d.o.Maker.Delete(ctx, name); err != nil {
		return err
	}
	d.log.Info("tunnel device removed", logkey.Device, name, logkey.Reason, reason)
	return nil
}

// setDevice makes one device match its target.
func (d *Driver) setDevice(ctx context.Context, t target, exists bool) error {
	if exists {
		if err := d.o.Maker.Check(ctx, t.name); err != nil {
			if ctx.Err() != nil || errors.Is(err, tunnel.ErrUnclear) { // neither says that the device is broken
				return fmt.Errorf("check device %s: %w", t.name, err)
			}
			d.log.Warn("tunnel device is broken", logkey.Device, t.name, logkey.Error, err)
			if err := d.delete(ctx, t.name, "broken"); err != nil {
				return err
			}
			exists = false
		}
	}
	if !exists {
		if err := d.create(ctx, t); err != nil {
			return err
		}
	}
	ctl, err := d.o.Maker.Control()
	if err != nil {
		return fmt.Errorf("configure device %s: %w", t.name, err)
	}
	err = d.configure(ctl, t)
	return errors.Join(err, ctl.Close())
}

// create makes and marks a device; if it cannot finish it leaves nothing.
func (d *Driver) create(ctx context.Context, t target) error {
	delete(d.past, t.name)
	err := d.o.Maker.Create(ctx, t.name, t.mark, t.device)
	if err != nil {
		return fmt.Errorf("create device %s: %w", t.name, err)
	}
	if err := d.mark(t.name, t.mark); err != nil {
		return errors.Join(err, d.o.Maker.Delete(ctx, t.name))
	}
	d.log.Info("tunnel device created", logkey.Device, t.name, logkey.Epoch, t.device.Epoch)
	return nil
}

// configure gives a device its key if it has none, and applies the plan.
func (d *Driver) configure(ctl Control, t target) error {
	have, err := readDevice(ctl, t.name)
	if err != nil {
		return err
	}
	if !have.keyed {
		if err := makeKey(ctl, t.name); err != nil {
			return err
		}
		delete(d.past, t.name)
		if have, err = readDevice(ctl, t.name); err != nil {
			return err
		}
	}
	defer have.wipe()
	want, errs := refuseOwnKey(t.want, keys.TunnelPublic(have.PublicKey))
	past := d.past[t.name]
	if past == nil {
		past = &history{knocks: knocker{}, sessions: Sessions{}}
		d.past[t.name] = past
	}
	now := time.Now()
	dead := past.sessions.See(have.Peers, now)
	anew := past.knocks.due(want, have.Peers, dead, now)
	change := Plan(want, have.Device, Past{Applied: past.applied, Anew: anew, Dead: dead})
	defer change.Wipe()
	failed := map[keys.TunnelPublic]bool{}
	if !change.Empty() {
		errs = append(errs, d.apply(ctl, t, change.Config, failed)...)
	}
	for _, p := range change.Gone {
		failed[p.Public] = true
		errs = append(errs, GoneError(p, t.name))
	}
	past.applied = Applied{}
	for _, p := range want.Peers {
		if !failed[p.Public] {
			past.applied[p.Public] = p.Endpoint
		}
	}
	if err := d.raise(t.name, t.device.MTU); err != nil {
		errs = append(errs, portError(err, t.device.Port))
	}
	return errors.Join(errs...)
}

// GoneError says that a peer is not on a device because nobody has its secret.
func GoneError(p Peer, device string) error {
	return &tunnel.PeerError{Peer: p.ID, Err: fmt.Errorf("device %s: %w", device, tunnel.ErrSecretGone)}
}

// apply sends a plan as one change. If that fails it sends the parts one by
// one, to find out whom to blame and to keep the others going.
func (d *Driver) apply(ctl Control, t target, cfg wgtypes.Config, failed map[keys.TunnelPublic]bool) []error {
	whole := ctl.ConfigureDevice(t.name, cfg)
	if whole == nil {
		return nil
	}
	var errs []error
	if cfg.ListenPort != nil {
		if err := ctl.ConfigureDevice(t.name, wgtypes.Config{ListenPort: cfg.ListenPort}); err != nil {
			errs = append(errs, fmt.Errorf("configure device %s: %w", t.name, portError(err, t.device.Port)))
		}
	}
	for _, p := range cfg.Peers {
		key := keys.TunnelPublic(p.PublicKey)
		if failed[key] {
			// An entry that did not go must not get another preshared key in
			// place: its session would live on under the old one.
			continue
		}
		err := ctl.ConfigureDevice(t.name, wgtypes.Config{Peers: []wgtypes.PeerConfig{p}})
		if err == nil {
			continue
		}
		failed[key] = true
		if id, ok := d.owners[key]; ok {
			err = &tunnel.PeerError{Peer: id, Err: fmt.Errorf("configure on device %s: %w", t.name, err)}
		} else {
			err = fmt.Errorf("remove a peer from device %s: %w", t.name, err)
		}
		errs = append(errs, err)
	}
	return errs
}

// refuseOwnKey takes out peers with the device's own key, which WireGuard
// would ignore without a word.
func refuseOwnKey(want Want, own keys.TunnelPublic) (Want, []error) {
	var errs []error
	for _, p := range want.Peers {
		if p.Public == own {
			errs = append(errs, &tunnel.PeerError{Peer: p.ID, Err: errors.New("the key is this node's own")})
		}
	}
	want.Peers = slices.DeleteFunc(slices.Clone(want.Peers), func(p Peer) bool { return p.Public == own })
	return want, errs
}

// Remove implements tunnel.Driver.
func (d *Driver) Remove(ctx context.Context) error {
	have, err := d.links()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range links.Names(have) {
		errs = append(errs, d.delete(ctx, name, "remove"))
	}
	return errors.Join(errs...)
}

// Close implements tunnel.Driver.
func (d *Driver) Close() error {
	d.secure.Close()
	return nil
}

// portError says in words that a port is taken.
func portError(err error, port uint16) error {
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("udp port %d is in use: %w", port, err)
	}
	return err
}
