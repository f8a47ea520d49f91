package rotate

import (
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// planner collects a Plan.
type planner struct {
	Plan
	now time.Time
}

// wake makes the plan's Wake t at the latest; zero is no time.
func (pl *planner) wake(t time.Time) {
	if t.IsZero() {
		return
	}
	if !t.After(pl.now) {
		t = pl.now // due, but it needs a newer Observation: observe at once
	}
	if pl.Wake.IsZero() || t.Before(pl.Wake) {
		pl.Wake = t
	}
}

// Poll returns what this node wants at now. It panics if nothing was observed
// yet: such a plan would remove everything.
func (m *Machine) Poll(now time.Time) Plan {
	if m.observed.IsZero() {
		panic("rotate: Poll before Observe")
	}
	plan := &planner{now: now}
	if !m.enabled {
		return plan.Plan
	}
	pairs := m.sorted()
	for _, p := range pairs {
		p.prune(m, plan)
		p.goal = p.findGoal(m)
		if at, ok := p.expiry(m, p.goal); ok && p.goal != 0 {
			plan.wake(at)
		}
	}
	m.planDevices(now, pairs, plan)
	for _, p := range pairs {
		p.poll(now, m, plan)
	}
	return plan.Plan
}

func (m *Machine) sorted() []*pair {
	pairs := make([]*pair, 0, len(m.pairs))
	for _, p := range m.pairs {
		pairs = append(pairs, p)
	}
	slices.SortFunc(pairs, func(a, b *pair) int { return a.peer.Compare(b.peer) })
	return pairs
}

// findGoal returns the newest epoch in which both nodes have a device of one
// wire; what has expired does not count. A pair does not go back while it
// sends on something newer.
func (p *pair) findGoal(m *Machine) ids.Epoch {
	if !p.listed {
		return 0
	}
	var goal ids.Epoch
	if p.leg(p.tx) != nil {
		goal = p.tx
	}
	for _, d := range m.devices {
		theirs := find(p.devices, d.Epoch)
		if d.Epoch > goal && theirs != nil && theirs.Wire == d.Wire && !p.expired(m, d.Epoch) {
			goal = d.Epoch
		}
	}
	return goal
}

// prune gives up legs that cannot or need not work any more.
func (p *pair) prune(m *Machine, plan *planner) {
	if !p.listed {
		return
	}
	for i := range p.legs {
		l := &p.legs[i]
		if l.gone {
			continue
		}
		l.gone = p.void(m, l) || p.expired(m, l.epoch) || p.drained(m, l, plan)
		if at, ok := p.expiry(m, l.epoch); ok && !l.gone {
			plan.wake(at)
		}
	}
	p.legs = slices.DeleteFunc(p.legs, func(l leg) bool { return l.gone && !l.installed })
}

// void reports whether one of the two devices of l does not exist any more.
// A record that is older than what is installed proves nothing: after a
// restart it may come from a cache. So a device that the record lacks is
// gone only if the peer itself, in a message to this process, lacks the leg.
func (p *pair) void(m *Machine, l *leg) bool {
	mine, theirs := m.device(l.epoch), find(p.devices, l.epoch)
	switch {
	case mine == nil || mine.Instance != l.mine:
		return true
	case theirs == nil:
		_, listed := p.heard(l)
		return p.talk.heardBy(m.boot) && !listed
	}
	return theirs.Wire != mine.Wire || l.theirs != 0 && theirs.Instance > l.theirs
}

// drained reports whether nothing comes through l any more. Both sides must
// send on something newer, each by its own word: the peer's word counts only
// from a process that has heard this one, because of an earlier one it might
// be out of date.
func (p *pair) drained(m *Machine, l *leg, plan *planner) bool {
	if !l.installed || p.tx <= l.epoch || p.leg(p.tx) == nil || !p.talk.heardBy(m.boot) || p.talk.heard.Tx <= l.epoch {
		l.drain = time.Time{}
		return false
	}
	if l.drain.IsZero() {
		l.drain = m.observed
	}
	end := l.drain.Add(m.t.Drain)
	if quiet := l.rxAt.Add(m.t.Quiet); quiet.After(end) {
		end = quiet
	}
	if m.observed.Before(end) {
		plan.wake(end)
		return false
	}
	return true
}

// poll adds what p wants to plan.
func (p *pair) poll(now time.Time, m *Machine, plan *planner) {
	if !p.listed {
		p.keep(plan)
		return
	}
	for i := range p.legs {
		p.clock(now, &p.legs[i])
	}
	p.askFor(now, m, plan)
	for i := range p.legs {
		l := &p.legs[i]
		l.send = l.send || p.ready(l) // only once the peer receives
		l.proved = l.proved || l.probe.full || l.probe.small && !p.largeBefore(l)
	}
	main := p.route(m)
	for i := range p.legs {
		l := &p.legs[i]
		if l.gone {
			continue
		}
		plan.Pairs = append(plan.Pairs, Pair{
			Peer: p.peer, Epoch: l.epoch, Key: l.key, Theirs: l.theirs,
			Send: l.send, Main: l.epoch == main, Probe: l.epoch != main && l.epoch > p.tx,
			Draining: !l.drain.IsZero(), Unproved: p.stale(m, l, m.t.Unproved),
		})
		p.probe(now, m, l, plan)
	}
	s := p.state()
	if due, at := p.talk.due(now, m.boot, s); due || p.nudge(now, m, plan) {
		plan.Send = append(plan.Send, Outgoing{To: p.peer, Message: p.talk.say(now, m, s)})
		plan.wake(p.talk.retry.next)
	} else {
		plan.wake(at)
	}
	p.report(now, m, plan)
}

// keep lists what is installed for a peer that is not known yet after a
// restart, as it is.
func (p *pair) keep(plan *planner) {
	for _, l := range p.legs {
		plan.Pairs = append(plan.Pairs, Pair{
			Peer: p.peer, Epoch: l.epoch, Key: l.key, Theirs: l.theirs,
			Send: l.sends, Main: l.epoch == p.tx, Probe: l.epoch > p.tx,
		})
	}
}

// largeBefore reports whether large packets of this pair pass on an older
// epoch than that of l, as far as is known. Then small packets alone are no
// proof: a rotation must not move a pair to where large ones do not pass. If
// the older epoch swallows them as well, the underlay does, and nothing is
// lost by moving. A peer that sends on l has judged that, and it answers
// probes of the older epoch no more.
func (p *pair) largeBefore(l *leg) bool {
	if p.talk.heard.Tx == l.epoch {
		return false
	}
	large := func(tx ids.Epoch) bool {
		old := p.leg(tx)
		return old != nil && old.epoch < l.epoch && (old.probe.full || !old.probe.small)
	}
	return large(p.tx) || large(p.talk.heard.Tx)
}

// route returns the epoch to which the peer's route should lead, 0 for
// nowhere. It moves forward to the goal, or, if what it used is lost, to the
// newest leg that works.
func (p *pair) route(m *Machine) ids.Epoch {
	used := p.leg(p.tx)
	kept := used != nil && used.proved
	for i := len(p.legs) - 1; i >= 0; i-- {
		l := &p.legs[i]
		if l.gone || kept && (l.epoch <= p.tx || l.epoch != p.goal) {
			continue
		}
		if p.mayMove(m, l) {
			return l.epoch
		}
	}
	if kept {
		return p.tx
	}
	return 0
}

// mayMove reports whether the route may move to l: both sides receive, both
// have proved it, and the peer does not hold this node to an earlier word
// that it sends on something newer, upon which it may drop l.
func (p *pair) mayMove(m *Machine, l *leg) bool {
	theirs, listed := p.heard(l)
	return l.installed && l.sends && listed && l.proved && theirs.Proved &&
		p.talk.heardBy(m.boot) && p.talk.heard.AckSeq >= p.talk.backSeq && p.talk.said.Tx <= l.epoch
}

// probe adds a probe of l if one is due: of the goal until it is proved, of
// anything that works while there is no route, and of what is used until its
// whole MTU came through.
func (p *pair) probe(now time.Time, m *Machine, l *leg, plan *planner) {
	wanted := l.epoch == p.goal || p.tx == 0 || l.epoch == p.tx
	if !wanted || l.probe.full || !l.sends || !p.ready(l) {
		return
	}
	if now.Before(l.probe.retry.next) {
		plan.wake(l.probe.retry.next)
		return
	}
	plan.Probe = append(plan.Probe, Probe{Peer: p.peer, Epoch: l.epoch, Key: l.key})
	l.probe.retry.next = now.Add(m.t.RetryMax) // Probed brings it forward
	plan.wake(l.probe.retry.next)
}
