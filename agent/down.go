package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
	"github.com/secure-overlay/secure-overlay/vxlan/gateway"
)

// farewell is how long Down waits for others to hear that this node's
// endpoints are gone, so that they stop sending before the tunnels end.
const farewell = time.Second

// Down implements api.Lifecycle. Run ends afterwards, with the error if
// something could not be removed.
func (a *Agent) Down(ctx context.Context, _ api.DownRequest) (api.DownResult, error) {
	var removed []string
	var err error
	if doErr := a.do(ctx, func(ctx context.Context, l *loop) {
		removed, err = l.takeDown(ctx, func() { l.sayGoodbye(ctx) })
	}); doErr != nil {
		return api.DownResult{}, doErr
	}
	return api.DownResult{Schema: api.Schema, Removed: removed}, err
}

// takeDown removes everything, after the others have been told.
func (l *loop) takeDown(ctx context.Context, tell func()) (removed []string, err error) {
	l.stopping = true
	for _, p := range l.pending {
		l.settle(p, api.Endpoint{}, errStopped())
	}
	tell()
	removed, err = removeAll(ctx, removal{overlay: l.overlay, exit: l.exits.ns, drivers: l.tunnels.all(), guard: l.guard, files: l.files})
	l.downError = err
	l.log.Info("everything is removed", logkey.Count, len(removed))
	return removed, err
}

// sayGoodbye publishes that this node is on no network any more, gives the
// others a moment to hear it, and leaves the cluster.
func (l *loop) sayGoodbye(ctx context.Context) {
	// Blocks end on the disk first: who hears that this node has none may take them.
	if err := l.releaseAll(); err != nil {
		l.log.Error("address blocks are not given back", logkey.Error, err)
		return
	}
	l.gossip.Publish(record.Node{ID: l.identity.ID, Underlay: l.previous.Underlay})
	timer := time.NewTimer(farewell)
	defer timer.Stop()
	for heard := false; !heard; {
		select {
		case <-l.gossip.Changes():
			heard = l.heard(l.gossip.Snapshot())
		case <-timer.C:
			heard = true
		case <-ctx.Done():
			heard = true
		}
	}
	if err := l.gossip.Leave(ctx); err != nil {
		l.log.Debug("leave", logkey.Error, err)
	}
}

// heard reports whether every live member has this node's empty record.
func (l *loop) heard(snap membership.Snapshot) bool {
	own, ok := snap.Member(l.identity.ID)
	if ok && len(own.Record.Networks) > 0 {
		return false
	}
	for _, m := range snap.Members {
		if m.State == membership.StateAlive && !m.Synced {
			return false
		}
	}
	return true
}

// removal is what there is to remove. Any part may be missing.
type removal struct {
	overlay overlay
	exit    exit
	drivers []tunnel.Driver
	guard   guard
	files   files
}

// removeAll takes everything down: the networks first, so that nothing is
// sent when the tunnels go, and the secure namespace last. It goes on past
// errors. The state files stay if anything did, so that it can be repeated.
func removeAll(ctx context.Context, r removal) (removed []string, err error) {
	var errs []error
	if r.overlay != nil {
		seen, err := r.overlay.Observe(ctx, nil)
		errs = append(errs, err)
		if err := r.overlay.Remove(ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove overlay networks: %w", err))
		} else {
			for _, n := range seen.Networks {
				removed = append(removed, "network "+n.Name+": namespace, bridge, VXLAN device, ports")
			}
		}
	}
	if r.exit != nil {
		if err := r.exit.Remove(); err != nil {
			errs = append(errs, fmt.Errorf("remove gateway namespace: %w", err))
		} else {
			removed = append(removed, "gateway namespace "+r.files.gatewayPath())
		}
	}
	for _, d := range r.drivers {
		state, _ := d.State(ctx)
		if err := d.Remove(ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove tunnels: %w", err))
			continue
		}
		for _, dev := range state.Devices {
			removed = append(removed, "tunnel device "+dev.Name)
		}
	}
	if r.guard != nil {
		if err := r.guard.Remove(); err != nil {
			errs = append(errs, fmt.Errorf("remove secure namespace: %w", err))
		} else {
			removed = append(removed, "secure namespace "+r.files.securePath())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return removed, err
	}
	return removed, r.files.remove()
}

// Teardown removes everything that an agent with this configuration made,
// when no agent runs; with one running it is refused (api.CodeRefused).
// Nothing to remove is no error.
func Teardown(ctx context.Context, cfg config.Config, kinds []tunnel.Kind, log *slog.Logger) (api.DownResult, error) {
	result := api.DownResult{Schema: api.Schema, Removed: []string{}}
	dir := files{dir: cfg.RuntimeDir}
	if _, err := os.Stat(dir.dir); errors.Is(err, os.ErrNotExist) {
		return result, nil
	}
	lock, err := dir.lock()
	if err != nil {
		return result, err
	}
	defer func() { _ = lock.Close() }()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	node, err := formerNode(cfg, dir)
	if err != nil {
		return result, err
	}
	hostNS, err := nl.CurrentNamespace()
	if err != nil {
		return result, fmt.Errorf("open the host's network namespace: %w", err)
	}
	defer func() { _ = hostNS.Close() }()
	r := removal{files: dir}
	var secureNS *nl.Namespace
	// Only what exists is opened: removing must not make a namespace.
	if ns, err := nl.OpenNamespace(dir.securePath()); err == nil {
		_ = ns.Close()
		sec, err := secure.Ensure(dir.securePath())
		if err != nil {
			return result, err
		}
		defer func() { _ = sec.Close() }()
		r.guard, secureNS = sec, sec.NS()
		env := tunnel.Env{Node: node, Host: hostNS, Secure: secureNS, RuntimeDir: dir.dir, Log: log}
		for _, k := range kinds {
			d, err := k.Open(ctx, env)
			if err != nil {
				// A driver that cannot work here can have left nothing
				// that outlives the namespace but a worker process.
				log.Debug("driver not opened", logkey.Driver, k.Name, logkey.Error, err)
				continue
			}
			defer func() { _ = d.Close() }()
			r.drivers = append(r.drivers, d)
		}
	}
	if ns, err := nl.OpenNamespace(dir.gatewayPath()); err == nil {
		_ = ns.Close()
		g, err := gateway.Ensure(dir.gatewayPath(), node, hostNS)
		if err != nil {
			return result, err
		}
		r.exit = g
	}
	programmer := vxlan.NewProgrammer(vxlan.Options{Node: node, Host: hostNS, Secure: secureNS, Dir: dir.path(netnsDir), Log: log})
	defer func() { _ = programmer.Close() }()
	r.overlay = programmer
	// The socket of an agent that was killed: it would answer nobody.
	if err := os.Remove(cfg.SocketPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return result, fmt.Errorf("remove control socket: %w", err)
	}
	removed, err := removeAll(ctx, r)
	result.Removed = append(result.Removed, removed...)
	return result, err
}

// formerNode finds out whose objects there are: applied.json says it, else
// the identity does.
func formerNode(cfg config.Config, dir files) (ids.NodeID, error) {
	if last, ok := dir.loadApplied(); ok {
		return last.Node, nil
	}
	store, err := keystore.Open(cfg.DataDir)
	if errors.Is(err, keystore.ErrNotInitialised) || errors.Is(err, keystore.ErrLeft) {
		return ids.NodeID{}, nil
	}
	if err != nil {
		return ids.NodeID{}, err
	}
	defer func() { _ = store.Close() }()
	identity, err := store.Identity()
	return identity.ID, err
}
