package rotate

import (
	"cmp"
	"fmt"
	"slices"
)

// action is one thing that may happen in a world.
type action struct {
	kind       actKind
	a, b, e, x uint8
	settled    uint8 // which of the worlds in which its nodes may come to rest
}

type actKind uint8

const (
	actLoop       actKind = iota // a looks, decides, acts; b and e of these three: see others
	actReject                    // the same, but only part x of the plan is carried out
	actCrash                     // a part of the plan is carried out, then the agent of a dies
	actReboot                    // a loses its kernel
	actDeliver                   // message x from a to b arrives, and is answered if e is 0
	actLose                      // message x from a to b is lost
	actHold                      // message x from a to b is held back
	actLate                      // ... and arrives
	actRepeat                    // the newest message from a to b arrives once more
	actFail                      // the agreement that a asked b for fails, or its answer is lost
	actAgree                     // the agreement that a asked b for: b has the secret
	actAnswer                    // ... and a, too
	actProbe                     // the probe of a to b through e comes back
	actLearn                     // a sees the record of b
	actTarget                    // a learns the target epoch
	actKnow                      // a has read all records
	actRotate                    // the next target epoch is announced
	actKeep                      // somebody else begins or ends to need a's device of e
	actHoldDown                  // hold-down passes for a
	actPause                     // time passes for a in which a key may stay unproved
	actLoseHold                  // somebody removes b from a's device of e
	actLoseDevice                // somebody removes a's device of e
)

var actNames = [...]string{"loop", "reject", "crash", "reboot", "deliver", "lose", "hold", "late", "repeat", "fail", "agree", "answer", "probe", "learn", "target", "know", "rotate", "keep", "hold-down", "pause", "lose-hold", "lose-device"}

func (a action) String() string {
	return fmt.Sprintf("%s a=%d b=%d e=%d x=%d settled=%d", actNames[a.kind], a.a, a.b, a.e, a.x, a.settled)
}

// actions calls f with everything that may happen in w.
func (u *universe) actions(w *world, f func(action)) {
	for i := range u.limits.nodes {
		u.nodeActions(w, i, f)
		for p := range u.limits.nodes {
			if p != i {
				u.pairActions(w, i, p, f)
			}
		}
	}
	if w.target < u.limits.target {
		f(action{kind: actRotate})
	}
}

func (u *universe) nodeActions(w *world, i int, f func(action)) {
	n := u.node(w.node[i])
	a := uint8(i)
	if act := (action{kind: actLoop, a: a}); u.eager {
		f(act)
	} else {
		u.loops(w.node[i], act, f)
	}
	if n.target < w.target {
		f(action{kind: actTarget, a: a})
	}
	if n.partial {
		f(action{kind: actKnow, a: a})
	}
	if w.budget.rejects > 0 {
		for _, x := range []uint8{0, 1, 3, 5} {
			u.loops(w.node[i], action{kind: actReject, a: a, x: x}, f)
		}
	}
	if w.budget.restarts > 0 {
		for _, x := range []uint8{0, 1, 3, 7} {
			u.loops(w.node[i], action{kind: actCrash, a: a, x: x}, f)
		}
	}
	if w.budget.reboots > 0 {
		f(action{kind: actReboot, a: a})
	}
	if w.budget.holddown > 0 {
		f(action{kind: actHoldDown, a: a})
	}
	if w.budget.pauses > 0 {
		f(action{kind: actPause, a: a})
	}
	for e := range n.dev {
		if n.dev[e].inst != 0 {
			u.deviceActions(w, i, e, f)
		}
	}
}

func (u *universe) deviceActions(w *world, i, e int, f func(action)) {
	n := u.node(w.node[i])
	a := uint8(i)
	if w.budget.keeps > 0 {
		f(action{kind: actKeep, a: a, e: uint8(e)})
	}
	if w.budget.losses == 0 {
		return
	}
	f(action{kind: actLoseDevice, a: a, e: uint8(e)})
	for p := range u.limits.nodes {
		if n.has[e][p].key != 0 {
			f(action{kind: actLoseHold, a: a, b: uint8(p), e: uint8(e)})
		}
	}
}

func (u *universe) pairActions(w *world, i, p int, f func(action)) {
	n, o := u.node(w.node[i]), u.node(w.node[p])
	a, b := uint8(i), uint8(p)
	for x := range worldDepth {
		if w.chans[i][p][x] != 0 {
			f(action{kind: actDeliver, a: a, b: b, x: uint8(x)})
			if w.late.msg == 0 && w.budget.lates > 0 {
				f(action{kind: actHold, a: a, b: b, x: uint8(x)})
			}
			if u.again {
				f(action{kind: actDeliver, a: a, b: b, x: uint8(x), e: 1})
			} else {
				f(action{kind: actLose, a: a, b: b, x: uint8(x)})
			}
		}
	}
	if w.late.msg != 0 && w.late.from == a && w.late.to == b {
		f(action{kind: actLate, a: a, b: b})
	}
	if u.again && o.peers[i].heard.Seq != 0 {
		f(action{kind: actRepeat, a: a, b: b})
	}
	ask, answered := n.asks[p], w.answers[i][p]
	if answered.epoch != 0 {
		f(action{kind: actAnswer, a: a, b: b})
		f(action{kind: actFail, a: a, b: b})
	}
	if ask.epoch != 0 && ask != answered.simWant {
		f(action{kind: actAgree, a: a, b: b})
	}
	for e := range n.probes {
		if k := n.probes[e][p]; k != 0 && (u.mutant.echoes || n.has[e][p].key == k && n.echo(o.simNode, e)) {
			f(action{kind: actProbe, a: a, b: b, e: uint8(e)})
		}
	}
	if n.view[p] != o.dev {
		f(action{kind: actLearn, a: a, b: b})
	}
}

// step returns the world after an action. An error is a broken invariant.
func (u *universe) step(w world, act action) (next world, err error) {
	u.steps(w, act, func(a action, v world, e error) {
		if a == act {
			next, err = v, e
		}
	})
	return next, err
}

// steps calls f with each world that there may be after an action: where others
// have a say, a node may come to rest in several.
func (u *universe) steps(w world, act action, f func(action, world, error)) {
	old := w
	act.settled = 0
	err := u.happen(&w, act)
	turned := -1
	for i := range u.limits.nodes {
		if u.eager && (w.node[i] != old.node[i] || u.others && act.kind == actLoop && int(act.a) == i) {
			turned = i
		}
	}
	end := func(w world, err error) {
		if err == nil {
			err = u.check(&w)
		}
		u.tidy(&w, &old)
		f(act, w, err)
		act.settled++
	}
	switch {
	case err != nil || turned < 0:
		end(w, err)
	case u.others:
		u.settleOthers(w, turned, end)
	default:
		err = u.settle(&w, turned)
		end(w, err)
	}
}

// happen is an action without what nodes make of it.
func (u *universe) happen(w *world, act action) (err error) {
	a, b := int(act.a), int(act.b)
	node := &w.node[a]
	switch act.kind {
	case actLoop:
		if u.others && u.eager {
			break // settleOthers has all turns
		}
		err = u.loopNode(w, a, act.loopOp())
	case actReject:
		w.budget.rejects--
		err = u.loopNode(w, a, act.loopOp())
	case actCrash:
		w.budget.restarts--
		err = u.loopNode(w, a, act.loopOp())
		*node = u.do(*node, op{kind: opRestart}).node
		w.answers[a] = [worldNodes]answer{}
	case actReboot:
		w.budget.reboots--
		*node = u.do(*node, op{kind: opReboot}).node
		w.answers[a] = [worldNodes]answer{}
	case actDeliver:
		msg := w.chans[a][b][act.x]
		if !u.again {
			w.chans[a][b] = without(w.chans[a][b], msg)
		}
		u.deliver(w, a, b, msg, act.e)
	case actLose:
		w.chans[a][b] = without(w.chans[a][b], w.chans[a][b][act.x])
	case actHold:
		w.budget.lates--
		w.late = late{act.a, act.b, w.chans[a][b][act.x]}
	case actLate:
		msg := w.late.msg
		w.late = late{}
		u.deliver(w, a, b, msg, 0)
	case actRepeat:
		u.deliver(w, a, b, u.internMessage(packet{u.node(w.node[b]).peers[a].heard, false}), 0)
	case actFail:
		*node = u.failed(*node, b, w.answers[a][b].simWant)
		w.answers[a][b] = answer{}
	case actAgree:
		u.agree(w, a, b)
	case actAnswer:
		s := w.answers[a][b]
		w.answers[a][b] = answer{}
		*node = u.do(*node, op{kind: opAgreed, peer: act.b, e: s.epoch, x: s.mine<<4 | s.theirs, arg: uint64(s.key)}).node
	case actProbe:
		*node = u.do(*node, op{kind: opProbed, peer: act.b, e: act.e}).node
	case actLearn:
		*node = u.do(*node, op{kind: opLearn, peer: act.b, arg: u.internRecord(u.node(w.node[b]).dev)}).node
	case actTarget:
		*node = u.do(*node, op{kind: opTarget, e: w.target}).node
	case actKnow:
		*node = u.do(*node, op{kind: opKnow}).node
	case actRotate:
		w.target++
	case actKeep:
		w.budget.keeps -= min(w.budget.keeps, 1) // at the end it ends for nothing
		*node = u.do(*node, op{kind: opKeep, e: act.e}).node
	case actHoldDown:
		w.budget.holddown--
		*node = u.do(*node, op{kind: opHoldDown}).node
	case actPause:
		w.budget.pauses--
		*node = u.do(*node, op{kind: opPause}).node
	case actLoseHold:
		w.budget.losses--
		*node = u.do(*node, op{kind: opLoseHold, peer: act.b, e: act.e}).node
	case actLoseDevice:
		w.budget.losses--
		*node = u.do(*node, op{kind: opLoseDevice, e: act.e}).node
	}
	return err
}

// settle runs the loop of a node until it rests.
func (u *universe) settle(w *world, i int) error {
	for range settleTurns {
		before := w.node[i]
		if err := u.loopNode(w, i, op{kind: opLoop}); err != nil {
			return err
		}
		if w.node[i] == before {
			break
		}
	}
	return nil
}

func (u *universe) loopNode(w *world, i int, o op) error {
	before := u.node(w.node[i])
	r := u.do(w.node[i], o)
	w.node[i] = r.node
	u.emit(w, i, r)
	if r.err != nil {
		return r.err
	}
	if err := u.replaced(w, i, before.simNode); err != nil {
		return err
	}
	if err := u.moved(w, i, before.simNode); err != nil {
		return err
	}
	return u.check(w)
}

func (u *universe) emit(w *world, from int, r opResult) {
	for to, ms := range r.sent {
		for _, m := range ms {
			if m != 0 {
				u.send(w, from, to, m)
			}
		}
	}
}

// send puts a message into a channel, in ascending order, or in the place of one that
// is the same but for naming a process that is dead by now. If the channel is full
// its oldest message is lost.
func (u *universe) send(w *world, from, to int, m uint32) {
	var list [worldDepth + 1]uint32
	n := 0
	for _, x := range w.chans[from][to] {
		if x == m {
			return
		}
		if a, b := &u.msgs[x], &u.msgs[m]; x != 0 && (a.Boot != b.Boot || a.Seq != b.Seq || a.answer != b.answer) {
			list[n] = x
			n++
		}
	}
	list[n] = m
	n++
	slices.SortFunc(list[:n], func(a, b uint32) int {
		x, y := &u.msgs[a], &u.msgs[b]
		return cmp.Or(cmp.Compare(x.Boot, y.Boot), cmp.Compare(x.Seq, y.Seq), cmp.Compare(bit(x.answer), bit(y.answer)))
	})
	all := list[:n]
	if n > u.depth {
		all = all[n-u.depth:]
	}
	w.chans[from][to] = [worldDepth]uint32{}
	copy(w.chans[from][to][:], all)
}

func without(c [worldDepth]uint32, m uint32) (out [worldDepth]uint32) {
	n := 0
	for _, x := range c {
		if x != m && x != 0 {
			out[n] = x
			n++
		}
	}
	return out
}

func (u *universe) deliver(w *world, from, to int, msg uint32, answer uint8) {
	r := u.do(w.node[to], op{kind: opReceive, peer: uint8(from), x: answer, arg: uint64(msg)})
	w.node[to] = r.node
	u.emit(w, to, r)
}

// agree is what b does about the request of a.
func (u *universe) agree(w *world, a, b int) {
	ask := u.node(w.node[a]).asks[b]
	key := u.freshKey(w, a, b, int(ask.epoch))
	r := u.do(w.node[b], op{kind: opMayAgree, peer: uint8(a), e: ask.epoch, x: ask.theirs<<4 | ask.mine, arg: uint64(key)})
	if !r.ok {
		w.node[a] = u.failed(w.node[a], b, ask)
		return
	}
	w.node[b] = r.node
	w.answers[a][b] = answer{ask, key}
}

func (u *universe) failed(node uint32, peer int, w simWant) uint32 {
	return u.do(node, op{kind: opFailed, peer: uint8(peer), e: w.epoch, x: w.mine<<4 | w.theirs}).node
}

// freshKey returns a key that nobody knows.
func (u *universe) freshKey(w *world, a, b, e int) uint8 {
	used := u.keysOf(w.node[a], b, e) | u.keysOf(w.node[b], a, e)
	var held [worldDepth]uint32
	if from, to := int(w.late.from), int(w.late.to); from == a && to == b || from == b && to == a {
		held[0] = w.late.msg
	}
	for _, c := range [][worldDepth]uint32{w.chans[a][b], w.chans[b][a], held} {
		for _, m := range c {
			for _, s := range u.msgs[m].Epochs {
				if int(s.Epoch) == e {
					used |= 1 << s.Key
				}
			}
		}
	}
	if s := w.answers[a][b]; int(s.epoch) == e {
		used |= 1 << s.key
	}
	for k := uint8(1); k < 32; k++ {
		if used>>k&1 == 0 {
			return k
		}
	}
	panic("all keys are in use")
}

// keysOf is the set of keys for a peer and epoch that a node knows.
func (u *universe) keysOf(node uint32, peer, e int) (used uint32) {
	n := u.node(node)
	for _, k := range []uint8{n.has[e][peer].key, n.secrets[e][peer], n.probes[e][peer], n.proved[e][peer]} {
		used |= 1 << k
	}
	used |= uint32(n.lost[e][peer][0])
	if p := n.m.pairs[simID(peer)]; p != nil {
		for _, l := range p.legs {
			if int(l.epoch) == e {
				used |= 1 << l.key
			}
		}
		for _, m := range []*Message{&p.talk.heard, &p.talk.said} {
			for _, s := range m.Epochs {
				if int(s.Epoch) == e {
					used |= 1 << s.Key
				}
			}
		}
	}
	return used
}

// tidy drops from w what cannot matter any more, where w differs from old.
func (u *universe) tidy(w, old *world) {
	var changed [worldNodes][worldNodes]bool
	for i := range u.limits.nodes {
		for p := range u.limits.nodes {
			if p == i || w.node[i] == old.node[i] && w.node[p] == old.node[p] && w.chans[i][p] == old.chans[i][p] && w.chans[p][i] == old.chans[p][i] && w.late == old.late {
				continue
			}
			changed[i][p] = true
			if heard := u.node(w.node[p]).peers[i].heard; heard.Seq != 0 {
				for _, m := range w.chans[i][p] {
					if x := &u.msgs[m]; m != 0 && x.Boot == heard.Boot && (x.Seq < heard.Seq || x.answer && x.Seq == heard.Seq) {
						w.chans[i][p] = without(w.chans[i][p], m)
					}
				}
			}
			u.forget(w, i, p)
		}
	}
	for i := range u.limits.nodes {
		for p := range u.limits.nodes {
			if changed[i][p] {
				u.rename(w, i, p)
			}
		}
	}
}

// forget clears what only the invariants needed: which keys a lost, when its
// peer does not have them either.
func (u *universe) forget(w *world, a, b int) {
	n, o := u.node(w.node[a]), u.node(w.node[b])
	for e := range n.lost {
		stale := n.lost[e][b][0]&^(1<<o.has[e][a].key) != 0
		unproved := n.proved[e][b] != 0 && n.proved[e][b] != n.has[e][b].key && n.proved[e][b] != o.has[e][a].key
		if stale || unproved {
			w.node[a] = u.do(w.node[a], op{kind: opForget, peer: uint8(b), e: uint8(e), x: bit(unproved), arg: n.lost[e][b][0] & (1 << o.has[e][a].key)}).node
			n = u.node(w.node[a])
		}
	}
}

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}
