package rotate

import (
	"fmt"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// planDevices decides in which epochs this node has a device: those that a
// pair uses or works towards, and the newest; the target, if it may start.
func (m *Machine) planDevices(now time.Time, pairs []*pair, plan *planner) {
	wanted := make(map[ids.Epoch]bool)
	for _, p := range pairs {
		for _, l := range p.legs {
			if !l.gone {
				wanted[l.epoch] = true
			}
		}
		if p.goal != 0 {
			wanted[p.goal] = true
		}
	}
	newest := m.started
	if n := len(m.devices); n > 0 {
		newest = max(newest, m.devices[n-1].Epoch)
	}
	missed := m.missed(pairs)
	switch {
	case newest >= m.target:
		wanted[newest] = true
		if missed != 0 && m.live(wanted) < MaxEpochs && m.mayStart(now, plan) {
			m.rotated = now
			wanted[missed] = true
		}
	case m.held(now, newest, plan):
		if newest != 0 {
			wanted[newest] = true
		}
	case m.live(wanted) >= MaxEpochs:
		// The newest one stays only if a pair needs it: if it is what no peer
		// has, it is what can make room.
		plan.Blocked = m.holders(newest, pairs)
	case missed != 0: // the target comes after it
		m.rotated = now
		wanted[missed] = true
	default:
		if newest != 0 {
			m.rotated = now
		}
		m.started = m.target
		wanted[m.target] = true
	}
	for e := range wanted {
		plan.Devices = append(plan.Devices, e)
	}
	slices.Sort(plan.Devices)
}

// missed returns an epoch below the target that this node has no device of and
// should make, before that of the target if it cannot make both: the newest of a
// peer that is full of epochs, which it keeps for pairs such as this one. Such a
// peer cannot make the target, so the two meet nowhere else. 0: there is none. Only
// what this node can be expected to make counts: a device of the wire that its
// own newest has.
func (m *Machine) missed(pairs []*pair) (e ids.Epoch) {
	if len(m.devices) == 0 {
		return 0
	}
	wire := m.devices[len(m.devices)-1].Wire
	for _, p := range pairs {
		n := len(p.devices)
		if !p.listed || n < MaxEpochs || find(p.devices, m.target) != nil {
			continue
		}
		last := p.devices[n-1]
		if last.Epoch < m.target && last.Epoch > max(p.goal, e) && last.Wire == wire &&
			m.device(last.Epoch) == nil && !p.expired(m, last.Epoch) {
			e = last.Epoch
		}
	}
	return e
}

// pausing returns until when this node makes no further device, because it has
// made one less than MinInterval ago; false: it may make one now.
func (m *Machine) pausing(now time.Time) (until time.Time, ok bool) {
	until = m.rotated.Add(m.t.MinInterval)
	return until, !m.rotated.IsZero() && now.Before(until)
}

// mayStart reports whether this node may make another device now.
func (m *Machine) mayStart(now time.Time, plan *planner) bool {
	until, pausing := m.pausing(now)
	if pausing {
		plan.wake(until)
	}
	return !pausing && m.unable == ""
}

// held reports whether this node itself does not start the target epoch now,
// and notes why in plan.
func (m *Machine) held(now time.Time, newest ids.Epoch, plan *planner) bool {
	if m.unable != "" {
		plan.Blocked = fmt.Sprintf("rotation to epoch %d waits: %s", m.target, m.unable)
		return true
	}
	until, pausing := m.pausing(now)
	if pausing {
		plan.wake(until)
		plan.Pausing = true
		plan.Blocked = fmt.Sprintf("rotation to epoch %d waits until %s: epoch %d began less than %s before",
			m.target, until.UTC().Format(time.RFC3339), newest, m.t.MinInterval)
	}
	return pausing
}

// live counts the devices that are wanted or still there.
func (m *Machine) live(wanted map[ids.Epoch]bool) int {
	n := len(wanted)
	for _, d := range m.devices {
		if !wanted[d.Epoch] {
			n++
		}
	}
	return n
}

// holders says which pair keeps the oldest epoch.
func (m *Machine) holders(newest ids.Epoch, pairs []*pair) string {
	var oldest *pair
	for _, p := range pairs {
		if len(p.legs) > 0 && p.legs[0].epoch < newest && (oldest == nil || p.legs[0].epoch < oldest.legs[0].epoch) {
			oldest = p
		}
	}
	if oldest == nil {
		return fmt.Sprintf("rotation to epoch %d waits: %d epochs are live", m.target, MaxEpochs)
	}
	e := oldest.legs[0].epoch
	until, _ := oldest.expiry(m, e)
	return fmt.Sprintf("rotation to epoch %d waits: node %s holds epoch %d, until %s at most",
		m.target, oldest.peer, e, until.UTC().Format(time.RFC3339))
}
