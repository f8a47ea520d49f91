package rotate

import (
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// others are what a node's pairs with third parties want of it at one turn. In a
// world of two nodes they may want anything, at any turn, so such a world stands for
// the pair in any world of any number of nodes (TestOthersCoverThird).
type others struct {
	legs   uint8 // bit e: a pair has a leg of epoch e, or works towards it
	missed uint8 // a peer that is full of epochs has this one as its newest; 0: none
}

func (o op) others() others { return others{uint8(o.arg), o.e} }

// poll is Poll of a machine that has such pairs. They are there for this call only,
// because a pair has nothing to do with another but by the devices.
func (o others) poll(now time.Time, m *Machine) Plan {
	if o == (others{}) {
		return m.Poll(now)
	}
	// A pair that is kept as it was found keeps its legs without conditions.
	holder, full := simID(simNodes), simID(simNodes+1)
	p := &pair{peer: holder}
	for _, d := range m.devices {
		if o.legs>>d.Epoch&1 != 0 {
			p.legs = append(p.legs, leg{epoch: d.Epoch, mine: d.Instance, installed: true})
		}
	}
	m.pairs[holder] = p
	if n := len(m.devices); o.missed != 0 && n > 0 {
		m.pairs[full] = &pair{
			peer: full, listed: true, talk: talk{contact: now}, // it lives, so it has not expired
			devices: []Device{{}, {}, {ids.Epoch(o.missed), 1, m.devices[n-1].Wire}},
		}
	}
	plan := m.Poll(now)
	delete(m.pairs, holder)
	delete(m.pairs, full)
	plan.Pairs = slices.DeleteFunc(plan.Pairs, func(p Pair) bool { return p.Peer == holder })
	plan.Send = slices.DeleteFunc(plan.Send, func(s Outgoing) bool { return s.To == full })
	return plan
}

// loops calls f with a turn of a node for each thing that others may want, but for
// what makes no difference. Others' legs are on devices that exist; what would stay
// anyway need not be wanted (TestOthersMatterWhereDevicesGo). A peer that is full of
// epochs has MaxEpochs of them, all below the target.
func (u *universe) loops(node uint32, act action, f func(action)) {
	f(act)
	if !u.others {
		return
	}
	n := u.node(node).simNode
	after := u.node(u.do(node, act.loopOp()).node).simNode
	gone := n.dev.live() &^ after.dev.live()
	for missed := uint8(0); missed < n.target; missed++ {
		if missed != 0 && (missed < MaxEpochs || n.dev[missed].inst != 0) {
			continue
		}
		for legs := gone; ; legs = (legs - 1) & gone {
			if legs != 0 || missed != 0 {
				act.b, act.e = legs, missed
				f(act)
			}
			if legs == 0 {
				break
			}
		}
	}
}

// live is the set of epochs with a device, one bit each.
func (r simRecord) live() (set uint8) {
	for e, d := range r {
		if d.inst != 0 {
			set |= 1 << e
		}
	}
	return set
}

// loopOp is what a turn does to a node.
func (a action) loopOp() op {
	kind := opLoop
	if a.kind != actLoop {
		kind = opLoopPart
	}
	return op{kind: kind, x: a.x, e: a.e, arg: uint64(a.b)}
}

// settleTurns is after how many turns a node counts as at rest, anyway. The machine
// needs fewer; some mutants never rest.
const settleTurns = 12

// settleOthers calls f with each world in which node i may come to rest, whatever
// others want at each of its turns.
func (u *universe) settleOthers(w world, i int, f func(world, error)) {
	seen := []world{w}
	for turn, from := 0, 0; from < len(seen); turn++ {
		level := seen[from:]
		from = len(seen)
		for _, w := range level {
			rests, end := turn == settleTurns, w
			u.loops(w.node[i], action{}, func(act action) {
				next := w
				err := u.loopNode(&next, i, act.loopOp())
				switch {
				case err != nil:
					f(next, err)
				case next.node[i] == w.node[i]:
					rests, end = true, next // what it repeats is under way
				case turn < settleTurns && !slices.Contains(seen, next):
					seen = append(seen, next)
				}
			})
			if rests {
				f(end, nil)
			}
		}
	}
}
