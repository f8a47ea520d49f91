package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"github.com/secure-overlay/secure-overlay/agent/ipam"
	"github.com/secure-overlay/secure-overlay/agent/resolver"
	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
	"github.com/secure-overlay/secure-overlay/vxlan/gateway"
)

// Names of the steps of the start.
const (
	stepUnderlay = "underlay address"
	stepSecure   = "secure namespace"
	stepDriver   = "tunnel driver"
	stepControl  = "control plane"
)

// Files in the data directory: the members' records, and the cluster's items.
const (
	cacheFile = "records.cache"
	itemsFile = "items.cache"
)

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
	if identity.Cert.Roles&keys.RoleObserver != 0 && len(a.opts.Config.Networks) > 0 {
		return nil, nil, api.NewError(api.CodeInvalid,
			fmt.Sprintf("this node joined as an observer, which is on no network, but its configuration has network %s", a.opts.Config.Networks[0].Name),
			"remove networks from the configuration, or join anew with a token made without --role observer")
	}
	identity.Trust.Tolerance = a.opts.Config.Crypto.ClockTolerance
	l := newLoop(a, identity, dir)
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.attachments, err = dir.loadAttachments(); err != nil {
		return nil, nil, err
	}
	if err := a.blocks.open(identity.ID, l.clusterView); err != nil {
		return nil, nil, fmt.Errorf("open address blocks: %w", err)
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
	l.claims.asker = cluster
	l.gossip, l.rot.pairs, l.rooted, l.floors, l.definer, l.departs = cluster, cluster, cluster, cluster, cluster, cluster
	return l, cluster, nil
}

// randomBoot names this process to its peers.
func randomBoot() uint64 {
	for {
		if n := rand.Uint64(); n != 0 {
			return n
		}
	}
}

// timing turns the configuration into the rotation machine's pauses.
func timing(cfg config.Config) rotate.Timing {
	t := rotate.Timing{
		MinInterval: cfg.Keys.MinInterval, Drain: cfg.Keys.Drain, Quiet: cfg.Keys.Quiet, HoldDown: cfg.Keys.HoldDown,
		RetryMin: time.Second, RetryMax: 30 * time.Second, Unproved: 10 * time.Second,
	}
	if cfg.Control.Profile == config.ProfileLocal {
		t.RetryMin, t.RetryMax = 100*time.Millisecond, 3*time.Second
	}
	return t
}

func newLoop(a *Agent, identity keystore.Identity, dir files) *loop {
	return &loop{
		cfg: a.opts.Config, here: a.opts.Config, version: a.opts.Version, started: time.Now(), identity: identity,
		files: dir, log: a.opts.Log, now: time.Now, clock: a.opts.Clock, progress: a.opts.Progress,
		ns:    namespaces{dir: dir.path(netnsDir), open: a.openEndpoint},
		calls: a.calls, ready: a.ready,
		posts: make(chan func(*loop)), ended: a.ended,
		target: item.Target{Epoch: 1, Driver: config.DriverAuto},
		rot: rotation{
			machine: rotate.New(identity.ID, randomBoot(), timing(a.opts.Config)),
			held:    map[heldKey]Held{}, hybrid: map[keys.KeyID]bool{},
			routes: map[ids.NodeID]ids.Epoch{}, switched: map[ids.NodeID]switched{}, echoes: map[ids.NodeID]time.Time{},
			echoTried: map[ids.NodeID]time.Time{}, since: map[ids.Epoch]time.Time{}, forms: newForms(),
		},
		unproved: timing(a.opts.Config).Unproved,
		paths:    map[ids.NodeID]*watchedPath{},
		claims:   claims{keeper: a.blocks, begun: map[ipam.Block]bool{}, avoid: map[ipam.Block]avoided{}},
		events:   a.opts.Events,
		reported: map[api.Problem]bool{}, tunnelsUp: map[ids.NodeID]bool{}, revoked: map[ids.NodeID]bool{}, left: map[ids.NodeID]bool{},
		revokedIssuers: map[keys.IssuerPublic]bool{},
		standings:      map[ids.NodeID]known{},
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
	if l.rot.prober, err = openProber(l, sec); err != nil {
		return err
	}
	if l.former, err = sec.Observe(ctx); err != nil {
		return fmt.Errorf("read secure namespace: %w", err)
	}
	env := tunnel.Env{Node: l.identity.ID, Host: hostNS, Secure: sec.NS(), RuntimeDir: l.files.dir, Log: l.log}
	l.tunnels = newDrivers(a.opts.Kinds, env, l.log, l.now)
	l.closers = append(l.closers, l.tunnels.close)
	l.tunnels.adopt(ctx)
	if l.cfg.AnyEncrypted() {
		_ = a.step(stepDriver, func() (string, error) { return l.firstDriver(ctx) })
	}
	l.overlay = vxlan.NewProgrammer(vxlan.Options{
		Node: l.identity.ID, Host: hostNS, Secure: sec.NS(), Dir: l.files.path(netnsDir), Log: l.log,
	})
	l.closers = append(l.closers, l.overlay.Close)
	l.exits.open = func() (exit, error) { return gateway.Ensure(l.files.gatewayPath(), l.identity.ID, hostNS) }
	l.exits.names = resolver.New(resolver.Options{
		Listen:    func(at netip.AddrPort) (net.PacketConn, net.Listener, error) { return listen(l.exits.ns.NS(), at) },
		Upstreams: resolver.FromFile(resolver.HostFile), Log: l.log,
	})
	l.exits.forwards = func(v6 bool) error { return gateway.Forwards(hostNS, v6) }
	l.closers = append(l.closers, l.exits.close)
	if at, err := nl.OpenNamespace(l.files.gatewayPath()); err == nil { // a predecessor's, which Down is to find
		_ = at.Close()
		_, l.exits.failed = l.exits.facts()
	}
	return nil
}

// openProber opens what sends probes through tunnel devices.
func openProber(l *loop, sec *secure.Namespace) (prober, error) {
	p, err := sec.Prober()
	if err != nil {
		return nil, fmt.Errorf("open prober: %w", err)
	}
	l.closers = append(l.closers, p.Close)
	return p, nil
}

// firstDriver chooses the driver for the checklist of the start; the first
// round may choose another, when the cluster's epoch is known.
func (l *loop) firstDriver(ctx context.Context) (string, error) {
	c := l.tunnels.choose(ctx, l.cfg, config.DriverAuto)
	for _, r := range c.refused {
		l.log.Info("tunnel driver refused", logkey.Driver, r.Kind, logkey.Reason, r.Err)
	}
	if c.name == "" {
		return "", errors.New(c.unable)
	}
	detail := label(c.name)
	for _, r := range c.refused {
		detail += "; not " + r.Kind + ": " + r.Err.Error()
	}
	return detail, nil
}

// openCluster prepares membership; it binds nothing before its Run.
func (a *Agent) openCluster(ctx context.Context, l *loop) (*membership.Cluster, error) {
	o := membership.Options{
		Identity: l.identity, Bind: l.cfg.Control.Bind, Profile: l.cfg.Control.Profile,
		Seeds:   append(a.seeds(ctx, slog.LevelWarn), a.opts.Store.Seeds()...),
		Resolve: func(ctx context.Context) []netip.AddrPort { return a.seeds(ctx, slog.LevelDebug) },
		NextSeq: a.opts.Store.NextSeq, SaveSeeds: a.opts.Store.SaveSeeds,
		Cache: membership.FileCache{Path: filepath.Join(l.cfg.DataDir, cacheFile)},
		Adopt: adoptInto(a.opts.Store), Keys: a.opts.Store, DropIssuer: a.opts.Store.DropIssuer, Departed: a.disk.Departed(),
		Pair: a.pair, Agree: a.agree, Claim: a.blocks.serve, RequireHybrid: l.cfg.Crypto.RequirePQ, Clock: l.clock,
		ItemCache: membership.FileItems{Path: filepath.Join(l.cfg.DataDir, itemsFile)},
		// 0, which profile local allows, would mean the default.
		RotateInterval: max(l.cfg.Keys.MinInterval, time.Nanosecond),
		Log:            l.log,
	}
	for _, own := range l.own {
		o.Advertise = append(o.Advertise, own.Control)
	}
	switch i, err := a.issuerOf(); {
	case err == nil:
		o.Admission, o.Renewal, o.Serials, o.Signer, l.canIssue = noisenet.IssuerAdmission(i, l.clock.Now), i, i, i, true
		l.issuerKey = item.IssuerOf(i)
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
