package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
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
)

// Timing of the loop.
const (
	// resync is how often the loop looks without being woken. What somebody
	// else deletes is repaired within it plus the time of one round.
	resync = time.Second
	// hurry is the interval while an attach waits for something that sends
	// no wake-up, such as a claim coming of age.
	hurry = 100 * time.Millisecond
	// roundTimeout bounds one round, so that a stuck driver does not take
	// the control socket with it for ever.
	roundTimeout = 20 * time.Second
	// grace is how long after a restart nothing is removed although no
	// other member has confirmed that this node knows all records.
	grace = 30 * time.Second
	// settleTime is how old an address block claim must be where not every
	// live member confirms that it knows it.
	settleTime = 2 * time.Second
)

// gossip is the membership as the loop uses it; *membership.Cluster.
type gossip interface {
	Publish(n record.Node)
	Changes() <-chan struct{}
	Snapshot() membership.Snapshot
	Leave(ctx context.Context) error
}

// guard is the secure namespace as the loop uses it; *secure.Namespace.
type guard interface {
	Set(ctx context.Context, spec secure.Spec) error
	Verify(ctx context.Context) error
	Remove() error
	Close() error
}

// overlay makes the overlay networks; *vxlan.Programmer.
type overlay interface {
	Sync(ctx context.Context, want []vxlan.Spec) ([]vxlan.Op, error)
	Observe(ctx context.Context, want []vxlan.Spec) (vxlan.Observed, error)
	Remove(ctx context.Context) error
	Close() error
}

// loop owns the data plane and everything that is known about it. Only the
// goroutine in run touches its fields; others reach it through calls.
type loop struct {
	cfg      config.Config
	version  string
	started  time.Time
	identity keystore.Identity
	files    files
	log      *slog.Logger
	now      func() time.Time
	progress func(Step)

	gossip  gossip
	guard   guard
	overlay overlay
	host    host
	driver  tunnel.Driver // nil if no driver works or none is needed
	facts   DriverFacts   // without State until the first round
	ns      namespaces

	closers []func() error

	calls     chan call
	stopping  bool  // Down has removed everything
	downError error // what Down could not remove

	attachments []Attachment
	pending     []*pendingAttach
	claims      claims
	previous    record.Node // what was published last
	own         []OwnAddr   // last known, kept over a moment without addresses
	restored    applied     // of the previous agent
	holdUntil   time.Time   // zero: nothing is held any more
	written     applied     // what applied.json says

	out       Output
	failures  []failure
	reported  map[api.Problem]bool // in the log
	tunnelsUp map[ids.NodeID]bool
	round     ids.Revision
	ready     chan struct{}
	isReady   bool
}

// call is a function that runs in the loop's goroutine between two rounds.
type call struct {
	run  func(ctx context.Context, l *loop)
	done chan struct{}
}

// run is the loop. It returns nil after Down and ctx's error otherwise.
func (l *loop) run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c := <-l.calls:
			// A read needs no round; a change makes its own.
			c.run(ctx, l)
			close(c.done)
			if l.stopping {
				return nil
			}
			if len(l.pending) > 0 {
				timer.Reset(hurry)
			}
			continue
		case <-l.gossip.Changes():
		case <-timer.C:
		}
		l.turn(ctx)
		next := resync
		if len(l.pending) > 0 {
			next = hurry
		}
		timer.Reset(next)
	}
}

// turn is one round: look, compute, apply, publish, answer.
func (l *loop) turn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	l.round++
	l.failures = nil
	l.dropCancelled()
	snap := l.gossip.Snapshot()
	in := l.input(ctx, snap)
	l.claims.update(l.now(), snap, in.Self.ID)
	l.allocate(&in)

	in = l.applyTunnels(ctx, in)
	l.applyGuard(ctx)
	l.applyOverlay(ctx)
	if l.markReady(&in) {
		// Only now may others learn of the new endpoints.
		l.out = l.desire(in)
	}
	l.publish()
	l.save()
	l.report()
	l.answer()
	l.becomeReady()
}

// desire computes the output, held back while the node may not know all.
func (l *loop) desire(in Input) Output {
	out := Desired(in)
	if !l.holdUntil.IsZero() {
		known := len(out.Tunnel.Peers)
		out = hold(out, l.restored)
		if more := len(out.Tunnel.Peers) - known; more > 0 {
			out.View.Problems = append(out.View.Problems, api.Problem{
				Code:    "holding",
				Message: fmt.Sprintf("since the restart no other node has answered; the tunnels to %d nodes are kept as they were, until %s at most", more, l.holdUntil.UTC().Format(time.TimeOnly)),
				Fix:     "check that the control port of another node can be reached",
			})
		}
	}
	out.Tunnel.Revision = l.round
	return out
}

// input collects what Desired needs.
func (l *loop) input(ctx context.Context, snap membership.Snapshot) Input {
	in := Input{
		Config: l.cfg,
		Self: Self{
			ID: l.identity.ID, Name: l.identity.Hostname,
			Serial: l.identity.Cert.Serial, Previous: l.previous,
		},
		Attachments: l.attachments,
		Driver:      l.facts,
	}
	synced := false
	for _, m := range snap.Members {
		if m.ID == l.identity.ID {
			in.Self.Serial = m.Serial
			if l.previous.ID.IsZero() {
				in.Self.Previous = m.Record
			}
			continue
		}
		synced = synced || m.Synced
		in.Members = append(in.Members, Member{ID: m.ID, Name: m.Hostname, Serial: m.Serial, Record: m.Record})
	}
	if !l.holdUntil.IsZero() && (synced || l.now().After(l.holdUntil)) {
		l.log.Debug("all records are known after the restart", logkey.Count, len(in.Members))
		l.holdUntil = time.Time{}
	}
	in.Underlay = l.underlay(in.Members)
	l.readDriver(ctx)
	in.Driver = l.facts
	return in
}

// underlay asks the host for its addresses and its routes to the members.
func (l *loop) underlay(members []Member) Underlay {
	own, err := ownAddrs(l.cfg.Control, l.host)
	if err == nil {
		l.own = own
	} else if len(l.own) == 0 {
		l.fail("no-underlay", "", err)
	}
	u := Underlay{Own: l.own, Routes: map[netip.Addr]nl.Route{}}
	for _, m := range members {
		for _, a := range m.Record.Underlay {
			if r, err := l.host.RouteTo(a.Control.Addr()); err == nil {
				u.Routes[a.Control.Addr()] = r
			}
		}
	}
	return u
}

// readDriver refreshes what the driver found. If it cannot say, the last
// answer stands: an empty one would be published as "this node has no
// tunnel", and every peer would cut it off.
func (l *loop) readDriver(ctx context.Context) {
	if l.driver == nil {
		return
	}
	state, err := l.driver.State(ctx)
	if err != nil {
		l.fail("tunnel-unreadable", l.facts.Name, err)
		return
	}
	l.facts.State = state
}

// applyTunnels sets devices and peers and leaves l.out as it follows from
// what exists then.
func (l *loop) applyTunnels(ctx context.Context, in Input) Input {
	l.out = l.desire(in)
	if l.driver == nil {
		return in
	}
	if err := l.driver.Set(ctx, l.out.Tunnel); err != nil {
		l.failAll("tunnel-failed", l.facts.Name, err)
	}
	l.readDriver(ctx)
	in.Driver = l.facts
	l.out = l.desire(in)
	return in
}

func (l *loop) applyGuard(ctx context.Context) {
	if l.guard == nil {
		return
	}
	if err := l.guard.Set(ctx, l.out.Secure); err != nil {
		l.failAll("secure-failed", secureNetns, err)
		return
	}
	// A foreign link is reported and nothing else is done about it. It
	// opens no way out: routes of peers lead to tunnel devices, everything
	// else is unreachable. What must not happen is that the agent answers
	// with something less safe, such as moving a network elsewhere.
	if err := l.guard.Verify(ctx); err != nil {
		l.failAll("secure-drift", secureNetns, err)
	}
}

func (l *loop) applyOverlay(ctx context.Context) {
	ops, err := l.overlay.Sync(ctx, l.out.Networks)
	if len(ops) > 0 {
		l.log.Debug("overlay networks changed", logkey.Count, len(ops))
	}
	if err == nil {
		return
	}
	l.failAll("network-failed", "", err)
	for _, e := range flatten(err) {
		var ve *vxlan.Error
		if errors.As(e, &ve) && errors.Is(e, vxlan.ErrEndpointGone) {
			l.dropEndpoint(ve.Endpoint, e)
		}
	}
}

// markReady notes the endpoints that the kernel has now, and reports whether
// there is a new one.
func (l *loop) markReady(in *Input) bool {
	changed := false
	for _, n := range l.out.Networks {
		for _, e := range n.Endpoints {
			i := l.indexOf(e.ID)
			if i < 0 || l.attachments[i].Ready || l.failed(n.Network, e.ID) != nil {
				continue
			}
			l.attachments[i].Ready, changed = true, true
		}
	}
	in.Attachments = l.attachments
	return changed
}

// publish tells the others. A predecessor's endpoints and tunnel are in the
// first record already, because the round before it has adopted them.
func (l *loop) publish() {
	l.previous = l.out.Record
	l.gossip.Publish(l.out.Record)
}

// save writes what the next agent must know, when it has changed.
func (l *loop) save() {
	now := applied{
		Schema: fileSchema, Node: l.identity.ID, Driver: l.facts.Name,
		Tunnel: l.out.Tunnel, Secure: l.out.Secure, Networks: l.out.Networks, Record: l.out.Record,
	}
	now.Tunnel.Revision = 0
	if reflect.DeepEqual(now, l.written) {
		return
	}
	if err := l.files.saveApplied(now); err != nil {
		l.fail("state-not-saved", l.files.dir, err)
		return
	}
	l.written = now
}

// becomeReady tells Run's caller that the kernel matches for the first time.
func (l *loop) becomeReady() {
	if l.isReady {
		return
	}
	for _, f := range l.failures {
		if f.blocking {
			return
		}
	}
	l.isReady = true
	for _, n := range l.out.View.Networks {
		l.progress(networkStep(n))
	}
	close(l.ready)
}
