package espuser

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/links"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
)

// driver is a tunnel.Driver. One goroutine at a time uses it.
type driver struct {
	env     tunnel.Env
	log     *slog.Logger
	secure  *nl.Handle
	owner   links.Owner
	workers *worker.Fleet
	// used are the halves of associations that were ever given to a device's workers, by the
	// device's name. A worker remembers that, too, but may die while the agent lives and still
	// has the secret; when the agent dies, the secrets go with it.
	used map[string]map[use]bool
	// owners is who has which inner address, by the last Set.
	owners map[netip.Addr]ids.NodeID
}

// Close implements tunnel.Driver.
func (d *driver) Close() error {
	d.workers.Close()
	d.secure.Close()
	return nil
}

// Set implements tunnel.Driver.
func (d *driver) Set(ctx context.Context, spec tunnel.Spec) error {
	d.workers.Reap()
	usable, err := spec.Usable()
	errs := []error{err}
	have, err := d.owner.List(d.secure)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, name := range d.owner.Unwanted(spec, have) {
		errs = append(errs, d.delete(ctx, name, "not in the spec"))
		delete(have, name)
	}
	d.owners = map[netip.Addr]ids.NodeID{}
	for _, p := range usable.Peers {
		d.owners[p.Inner] = p.ID
	}
	for _, dev := range usable.Devices {
		if err := ctx.Err(); err != nil {
			errs = append(errs, err)
			break
		}
		_, exists := have[tunnel.DeviceName(d.env.Node, dev.Epoch, dev.Lane)]
		errs = append(errs, d.setDevice(ctx, dev, usable.Peers, exists))
	}
	return errors.Join(errs...)
}

// setDevice makes one device match the spec.
func (d *driver) setDevice(ctx context.Context, dev tunnel.Device, peers []tunnel.Peer, exists bool) error {
	name := tunnel.DeviceName(d.env.Node, dev.Epoch, dev.Lane)
	if dev.Port == 0 {
		return fmt.Errorf("device of epoch %d lane %d: needs a port", dev.Epoch, dev.Lane)
	}
	var have state
	if exists {
		var err error
		have, err = d.check(ctx, name)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, tunnel.ErrUnclear) { // neither says that the device is broken
				return fmt.Errorf("check device %s: %w", name, err)
			}
			d.log.Warn("tunnel device is broken", logkey.Device, name, logkey.Error, err)
			if err := d.delete(ctx, name, broken); err != nil {
				return err
			}
			exists = false
		}
	}
	if !exists {
		if err := d.create(ctx, name, dev); err != nil {
			return fmt.Errorf("create device %s: %w", name, err)
		}
	}
	return errors.Join(d.configure(name, dev, peers, have), links.Raise(d.secure, name, dev.MTU))
}

// create starts a device's worker and marks its link; if it cannot finish it leaves nothing.
func (d *driver) create(ctx context.Context, name string, dev tunnel.Device) error {
	mark := d.owner.Mark(dev)
	w := worker.Device{Name: name, Mark: mark, Port: dev.Port, MTU: dev.MTU}
	if err := d.workers.Start(ctx, w); err != nil {
		return err
	}
	if err := links.SetMark(d.secure, name, mark); err != nil {
		return errors.Join(err, d.end(ctx, name))
	}
	d.log.Info("tunnel device created", logkey.Device, name, logkey.Epoch, dev.Epoch)
	return nil
}

// end deletes a device's link, which ends its worker, and waits for that.
func (d *driver) end(ctx context.Context, name string) error {
	err := d.workers.End(ctx, name, func() error { return links.Delete(d.secure, name) })
	if err != nil {
		return fmt.Errorf("delete device %s: %w", name, err)
	}
	return nil
}

func (d *driver) delete(ctx context.Context, name, reason string) error {
	if err := d.end(ctx, name); err != nil {
		return err
	}
	if reason != broken { // its epoch ends, and nobody has its secrets
		delete(d.used, name)
	}
	d.log.Info("tunnel device removed", logkey.Device, name, logkey.Reason, reason)
	return nil
}

// broken is why a device is removed that comes back at once.
const broken = "broken"

// Remove implements tunnel.Driver. After the links it looks for workers and
// sockets that have lost theirs.
func (d *driver) Remove(ctx context.Context) error {
	have, err := d.owner.List(d.secure)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range links.Names(have) {
		errs = append(errs, d.delete(ctx, name, "remove"))
	}
	errs = append(errs, d.workers.Sweep(ctx))
	d.workers.Reap()
	return errors.Join(errs...)
}

// State implements tunnel.Driver.
func (d *driver) State(ctx context.Context) (tunnel.State, error) {
	d.workers.Reap()
	have, err := d.owner.List(d.secure)
	if err != nil {
		return tunnel.State{}, err
	}
	var out tunnel.State
	for _, name := range links.Names(have) {
		l := have[name]
		if l.Mark == (tunnel.Mark{}) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return out, err
		}
		dev, err := d.deviceState(ctx, name, l)
		if err != nil {
			return tunnel.State{}, err
		}
		out.Devices = append(out.Devices, dev)
	}
	slices.SortFunc(out.Devices, func(a, b tunnel.DeviceState) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Lane, b.Lane))
	})
	return out, nil
}

// deviceState reads one device. One whose worker is gone has no peers and is not up: the next Set
// makes it anew.
func (d *driver) deviceState(ctx context.Context, name string, l links.Link) (tunnel.DeviceState, error) {
	out := tunnel.DeviceState{
		Name: name, Epoch: l.Mark.Epoch, Lane: l.Mark.Lane, MTU: l.Attrs().MTU, Up: l.Attrs().Flags&net.FlagUp != 0,
	}
	s, err := d.check(ctx, name)
	if err != nil {
		if ctx.Err() != nil || errors.Is(err, tunnel.ErrUnclear) {
			return out, fmt.Errorf("read device %s: %w", name, err)
		}
		out.Up = false
		return out, nil
	}
	out.Port, out.Dropped = s.port, s.dropped.byReason()
	for _, p := range s.peers {
		out.Peers = append(out.Peers, tunnel.PeerState{
			ID: d.owners[p.inner], Inner: p.inner, Key: p.key, In: p.in, Out: p.out,
			Local: p.local.Addr(), InUDP: true, Endpoint: p.remote,
			RxBytes: p.rxBytes, TxBytes: p.txBytes, TxPackets: p.txPackets,
		})
	}
	return out, nil
}
