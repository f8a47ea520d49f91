package main

import (
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
)

// simNode is a node: its machine, and what stands for its agent, its kernel and
// its view of the others' records.
type simNode struct {
	w       *simWorld
	id      ids.NodeID
	m       *rotate.Machine
	devices map[ids.Epoch]*simDevice
	routes  map[ids.NodeID]ids.Epoch
	views   map[ids.NodeID][]ids.Epoch // devices of others, as their records say
	secrets map[simHeld]keys.KeyID     // agreed on, not installed yet
	pairs   []rotate.Progress

	busy, again bool      // in a turn; another one is due after it
	cpu         time.Time // until when agreements keep a core busy
}

type simHeld struct {
	peer  ids.NodeID
	epoch ids.Epoch
}

// simDevice is a tunnel device and what it holds for each peer.
type simDevice struct{ peers map[ids.NodeID]simEntry }

type simEntry struct {
	key         keys.KeyID
	sends, prob bool
}

// done reports whether the node is on an epoch toward everybody, and on nothing else.
func (n *simNode) done(epoch ids.Epoch) bool {
	if len(n.pairs) != len(n.w.nodes)-1 || len(n.devices) != 1 || n.devices[epoch] == nil {
		return false
	}
	for _, p := range n.pairs {
		if p.Step != rotate.StepDone || p.Tx != epoch {
			return false
		}
	}
	return true
}

func (n *simNode) observation() rotate.Observation {
	o := rotate.Observation{Target: n.w.target, Enabled: true, Routes: n.routes}
	for e := range n.devices {
		o.Devices = append(o.Devices, n.device(e))
	}
	for _, peer := range n.w.nodes {
		if peer == n {
			continue
		}
		p := rotate.Peer{ID: peer.id}
		for _, e := range n.views[peer.id] {
			p.Devices = append(p.Devices, n.device(e))
		}
		o.Peers = append(o.Peers, p)
	}
	for e, d := range n.devices {
		for id, in := range d.peers {
			o.Installed = append(o.Installed, rotate.Installed{Peer: id, Device: n.device(e), Theirs: 1, Key: in.key, Sends: in.sends})
		}
	}
	return o
}

// device describes an epoch's device; each has one instance.
func (n *simNode) device(e ids.Epoch) rotate.Device {
	return rotate.Device{Epoch: e, Instance: 1, Wire: n.w.wire}
}

// turn is what the agent's loop does: observe, plan, apply, and observe again
// what has become of it. It takes as long as it costs; what comes in meanwhile
// waits for the next one.
func (n *simNode) turn() {
	if n.busy {
		n.again = true
		return
	}
	n.busy, n.again = true, false
	n.m.Observe(n.w.now, n.observation())
	plan := n.m.Poll(n.w.now)
	n.w.after(n.cost(plan), func() {
		n.apply(plan)
		n.m.Observe(n.w.now, n.observation())
		after := n.m.Poll(n.w.now)
		n.start(plan)
		n.start(after)
		n.pairs = after.Progress
		n.w.phases.note(n.id, after.Progress, n.w.now.Sub(n.w.began))
		n.busy = false
		settled := slices.Equal(plan.Devices, after.Devices) && slices.Equal(plan.Pairs, after.Pairs)
		if n.again || !settled {
			n.turn()
		} else if !after.Wake.IsZero() {
			n.w.after(max(after.Wake.Sub(n.w.now), time.Millisecond), n.turn)
		}
	})
}

// cost is what a turn takes that carries a plan out.
func (n *simNode) cost(plan rotate.Plan) time.Duration {
	c := n.w.costs
	entries, added, moved, made, removed := 0, 0, 0, 0, 0
	for e, d := range n.devices {
		entries += len(d.peers)
		if !slices.Contains(plan.Devices, e) {
			removed++
		}
	}
	for _, e := range plan.Devices {
		if n.devices[e] == nil {
			made++
		}
	}
	for _, p := range plan.Pairs {
		d := n.devices[p.Epoch]
		if d == nil || d.peers[p.Peer].key != p.Key {
			added++
		}
		if p.Main && n.routes[p.Peer] != p.Epoch {
			moved++
		}
	}
	// A turn reads before and after it sets.
	return c.Turn + 2*scale(c.ReadEntry, entries) + scale(c.AddPeer, added) + scale(c.MoveRoute, moved) +
		scale(c.MakeDevice, made) + scale(c.RemoveDevice, removed)
}

func scale(d time.Duration, n int) time.Duration { return d * time.Duration(n) }

// apply makes the kernel what the plan says.
func (n *simNode) apply(plan rotate.Plan) {
	changed := false
	for e := range n.devices {
		if !slices.Contains(plan.Devices, e) {
			delete(n.devices, e)
			changed = true
		}
	}
	for _, e := range plan.Devices {
		if n.devices[e] == nil {
			n.devices[e] = &simDevice{}
			changed = true
		}
	}
	was := map[ids.Epoch]map[ids.NodeID]simEntry{}
	for e, d := range n.devices {
		was[e], d.peers = d.peers, map[ids.NodeID]simEntry{}
	}
	routes := map[ids.NodeID]ids.Epoch{}
	for _, p := range plan.Pairs {
		if n.devices[p.Epoch] == nil {
			continue
		}
		held := simHeld{p.Peer, p.Epoch}
		if was[p.Epoch][p.Peer].key == p.Key || n.secrets[held] == p.Key {
			n.devices[p.Epoch].peers[p.Peer] = simEntry{p.Key, p.Send, p.Probe}
			delete(n.secrets, held)
		}
		if p.Main {
			routes[p.Peer] = p.Epoch
		}
	}
	n.routes = routes
	if changed {
		n.publish()
	}
}

// publish spreads the node's record.
func (n *simNode) publish() {
	var have []ids.Epoch
	for e := range n.devices {
		have = append(have, e)
	}
	slices.Sort(have)
	for _, peer := range n.w.nodes {
		if peer != n {
			n.w.after(n.w.costs.Gossip, func() { peer.views[n.id] = have; peer.turn() })
		}
	}
}

// start does what a plan asks for besides the kernel's state.
func (n *simNode) start(plan rotate.Plan) {
	for _, a := range plan.Agree {
		n.agree(a)
	}
	for _, p := range plan.Probe {
		n.probe(p)
	}
	for _, s := range plan.Send {
		peer := n.w.byID[s.To]
		n.w.after(n.w.costs.RTT/2, func() {
			peer.m.Receive(n.w.now, n.id, s.Message)
			answer, ok := peer.m.Answer(n.w.now, n.id)
			peer.turn()
			n.w.after(n.w.costs.RTT/2, func() {
				if ok {
					n.m.Receive(n.w.now, peer.id, answer)
				}
				n.turn()
			})
		})
	}
}

// agree makes a secret with a peer: a handshake that keeps a core of each end
// busy, one after the other.
func (n *simNode) agree(a rotate.Wanted) {
	peer := n.w.byID[a.Peer]
	begin := n.w.now
	for _, end := range []*simNode{n, peer} {
		if end.cpu.After(begin) {
			begin = end.cpu
		}
	}
	finish := begin.Add(n.w.costs.Agree)
	n.cpu, peer.cpu = finish, finish
	n.w.after(finish.Add(2*n.w.costs.RTT).Sub(n.w.now), func() {
		back := rotate.Wanted{Peer: n.id, Epoch: a.Epoch, Mine: a.Theirs, Theirs: a.Mine}
		if peer.m.MayAgree(n.id, back) != nil {
			n.m.AgreeFailed(n.w.now, a)
			n.turn()
			return
		}
		n.w.key++
		for _, end := range []struct {
			n    *simNode
			peer ids.NodeID
		}{{peer, n.id}, {n, peer.id}} {
			end.n.secrets[simHeld{end.peer, a.Epoch}] = keys.KeyID(n.w.key)
			end.n.m.Agreed(n.w.now, end.peer, rotate.Agreement{Epoch: a.Epoch, Mine: 1, Theirs: 1, Key: keys.KeyID(n.w.key)})
			end.n.turn()
		}
	})
}

// probe sends four echoes, one after the other.
func (n *simNode) probe(p rotate.Probe) {
	peer := n.w.byID[p.Peer]
	n.w.after(4*n.w.costs.RTT, func() {
		ok := n.holds(peer, p) && peer.holds(n, p)
		n.m.Probed(n.w.now, rotate.ProbeResult{Probe: p, Small: ok, Full: ok})
		n.turn()
	})
}

// holds reports whether this node can send to a peer on a probe's epoch.
func (n *simNode) holds(peer *simNode, p rotate.Probe) bool {
	d := n.devices[p.Epoch]
	return d != nil && d.peers[peer.id].key == p.Key && d.peers[peer.id].sends
}
