package rotate

import (
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// report adds to plan where p stands.
func (p *pair) report(now time.Time, m *Machine, plan *planner) {
	step, reason := p.stand(m)
	if step != p.step {
		p.step, p.since = step, now
	}
	var oldest ids.Epoch
	if len(p.legs) > 0 {
		oldest = p.legs[0].epoch
	}
	used := p.leg(p.tx)
	plan.Progress = append(plan.Progress, Progress{
		Peer: p.peer, Tx: p.tx, Goal: p.goal, Oldest: oldest,
		Step: step, Since: p.since, Reason: reason,
		FullMTU: used == nil || !used.probe.small || used.probe.full,
	})
}

// stand returns the step of p and what it waits for.
func (p *pair) stand(m *Machine) (Step, string) {
	l := p.leg(p.goal)
	switch {
	case p.goal == 0:
		return p.apart(m)
	case l == nil && p.asks:
		return StepAgree, fmt.Sprintf("asks node %s for a secret of epoch %d", p.peer, p.goal)
	case l == nil:
		return StepAgree, fmt.Sprintf("waits for node %s to ask for a secret of epoch %d", p.peer, p.goal)
	case p.tx != p.goal:
		return p.moving(m, l)
	case p.talk.heard.Tx != p.goal:
		return StepSwitch, fmt.Sprintf("node %s sends on epoch %d", p.peer, p.talk.heard.Tx)
	case len(p.legs) > 1:
		return StepDrain, fmt.Sprintf("epoch %d has to fall silent", p.legs[0].epoch)
	case p.goal < m.target:
		return p.apart(m)
	}
	return StepDone, ""
}

// moving is the step of a pair that has a key for its goal and does not send
// on it yet.
func (p *pair) moving(m *Machine, l *leg) (Step, string) {
	theirs, listed := p.heard(l)
	switch {
	case !l.installed:
		return StepReady, "installs the secret"
	case !listed:
		return StepReady, fmt.Sprintf("node %s does not receive on epoch %d yet", p.peer, p.goal)
	case !l.proved && l.probe.small:
		return StepProve, fmt.Sprintf("large packets do not pass to node %s on epoch %d", p.peer, p.goal)
	case !l.proved:
		return StepProve, fmt.Sprintf("probes to node %s on epoch %d", p.peer, p.goal)
	case !theirs.Proved:
		return StepProved, fmt.Sprintf("node %s has not proved epoch %d yet", p.peer, p.goal)
	}
	return StepSwitch, "the route moves"
}

// apart is the step of a pair that has nothing newer in common.
func (p *pair) apart(m *Machine) (Step, string) {
	n := len(m.devices)
	if n == 0 {
		return StepDevice, "this node has no device yet"
	}
	mine := m.devices[n-1]
	theirs := find(p.devices, mine.Epoch)
	switch {
	case theirs != nil && theirs.Wire != mine.Wire:
		return StepRefused, fmt.Sprintf("the devices of epoch %d do not speak the same wire protocol", mine.Epoch)
	case theirs == nil && len(p.devices) > 0 && p.devices[len(p.devices)-1].Epoch > mine.Epoch:
		return StepDevice, fmt.Sprintf("this node has no device of epoch %d", p.devices[len(p.devices)-1].Epoch)
	case mine.Epoch < m.target:
		return StepDevice, fmt.Sprintf("this node has no device of epoch %d", m.target)
	}
	return StepDevice, fmt.Sprintf("node %s has no device of epoch %d", p.peer, mine.Epoch)
}
