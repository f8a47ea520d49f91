package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

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
		// Only now may others learn of new endpoints, and none may learn of
		// those that turned out to be gone.
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
// there is a new one, or one less than this round began with.
func (l *loop) markReady(in *Input) bool {
	changed := len(l.attachments) != len(in.Attachments)
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
