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
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// turn is one round: look, compute, apply, publish, answer. It returns when
// the next one is due at the latest.
func (l *loop) turn(ctx context.Context) time.Duration {
	l.failures = nil
	l.dropCancelled()
	work := ctx // of workers, which outlive the turn
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	snap := l.gossip.Snapshot()
	if snap.Target.Epoch != 0 { // else it has not been read yet
		l.target = snap.Target
	}
	l.chooseNetworks(snap)
	in := l.input(ctx, snap)
	if !l.tunnels.known() {
		// What there is stays as it is, and so does what others know of it.
		l.report()
		l.answer()
		return hurry
	}
	l.round++ // what there is in the first one was there before this agent
	l.adoptRoutes(in.Members)
	in.Underlay = l.underlay(in.Members) // how wide it is depends on what pairs use
	l.claims.input(l.now(), l.clusterView(), &in)
	in.Wanted = l.wantedBlocks()
	l.allocate(&in)

	in, touched := l.applyTunnels(ctx, in)
	if touched {
		l.guarded.forget() // routes go with a device that is made anew
	}
	l.applyGuard(ctx)
	l.applyOverlay(ctx)
	l.applyGateway(ctx)
	ready, formed := l.markReady(&in), l.noteApplied()
	if in.Forms = l.forms; ready || formed {
		// Only now may others learn of new endpoints and forms, and none may
		// learn of those that turned out to be gone.
		l.out = l.desire(in)
	}
	l.applyNames()
	l.publish()
	l.save()
	l.report()
	l.answer()
	l.becomeReady()
	return l.follow(work, in)
}

// desire computes the output, held back while the node may not know all.
func (l *loop) desire(in Input) Output {
	out := Desired(in)
	if !l.holdUntil.IsZero() {
		out = hold(out, l.restored)
		if more := len(out.Secure.Routes) - len(out.Pairs); more > 0 {
			out.View.Problems = append(out.View.Problems, api.Problem{
				Code:    "holding",
				Message: fmt.Sprintf("since the restart no other node has answered; the tunnels to %d nodes are kept as they were, until %s at most", more, l.holdUntil.UTC().Format(time.TimeOnly)),
				Fix:     "check that the control port of another node can be reached",
			})
		}
	}
	out.View.Problems = append(out.View.Problems, l.epochProblems()...)
	out.View.Problems = append(out.View.Problems, l.revokedProblem()...)
	out.View.Problems = append(out.View.Problems, l.leftProblem()...)
	out.View.Problems = append(out.View.Problems, withheld(l.gossip.Snapshot())...)
	out.View.Problems = append(out.View.Problems, l.contradictions...)
	out.View.Problems = append(out.View.Problems, l.refused...)
	out.View.Problems = append(out.View.Problems, l.timeProblems()...)
	out.View.Problems = append(out.View.Problems, l.waitingProblems()...)
	for driver, spec := range out.Tunnels {
		spec.Revision = l.round
		out.Tunnels[driver] = spec
	}
	return out
}

// input collects what Desired needs.
func (l *loop) input(ctx context.Context, snap membership.Snapshot) Input {
	in := Input{
		Config: l.here,
		Self: Self{
			ID: l.identity.ID, Name: l.identity.Hostname,
			Serial: l.identity.Cert.Serial, Previous: l.previous,
		},
		Attachments: l.attachments,
		Forms:       l.forms,
	}
	l.noteRevoked(snap)
	l.noteRevokedIssuers(snap)
	l.noteLeft(snap)
	l.noteAlarms(snap)
	l.noteCertificates(snap)
	l.noteClock(snap)
	l.clock.Reaches(l.ownCert(snap).NotAfter)
	snap.Members = l.inTime(snap)
	synced := false
	if l.gone(l.identity.ID) {
		snap.Members = nil // nobody wants anything of this node any more
	}
	for _, m := range snap.Members {
		if m.ID == l.identity.ID {
			in.Self.Serial = m.Serial
			if l.previous.ID.IsZero() {
				in.Self.Previous = m.Record
			}
			continue
		}
		synced = synced || m.Synced
		in.Members = append(in.Members, Member{ID: m.ID, Name: m.Hostname, Serial: m.Serial, Record: granted(m)})
	}
	if !l.holdUntil.IsZero() && (synced || l.now().After(l.holdUntil)) {
		l.log.Debug("all records are known after the restart", logkey.Count, len(in.Members))
		l.holdUntil = time.Time{}
	}
	l.readTunnels(ctx)
	l.chooseDriver(ctx)
	in.Tunnels = l.facts
	in.Gateway = l.gatewayFacts()
	return in
}

// granted returns what of a member's record this node acts upon. An observer says
// what it likes: it gets no tunnel, no key, no address and no frame, because here
// it is on no network.
func granted(m membership.Member) record.Node {
	n := m.Record
	if m.Cert.Roles&keys.RoleObserver != 0 {
		n.Tunnels, n.Networks, n.Attached = nil, nil, nil
	}
	return n
}

// underlay asks the host for its addresses and its routes to the members.
func (l *loop) underlay(members []Member) Underlay {
	own, err := ownAddrs(l.cfg.Control, l.host)
	if err == nil {
		l.own = own
	} else if len(l.own) == 0 {
		l.fail("no-underlay", "", err)
	}
	u := Underlay{Routes: map[netip.Addr]nl.Route{}, Limits: l.limits()}
	inUDP := l.narrowed()
	for _, o := range l.own {
		o.MTU -= l.tunnels.extra(o.Control.Addr(), o.MTU, inUDP)
		u.Own = append(u.Own, o)
	}
	for _, m := range members {
		for _, a := range m.Record.Underlay {
			if r, err := l.host.RouteTo(a.Control.Addr()); err == nil {
				r.MTU -= l.tunnels.extra(a.Control.Addr(), r.MTU, inUDP)
				u.Routes[a.Control.Addr()] = r
			}
		}
	}
	return u
}

// chooseDriver decides what a device of the target epoch is made with. That no
// driver works is no reason to stop: the encrypted networks are then not
// there, and status says why.
func (l *loop) chooseDriver(ctx context.Context) {
	if !l.here.AnyEncrypted() {
		l.facts.Driver, l.facts.Refused, l.facts.Able, l.unable = "", nil, 0, ""
		l.toldDriver, l.slower = "", nil
		return
	}
	c := l.tunnels.choose(ctx, l.here, l.target.Driver)
	l.facts.Able = l.tunnels.able(ctx, l.here)
	l.facts.Refused, l.facts.Replace, l.unable = refusals(c.refused), c.explicit, c.unable
	l.facts.Driver, l.facts.Target = c.name, l.target.Epoch
	if n := len(l.facts.Devices); c.name == "" && n > 0 {
		l.facts.Driver = l.facts.Devices[n-1].Driver
	}
	if l.facts.Driver != l.toldDriver {
		l.log.Info("tunnel driver chosen", logkey.Driver, l.facts.Driver, logkey.Reason, refusalText(c.refused))
		l.toldDriver, l.slower = l.facts.Driver, l.tunnels.slower(ctx, l.facts.Driver)
	}
}

// readTunnels refreshes what the drivers found, in a turn.
func (l *loop) readTunnels(ctx context.Context) {
	for name, err := range l.refresh(ctx) {
		l.fail("tunnel-unreadable", name, err)
	}
}

// show is readTunnels for whoever only shows it: what does not answer is
// reported by turns, and what a turn has just read is new enough. Somebody who
// watches a rotation asks five times a second.
func (l *loop) show(ctx context.Context) {
	if l.now().Sub(l.readAt) >= showAge {
		l.refresh(ctx)
	}
}

// showAge is how old the counters that are shown may be.
const showAge = 250 * time.Millisecond

func (l *loop) refresh(ctx context.Context) map[string]error {
	errs := l.tunnels.read(ctx)
	l.facts.Devices, l.facts.Held, l.readAt = l.tunnels.devices(), l.rot.held, l.now()
	l.signs.see(l.now(), l.facts.Devices)
	return errs
}

// applyTunnels sets devices and peers and leaves l.out as it follows from
// what exists then. It reports whether any driver had something to do.
func (l *loop) applyTunnels(ctx context.Context, in Input) (after Input, touched bool) {
	if err := l.claims.failed; err != nil {
		l.fail("state-not-saved", "", err)
	}
	l.out = l.desire(in)
	in = l.poll(in)
	l.out = l.desire(in)
	l.rot.set = l.facts.Plan
	touched, errs := l.tunnels.set(ctx, l.out.Tunnels)
	if !touched {
		return in, false
	}
	for name, err := range errs {
		l.failAll("tunnel-failed", name, err)
	}
	l.readTunnels(ctx)
	in.Tunnels = l.facts
	in = l.poll(in)
	l.out = l.desire(in)
	return in, true
}

// applyGuard sets the secure namespace and looks, once in a resync, whether all
// of it is as it was set.
func (l *loop) applyGuard(ctx context.Context) {
	if l.guard == nil || l.guarded.still(l.now(), l.out.Secure) {
		return
	}
	l.guarded.forget()
	l.guardFailed, l.routeFailed = false, map[secure.Route]bool{}
	if err := l.guard.Set(ctx, l.out.Secure); err != nil {
		for _, e := range flatten(err) {
			var route *secure.RouteError
			if errors.As(e, &route) {
				l.routeFailed[route.Route] = true
			} else if !errors.Is(e, secure.ErrForeignLink) {
				l.guardFailed = true
			}
		}
		l.failAll("secure-failed", secureNetns, err)
		return
	}
	// A foreign link is reported and nothing else is done about it. It
	// opens no way out: routes of peers lead to tunnel devices, everything
	// else is unreachable. What must not happen is that the agent answers
	// with something less safe, such as moving a network elsewhere.
	if !l.now().Before(l.verifiedAt.Add(resync)) {
		if err := l.guard.Verify(ctx); err != nil {
			l.failAll("secure-drift", secureNetns, err)
			return
		}
		l.verifiedAt = l.now()
	}
	l.guarded.note(l.now(), l.out.Secure)
}

// applyOverlay makes the networks.
func (l *loop) applyOverlay(ctx context.Context) {
	if l.synced.still(l.now(), l.out.Networks) {
		return
	}
	l.synced.forget()
	ops, err := l.overlay.Sync(ctx, l.out.Networks)
	if len(ops) > 0 {
		l.log.Debug("overlay networks changed", logkey.Count, len(ops))
	}
	if err == nil {
		l.synced.note(l.now(), l.out.Networks)
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
	l.claims.note(l.identity.ID, l.out.Record)
	if !l.released() {
		return // stepClaims sees to it, and the next turn publishes
	}
	l.previous = l.out.Record
	l.gossip.Publish(l.out.Record)
}

// save writes what the next agent must know, when it has changed.
func (l *loop) save() {
	now := applied{
		Schema: appliedSchema, Node: l.identity.ID,
		Secure: l.out.Secure, Networks: l.out.Networks, Record: l.out.Record, Paths: l.keptPaths(),
	}
	for _, p := range l.facts.Plan.Pairs {
		now.Pairs = append(now.Pairs, appliedPair{Peer: p.Peer, Epoch: p.Epoch, Key: p.Key, Hybrid: l.rot.hybrid[p.Key]})
	}
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
