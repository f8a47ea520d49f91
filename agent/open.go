package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// Names of the steps of the start.
const (
	stepUnderlay = "underlay address"
	stepSecure   = "secure namespace"
	stepDriver   = "tunnel driver"
	stepControl  = "control plane"
)

// cacheFile keeps the members' records in the data directory.
const cacheFile = "records.cache"

// step reports a stage of the start around fn.
func (a *Agent) step(name string, fn func() (detail string, err error)) error {
	a.opts.Progress(Step{Name: name, State: StepRunning})
	detail, err := fn()
	if err != nil {
		a.opts.Progress(Step{Name: name, State: StepFailed, Detail: err.Error()})
		return err
	}
	a.opts.Progress(Step{Name: name, State: StepDone, Detail: detail})
	return nil
}

// open makes or adopts everything that the loop works with.
func (a *Agent) open(ctx context.Context, dir files) (_ *loop, _ *membership.Cluster, err error) {
	identity, err := a.opts.Store.Identity()
	if err == nil && !identity.Joined() {
		err = keystore.ErrNotInitialised
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open identity: %w", err)
	}
	l := newLoop(a, identity, dir)
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.attachments, err = dir.loadAttachments(); err != nil {
		return nil, nil, err
	}
	hostNS, err := nl.CurrentNamespace()
	if err != nil {
		return nil, nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	l.closers = append(l.closers, hostNS.Close)
	if err := a.openPlane(ctx, l, hostNS); err != nil {
		return nil, nil, err
	}
	l.restore()
	var cluster *membership.Cluster
	err = a.step(stepControl, func() (string, error) {
		cluster, err = a.openCluster(ctx, l)
		return "node " + identity.ID.Short() + ", port " + strconv.Itoa(int(a.opts.Config.Control.Bind.Port())), err
	})
	if err != nil {
		return nil, nil, err
	}
	l.gossip = cluster
	return l, cluster, nil
}

func newLoop(a *Agent, identity keystore.Identity, dir files) *loop {
	return &loop{
		cfg: a.opts.Config, version: a.opts.Version, started: time.Now(), identity: identity,
		files: dir, log: a.opts.Log, now: time.Now, progress: a.opts.Progress,
		ns:    namespaces{dir: dir.path(netnsDir), open: a.openEndpoint},
		calls: a.calls, ready: a.ready,
		claims:   claims{since: map[claimKey]time.Time{}, settled: map[claimKey]bool{}},
		reported: map[api.Problem]bool{}, tunnelsUp: map[ids.NodeID]bool{},
	}
}

// openPlane opens the secure namespace, the driver and the overlay programmer
// of the host whose namespace is given.
func (a *Agent) openPlane(ctx context.Context, l *loop, hostNS *nl.Namespace) error {
	handle, err := hostNS.Handle()
	if err != nil {
		return fmt.Errorf("open the host's network namespace: %w", err)
	}
	l.closers = append(l.closers, func() error { handle.Close(); return nil })
	l.host = handle
	if err := a.step(stepUnderlay, func() (string, error) {
		l.own, err = ownAddrs(l.cfg.Control, handle)
		return ownText(l.own), err
	}); err != nil {
		return err
	}
	var sec *secure.Namespace
	if err := a.step(stepSecure, func() (string, error) {
		sec, err = secure.Ensure(l.files.securePath())
		return l.files.securePath(), err
	}); err != nil {
		return err
	}
	l.guard = sec
	l.closers = append(l.closers, sec.Close)
	env := tunnel.Env{Node: l.identity.ID, Host: hostNS, Secure: sec.NS(), RuntimeDir: l.files.dir, Log: l.log}
	if l.cfg.AnyEncrypted() {
		_ = a.step(stepDriver, func() (string, error) { return a.openDriver(ctx, l, env) })
	}
	a.removeFormerDriver(ctx, l, env)
	l.overlay = vxlan.NewProgrammer(vxlan.Options{
		Node: l.identity.ID, Host: hostNS, Secure: sec.NS(), Dir: l.files.path(netnsDir), Log: l.log,
	})
	l.closers = append(l.closers, l.overlay.Close)
	return nil
}

// openDriver chooses the driver. That none works is no reason to stop: the
// encrypted networks are then not there, and status says why.
func (a *Agent) openDriver(ctx context.Context, l *loop, env tunnel.Env) (string, error) {
	kind, refused, err := chooseDriver(ctx, l.cfg, env, a.opts.Kinds)
	for _, r := range refused {
		l.facts.Refused = append(l.facts.Refused, api.Refusal{Name: r.Kind, Reason: r.Err.Error()})
		l.log.Info("tunnel driver refused", logkey.Driver, r.Kind, logkey.Reason, r.Err)
	}
	if err != nil {
		return "", err
	}
	driver, err := kind.Open(ctx, env)
	if err != nil {
		err = fmt.Errorf("open driver %s: %w", kind.Name, err)
		l.facts.Refused = append(l.facts.Refused, api.Refusal{Name: kind.Name, Reason: err.Error()})
		return "", err
	}
	l.driver = driver
	l.closers = append(l.closers, driver.Close)
	l.facts.Name, l.facts.Wire = kind.Name, wireOf(kind.Compatible)
	l.facts.OverheadV4, l.facts.OverheadV6 = kind.Overhead(netip.IPv4Unspecified()), kind.Overhead(netip.IPv6Unspecified())
	l.log.Info("tunnel driver chosen", logkey.Driver, kind.Name)
	detail := label(kind.Name)
	for _, r := range refused {
		detail += "; not " + r.Kind + ": " + r.Err.Error()
	}
	return detail, nil
}

// wireOf turns a kind's protocol name into a record's value.
func wireOf(compatible string) record.Wire {
	switch compatible {
	case "wireguard":
		return record.WireWireGuard
	case "esp":
		return record.WireESP
	default:
		return record.WireNone
	}
}

// chooseDriver picks the driver that the configuration asks for. If that one
// does not work, networks with driver auto may still have another; those that
// asked for it do not (see chooseNetworks).
func chooseDriver(ctx context.Context, cfg config.Config, env tunnel.Env, kinds []tunnel.Kind) (tunnel.Kind, []tunnel.Refusal, error) {
	var refused []tunnel.Refusal
	if want := cfg.Driver(); want != config.DriverAuto {
		i := slices.IndexFunc(kinds, func(k tunnel.Kind) bool { return k.Name == want })
		err := fmt.Errorf("driver %s is not available in this version", want)
		if i >= 0 {
			err = kinds[i].Probe(ctx, env)
		}
		if err == nil {
			return kinds[i], nil, nil
		}
		refused = append(refused, tunnel.Refusal{Kind: want, Err: err})
	}
	auto := slices.ContainsFunc(cfg.Networks, func(n config.Network) bool { return n.Encrypted && n.Driver == config.DriverAuto })
	if !auto {
		return tunnel.Kind{}, refused, refused[0].Err
	}
	others := slices.DeleteFunc(slices.Clone(kinds), func(k tunnel.Kind) bool {
		return k.Name == config.DriverIPsec || len(refused) > 0 && k.Name == refused[0].Kind
	})
	kind, more, err := tunnel.Select(ctx, env, others)
	return kind, append(refused, more...), err
}

// removeFormerDriver takes away what another driver left: its device would
// have the name and the port that the chosen one needs.
func (a *Agent) removeFormerDriver(ctx context.Context, l *loop, env tunnel.Env) {
	last, ok := l.files.loadApplied()
	if !ok || last.Driver == "" || last.Driver == l.facts.Name {
		return
	}
	for _, k := range a.opts.Kinds {
		if k.Name != last.Driver {
			continue
		}
		if err := removeDriver(ctx, k, env); err != nil {
			l.log.Warn("former tunnel driver could not be removed", logkey.Driver, k.Name, logkey.Error, err)
			continue
		}
		l.log.Info("former tunnel driver removed", logkey.Driver, k.Name)
	}
}

func removeDriver(ctx context.Context, k tunnel.Kind, env tunnel.Env) error {
	d, err := k.Open(ctx, env)
	if err != nil {
		return err
	}
	return errors.Join(d.Remove(ctx), d.Close())
}

// openCluster prepares membership; it binds nothing before its Run.
func (a *Agent) openCluster(ctx context.Context, l *loop) (*membership.Cluster, error) {
	o := membership.Options{
		Identity: l.identity, Bind: l.cfg.Control.Bind, Profile: l.cfg.Control.Profile,
		Seeds:   append(a.seeds(ctx, slog.LevelWarn), a.opts.Store.Seeds()...),
		Resolve: func(ctx context.Context) []netip.AddrPort { return a.seeds(ctx, slog.LevelDebug) },
		NextSeq: a.opts.Store.NextSeq, SaveSeeds: a.opts.Store.SaveSeeds,
		Cache: membership.FileCache{Path: filepath.Join(l.cfg.DataDir, cacheFile)},
		Adopt: adoptInto(a.opts.Store),
		Log:   l.log,
	}
	for _, own := range l.own {
		o.Advertise = append(o.Advertise, own.Control)
	}
	switch i, err := a.issuerOf(); {
	case err == nil:
		o.Admission, o.Renewal = noisenet.IssuerAdmission(i), i
	case !errors.Is(err, keystore.ErrNoIssuer):
		return nil, fmt.Errorf("open issuer key: %w", err)
	}
	return membership.New(o)
}

// seeds resolves the configured seeds. A name that does not resolve is
// reported and left out: the other seeds and the known members remain, and
// membership asks again while this node is alone.
func (a *Agent) seeds(ctx context.Context, level slog.Level) []netip.AddrPort {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var out []netip.AddrPort
	for _, text := range a.opts.Config.Control.Seeds {
		if s, err := netip.ParseAddrPort(text); err == nil {
			out = append(out, s)
			continue
		}
		name, port, err := net.SplitHostPort(text)
		var addrs []netip.Addr
		if err == nil {
			addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
		number, perr := strconv.ParseUint(port, 10, 16)
		if err = errors.Join(err, perr); err != nil {
			a.opts.Log.Log(ctx, level, "seed is not usable now", logkey.Addr, text, logkey.Error, err)
			continue
		}
		for _, addr := range addrs {
			out = append(out, netip.AddrPortFrom(addr.Unmap(), uint16(number)))
		}
	}
	return out
}

func ownText(own []OwnAddr) string {
	text := ""
	for i, o := range own {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%s (MTU %d)", o.Control, o.MTU)
	}
	return text
}
