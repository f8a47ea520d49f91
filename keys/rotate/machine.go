package rotate

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Machine decides for one node. It is used by one goroutine: facts go in by
// the methods that take a time, Poll gives the wishes. The same inputs give
// the same plans.
type Machine struct {
	self ids.NodeID
	boot uint64
	t    Timing

	// Facts of the newest Observation.
	observed time.Time // zero: there was none yet
	target   ids.Epoch
	enabled  bool
	unable   string
	devices  []Device // this node's, ascending
	pairs    map[ids.NodeID]*pair

	// started is the newest epoch for which this machine asked for a device;
	// rotated is when it last did so while it had an older one.
	started ids.Epoch
	rotated time.Time
	// began is when each device was first observed; hold-down counts from it.
	began map[ids.Epoch]time.Time
}

// New returns a machine that knows nothing yet: Observe comes first. boot is a
// random number of this process; it panics if that is 0.
func New(self ids.NodeID, boot uint64, t Timing) *Machine {
	if boot == 0 {
		panic("rotate: boot is 0, which means none in messages")
	}
	return &Machine{
		self:  self,
		boot:  boot,
		t:     t,
		pairs: make(map[ids.NodeID]*pair),
		began: make(map[ids.Epoch]time.Time),
	}
}

// Observe takes the truth as it is now. What it shows and the machine did not
// know is adopted: a restart changes nothing that works. Observe before each
// Poll, so that plans rest on what is.
func (m *Machine) Observe(now time.Time, o Observation) {
	m.observed = now
	m.target, m.enabled, m.unable = max(o.Target, 1), o.Enabled, o.Unable
	m.devices = slices.Clone(o.Devices)
	slices.SortFunc(m.devices, func(a, b Device) int { return cmp.Compare(a.Epoch, b.Epoch) })
	m.observeBegan(now)
	if !o.Enabled {
		clear(m.pairs)
		return
	}
	m.observePeers(o)
	installed := make(map[ids.NodeID][]Installed, len(m.pairs))
	for _, i := range o.Installed {
		installed[i.Peer] = append(installed[i.Peer], i)
	}
	for id, p := range m.pairs {
		p.observe(now, installed[id], o.Routes[id])
	}
}

func (m *Machine) observeBegan(now time.Time) {
	for _, d := range m.devices {
		if _, known := m.began[d.Epoch]; !known {
			m.began[d.Epoch] = now
		}
	}
	for e := range m.began {
		if m.device(e) == nil {
			delete(m.began, e)
		}
	}
}

// observePeers makes the set of pairs what the observation lists. A partial
// one removes none, and pairs that it does not list but that have something
// installed are kept as they are found.
func (m *Machine) observePeers(o Observation) {
	listed := make(map[ids.NodeID]bool, len(o.Peers))
	for _, peer := range o.Peers {
		if peer.ID == m.self {
			continue
		}
		listed[peer.ID] = true
		p := m.pair(peer.ID)
		p.listed, p.devices = true, slices.Clone(peer.Devices)
	}
	if o.Partial {
		for _, i := range o.Installed {
			m.pair(i.Peer)
		}
		for _, id := range o.Expelled {
			delete(m.pairs, id)
		}
		return
	}
	for id := range m.pairs {
		if !listed[id] {
			delete(m.pairs, id)
		}
	}
}

// pair returns the state of a pair, new if need be.
func (m *Machine) pair(peer ids.NodeID) *pair {
	p := m.pairs[peer]
	if p == nil {
		p = &pair{peer: peer, asks: m.self.Compare(peer) < 0, talk: talk{backSeq: 1}}
		m.pairs[peer] = p
	}
	return p
}

// device returns this node's device of an epoch, nil if there is none.
func (m *Machine) device(e ids.Epoch) *Device { return find(m.devices, e) }

func find(ds []Device, e ids.Epoch) *Device {
	for i := range ds {
		if ds[i].Epoch == e {
			return &ds[i]
		}
	}
	return nil
}

// Agreed takes a secret that was agreed on with peer, whoever dialled, and
// reports whether it does: a key that is in use is not replaced. A secret that
// was refused is in no Plan, and the caller forgets it, as it forgets every
// secret that no Plan names.
func (m *Machine) Agreed(now time.Time, peer ids.NodeID, a Agreement) bool {
	p := m.pairs[peer]
	if p == nil || !p.listed || a.Key == 0 {
		return false
	}
	if p.ask.wanted == (Wanted{peer, a.Epoch, a.Mine, a.Theirs}) {
		p.ask.retry.tried(now, m.t)
	}
	if d := m.device(a.Epoch); d == nil || d.Instance != a.Mine || p.expired(m, a.Epoch) {
		return false
	}
	return p.agreed(now, m, a)
}

// AgreeFailed says that an agreement which a Plan asked for did not come
// about. It is tried again after a pause that doubles.
func (m *Machine) AgreeFailed(now time.Time, w Wanted) {
	if p := m.pairs[w.Peer]; p != nil && p.ask.wanted == w {
		p.ask.retry.tried(now, m.t)
	}
}

// MayAgree returns an error unless this node, as the higher one of the pair,
// agrees on w now. Mine is the instance of this node's device, Theirs that of
// the peer. The error is for the peer and for the log.
func (m *Machine) MayAgree(peer ids.NodeID, w Wanted) error {
	p := m.pairs[peer]
	switch {
	case p == nil || !p.listed:
		return fmt.Errorf("agree with node %s on epoch %d: no tunnel with it is wanted", peer, w.Epoch)
	case p.asks:
		return fmt.Errorf("agree with node %s on epoch %d: the lower node asks, and that is this one", peer, w.Epoch)
	}
	goal := p.findGoal(m)
	if w.Epoch != goal {
		return fmt.Errorf("agree with node %s on epoch %d: the newest epoch of both is %d", peer, w.Epoch, goal)
	}
	mine, theirs := m.device(goal), find(p.devices, goal)
	if mine == nil || theirs == nil || mine.Instance != w.Mine || theirs.Instance != w.Theirs {
		return fmt.Errorf("agree with node %s on epoch %d: one of the devices has been made anew", peer, w.Epoch)
	}
	if l := p.leg(goal); l != nil && p.inUse(m, l) {
		return fmt.Errorf("agree with node %s on epoch %d: its key is in use", peer, w.Epoch)
	}
	return nil
}

// Receive takes a message of peer. Repetitions and older ones change nothing.
// It reports whether the message says anything but what was known.
func (m *Machine) Receive(now time.Time, from ids.NodeID, msg Message) bool {
	p := m.pairs[from]
	if p == nil || !p.listed {
		return false
	}
	was := p.talk.heard
	p.talk.contact = now
	p.talk.take(now, m.boot, msg)
	is := p.talk.heard
	return is.Boot != was.Boot || is.AckBoot != was.AckBoot || is.AckSeq != was.AckSeq || is.Tx != was.Tx || !slices.Equal(is.Epochs, was.Epochs)
}

// Answer returns what to answer a message of a peer with: this node's state.
// It counts as sent. False: there is nothing to say to that node.
func (m *Machine) Answer(now time.Time, to ids.NodeID) (Message, bool) {
	p := m.pairs[to]
	if p == nil || !p.listed {
		return Message{}, false
	}
	return p.talk.say(now, m, p.state()), true
}

// Probed takes what a probe found.
func (m *Machine) Probed(now time.Time, r ProbeResult) {
	p := m.pairs[r.Peer]
	if p == nil {
		return
	}
	if l := p.leg(r.Epoch); l != nil && l.key == r.Key && !l.gone {
		l.probed(now, m.t, r)
	}
}

// outlived returns when an epoch has been outlived for HoldDown: when one of its
// successors began on this node, and that long after. False: it has none.
func (m *Machine) outlived(e ids.Epoch) (at time.Time, ok bool) {
	for newer, began := range m.began {
		if newer > e && (!ok || began.Before(at)) {
			at, ok = began, true
		}
	}
	return at.Add(m.t.HoldDown), ok
}
