package rotate

import (
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// expired reports whether the pair gives an epoch up, whatever it still needs it
// for.
func (p *pair) expired(m *Machine, e ids.Epoch) bool {
	at, ok := p.expiry(m, e)
	return ok && !m.observed.Before(at)
}

// expiry returns when the pair gives an epoch up; false if it has no successor.
// That is HoldDown after a successor began on this node, and never while the peer
// gives signs of life: a node that lives and cannot follow, because it lacks a
// driver, say, keeps its tunnel, and everybody is told. But if the epoch is in the
// way of the target, life does not count: members that will not follow must not
// keep others from new keys for ever.
func (p *pair) expiry(m *Machine, e ids.Epoch) (at time.Time, ok bool) {
	at, ok = m.outlived(e)
	if life := p.talk.contact.Add(m.t.HoldDown); ok && !p.talk.contact.IsZero() && life.After(at) && !m.inTheWay(e) {
		at = life
	}
	return at, ok
}

// inTheWay reports whether an epoch is the one that has to end before this node
// has room for the target.
func (m *Machine) inTheWay(e ids.Epoch) bool {
	return len(m.devices) >= MaxEpochs && m.device(m.target) == nil && e == m.devices[0].Epoch
}

// nudges is how often within HoldDown a pair that holds an outlived epoch asks
// for a sign of life. A pair that waits has nothing to say by itself.
const nudges = 16

// nudge reports whether to ask the peer for a sign of life now: to repeat what
// it knows already, which it answers.
func (p *pair) nudge(now time.Time, m *Machine, plan *planner) bool {
	if p.talk.contact.IsZero() || len(p.legs) == 0 {
		return false // what is not acknowledged is repeated anyway
	}
	if _, outlived := m.outlived(p.legs[0].epoch); !outlived {
		return false
	}
	last := p.talk.contact
	if p.talk.nudged.After(last) {
		last = p.talk.nudged
	}
	if next := last.Add(m.t.HoldDown / nudges); now.Before(next) {
		plan.wake(next)
		return false
	}
	p.talk.nudged = now
	return true
}
