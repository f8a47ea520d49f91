package ipam

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

var errLost = errors.New("no answer")

// run makes steps at random. Members change one at a time: the next change comes when
// all have heard of the last one.
func (m *model) run(steps int) {
	for i := 0; i < steps && m.double == ""; i++ {
		m.now = m.now.Add(time.Duration(m.rng.IntN(40)) * time.Millisecond)
		if i%m.every == m.every-1 {
			m.quiesce()
			m.change()
		}
		what := m.step()
		m.check(what)
	}
}

// change adds or removes a member.
func (m *model) change() {
	members := m.members()
	if len(members) < m.most && (len(members) == 1 || m.chance(1, 2)) {
		m.join()
		m.counts["members changed"]++
		return
	}
	if len(members) <= 1 {
		return
	}
	n := members[m.rng.IntN(len(members))]
	// It leaves, or is revoked: one other member hears of it first.
	n.out, n.up = true, false
	for _, o := range m.rng.Perm(len(members)) {
		if o := members[o]; o != n {
			o.gone[n.id] = true
			o.cacheOut = maps.Clone(o.gone)
			break
		}
	}
	m.counts["members changed"]++
}

// step does one thing somewhere.
func (m *model) step() string {
	members := m.members()
	n, o := members[m.rng.IntN(len(members))], members[m.rng.IntN(len(members))]
	kind := m.rng.IntN(100)
	if !n.up {
		if m.chance(1, 4) {
			m.start(n)
		}
		return "start"
	}
	switch {
	case kind < 4:
		m.carryOn(n)
		return "carry on"
	case kind < 8:
		m.want(n)
		return "want"
	case kind < 22:
		m.publish(n)
		return "publish"
	case kind < 30:
		m.begin(n)
		return "begin"
	case kind < 47:
		m.next(n)
		return "next"
	case kind < 54:
		m.settle(n)
		return "settle"
	case kind < 59:
		m.release(n)
		return "release"
	case kind < 86:
		for range 1 + m.rng.IntN(3) {
			m.deliver()
		}
		return "deliver"
	case kind < 95:
		if o.up && !m.cut[[2]int{o.n, n.n}] {
			m.gossip(n, o)
		}
		return "gossip"
	case kind < 96:
		n.cacheRec, n.cacheOut = maps.Clone(n.known), maps.Clone(n.gone)
		if m.chance(1, 20) {
			n.cacheRec, n.cacheOut = nil, nil // somebody has removed it
		}
		return "cache"
	case kind < 97 && m.chance(1, 3):
		m.crash(n)
		return "crash"
	case kind < 98:
		m.save(n, n.ledger.Learn(m.view(n)))
		return "learn"
	}
	m.partition()
	return "partition"
}

// carryOn has a node do all that there is to do, as an agent does in a round.
func (m *model) carryOn(n *mnode) {
	for _, do := range []func(*mnode){m.want, m.begin, m.release, m.publish, m.next, m.settle} {
		if n.up {
			do(n)
		}
	}
}

// partition changes which links there are: single ones, in one direction, or a cut
// through the cluster, or none.
func (m *model) partition() {
	switch m.rng.IntN(8) {
	case 0, 1, 2, 3:
		clear(m.cut)
	case 4:
		clear(m.cut)
		side := make([]bool, len(m.nodes))
		for i := range side {
			side[i] = m.chance(1, 2)
		}
		for i := range side {
			for j := range side {
				m.cut[[2]int{i, j}] = side[i] != side[j]
			}
		}
	default:
		a, b := m.rng.IntN(len(m.nodes)), m.rng.IntN(len(m.nodes))
		m.cut[[2]int{a, b}] = !m.cut[[2]int{a, b}]
	}
}

// want wants another block, or one less.
func (m *model) want(n *mnode) {
	own := n.ledger.Own(n.id)
	if len(own) > 0 && m.chance(1, 3) {
		n.drops[own[m.rng.IntN(len(own))].Block] = true
		return
	}
	b := m.blocks[m.rng.IntN(len(m.blocks))]
	v := m.view(n)
	barred := n.ledger.Barred(v)
	if m.broken == "claimed again at once" {
		delete(barred, b)
	}
	_, listed := v.lister(b, n.id)
	if holder, not := barred[b]; not && holder != n.id || not && m.broken != "claimed again at once" || listed || len(own)+len(n.begun) >= 2 {
		return
	}
	n.begun[b] = true
}

// begin writes down what was begun.
func (m *model) begin(n *mnode) {
	if len(n.begun) == 0 {
		return
	}
	list := slices.SortedFunc(maps.Keys(n.begun), Block.compare)
	if m.save(n, n.ledger.Begin(m.view(n), list)) {
		clear(n.begun)
	}
}

// release ends what is to end.
func (m *model) release(n *mnode) {
	if len(n.drops) == 0 {
		return
	}
	if m.save(n, n.ledger.Release(m.view(n), slices.SortedFunc(maps.Keys(n.drops), Block.compare))) {
		clear(n.drops)
	}
}

// next asks, and notes what is to be settled and given up.
func (m *model) next(n *mnode) {
	s := n.claims.Next(m.now, m.view(n), n.ledger)
	if m.broken == "half is enough" {
		m.halves(n, &s)
	}
	n.todo = append(n.todo, s.Settle...)
	for _, l := range s.Lost {
		n.drops[l.Block] = true
	}
	for _, r := range s.Ask {
		to := slices.IndexFunc(m.nodes, func(o *mnode) bool { return o.id == r.To })
		m.mail = append(m.mail, letter{from: n.n, to: to, boot: n.boot, ask: &r})
	}
}

// settle carries out what enough others have granted.
func (m *model) settle(n *mnode) {
	if len(n.todo) == 0 {
		return
	}
	t := n.todo[0]
	n.todo = n.todo[1:]
	next, err := n.ledger.Settle(m.view(n), t)
	if m.broken == "half is enough" || m.broken == "nobody is met" {
		next, err = m.forced(n, t)
	}
	if err == nil && m.save(n, next) {
		m.counts["settled"]++
	}
}

// deliver takes a message from anywhere in the mail: some are lost, some stay and
// come again.
func (m *model) deliver() {
	if len(m.mail) == 0 {
		return
	}
	i := m.rng.IntN(len(m.mail))
	l := m.mail[i]
	again := l.ans == nil && m.chance(1, 10) && len(m.mail) < 200
	if !again {
		m.mail = slices.Delete(m.mail, i, i+1)
	}
	from, to := m.nodes[l.from], m.nodes[l.to]
	if l.ans != nil {
		if !from.up || from.boot != l.boot {
			return // the call ended with its process
		}
		if m.cut[[2]int{l.to, l.from}] || m.chance(1, 20) {
			from.claims.Answer(m.now, *l.ask, Answer{}, errLost)
			return
		}
		from.claims.Answer(m.now, *l.ask, *l.ans, nil)
		m.save(from, from.ledger.Meet(m.view(from), *l.ask, *l.ans))
		return
	}
	if !to.up || to.out || m.cut[[2]int{l.from, l.to}] || m.chance(1, 20) {
		if from.up && from.boot == l.boot {
			from.claims.Answer(m.now, *l.ask, Answer{}, errLost)
		}
		return
	}
	if m.chance(1, 2) { // its record comes along
		m.learn(to, from, from.id)
	}
	if ans, ok := m.serve(to, from.id, l.ask.Ask); ok {
		m.mail = append(m.mail, letter{from: l.from, to: l.to, boot: l.boot, ask: l.ask, ans: &ans})
	} else if from.up && from.boot == l.boot {
		from.claims.Answer(m.now, *l.ask, Answer{}, errLost)
	}
}

// gossip hands over one record, one departure, or everything.
func (m *model) gossip(n, from *mnode) {
	switch m.rng.IntN(4) {
	case 0:
		if id := m.nodes[m.rng.IntN(len(m.nodes))].id; from.gone[id] {
			n.gone[id] = true
		}
	case 1:
		id := m.nodes[m.rng.IntN(len(m.nodes))].id
		m.learn(n, from, id)
	default:
		m.hear(n, from)
	}
}

// live lets everything be well, and expects that all claims end and that every member
// gets a block that it asks for, as long as there are some.
func (m *model) live() {
	for _, n := range m.members() { // those who lost their caches hear again who is gone
		for _, o := range m.nodes {
			n.gone[o.id] = o.out
		}
	}
	m.quiesce()
	for _, n := range m.members() {
		clear(n.drops)
		for _, o := range n.ledger.Own(n.id) {
			n.drops[o.Block] = true
		}
	}
	m.quiesce()
	for round := range 400 {
		m.now = m.now.Add(100 * time.Millisecond)
		for _, n := range m.members() {
			if !n.up {
				m.start(n)
			}
			if len(n.ledger.Own(n.id))+len(n.begun) == 0 {
				m.wantFirst(n)
			}
			m.begin(n)
			if n.up {
				m.release(n)
			}
			if n.up {
				m.publish(n)
				m.next(n)
			}
			for n.up && len(n.todo) > 0 {
				m.settle(n)
			}
			for _, o := range m.members() {
				m.hear(n, o)
			}
		}
		for tries := 0; len(m.mail) > 0 && tries < 1000; tries++ {
			m.deliver()
		}
		m.check("healing")
		if m.double == "" && m.allSettled() {
			m.counts["rounds to heal"] = round
			return
		}
	}

	m.t.Errorf("not every member has a block after %d rounds: %s", 400, m.double)
}

// wantFirst claims the first block that seems to be free, as all do: they collide.
func (m *model) wantFirst(n *mnode) {
	v := m.view(n)
	barred := n.ledger.Barred(v)
	for _, b := range m.blocks {
		_, not := barred[b]
		if _, listed := v.lister(b, n.id); !not && !listed {
			n.begun[b] = true
			return
		}
	}
}

func (m *model) allSettled() bool {
	for _, n := range m.members() {
		own := n.ledger.Own(n.id)
		if !n.up || len(own) == 0 || slices.ContainsFunc(own, func(o Own) bool { return !o.Settled }) {
			return false
		}
	}
	return true
}

// serve answers a request as an agent does: the promise first, then the answer.
func (m *model) serve(n *mnode, from ids.NodeID, ask Ask) (Answer, bool) {
	v := m.view(n)
	switch m.broken {
	case "other voters do not matter":
		ask.Voters = n.ledger.Learn(v).Electorate().Hash
	case "a lost record ends a promise":
		if len(v.Members) > 0 {
			l := n.ledger
			l.promises = maps.Clone(l.promises)
			maps.DeleteFunc(l.promises, func(b Block, p Promise) bool {
				r, _ := v.member(p.To)
				return p.To != n.id && !r.lists(b)
			})
			n.ledger = l
		}
	}
	ans, next := n.ledger.Serve(v, from, ask)
	for i := range ans.Verdicts {
		b, said := ask.Blocks[i], &ans.Verdicts[i]
		if m.broken == "promised twice" && said.Verdict == Refused && said.Holder != n.id {
			*said = ForBlock{}
			next.promises[b] = Promise{Block: b, To: from, Seq: ask.Seq}
		}
	}
	if m.broken == "answered before it is written" && m.chance(1, 2) {
		m.crash(n)
		return ans, true
	}
	return ans, m.save(n, next)
}

// halves and forced are the mutants of settling.
func (m *model) halves(n *mnode, s *Step) {
	for b, o := range n.claims.open {
		if e := n.claims.voters; len(e.Voters) > 2 && e.sum(o.granted)+1 >= e.Need()-1 && n.ledger.joined {
			s.Settle = append(s.Settle, Tally{b, o.began, e.Hash, maps.Clone(o.granted)})
		}
	}
}

func (m *model) forced(n *mnode, t Tally) (Ledger, error) {
	l := n.ledger
	l.met = true
	e := l.Learn(m.view(n)).Electorate()
	granted := maps.Clone(t.Granted)
	if m.broken == "half is enough" {
		for _, w := range e.Voters {
			if !granted[w.ID] && w.ID != n.id && e.sum(granted)+e.Weight(n.id) < e.Need() && e.sum(granted)+e.Weight(n.id) >= e.Need()-1 {
				granted[w.ID] = true
			}
		}
	}
	t.Granted = granted
	return l.Settle(m.view(n), t)
}
