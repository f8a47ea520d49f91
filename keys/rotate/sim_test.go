package rotate

import (
	"maps"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// A model of what surrounds a Machine: kernel, disk, agent, records. The
// transcripts, the property tests and the exploration stand on it. Everything
// but the machine is a small value, so that a node is copied by assignment.

const (
	simESP    = 2 // a wire
	simForms  = 3 // ESP with two forms
	simNodes  = 4
	simEpochs = 6
)

type (
	simKey    = uint8 // stands for a secret and its keys.KeyID
	simDevice struct{ inst, wire uint8 }
	// simHold is what a device holds for a peer.
	simHold struct {
		key, theirs  uint8 // key 0: nothing
		sends, probe bool
		rx           uint8
	}
	simWant   struct{ epoch, mine, theirs uint8 }
	simRecord [simEpochs + 1]simDevice
	simKeys   [simEpochs + 1][simNodes]simKey
	simSets   [simEpochs + 1][simNodes]simSet
	simSet    [4]uint64 // of keys, one bit each
)

// simNode is a node: its kernel, its disk, its agent, its machine.
type simNode struct {
	idx int
	m   *Machine

	simKernel
	lastInst [simEpochs + 1]uint8 // disk
	boots    uint8

	disabled bool
	partial  bool  // records were not read yet
	rejects  bool  // drivers fail
	keep     uint8 // bit e: a pair with somebody else needs the device of epoch e
	years    uint8 // how often hold-down has passed
	pauses   uint8 // how often simPause has passed
	target   uint8
	unable   uint8 // bit e: cannot make a device of epoch e
	wires    [simEpochs + 1]uint8
	wants    [simNodes]bool      // a tunnel with them is wanted
	view     [simNodes]simRecord // their devices, as far as known
	secrets  simKeys             // held, not installed yet
	asks     [simNodes]simWant   // agreements under way; epoch 0: none
	probes   simKeys             // probes under way

	simGhost
}

type simKernel struct {
	dev   simRecord
	has   [simEpochs + 1][simNodes]simHold
	route [simNodes]uint8
}

// simGhost is what only the invariants look at.
type simGhost struct {
	lost   simSets        // installed keys that faults took away
	hole   [simNodes]bool // a fault took away what the route leads to
	proved simKeys        // keys that a probe of this node went through
}

func (s *simSet) add(k simKey)      { s[k/64] |= 1 << (k % 64) }
func (s *simSet) has(k simKey) bool { return s[k/64]>>(k%64)&1 != 0 }

func simID(i int) ids.NodeID { return ids.NodeID{byte(i + 1)} }

func simIndex(id ids.NodeID) int { return int(id[0]) - 1 }

// simBoot numbers the processes of a node.
func simBoot(idx int, boots uint8) uint64 { return uint64(idx+1)<<8 | uint64(boots) }

func newSimNode(i, nodes int, t Timing) *simNode {
	n := &simNode{idx: i, target: 1, boots: 1}
	for e := range n.wires {
		n.wires[e] = 1
	}
	for p := range nodes {
		n.wants[p] = p != i
	}
	n.m = New(simID(i), simBoot(i, 1), t)
	return n
}

// copy returns a node that goes on from the same state on its own.
func (n *simNode) copy() *simNode {
	c := *n
	m := *n.m
	m.devices, m.began = slices.Clone(m.devices), maps.Clone(m.began)
	m.pairs = make(map[ids.NodeID]*pair, len(n.m.pairs))
	for id, p := range n.m.pairs {
		q := *p
		q.legs = slices.Clone(p.legs)
		m.pairs[id] = &q // records and messages are not changed in place
	}
	c.m = &m
	return &c
}

// loop is one turn of the agent: look, decide, act.
func (n *simNode) loop(now time.Time) Plan {
	n.m.Observe(now, n.observation())
	plan := n.m.Poll(now)
	n.apply(plan)
	return plan
}

// restart replaces the agent; the kernel stays as it is.
func (n *simNode) restart(t Timing) {
	n.boots++
	n.m = New(simID(n.idx), simBoot(n.idx, n.boots), t)
	n.secrets, n.asks, n.probes = simKeys{}, [simNodes]simWant{}, simKeys{}
}

// reboot loses the kernel, too.
func (n *simNode) reboot(t Timing) {
	for e := range n.dev {
		n.loseDevice(e)
	}
	n.route, n.hole = [simNodes]uint8{}, [simNodes]bool{}
	n.restart(t)
}

// loseDevice is somebody deleting a link.
func (n *simNode) loseDevice(e int) {
	for p := range simNodes {
		n.loseHold(e, p)
		if int(n.route[p]) == e {
			n.route[p], n.hole[p] = 0, false
		}
	}
	n.dev[e] = simDevice{}
}

// loseHold is somebody deleting a peer of a device.
func (n *simNode) loseHold(e, p int) {
	if n.has[e][p].key == 0 {
		return
	}
	n.lost[e][p].add(n.has[e][p].key)
	n.has[e][p] = simHold{}
	n.hole[p] = n.hole[p] || int(n.route[p]) == e
}

func simDevices(ds simRecord) (out []Device) {
	for e, d := range ds {
		if d.inst != 0 {
			out = append(out, Device{Epoch: ids.Epoch(e), Instance: uint32(d.inst), Wire: d.wire})
		}
	}
	return out
}

// observation is what the agent finds.
func (n *simNode) observation() Observation {
	o := Observation{
		Target: ids.Epoch(n.target), Enabled: !n.disabled, Partial: n.partial,
		Devices: simDevices(n.dev), Routes: map[ids.NodeID]ids.Epoch{},
	}
	if n.unable>>n.target&1 != 0 {
		o.Unable = "no such driver here"
	}
	for p := range simNodes {
		if n.wants[p] && !n.partial {
			o.Peers = append(o.Peers, Peer{ID: simID(p), Devices: simDevices(n.view[p])})
		}
		if n.route[p] != 0 {
			o.Routes[simID(p)] = ids.Epoch(n.route[p])
		}
	}
	for e, d := range n.dev {
		for p, h := range n.has[e] {
			if h.key == 0 || d.wire >= simESP && !h.sends && n.secrets[e][p] != h.key {
				continue // nothing, or half of something
			}
			in := Installed{
				Peer: simID(p), Device: Device{Epoch: ids.Epoch(e), Instance: uint32(d.inst), Wire: d.wire},
				Key: keys.KeyID(h.key), Sends: h.sends, RxBytes: uint64(h.rx), Forms: d.wire == simForms,
			}
			if n.view[p][e].inst == h.theirs {
				in.Theirs = uint32(h.theirs) // the record has the public key
			}
			o.Installed = append(o.Installed, in)
		}
	}
	return o
}

// apply carries a plan out, as agent and drivers do.
func (n *simNode) apply(plan Plan) {
	n.ask(plan)
	if n.rejects {
		return
	}
	n.carry(plan, 7)
}

// ask starts what a plan asks for.
func (n *simNode) ask(plan Plan) {
	for _, w := range plan.Agree {
		n.asks[simIndex(w.Peer)] = simWant{uint8(w.Epoch), uint8(w.Mine), uint8(w.Theirs)}
	}
	for _, p := range plan.Probe {
		n.probes[p.Epoch][simIndex(p.Peer)] = simKey(p.Key)
	}
}

// carry carries out the parts of a plan whose bits are set.
func (n *simNode) carry(plan Plan, parts uint8) {
	old := n.has
	if parts&1 != 0 {
		n.applyDevices(plan.Devices)
	}
	if parts&2 != 0 {
		n.applyPairs(plan.Pairs)
	}
	if parts&4 != 0 {
		n.applyRoutes(plan.Pairs)
	}
	// What hold-down gives up counts as lost: it is the last resort.
	for e := range old {
		for p, h := range old[e] {
			if parts&4 == 0 && h.key != 0 && n.has[e][p].key == 0 && int(n.route[p]) == e {
				n.hole[p] = true // the plan has the route elsewhere, too
			}
			if h.key != 0 && n.has[e][p].key == 0 && n.m.gaveUp(simID(p), ids.Epoch(e)) {
				n.lost[e][p].add(h.key)
			}
		}
	}
}

func (n *simNode) applyDevices(wanted []ids.Epoch) {
	for e := range n.dev {
		switch on := slices.Contains(wanted, ids.Epoch(e)); {
		case !on && n.keep>>e&1 == 0:
			n.dev[e], n.has[e] = simDevice{}, [simNodes]simHold{}
		case on && n.dev[e].inst == 0 && n.unable>>e&1 == 0:
			n.lastInst[e]++
			n.dev[e] = simDevice{n.lastInst[e], n.wires[e]}
		}
	}
}

func (n *simNode) applyPairs(pairs []Pair) {
	var has [simEpochs + 1][simNodes]simHold
	var secrets simKeys
	for _, p := range pairs {
		i, k := simIndex(p.Peer), simKey(p.Key)
		h, held := n.has[p.Epoch][i], n.secrets[p.Epoch][i] == k
		if n.dev[p.Epoch].inst == 0 {
			if held {
				secrets[p.Epoch][i] = k // until there is a device
			}
			continue
		}
		if h.key != k {
			if !held {
				continue // tunnel.ErrSecretGone
			}
			h = simHold{key: k, theirs: uint8(p.Theirs)}
		}
		// With ESP the sending half needs the secret, too.
		if esp := n.dev[p.Epoch].wire >= simESP; !esp || held {
			h.sends = p.Send
			if esp && !h.sends {
				secrets[p.Epoch][i] = k
			}
		}
		h.probe = p.Probe
		has[p.Epoch][i] = h
	}
	n.has, n.secrets = has, secrets
}

func (n *simNode) applyRoutes(pairs []Pair) {
	var route [simNodes]uint8
	for _, p := range pairs {
		if p.Main && n.dev[p.Epoch].inst != 0 {
			route[simIndex(p.Peer)] = uint8(p.Epoch)
		}
	}
	for p := range route {
		if route[p] != n.route[p] {
			n.hole[p] = false
		}
	}
	n.route = route
}

// of is w as an agreement with a peer.
func (w simWant) of(peer int) Wanted {
	return Wanted{Peer: simID(peer), Epoch: ids.Epoch(w.epoch), Mine: uint32(w.mine), Theirs: uint32(w.theirs)}
}

// turned is w as the other node sees it.
func (w Wanted) turned(self int) Wanted {
	return Wanted{Peer: simID(self), Epoch: w.Epoch, Mine: w.Theirs, Theirs: w.Mine}
}

// agreed stores a secret and tells the machine.
func (n *simNode) agreed(now time.Time, w Wanted, key simKey) {
	n.secrets[w.Epoch][simIndex(w.Peer)] = key
	n.over(w)
	n.m.Agreed(now, w.Peer, Agreement{Epoch: w.Epoch, Mine: w.Mine, Theirs: w.Theirs, Key: keys.KeyID(key)})
}

// failed tells the machine that an agreement did not come about.
func (n *simNode) failed(now time.Time, w Wanted) {
	n.over(w)
	n.m.AgreeFailed(now, w)
}

func (n *simNode) over(w Wanted) {
	if p := simIndex(w.Peer); n.asks[p].of(p) == w {
		n.asks[p] = simWant{}
	}
}

// probed tells the machine the result of a probe that came back.
func (n *simNode) probed(now time.Time, peer, e int, full bool) {
	k := n.probes[e][peer]
	n.probes[e][peer] = 0
	n.proved[e][peer] = k
	n.m.Probed(now, ProbeResult{Probe{simID(peer), ids.Epoch(e), keys.KeyID(k)}, true, full})
}

// reaches reports whether packets of n to o on e arrive.
func (n *simNode) reaches(o *simNode, e int) bool {
	h := n.has[e][o.idx]
	return h.key != 0 && h.sends && o.has[e][n.idx].key == h.key
}

// echo reports whether a probe of n to o through e comes back.
func (n *simNode) echo(o *simNode, e int) bool {
	back := int(o.route[n.idx]) == e || o.has[e][n.idx].probe
	return n.reaches(o, e) && o.reaches(n, e) && back
}

// gaveUp reports whether hold-down has ended an epoch of the pair with a peer.
func (m *Machine) gaveUp(peer ids.NodeID, e ids.Epoch) bool {
	p := m.pairs[peer]
	return p != nil && p.expired(m, e)
}
