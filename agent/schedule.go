package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// echoInterval is how often an ESP tunnel is asked for a sign of life: ESP has
// no handshakes that would tell.
const echoInterval = 30 * time.Second

// schedule starts what is due by time or by counters: the next rotation, and
// echoes through tunnels that give no other sign of life.
func (l *loop) schedule(ctx context.Context) {
	if l.gone(l.identity.ID) {
		return
	}
	// What nobody asked for waits until the clock is right again: this node's issuer
	// would date the epoch ahead, and nodes with right clocks would not take it.
	if at, ok := l.nextRotation(); ok && !l.now().Before(at) && l.rot.askAfter.Before(l.now()) && l.clock.Settled() {
		l.ask(ctx, item.ReasonScheduled, askPause)
	}
	if l.autoDue() && l.rot.askAfter.Before(l.now()) && l.clock.Settled() {
		l.ask(ctx, item.ReasonDriver, askPause)
	}
	if l.worn() && l.rot.askAfter.Before(l.now()) {
		l.ask(ctx, item.ReasonLimit, askPause)
	}
	fresh := l.standings[l.identity.ID].standing < expired // else no peer agrees on anything with this node
	if fresh && l.facts.setBack(l.now(), l.identity.ID, l.target.Epoch, l.rot.routes) && l.rot.askAfter.Before(l.now()) {
		// New devices have new keys, of which no peer has seen a later date. The
		// session that is there lives long enough for that, and nothing is lost.
		l.ask(ctx, item.ReasonClock, askSoon)
	}
	for id, e := range l.rot.routes {
		d, ok := l.facts.device(e)
		if !ok || !d.Wire.ESP() || l.now().Sub(l.rot.echoTried[id]) < echoInterval {
			continue
		}
		l.rot.echoTried[id] = l.now()
		l.startEcho(ctx, id, d.Name)
	}
}

// worn reports whether a key of the target epoch has been used as much as a key
// may be.
func (l *loop) worn() bool {
	d, ok := l.facts.device(l.target.Epoch)
	if !ok || !d.Wire.ESP() {
		return false // WireGuard makes new session keys by itself
	}
	over := func(n, limit uint64) bool { return limit > 0 && n >= limit }
	return slices.ContainsFunc(d.Peers, func(p tunnel.PeerState) bool {
		return over(p.TxPackets, l.cfg.Keys.ESPMaxPackets) || over(p.TxBytes, l.cfg.Keys.ESPMaxBytes) || over(p.RxBytes, l.cfg.Keys.ESPMaxBytes)
	})
}

// ask asks for the epoch after the present one, and again after a pause if it is
// not granted.
func (l *loop) ask(ctx context.Context, reason item.Reason, pause time.Duration) {
	after, driver := l.target.Epoch, l.nextDriver()
	l.rot.askAfter = l.now().Add(pause)
	l.work(ctx, func(ctx context.Context) func(*loop) {
		_, err := l.rot.pairs.Rotate(ctx, after, driver, reason)
		return func(l *loop) {
			if err != nil {
				l.log.Warn("next key epoch not requested", logkey.Reason, reason.String(), logkey.Error, err)
				return
			}
			l.rot.askAfter = time.Time{} // the pause is for requests that were not granted
		}
	})
}

// The time between two requests for an epoch that were not granted: of those that
// can wait, and of one that has a minute before tunnels fall silent.
const (
	askPause = time.Minute
	askSoon  = 10 * time.Second
)

// startEcho asks for a sign of life through a tunnel.
func (l *loop) startEcho(ctx context.Context, id ids.NodeID, device string) {
	from, to := l.identity.ID.InnerAddr(), id.InnerAddr()
	l.work(ctx, func(ctx context.Context) func(*loop) {
		err := l.echo(ctx, device, from, to, smallProbe, 1)
		return func(l *loop) {
			if err == nil {
				l.rot.echoes[id] = l.now()
			}
		}
	})
}

// Rotate implements api.Keys.
func (a *Agent) Rotate(ctx context.Context, req api.RotateRequest) (api.Rotation, error) {
	var r api.Rotation
	var err error
	if doErr := a.do(ctx, func(ctx context.Context, l *loop) { r, err = l.planRotation(ctx, req) }); doErr != nil {
		return r, doErr
	}
	if err != nil || req.DryRun || !r.Created.IsZero() {
		return r, err
	}
	pairs, err := a.pairsNow(ctx)
	if err != nil {
		return r, err
	}
	target, err := pairs.Rotate(ctx, r.From, r.Driver, item.ReasonManual)
	if err != nil {
		return r, rotateError(err)
	}
	r.To, r.Driver, r.Created = target.Epoch, target.Driver, target.Created
	return r, nil
}

func (a *Agent) pairsNow(ctx context.Context) (p pairs, err error) {
	err = a.do(ctx, func(_ context.Context, l *loop) { p = l.rot.pairs })
	return p, err
}

// rotateError says what to do about a rotation that was not granted.
func rotateError(err error) error {
	switch {
	case errors.Is(err, membership.ErrNoIssuer):
		return typed(api.CodeRefused, err, "no node with an issuer key can be reached to sign the next epoch: "+err.Error(),
			"start the agent on the node where the cluster was initialised")
	case errors.Is(err, membership.ErrTooSoon):
		return typed(api.CodeRefused, err, "the last rotation was just now: "+err.Error(), "wait, or lower keys.min_interval on the issuer")
	case errors.Is(err, context.DeadlineExceeded):
		return typed(api.CodeTimeout, err, "the issuer did not answer in time", "secure-overlay members")
	default:
		return err
	}
}

// planRotation says what a rotation would do, or why it may not be asked for
// here: a node that cannot follow should not send others ahead.
func (l *loop) planRotation(ctx context.Context, req api.RotateRequest) (api.Rotation, error) {
	if !l.here.AnyEncrypted() {
		return api.Rotation{}, api.NewError(api.CodeRefused, "this node has no encrypted network, so it has no keys to rotate",
			"run the command on a node that has one")
	}
	driver, why := req.Driver, ""
	if driver == "" && !item.Automatic(l.target.Driver) {
		driver = l.target.Driver
	}
	if driver == "" || driver == config.DriverAuto {
		driver, why = autoDriver(l.candidates())
	}
	c := l.tunnels.choose(ctx, l.cfg, driver)
	if c.name == "" {
		return api.Rotation{}, api.NewError(api.CodeRefused, "this node cannot make a tunnel device for the next epoch: "+c.unable,
			"secure-overlay doctor; or choose another --driver")
	}
	if r, ok := l.underWay(driver); ok && !req.DryRun {
		return r, nil
	}
	r := api.Rotation{Schema: api.Schema, From: l.target.Epoch, To: l.target.Epoch + 1, Driver: driver, DryRun: req.DryRun}
	if why != "" {
		r.Effects = append(r.Effects, "driver auto is "+why)
	}
	r.Effects = append(r.Effects, fmt.Sprintf("this node makes a device of epoch %d with driver %s", r.To, label(c.name)))
	for _, g := range l.facts.Plan.Progress {
		if g.Tx == 0 || g.Tx != l.target.Epoch {
			r.Effects = append(r.Effects, fmt.Sprintf("node %s is not on epoch %d yet: %s", l.shown(g.Peer), l.target.Epoch, g.Reason))
		}
	}
	for _, m := range l.gossip.Snapshot().Members {
		if !m.State.Live() && m.ID != l.identity.ID && len(m.Record.Tunnels) > 0 {
			r.Effects = append(r.Effects, fmt.Sprintf("node %s is %s: it keeps its present epoch until it is back", l.shown(m.ID), m.State))
		}
	}
	if driver == config.DriverWireGuard || driver == config.DriverIPsec {
		r.Effects = append(r.Effects, "a node whose kernel lacks "+label(driver)+" stays on its present epoch")
	}
	return r, nil
}

// joinWindow is how long a request joins a rotation that has just begun. Two
// operators who ask at once mean one rotation, although one of them is heard
// first; but one that hangs must not keep the next from being asked for.
const joinWindow = 10 * time.Second

// underWay returns the rotation that has begun just now and has not ended here.
func (l *loop) underWay(driver string) (api.Rotation, bool) {
	if l.rot.targetAt.IsZero() || l.now().Sub(l.rot.targetAt) > joinWindow || driver != l.target.Driver || l.target.Epoch < 2 {
		return api.Rotation{}, false
	}
	_, ended := l.facts.device(l.target.Epoch)
	moving := 0 // pairs that both have the epoch; others may wait for long
	for _, g := range l.facts.Plan.Progress {
		if g.Goal == l.target.Epoch {
			moving++
			ended = ended && g.Step == rotate.StepDone
		}
	}
	ended = ended && (moving > 0 || len(l.facts.Plan.Progress) == 0)
	return api.Rotation{
		Schema: api.Schema, From: l.target.Epoch - 1, To: l.target.Epoch, Driver: l.target.Driver, Created: l.target.Created,
		Effects: []string{fmt.Sprintf("a rotation to epoch %d has begun just now: this request is part of it", l.target.Epoch)},
	}, !ended
}

// shown is a node's name and short ID.
func (l *loop) shown(id ids.NodeID) string {
	if n := l.nameOf(id).Name; n != "" {
		return n + " (" + id.Short() + ")"
	}
	return id.Short()
}
