package rotate

import "time"

// ask is what the lower node of a pair does about a missing secret.
type ask struct {
	wanted Wanted
	retry  retry
}

// missing returns the secret that the pair lacks for its goal, and since when
// it may be asked for; false if it lacks none. That is so if there is no key
// for the two devices, or if the peer knows that this node has the key and does
// not have it itself: then its half is lost, and only a new key helps. A
// pause gives it the time to install it. And it is so if both have it, it has
// stayed unproved for a pause, and another form may do better.
func (p *pair) missing(m *Machine) (w Wanted, from time.Time, ok bool) {
	mine, theirs := m.device(p.goal), find(p.devices, p.goal)
	if p.goal == 0 || !p.asks || mine == nil || theirs == nil {
		return Wanted{}, time.Time{}, false
	}
	w = Wanted{Peer: p.peer, Epoch: p.goal, Mine: mine.Instance, Theirs: theirs.Instance}
	l := p.leg(p.goal)
	switch {
	case l == nil:
		return w, time.Time{}, true
	case !l.installed:
		// A secret that no device takes for so long is not going to work.
		return w, l.since.Add(m.t.RetryMax), true
	case !p.ready(l) && p.talk.known(m.boot, p.state()):
		return w, l.since.Add(m.t.RetryMin), true
	case p.unproved(m, l) && !l.shared.IsZero():
		return w, l.shared.Add(m.t.Unproved), true
	}
	return Wanted{}, time.Time{}, false
}

// askFor adds the secret that is due now to plan.
func (p *pair) askFor(now time.Time, m *Machine, plan *planner) {
	w, from, ok := p.missing(m)
	if !ok {
		// A key that may be replaced soon ends no series of attempts: where no
		// form passes, they become rarer.
		if l := p.leg(p.goal); l != nil && p.ready(l) && (l.proved || !l.forms) {
			p.ask = ask{}
		}
		return
	}
	if p.ask.wanted != w {
		p.ask = ask{wanted: w}
	}
	if p.ask.retry.next.After(from) {
		from = p.ask.retry.next
	}
	if now.Before(from) {
		plan.wake(from)
		return
	}
	plan.Agree = append(plan.Agree, w)
	p.ask.retry.next = now.Add(m.t.RetryMax) // AgreeFailed and Agreed bring it forward
	plan.wake(p.ask.retry.next)
}
