package api

import (
	"fmt"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Progress says how far a rotation to an epoch has come, as one node sees it:
// of other nodes it knows what their records say, of its own pairs everything.
type Progress struct {
	Prepared Count `json:"prepared"` // nodes that have the epoch
	Proved   Count `json:"proved"`   // pairs of this node on which packets passed both ways
	Switched Count `json:"switched"` // pairs of this node that send on it
	Finished Count `json:"finished"` // nodes that have nothing older any more
	// Waiting names who holds it up, each node once, sorted as KeyStatus is.
	Waiting []Waiting `json:"waiting"`
}

// Phase is a part of a rotation that can be counted.
type Phase string

// The phases, in order.
const (
	PhasePrepare Phase = "prepare"
	PhaseProve   Phase = "prove"
	PhaseSwitch  Phase = "switch"
	PhaseFinish  Phase = "finish"
)

// Waiting is a node that holds a rotation up.
type Waiting struct {
	NodeRef
	Phase  Phase  `json:"phase"`  // the first one in which it is missing
	Reason string `json:"reason"` // for people
	// Lost: nothing says that waiting longer helps, because the node cannot
	// be reached or has no driver in common with this one.
	Lost bool `json:"lost"`
}

// Progress computes how far the rotation to an epoch has come. A later epoch
// counts as that epoch, so that a rotation that was overtaken still ends.
func (k KeyStatus) Progress(to ids.Epoch) Progress {
	p := Progress{Waiting: []Waiting{}}
	w := waitingList{index: map[ids.NodeID]int{}}
	lost := map[ids.NodeID]bool{}
	for _, n := range k.Nodes {
		lost[n.ID] = !n.Self && n.State != "alive" && n.State != "suspect" && n.State != "indirect"
	}
	for _, n := range k.Nodes {
		p.Prepared.Total++
		if len(n.Epochs) > 0 && n.Epochs[len(n.Epochs)-1] >= to {
			p.Prepared.OK++
			continue
		}
		w.add(Waiting{n.NodeRef, PhasePrepare, k.unprepared(n, to), lost[n.ID]})
	}
	for _, q := range k.Peers {
		p.Proved.Total++
		p.Switched.Total++
		phase := PhaseProve
		if q.proved(to) {
			p.Proved.OK++
			phase = PhaseSwitch
		}
		if q.Epoch >= to {
			p.Switched.OK++
			continue
		}
		reason := q.Reason
		if reason == "" {
			reason = "step " + string(q.Step)
		}
		w.add(Waiting{q.NodeRef, phase, reason, lost[q.ID] || q.Step == KeyStepRefused})
	}
	for _, n := range k.Nodes {
		p.Finished.Total++
		switch older := slices.IndexFunc(n.Epochs, func(e ids.Epoch) bool { return e < to }); {
		case older >= 0:
			w.add(Waiting{n.NodeRef, PhaseFinish, fmt.Sprintf("still has epoch %d", n.Epochs[older]), lost[n.ID]})
		case len(n.Epochs) > 0:
			p.Finished.OK++
		}
	}
	p.Waiting = append(p.Waiting, w.list...)
	return p
}

// Done reports whether nothing is left to wait for.
func (p Progress) Done() bool {
	return len(p.Waiting) == 0
}

// Stuck reports whether only lost nodes are in the way: everyone else is
// prepared, and this node's pairs with everyone else have switched. Old
// epochs that are still there may then be there for the lost ones.
func (p Progress) Stuck() bool {
	lost := false
	for _, w := range p.Waiting {
		if !w.Lost && w.Phase != PhaseFinish {
			return false
		}
		lost = lost || w.Lost
	}
	return lost
}

// waitingList keeps the first entry of each node.
type waitingList struct {
	list  []Waiting
	index map[ids.NodeID]int
}

func (l *waitingList) add(w Waiting) {
	if i, ok := l.index[w.ID]; ok {
		l.list[i].Lost = l.list[i].Lost || w.Lost
		return
	}
	l.index[w.ID] = len(l.list)
	l.list = append(l.list, w)
}

// unprepared says why a node has no device of the epoch, as far as is known.
func (k KeyStatus) unprepared(n KeyNode, to ids.Epoch) string {
	switch {
	case n.Self && k.Blocked != "":
		return k.Blocked
	case !n.Self && n.State != "alive" && n.State != "indirect":
		return "not reachable (" + n.State + ")"
	}
	return fmt.Sprintf("has no device of epoch %d yet", to)
}

// proved reports whether packets passed the epoch both ways, or a later one.
func (p KeyPeer) proved(to ids.Epoch) bool {
	if p.Epoch >= to {
		return true
	}
	steps := KeySteps()
	// A refused pair stands last in the list, but is not past anything.
	return p.Goal >= to && p.Step != KeyStepRefused && slices.Index(steps, p.Step) > slices.Index(steps, KeyStepProved)
}
