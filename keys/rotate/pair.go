package rotate

import (
	"cmp"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// pair is what a node knows about itself and one peer.
type pair struct {
	peer    ids.NodeID
	listed  bool     // a tunnel is wanted; false: kept as found after a restart
	asks    bool     // this node is the lower one, so it asks for agreements
	devices []Device // the peer's, of its record

	tx   ids.Epoch // where the route leads, as observed
	goal ids.Epoch // the epoch to work towards; 0: none
	legs []leg     // ascending, at most one of an epoch
	talk talk
	ask  ask

	step  Step
	since time.Time
}

// leg is a pair in one epoch: one key, on one device at each end.
type leg struct {
	epoch        ids.Epoch
	mine, theirs uint32 // instances; theirs 0: not known yet
	key          keys.KeyID
	since        time.Time // agreed on, or adopted

	installed bool // as observed, with this key
	seen      bool // installed was true once, so the secret is nowhere else
	sends     bool // the sending half, as observed
	forms     bool // as observed: a key in another form may work where this one does not
	gone      bool // not wanted any more, for good; kept until it has left the device
	send      bool // the sending half is wanted
	proved    bool // a probe came through, full enough

	// shared is since when both nodes are known to have it, of legs with forms.
	shared time.Time

	probe probing
	rx    uint64    // bytes received
	rxAt  time.Time // since when they are as many
	drain time.Time // since when both sides send elsewhere; zero: they do not
}

// probing is what is known from probes of a leg.
type probing struct {
	retry       retry
	small, full bool // ever came back
}

// leg returns the live leg of an epoch, nil if there is none.
func (p *pair) leg(e ids.Epoch) *leg {
	for i := range p.legs {
		if p.legs[i].epoch == e && !p.legs[i].gone {
			return &p.legs[i]
		}
	}
	return nil
}

// put sets the leg of an epoch.
func (p *pair) put(l leg) {
	i, found := slices.BinarySearchFunc(p.legs, l.epoch, func(l leg, e ids.Epoch) int { return cmp.Compare(l.epoch, e) })
	if found {
		p.legs[i] = l
		return
	}
	p.legs = slices.Insert(p.legs, i, l)
}

// observe brings the legs in line with what the devices hold. A key that was
// installed and is not any more has been removed by somebody: its secret is
// gone, so the leg is. A key that no leg knows is adopted, with its sending
// half as it is.
func (p *pair) observe(now time.Time, installed []Installed, route ids.Epoch) {
	p.tx = route
	for i := range p.legs {
		p.legs[i].installed, p.legs[i].sends = false, false
	}
	for _, in := range installed {
		if in.Key == 0 || in.Instance == 0 {
			continue // a WireGuard peer without a preshared key, say: none of ours
		}
		i := slices.IndexFunc(p.legs, func(l leg) bool { return l.epoch == in.Epoch })
		if i < 0 {
			// A route that leads here was moved here by an earlier process,
			// after both proofs.
			p.put(leg{epoch: in.Epoch, mine: in.Instance, key: in.Key, since: now, send: in.Sends, proved: route == in.Epoch})
			i = slices.IndexFunc(p.legs, func(l leg) bool { return l.epoch == in.Epoch })
		}
		if l := &p.legs[i]; l.key == in.Key {
			l.observe(now, in)
		}
	}
	p.legs = slices.DeleteFunc(p.legs, func(l leg) bool { return !l.installed && (l.seen || l.gone) })
}

func (l *leg) observe(now time.Time, in Installed) {
	if !l.seen || l.rx != in.RxBytes {
		l.rx, l.rxAt = in.RxBytes, now
	}
	if l.theirs == 0 {
		l.theirs = in.Theirs
	}
	l.installed, l.seen, l.sends, l.forms = true, true, in.Sends, in.Forms
}

// matches reports whether what the peer says about an epoch is about this
// leg. The key is bound to both instances; they are compared where known.
func (l *leg) matches(s EpochState) bool {
	return s.Epoch == l.epoch && s.Key == l.key &&
		(l.theirs == 0 || s.Mine == l.theirs) && (s.Yours == 0 || s.Yours == l.mine)
}

// heard returns what the peer says about this very leg; false: it does not
// have it.
func (p *pair) heard(l *leg) (EpochState, bool) {
	s, ok := p.talk.heardEpoch(l.epoch)
	return s, ok && l.matches(s)
}

// ready reports whether both sides receive on l.
func (p *pair) ready(l *leg) bool {
	_, listed := p.heard(l)
	return l.installed && listed
}

// inUse reports whether the key of l must not be replaced: both sides have
// it. If the peer may be sending under it, it has proved it, which takes
// that this node heard it list the key; a newer message without the key
// means that the peer has lost it since.
//
// A leg with forms may be asked for anew while both have it, so a request may
// still be under way when the two have moved there and the node that is asked
// has been restarted. That node knows nothing then; until the peer has spoken
// to this very process, the key counts as in use.
func (p *pair) inUse(m *Machine, l *leg) bool {
	if l.forms && l.installed && !p.talk.heardBy(m.boot) {
		return true
	}
	pause := m.t.Unproved
	if !p.asks {
		// The asking node has waited; half the pause is enough to see that it
		// has, with another clock and later news.
		pause /= 2
	}
	return p.ready(l) && !p.stale(m, l, pause)
}

// unproved reports whether both sides have l and no probe of either has come
// back, as far as is known, and another key may do better. Nobody sends on
// such a leg but probes. For a node moves its route to it only when it has
// proved it, which it remembers, and when the peer has said so, too. This node
// has not said so since it was started. What an earlier process of it said
// counts no more with the peer once that has spoken to this one (heardBy): if
// it had moved by then, it would say that it has proved the leg.
//
// The asking node wants to have seen two probes fail, too: on a machine that is
// too busy to probe, a pause says nothing about the way.
func (p *pair) unproved(m *Machine, l *leg) bool {
	theirs, listed := p.heard(l)
	if p.asks && l.probe.retry.pause < 2*m.t.RetryMin {
		return false
	}
	return l.forms && l.installed && listed && !l.proved && !l.probe.small && !theirs.Proved && p.talk.heardBy(m.boot)
}

// stale reports whether l was unproved for so long that a key in another form
// may take its place.
func (p *pair) stale(m *Machine, l *leg, pause time.Duration) bool {
	return p.unproved(m, l) && !l.shared.IsZero() && !m.observed.Before(l.shared.Add(pause))
}

// clock notes since when both sides have a leg.
func (p *pair) clock(now time.Time, l *leg) {
	switch {
	case !l.forms || !p.ready(l):
		l.shared = time.Time{}
	case l.shared.IsZero():
		l.shared = now
	}
}

// agreed makes a the key of its epoch, unless the key there is in use.
func (p *pair) agreed(now time.Time, m *Machine, a Agreement) bool {
	if l := p.leg(a.Epoch); l != nil && (l.key == a.Key || p.inUse(m, l)) {
		return false
	}
	p.put(leg{epoch: a.Epoch, mine: a.Mine, theirs: a.Theirs, key: a.Key, since: now})
	return true
}

// state is what this node says about the pair: only what is installed is
// announced, so that nobody sends before this node receives.
func (p *pair) state() state {
	s := state{tx: p.tx}
	for i := range p.legs {
		if l := &p.legs[i]; l.installed && !l.gone {
			s.epochs = append(s.epochs, EpochState{
				Epoch: l.epoch, Mine: l.mine, Yours: l.theirs, Key: l.key, Proved: l.proved,
			})
		}
	}
	if over := len(s.epochs) - MaxEpochs; over > 0 {
		s.epochs = s.epochs[over:] // more devices than ever were planned
	}
	return s
}

// probed takes the result of a probe of this leg.
func (l *leg) probed(now time.Time, t Timing, r ProbeResult) {
	l.probe.small = l.probe.small || r.Small
	l.probe.full = l.probe.full || r.Small && r.Full
	l.probe.retry.tried(now, t)
}
