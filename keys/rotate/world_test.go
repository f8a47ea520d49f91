package rotate

import (
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"time"
)

// The exploration: a world is a tuple of numbers of interned nodes and
// messages, so a world takes about a hundred bytes, and a step of a node is
// computed once, however many worlds contain it.

// simStart is the time at which worlds begin. Their pauses are zero, so it is
// always time for everything; only hold-down passes, by an action.
var simStart = time.Unix(1e9, 0).UTC()

// simYear is longer than anything that is waited for, but hold-down.
const simYear = 365 * 24 * time.Hour

// simPause is how long a key may be unproved. It passes by an action, too, and
// not often enough to make a year.
const simPause = simYear / 8

// simTiming is that of worlds: what fails is tried again at once, what is
// under way is waited for, and nothing else takes time.
var simTiming = Timing{RetryMax: 100 * simYear, HoldDown: simYear, Unproved: simPause}

const (
	worldNodes = 3
	worldDepth = 2 // messages that a channel holds at most
)

// limits say what may happen in an exploration.
type limits struct {
	nodes    int
	target   uint8 // rotations are announced up to it
	depth    int   // messages a channel keeps: older ones are lost
	restarts uint8 // agents, in all
	reboots  uint8
	losses   uint8 // kernel objects removed by somebody
	rejects  uint8 // plans not carried out, or in part
	lates    uint8 // messages held back for as long as one likes
	again    bool  // messages arrive as often as one likes, as requests or as answers
	others   bool  // third parties need any devices at any turn, and cease to (others_test.go)
	turns    bool  // a loop ends with a second look, as a turn of the agent does
	eager    bool  // a node runs its loop until it rests, after each input
	holddown uint8 // how often hold-down passes for a node
	keeps    uint8 // how often somebody else begins or ends to need a device
	esp      bool  // devices are of the kind that needs the secret twice
	forms    bool  // the same, and keys that stay unproved are replaced
	pauses   uint8 // how often time passes in which a key may stay unproved
	hole     uint8 // bit e: large packets do not pass in epoch e
	unable   [worldNodes]uint8
	mutant   mutant
}

type world struct {
	node    [worldNodes]uint32
	chans   [worldNodes][worldNodes][worldDepth]uint32 // ascending, 0 at the end
	answers [worldNodes][worldNodes]answer             // to requests of the first node
	late    late
	target  uint8
	budget  budget
}

// packet is a message, sent on its own or as an answer.
type packet struct {
	Message
	answer bool
}

// late is one message that is held back for as long as one likes.
type late struct {
	from, to uint8
	msg      uint32 // 0: none
}

type budget struct{ restarts, reboots, losses, rejects, holddown, lates, keeps, pauses uint8 }

// answer is an agreement of which the asking node does not know yet.
type answer struct {
	simWant
	key uint8
}

// nodeEntry is an interned node, with what other parts of the world need to
// know about it.
type nodeEntry struct {
	*simNode
	peers [worldNodes]peerEntry
}

type peerEntry struct {
	boot, said, stateSeq, freshSeq, backSeq uint64
	ackBoot, ackSeq                         uint64 // of said
	heard                                   Message
}

type nodeOp struct {
	node uint32
	op   op
}

type op struct {
	kind       opKind
	peer, e, x uint8
	arg        uint64
}

// wanted is the agreement that an operation is about.
func (o op) wanted() Wanted {
	return simWant{o.e, o.x >> 4, o.x & 15}.of(int(o.peer))
}

type opKind uint8

const (
	opLoop     opKind = iota
	opLoopPart        // crashes before the plan is carried out, or carries out a part
	opReceive
	opMayAgree
	opAgreed
	opProbed
	opLearn
	opTarget
	opRestart
	opReboot
	opKeep
	opHoldDown
	opPause
	opLoseDevice
	opLoseHold
	opKnow
	opRename
	opForget
	opFailed
)

type opResult struct {
	node uint32
	ok   bool
	sent [worldNodes][2]uint32 // messages, in order, 0: none
	err  error                 // a broken invariant
}

// send adds a message.
func (r *opResult) send(to int, msg uint32) {
	if r.sent[to][0] != 0 {
		r.sent[to][1] = msg
		return
	}
	r.sent[to][0] = msg
}

type universe struct {
	limits
	seed   maphash.Seed
	store  nodeStore
	byHash map[uint64]uint32
	msgs   []packet
	msgNum map[string]uint32
	recs   []simRecord
	recNum map[simRecord]uint32
	memo   map[nodeOp]opResult
}

func newUniverse(l limits) *universe {
	return &universe{
		limits: l, seed: maphash.MakeSeed(),
		byHash: make(map[uint64]uint32), msgNum: make(map[string]uint32),
		recNum: make(map[simRecord]uint32), memo: make(map[nodeOp]opResult),
		msgs: make([]packet, 1),
	}
}

// intern returns the number of a node that is never changed again.
func (u *universe) intern(n *simNode) uint32 {
	raw := encode(n)
	h := maphash.Bytes(u.seed, raw)
	if i, ok := u.byHash[h]; ok {
		return i
	}
	i := u.store.add(raw)
	u.byHash[h] = i
	return i
}

// node returns an interned node.
func (u *universe) node(i uint32) *nodeEntry { return u.store.get(i) }

func (u *universe) internMessage(m packet) uint32 {
	k := string(m.Encode()) + string(rune(bit(m.answer)))
	if i, ok := u.msgNum[k]; ok {
		return i
	}
	i := uint32(len(u.msgs))
	u.msgs = append(u.msgs, m)
	u.msgNum[k] = i
	return i
}

func (u *universe) internRecord(r simRecord) uint64 {
	i, ok := u.recNum[r]
	if !ok {
		i = uint32(len(u.recs))
		u.recs = append(u.recs, r)
		u.recNum[r] = i
	}
	return uint64(i)
}

func (u *universe) now(n *simNode) time.Time {
	return simStart.Add(time.Duration(n.years)*simYear + time.Duration(n.pauses)*simPause)
}

// do performs an operation on a node, or remembers its result.
func (u *universe) do(node uint32, o op) opResult {
	k := nodeOp{node, o}
	if r, ok := u.memo[k]; ok {
		return r
	}
	n := u.node(node).simNode.copy()
	r := u.perform(n, o)
	r.node = u.intern(n)
	u.memo[k] = r
	return r
}

// perform changes n.
func (u *universe) perform(n *simNode, o op) (r opResult) {
	now := u.now(n)
	peer := int(o.peer)
	switch o.kind {
	case opLoop, opLoopPart:
		u.loop(n, o, &r)
	case opReceive:
		msg := u.msgs[o.arg].Message
		if u.mutant.receive != nil {
			msg.Epochs = slices.Clone(msg.Epochs)
			u.mutant.receive(n, &msg)
		}
		n.m.Receive(now, simID(peer), msg)
		if u.msgs[o.arg].answer || o.x != 0 {
			break // an answer is not answered
		}
		u.broken(n)
		if a, ok := n.m.Answer(now, simID(peer)); ok {
			r.send(peer, u.internMessage(packet{a, !u.again}))
		}
	case opMayAgree, opAgreed:
		w := o.wanted()
		if u.mutant.agree != nil {
			u.mutant.agree(n, w)
		}
		r.ok = o.kind == opAgreed || n.m.MayAgree(w.Peer, w) == nil
		if r.ok {
			n.agreed(now, w, simKey(o.arg))
		}
	case opProbed:
		n.probed(now, peer, int(o.e), u.hole>>o.e&1 == 0)
	case opLearn:
		n.view[peer] = u.recs[o.arg]
	case opTarget:
		n.target = o.e
	case opRestart, opReboot:
		if o.kind == opRestart {
			n.restart(simTiming)
		} else {
			n.reboot(simTiming)
		}
		// Records are read from a cache later, one that is older than they are.
		n.partial, n.view = true, [simNodes]simRecord{}
	case opKeep:
		n.keep ^= 1 << o.e
	case opHoldDown:
		n.years++
	case opPause:
		n.pauses++
	case opLoseDevice:
		n.loseDevice(int(o.e))
	case opLoseHold:
		n.loseHold(int(o.e), peer)
	case opKnow:
		n.partial = false
	case opFailed:
		n.failed(now, o.wanted())
	case opForget:
		n.lost[o.e][peer][0] = o.arg
		if o.x != 0 {
			n.proved[o.e][peer] = 0
		}
	case opRename:
		if o.e == 0 {
			renameSender(n, peer, o.arg)
		} else {
			renameReceiver(n, peer, o.x, o.arg)
		}
	}
	return r
}

func (u *universe) broken(n *simNode) {
	if u.mutant.before != nil {
		u.mutant.before(n)
	}
}

// loop is a turn of an agent: it looks, decides and acts, and looks again at what
// has become of it.
func (u *universe) loop(n *simNode, o op, r *opResult) {
	plan := u.look(n, o.others(), r)
	if o.kind == opLoopPart {
		n.carry(plan, o.x)
	} else {
		n.apply(plan)
	}
	if u.turns {
		plan = u.look(n, o.others(), r)
		plan.Devices, plan.Pairs = nil, nil
		n.ask(plan)
	}
}

// look lets a machine see what there is, and sends what it says.
func (u *universe) look(n *simNode, o others, r *opResult) Plan {
	now := u.now(n)
	obs := n.observation()
	if u.mutant.observe != nil {
		u.mutant.observe(n, &obs)
	}
	n.m.Observe(now, obs)
	u.broken(n)
	plan := o.poll(now, n.m)
	if u.mutant.plan != nil {
		u.mutant.plan(n, &plan)
	}
	for _, s := range plan.Send {
		r.send(simIndex(s.To), u.internMessage(packet{s.Message, false}))
		if err := n.announced(s); err != nil {
			r.err = err
		}
	}
	return plan
}

// String describes a world for a counterexample.
func (u *universe) String(w *world) string {
	var b strings.Builder
	fmt.Fprintf(&b, "target %d, left %+v\n", w.target, w.budget)
	for i := range u.limits.nodes {
		n := u.node(w.node[i])
		fmt.Fprintf(&b, "  node %d: boots %d target %d devices %v partial %v\n", i, n.boots, n.target, simDevices(n.dev), n.partial)
		for p := range u.limits.nodes {
			if p == i {
				continue
			}
			fmt.Fprintf(&b, "    to %d: route %d, holds", p, n.route[p])
			for e := range n.has {
				if h := n.has[e][p]; h.key != 0 {
					fmt.Fprintf(&b, " %d:%+v", e, h)
				}
			}
			fmt.Fprintf(&b, ", secrets")
			for e := range n.secrets {
				if k := n.secrets[e][p]; k != 0 {
					fmt.Fprintf(&b, " %d:%d", e, k)
				}
			}
			fmt.Fprintf(&b, ", sees %v, asks %v, answer %v\n", simDevices(n.view[p]), n.asks[p], w.answers[i][p])
			if q := n.m.pairs[simID(p)]; q != nil {
				fmt.Fprintf(&b, "      heard %+v\n      said %+v\n", q.talk.heard, q.talk.said)
				for _, l := range q.legs {
					fmt.Fprintf(&b, "      leg %d key %d %d-%d installed %v sends %v gone %v proved %v\n", l.epoch, l.key, l.mine, l.theirs, l.installed, l.sends, l.gone, l.proved)
				}
			}
			for _, m := range w.chans[i][p] {
				if m != 0 {
					fmt.Fprintf(&b, "      under way %+v\n", u.msgs[m])
				}
			}
		}
	}
	return b.String()
}
