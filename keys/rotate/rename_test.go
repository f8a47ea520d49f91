package rotate

import "slices"

// Numbers of messages grow for ever, but a machine only compares them: numbers
// of one stream with each other, and acknowledgements with three marks
// (stateSeq, freshSeq, backSeq). So after each action the numbers of a stream
// are renamed such that worlds that differ in nothing else become one: a mark
// rises to the next number that is in use, an acknowledgement sinks to the
// highest mark that it reaches, then numbers are counted from 2. An
// acknowledgement that reaches no mark is 1.

// stream is where the numbers of what from says to to stand.
type stream struct {
	from, to int
	boot     uint64 // of from
	marks    [3]uint64
	said     uint64
	heard    uint64  // by to; 0: nothing of this boot
	taken    uint64  // the acknowledgement that from has heard; 0: none of this boot
	saidAck  uint64  // what to has acknowledged last
	numbers  numbers // said, heard, those under way
}

// numbers is a small set.
type numbers struct {
	v [4 + 3*worldDepth]uint64
	n int
}

func (s *numbers) add(v uint64) {
	if v == 0 || slices.Contains(s.v[:s.n], v) {
		return
	}
	s.v[s.n] = v
	s.n++
}

// next returns the lowest number that is at least v, or else.
func (s *numbers) next(v, els uint64) uint64 {
	for _, x := range s.v[:s.n] {
		if x >= v && x < els {
			els = x
		}
	}
	return els
}

// below counts the numbers below v.
func (s *numbers) below(v uint64) (n int) {
	for _, x := range s.v[:s.n] {
		if x < v {
			n++
		}
	}
	return n
}

func (u *universe) stream(w *world, from, to int) *stream {
	a, b := u.node(w.node[from]).peers[to], u.node(w.node[to]).peers[from]
	s := &stream{from: from, to: to, boot: simBoot(from, u.node(w.node[from]).boots)}
	s.marks = [3]uint64{a.stateSeq, a.freshSeq, a.backSeq}
	s.said = a.said
	s.numbers.add(a.said)
	if b.heard.Boot == s.boot {
		s.heard = b.heard.Seq
		s.numbers.add(s.heard)
	}
	if a.heard.AckBoot == s.boot {
		s.taken = a.heard.AckSeq
	}
	if b.ackBoot == s.boot {
		s.saidAck = b.ackSeq
	}
	for _, m := range w.chans[from][to] {
		if m != 0 && u.msgs[m].Boot == s.boot {
			s.numbers.add(u.msgs[m].Seq)
		}
	}
	if m := w.late; m.msg != 0 && int(m.from) == from && int(m.to) == to && u.msgs[m.msg].Boot == s.boot {
		s.numbers.add(u.msgs[m.msg].Seq)
	}
	return s
}

// rename rewrites the numbers of one stream in every place of w.
func (u *universe) rename(w *world, from, to int) {
	s := u.stream(w, from, to)
	if s.said == 0 && s.heard == 0 && w.chans[from][to][0] == 0 {
		return
	}
	// Marks rise.
	inUse := s.numbers
	inUse.add(s.taken)
	for _, m := range w.chans[to][from] {
		if m != 0 && u.msgs[m].AckBoot == s.boot {
			inUse.add(u.msgs[m].AckSeq)
		}
	}
	back := w.late.msg != 0 && int(w.late.from) == to && int(w.late.to) == from
	if back && u.msgs[w.late.msg].AckBoot == s.boot {
		inUse.add(u.msgs[w.late.msg].AckSeq)
	}
	marks := s.marks
	for i, t := range marks {
		marks[i] = inUse.next(t, s.said+1)
	}
	// Acknowledgements sink, so only numbers and marks remain to be counted.
	sunk := func(ack uint64) (v uint64) {
		for _, t := range marks {
			if t <= ack {
				v = max(v, t)
			}
		}
		return v
	}
	counted := s.numbers
	for _, t := range marks {
		if t <= s.said {
			counted.add(t)
		}
	}
	rank := func(v uint64) uint64 {
		if v == 0 {
			return 0
		}
		return uint64(counted.below(v)) + 2
	}
	ackRank := func(v uint64) uint64 { return max(rank(sunk(v)), 1) }

	a := senderNumbers{said: rank(s.said), state: rank(marks[0]), fresh: rank(marks[1]), back: rank(marks[2])}
	old := senderNumbers{said: s.said, state: s.marks[0], fresh: s.marks[1], back: s.marks[2], taken: s.taken}
	if s.taken != 0 {
		a.taken = ackRank(s.taken)
	}
	if a != old {
		w.node[from] = u.do(w.node[from], op{kind: opRename, peer: uint8(to), arg: a.pack()}).node
	}
	heard, saidAck := rank(s.heard), s.saidAck
	switch {
	case s.saidAck == 0:
	case s.saidAck == s.heard:
		saidAck = heard
	default:
		saidAck = 1
	}
	if heard != s.heard || saidAck != s.saidAck {
		w.node[to] = u.do(w.node[to], op{kind: opRename, peer: uint8(from), e: 1, x: uint8(s.boot), arg: heard<<8 | saidAck}).node
	}
	u.renameChannels(w, s, rank, ackRank)
}

func (u *universe) renameChannels(w *world, s *stream, rank, ackRank func(uint64) uint64) {
	there := func(m *uint32) {
		if *m != 0 && u.msgs[*m].Boot == s.boot && rank(u.msgs[*m].Seq) != u.msgs[*m].Seq {
			msg := u.msgs[*m]
			msg.Seq = rank(msg.Seq)
			*m = u.internMessage(msg)
		}
	}
	back := func(m *uint32) {
		if *m == 0 {
			return
		}
		msg := u.msgs[*m]
		switch {
		case msg.AckBoot == s.boot:
			msg.AckSeq = ackRank(msg.AckSeq)
		case msg.AckBoot != 0:
			msg.AckBoot, msg.AckSeq = 1, 1 // a dead process
		}
		if msg.AckSeq != u.msgs[*m].AckSeq || msg.AckBoot != u.msgs[*m].AckBoot {
			*m = u.internMessage(msg)
		}
	}
	for i := range worldDepth {
		there(&w.chans[s.from][s.to][i])
		back(&w.chans[s.to][s.from][i])
	}
	switch {
	case int(w.late.from) == s.from && int(w.late.to) == s.to:
		there(&w.late.msg)
	case int(w.late.from) == s.to && int(w.late.to) == s.from:
		back(&w.late.msg)
	}
	// Two of them may have become one.
	c := &w.chans[s.to][s.from]
	for i := 1; i < worldDepth; i++ {
		if m := c[i]; m != 0 && m == c[i-1] {
			*c = without(*c, m)
			u.send(w, s.to, s.from, m)
		}
	}
}

// senderNumbers are the new numbers of a sender.
type senderNumbers struct{ said, state, fresh, back, taken uint64 }

func (s senderNumbers) pack() uint64 {
	return s.said | s.state<<8 | s.fresh<<16 | s.back<<24 | s.taken<<32
}

// renameSender and renameReceiver rewrite the numbers within a machine.
func renameSender(n *simNode, peer int, packed uint64) {
	p := n.m.pairs[simID(peer)]
	if p == nil {
		return
	}
	t := &p.talk
	at := func(i int) uint64 { return packed >> (8 * i) & 0xff }
	t.said.Seq, t.stateSeq, t.freshSeq, t.backSeq = at(0), at(1), at(2), at(3)
	if t.heard.AckBoot == n.m.boot {
		t.heard.AckSeq = at(4)
	}
}

func renameReceiver(n *simNode, peer int, boot uint8, packed uint64) {
	p := n.m.pairs[simID(peer)]
	if p == nil {
		return
	}
	t := &p.talk
	full := simBoot(peer, boot)
	if t.heard.Boot == full {
		t.heard.Seq = packed >> 8
	}
	if t.said.AckBoot == full {
		t.said.AckSeq = packed & 0xff
	}
}
