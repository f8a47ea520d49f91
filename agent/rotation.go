package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// pairs is how the loop talks to single members; *membership.Cluster.
type pairs interface {
	Pair(ctx context.Context, to ids.NodeID, msg []byte) ([]byte, error)
	Agree(ctx context.Context, to ids.NodeID, req []byte) (resp []byte, secret keys.TunnelSecret, hybrid bool, err error)
	Rotate(ctx context.Context, after ids.Epoch, driver string, reason item.Reason) (item.Target, error)
	Revoke(ctx context.Context, r item.Revocation) (item.Revocation, error)
}

// prober sends an echo through a device; *secure.Prober.
type prober interface {
	Probe(ctx context.Context, device string, from, to netip.Addr, size int) error
}

// pairTimeout bounds one exchange with a peer.
const pairTimeout = 10 * time.Second

// rotation is what the loop keeps of the rotation machine's work. Secrets are
// here from their agreement until the kernel has them, and nowhere else.
type rotation struct {
	machine *rotate.Machine
	pairs   pairs
	prober  prober
	held    map[heldKey]Held
	// hybrid says of a key whether its agreement had a post-quantum part. It
	// outlives a restart in applied.json, since no kernel knows it.
	hybrid map[keys.KeyID]bool
	routes map[ids.NodeID]ids.Epoch // as the secure namespace has them
	set    rotate.Plan              // what the drivers were set to last
	todo   todo
	hot    int // turns in a row that followed each other at once
	flying flights
	forms  forms

	switched  map[ids.NodeID]switched
	echoes    map[ids.NodeID]time.Time // when an echo last came back through a pair's tunnel
	echoTried map[ids.NodeID]time.Time // when it was asked for
	since     map[ids.Epoch]time.Time  // when this agent first saw a device

	targetAt   time.Time // when this node heard of the target; zero: before it started
	toldTarget ids.Epoch // the target that was told last
	toldUnable toldCause // why an epoch cannot be followed, as told last
	askAfter   time.Time // no request for an epoch before
	otherSince time.Time // since when another driver than the target's is best for all; zero: it is not
	counts     api.KeyCounts
}

// switched is when a pair's route moved last.
type switched struct {
	to ids.Epoch
	at time.Time
}

// todo is what the machine asked for in a turn. Each is asked for once.
type todo struct {
	agree []rotate.Wanted
	probe []rotate.Probe
	send  []rotate.Outgoing
}

// poll shows the machine what there is and takes its plan.
func (l *loop) poll(in Input) Input {
	now := l.now()
	l.rot.machine.Observe(now, in.observe(l.out, rotate.Observation{
		Target: l.target.Epoch, Unable: l.unable, Partial: !l.holdUntil.IsZero(), Routes: l.rot.routes,
		Expelled: l.expelled(),
	}))
	plan := l.rot.machine.Poll(now)
	l.rot.todo.agree = append(l.rot.todo.agree, plan.Agree...)
	l.rot.todo.probe = append(l.rot.todo.probe, plan.Probe...)
	l.rot.todo.send = append(l.rot.todo.send, plan.Send...)
	l.facts.Plan = plan
	l.forget()
	in.Tunnels = l.facts
	return in
}

// forget wipes secrets that the kernel has by now, and those of pairs that the
// machine has given up. From here on only the kernel, or a worker process, knows
// them.
func (l *loop) forget() {
	for k, h := range l.rot.held {
		wanted := false
		for _, p := range l.facts.Plan.Pairs {
			wanted = wanted || p.Peer == k.Peer && p.Epoch == k.Epoch && p.Key == h.Key
		}
		have, ok := l.facts.installed(k.Peer, k.Epoch)
		installed := ok && have.Key == h.Key && (h.Out == 0 || have.Out != 0)
		if wanted && !installed {
			continue
		}
		h.Secret.Wipe()
		delete(l.rot.held, k)
	}
	keep := map[keys.KeyID]bool{}
	for _, p := range l.facts.Plan.Pairs {
		keep[p.Key] = true
	}
	for _, h := range l.rot.held {
		keep[h.Key] = true
	}
	maps.DeleteFunc(l.rot.hybrid, func(k keys.KeyID, _ bool) bool { return !keep[k] })
	maps.DeleteFunc(l.rot.forms.passed, func(k keys.KeyID, _ bool) bool { return !keep[k] })
}

// settled reports whether carrying out plan a again would do for b.
func settled(a, b rotate.Plan) bool {
	return reflect.DeepEqual(a.Devices, b.Devices) && reflect.DeepEqual(a.Pairs, b.Pairs)
}

// maxHot bounds turns without a pause, so that a machine and a kernel that
// disagree for ever cost a fraction of a core, not all of it.
const maxHot = 20

// follow ends a turn: the machine sees what the turn has made of its plan, and
// what it asks for is started. It returns when the next turn is due at the
// latest.
func (l *loop) follow(ctx context.Context, in Input) time.Duration {
	l.noteRoutes()
	l.noteTarget()
	l.noteDevices()
	in = l.poll(in)
	l.lastIn = in
	l.noteSwitches()
	l.noteForms()
	l.startAll(ctx, in)
	l.watchPaths(ctx)
	l.schedule(ctx)
	claims := l.stepClaims(ctx)
	if !settled(l.rot.set, l.facts.Plan) && l.rot.hot < maxHot {
		l.rot.hot++
		return 0
	}
	l.rot.hot = 0
	next := resync
	if w := l.facts.Plan.Wake; !w.IsZero() {
		next = min(next, max(w.Sub(l.now()), time.Millisecond))
	}
	if !claims.IsZero() {
		next = min(next, max(claims.Sub(l.now()), time.Millisecond))
	}
	return next
}

// noteSwitches remembers and tells when a pair's route moved.
func (l *loop) noteSwitches() {
	for _, g := range l.facts.Plan.Progress {
		was := l.rot.switched[g.Peer]
		if g.Tx == was.to {
			continue
		}
		l.rot.switched[g.Peer] = switched{to: g.Tx, at: l.now()}
		if l.round == 1 {
			continue // it was so before this agent
		}
		switch {
		case g.Tx == 0:
			l.log.Warn("pair has no tunnel any more", logkey.Node, g.Peer, logkey.Reason, g.Reason)
		case was.to == 0:
			l.log.Info("pair is connected", logkey.Node, g.Peer, logkey.Epoch, g.Tx)
		default:
			l.log.Info("pair switched its epoch", logkey.Node, g.Peer, logkey.Epoch, g.Tx, logkey.Former, was.to)
			l.rot.counts.Switches++
			if !l.rot.targetAt.IsZero() {
				l.rot.counts.SwitchSeconds += l.now().Sub(l.rot.targetAt).Seconds()
			}
		}
		l.note(switchEvent(l, g, was))
	}
}

// epochProblems says why this node is not where the cluster wants its keys.
func (l *loop) epochProblems() []api.Problem {
	if len(l.facts.Devices) == 0 {
		return nil // then the networks say what is wrong
	}
	if l.unable != "" {
		return []api.Problem{{
			Code: "epoch-refused", Subject: epochText(l.target.Epoch),
			Message: fmt.Sprintf("this node cannot follow the cluster to key epoch %d and stays on its present keys: %s", l.target.Epoch, l.unable),
			Fix:     "secure-overlay doctor; or rotate to a driver that every node has: secure-overlay keys rotate --driver auto",
		}}
	}
	out := l.blockedESP()
	if why := l.facts.Plan.Blocked; why != "" && !l.facts.Plan.Pausing {
		out = append(out, api.Problem{Code: "epoch-blocked", Subject: epochText(l.target.Epoch), Message: why, Fix: "secure-overlay keys status"})
	}
	return out
}

// startAll starts what the machine asked for, each in a goroutine that posts
// its result to the loop.
func (l *loop) startAll(ctx context.Context, in Input) {
	do := l.rot.todo
	l.rot.todo = todo{}
	for _, w := range do.agree {
		l.startAgree(ctx, in, w)
	}
	for _, p := range do.probe {
		l.startProbe(ctx, p)
	}
	for _, s := range do.send {
		l.startSend(ctx, s)
	}
}

// work runs fn in a goroutine that ends with the loop, and its result in the
// loop, which then takes a turn.
func (l *loop) work(ctx context.Context, fn func(ctx context.Context) func(*loop)) {
	l.workOr(ctx, fn, func() {})
}

// workOr is work for results that hold something: if the loop has ended, drop
// runs instead.
func (l *loop) workOr(ctx context.Context, fn func(ctx context.Context) func(*loop), drop func()) {
	l.workers.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, pairTimeout)
		defer cancel()
		result := fn(ctx)
		select {
		case l.posts <- result:
		case <-l.ended:
			drop()
		}
	})
}

// startSend tells a peer where this node stands, and takes its answer.
func (l *loop) startSend(ctx context.Context, s rotate.Outgoing) {
	if !l.rot.flying.begin(flight{peer: s.To}) {
		l.rot.flying.wait(s)
		return
	}
	raw := s.Message.Encode()
	l.work(ctx, func(ctx context.Context) func(*loop) {
		ctx, cancel := context.WithTimeout(ctx, sendTimeout)
		defer cancel()
		answer, err := l.rot.pairs.Pair(ctx, s.To, raw)
		var msg rotate.Message
		if err == nil {
			msg, err = rotate.ParseMessage(answer)
		}
		return func(l *loop) {
			l.rot.flying.end(flight{peer: s.To})
			l.rot.todo.send = append(l.rot.todo.send, l.rot.flying.waited(s.To)...)
			if err != nil {
				l.log.Debug("peer not told", logkey.Node, s.To, logkey.Error, err)
				return
			}
			l.rot.machine.Receive(l.now(), s.To, msg)
		}
	})
}

// Pair answers a peer's message; it is membership's handler.
func (a *Agent) pair(ctx context.Context, from ids.NodeID, raw []byte) (answer []byte, err error) {
	msg, err := rotate.ParseMessage(raw)
	if err != nil {
		return nil, err
	}
	doErr := a.do(ctx, func(_ context.Context, l *loop) {
		news := l.rot.machine.Receive(l.now(), from, msg)
		reply, ok := l.rot.machine.Answer(l.now(), from)
		if !ok {
			err = fmt.Errorf("answer node %s: no tunnel with it is wanted here", from)
			return
		}
		answer, l.soon = reply.Encode(), l.soon || news
	})
	if doErr != nil {
		return nil, doErr
	}
	return answer, err
}
