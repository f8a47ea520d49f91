package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// reprobe is how long a driver that did not work counts as not working. A
// module may be loaded meanwhile.
const reprobe = time.Minute

// drivers are the tunnel drivers of this node, each opened when an epoch needs
// it. The loop's goroutine uses it.
type drivers struct {
	kinds []tunnel.Kind
	env   tunnel.Env
	log   *slog.Logger
	now   func() time.Time

	open     map[string]tunnel.Driver
	states   map[string]tunnel.State // as each driver said last
	verdicts map[string]verdict
	slow     map[string]error             // what each works without
	done     map[string]made[tunnel.Spec] // what each was set to last
	// unread are drivers that may have devices here and have not said so yet.
	// Until each of them has, nothing is set: a spec made without knowing a
	// device would remove it.
	unread map[string]bool
}

// verdict is what a probe of a driver found.
type verdict struct {
	err error
	at  time.Time
}

func newDrivers(kinds []tunnel.Kind, env tunnel.Env, log *slog.Logger, now func() time.Time) *drivers {
	return &drivers{
		kinds: kinds, env: env, log: log, now: now,
		open: map[string]tunnel.Driver{}, states: map[string]tunnel.State{}, verdicts: map[string]verdict{}, slow: map[string]error{}, unread: map[string]bool{},
		done: map[string]made[tunnel.Spec]{},
	}
}

func (d *drivers) kind(name string) (tunnel.Kind, bool) {
	i := slices.IndexFunc(d.kinds, func(k tunnel.Kind) bool { return k.Name == name })
	if i < 0 {
		return tunnel.Kind{}, false
	}
	return d.kinds[i], true
}

// adopt finds the drivers that have left devices here.
func (d *drivers) adopt(ctx context.Context) {
	for _, k := range d.kinds {
		d.unread[k.Name] = true
	}
	for name, err := range d.readFirst(ctx) {
		d.log.Warn("tunnel devices not read", logkey.Driver, name, logkey.Error, err)
	}
}

// readFirst asks the drivers that have not answered yet. Those that cannot
// work here have no devices here, and those without devices are opened again
// when an epoch needs them.
func (d *drivers) readFirst(ctx context.Context) map[string]error {
	errs := map[string]error{}
	for _, k := range d.kinds {
		if !d.unread[k.Name] {
			continue
		}
		drv, err := k.Open(ctx, d.env)
		if errors.Is(err, tunnel.ErrNotSupported) || nl.IsNotSupported(err) {
			delete(d.unread, k.Name)
			continue
		}
		var state tunnel.State
		if err == nil {
			if state, err = drv.State(ctx); err != nil || len(state.Devices) == 0 {
				err = errors.Join(err, drv.Close())
			} else {
				d.open[k.Name], d.states[k.Name] = drv, state
			}
		}
		if err != nil {
			errs[k.Name] = err
			continue
		}
		delete(d.unread, k.Name)
	}
	return errs
}

// known reports whether every driver has said what there is.
func (d *drivers) known() bool { return len(d.unread) == 0 }

// works reports why a driver cannot make a device here, or nil.
func (d *drivers) works(ctx context.Context, name string) error {
	return d.worksSince(ctx, name, reprobe)
}

// worksSince is works for who can do with a refusal as old as that: a probe takes a namespace.
func (d *drivers) worksSince(ctx context.Context, name string, age time.Duration) error {
	k, ok := d.kind(name)
	if !ok {
		return fmt.Errorf("driver %s is not available in this version", name)
	}
	if d.open[name] != nil && len(d.states[name].Devices) > 0 {
		return nil
	}
	v, known := d.verdicts[name]
	if !known || v.err != nil && d.now().Sub(v.at) > age {
		v = verdict{err: k.Probe(ctx, d.env), at: d.now()}
		d.verdicts[name] = v
	}
	return v.err
}

// slower says what a driver has to do without, or nil. A kernel does not learn it while
// it runs, so each is asked once.
func (d *drivers) slower(ctx context.Context, name string) error {
	k, ok := d.kind(name)
	if !ok || k.Slower == nil {
		return nil
	}
	err, known := d.slow[name]
	if !known {
		err = k.Slower(ctx)
		d.slow[name] = err
	}
	return err
}

// use opens a driver if it is not open.
func (d *drivers) use(ctx context.Context, name string) (tunnel.Driver, error) {
	if drv := d.open[name]; drv != nil {
		return drv, nil
	}
	k, ok := d.kind(name)
	if !ok {
		return nil, fmt.Errorf("driver %s is not available in this version", name)
	}
	drv, err := k.Open(ctx, d.env)
	if err != nil {
		return nil, fmt.Errorf("open driver %s: %w", name, err)
	}
	state, err := drv.State(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open driver %s: %w", name, err), drv.Close())
	}
	d.open[name], d.states[name] = drv, state
	return drv, nil
}

// choice is the driver that a new device gets.
type choice struct {
	name     string // empty: none works
	explicit bool   // somebody named it
	refused  []tunnel.Refusal
	unable   string // why the target epoch cannot be followed; empty: it can
}

// choose picks the driver for a device of the target epoch: the one that the
// target names, else the one that the configuration's networks ask for, else
// the first that works of the protocol that was chosen for all nodes (autoDriver). There is no plaintext to fall
// back to, and no other driver stands in for one that was named; only, where both name
// ESP, it is for this node to say whether its kernel does it or a process.
func (d *drivers) choose(ctx context.Context, cfg config.Config, target string) choice {
	pinned, named := cfg.Driver(), !item.Automatic(target)
	switch {
	case isESP(target) && isESP(pinned):
		target = pinned
	case target == item.DriverAutoESP:
		target = config.DriverIPsecUser
	}
	switch {
	case target != config.DriverAuto && pinned != config.DriverAuto && target != pinned:
		return choice{unable: fmt.Sprintf("the cluster's epoch wants driver %s, but a network of this node's configuration asks for %s", target, pinned)}
	case target != config.DriverAuto:
		if err := d.works(ctx, target); err != nil {
			return choice{refused: []tunnel.Refusal{{Kind: target, Err: err}}, unable: err.Error()}
		}
		return choice{name: target, explicit: named || target == pinned}
	}
	var refused []tunnel.Refusal
	if pinned != config.DriverAuto {
		err := d.works(ctx, pinned)
		if err == nil {
			return choice{name: pinned, explicit: true}
		}
		refused = append(refused, tunnel.Refusal{Kind: pinned, Err: err})
		auto := slices.ContainsFunc(cfg.Networks, func(n config.Network) bool { return n.Tunnelled() && n.Driver == config.DriverAuto })
		if !auto {
			return choice{refused: refused, unable: err.Error()}
		}
	}
	var errs []error
	for _, k := range d.kinds {
		if k.Auto == nil || wireOf(k.Compatible) != record.WireWireGuard || k.Name == pinned {
			continue
		}
		err := d.works(ctx, k.Name)
		if err == nil {
			return choice{name: k.Name, refused: refused}
		}
		refused = append(refused, tunnel.Refusal{Kind: k.Name, Err: err})
		errs = append(errs, err)
	}
	return choice{refused: refused, unable: fmt.Errorf("no tunnel driver works on this machine: %w", errors.Join(errs...)).Error()}
}

// isESP reports whether a driver's devices are ESP.
func isESP(driver string) bool {
	return driver == config.DriverIPsec || driver == config.DriverIPsecUser || driver == item.DriverAutoESP
}

// set makes the devices of every driver match its spec. Drivers that lose a
// device come first: the one that gains it may need its name and port. A driver
// that was set to the same within the last resync, and whose state showed it
// when it was read last, is left alone; touched reports whether any was not.
func (d *drivers) set(ctx context.Context, specs map[string]tunnel.Spec) (touched bool, errs map[string]error) {
	errs = map[string]error{}
	names := slices.Collect(maps.Keys(d.open))
	for name := range specs {
		if d.open[name] == nil {
			names = append(names, name)
		}
	}
	gains := func(name string) int { return len(specs[name].Devices) - len(d.states[name].Devices) }
	slices.SortFunc(names, func(x, y string) int { return cmp.Or(cmp.Compare(gains(x), gains(y)), cmp.Compare(x, y)) })
	for _, name := range names {
		spec := specs[name]
		if last := d.done[name]; d.open[name] != nil && last.recent(d.now()) && last.spec.Equal(spec) && spec.MetBy(d.states[name]) {
			continue
		}
		touched = true
		delete(d.done, name)
		drv, err := d.use(ctx, name)
		if err == nil {
			err = drv.Set(ctx, spec)
		}
		if err != nil {
			errs[name] = err
			continue
		}
		d.done[name] = made[tunnel.Spec]{spec: spec.WithoutSecrets(), at: d.now()}
	}
	return touched, errs
}

// read asks every open driver what there is. A driver that cannot say leaves
// its last answer standing: an empty one would be published as "this node has
// no tunnel", and every peer would cut it off.
func (d *drivers) read(ctx context.Context) map[string]error {
	errs := d.readFirst(ctx)
	for name, drv := range d.open {
		state, err := drv.State(ctx)
		if err != nil {
			errs[name] = err
			continue
		}
		d.states[name] = state
	}
	return errs
}

// devices lists what exists, by epoch.
func (d *drivers) devices() []OwnDevice {
	var out []OwnDevice
	for name, state := range d.states {
		k, _ := d.kind(name)
		for _, dev := range state.Devices {
			wire, narrows := wireOf(k.Compatible), k.InUDP != nil
			out = append(out, OwnDevice{DeviceState: dev, Driver: name, Wire: wire, Forms: narrows && wire == record.WireESP, Narrows: narrows})
		}
	}
	slices.SortFunc(out, func(x, y OwnDevice) int {
		return cmp.Or(cmp.Compare(x.Epoch, y.Epoch), cmp.Compare(x.Lane, y.Lane), cmp.Compare(x.Driver, y.Driver))
	})
	return out
}

// extra is how many bytes a driver of this node may add beyond what every
// network reckons with (tunnel.Overhead). The node's underlay counts as that
// much narrower, for all nodes, so that they still derive one MTU. inUDP counts
// what the longest packet of a pair with ESP in UDP needs, where that depends on
// the pairs.
func (d *drivers) extra(underlay netip.Addr, mtu int, inUDP bool) (more int) {
	for _, k := range d.kinds {
		more = max(more, k.Overhead(underlay)-tunnel.Overhead(underlay))
		if inUDP && k.InUDP != nil {
			more = max(more, mtu-tunnel.Overhead(underlay)-k.InUDP(underlay, mtu))
		}
	}
	return more
}

// all are the open drivers, for removal.
func (d *drivers) all() []tunnel.Driver {
	var out []tunnel.Driver
	for _, name := range slices.Sorted(maps.Keys(d.open)) {
		out = append(out, d.open[name])
	}
	return out
}

func (d *drivers) close() error {
	var errs []error
	for _, drv := range d.open {
		errs = append(errs, drv.Close())
	}
	return errors.Join(errs...)
}

// wireOf turns a kind's protocol name into a record's value.
func wireOf(compatible string) record.Wire {
	switch compatible {
	case "wireguard":
		return record.WireWireGuard
	case "esp":
		return record.WireESP
	case "esp-udp":
		return record.WireESPUDP
	default:
		return record.WireNone
	}
}

// refusals is what status shows of drivers that were passed over.
func refusals(refused []tunnel.Refusal) []api.Refusal {
	var out []api.Refusal
	for _, r := range refused {
		out = append(out, api.Refusal{Name: r.Kind, Reason: r.Err.Error()})
	}
	return out
}

// refusalText is the same in one line, for the log.
func refusalText(refused []tunnel.Refusal) string {
	var out []string
	for _, r := range refused {
		out = append(out, "not "+r.Kind+": "+r.Err.Error())
	}
	return strings.Join(out, "; ")
}
