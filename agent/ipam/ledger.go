package ipam

import (
	"errors"
	"maps"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Bounds of a ledger: a promise takes 155 bytes on disk at most, most of them half of that.
const (
	MaxPromises     = 1 << 14 // in all: with the voters, what a file of the data directory can hold
	MaxPromisesNode = 1 << 10 // to one other node
)

// Promise says that a block is one node's: this node does not grant it to another
// one, nor claims it, until the promise is void.
type Promise struct {
	Block
	To ids.NodeID
	// Seq is the number of To's record that listed the block then. The promise is
	// void when a later one does not list it, and when To is no member any more.
	// Of this node's own claims, which it ends itself: the number that its record had
	// when the claim began. It tells one claim to a block from the next.
	Seq uint64
	// Settled: To is this node, and a majority has granted the block.
	Settled bool
}

// Ledger is what a node has promised, and the voters that it counts. It is a value:
// methods return another one. It is on disk before anything follows from it, and
// all of it outlives the agent, but for claims of this node that are not settled.
type Ledger struct {
	promises map[Block]Promise
	voters   []Voter // ascending by ID
	// joined: this node has known another member, so that to be alone means that
	// the others are gone. To one that has just joined it means nothing.
	joined bool
	// met: the node of Electorate.watched has answered in this electorate.
	met bool
}

// Stored is a Ledger as it is kept.
type Stored struct {
	Promises []Promise // by block
	Voters   []Voter   // ascending by ID
	Joined   bool
	Met      bool
}

// Store returns what to keep.
func (l Ledger) Store() Stored {
	s := Stored{Voters: slices.Clone(l.voters), Joined: l.joined, Met: l.met}
	for _, p := range l.promises {
		s.Promises = append(s.Promises, p)
	}
	slices.SortFunc(s.Promises, func(a, b Promise) int { return a.compare(b.Block) })
	return s
}

// Open returns the ledger of an agent that starts. Claims that were not settled end
// here: grants are remembered by nobody but the process that got them, and its own
// record may come from a cache and be older than what others hold, so a claim begins
// again from a record that this process signs.
func Open(s Stored, self ids.NodeID) Ledger {
	l := Ledger{promises: map[Block]Promise{}, voters: slices.Clone(s.Voters), joined: s.Joined, met: s.Met}
	for _, p := range s.Promises {
		if p.To != self || p.Settled {
			l.promises[p.Block] = p
		}
	}
	slices.SortFunc(l.voters, func(a, b Voter) int { return a.ID.Compare(b.ID) })
	return l
}

// Equal reports whether two ledgers say the same.
func (l Ledger) Equal(o Ledger) bool {
	return l.joined == o.joined && l.met == o.met && slices.Equal(l.voters, o.voters) && maps.Equal(l.promises, o.promises)
}

// Electorate returns those who vote now.
func (l Ledger) Electorate() Electorate { return electorate(l.voters) }

// Promises is how many there are.
func (l Ledger) Promises() int { return len(l.promises) }

// Own is a claim of this node.
type Own struct {
	Block
	Settled bool
	Began   uint64 // Promise.Seq
}

// Own returns the claims of this node, in the order of blocks.
func (l Ledger) Own(self ids.NodeID) []Own {
	var out []Own
	for _, p := range l.promises {
		if p.To == self {
			out = append(out, Own{p.Block, p.Settled, p.Seq})
		}
	}
	slices.SortFunc(out, func(a, b Own) int { return a.compare(b.Block) })
	return out
}

// Barred returns the blocks that this node may not claim, and whose they are: what
// it has promised to others, what others list, and what its own published record
// still lists although it is no claim any more. To claim that again the others must first have seen it
// gone: else the grants of the first time would be counted for the second, when
// those who gave them have heard of the end of the first and forgotten them.
func (l Ledger) Barred(v View) map[Block]ids.NodeID {
	out := map[Block]ids.NodeID{}
	for _, p := range l.promises {
		if p.To != v.Self && l.holds(v, p) {
			out[p.Block] = p.To
		}
	}
	for _, m := range v.Members {
		for _, n := range m.Record.Networks {
			for _, prefix := range n.Blocks {
				b := Block{n.Name, prefix}
				if _, barred := out[b]; !barred && l.promises[b].To != v.Self {
					out[b] = m.ID
				}
			}
		}
	}
	return out
}

// Unlisted returns the claims of this node that a record with these blocks would
// not list. They have to end on disk (Release) before that record is published:
// whoever holds it may grant them to others.
func (l Ledger) Unlisted(self ids.NodeID, listed map[Block]bool) []Block {
	var out []Block
	for _, o := range l.Own(self) {
		if !listed[o.Block] {
			out = append(out, o.Block)
		}
	}
	return out
}

// holds reports whether a promise is in force. What a node does not know, such as a
// record that its cache has lost, keeps it.
func (l Ledger) holds(v View, p Promise) bool {
	if p.To == v.Self {
		return true
	}
	if v.Gone[p.To] {
		return false
	}
	m, ok := v.member(p.To)
	return !ok || m.Record.Seq <= p.Seq || m.lists(p.Block)
}

// Learn takes up who votes. A voter stays one until it is gone for a reason that
// this node has seen: a lost cache, or a record that has not come back yet, makes no
// electorate smaller.
func (l Ledger) Learn(v View) Ledger {
	var voters []Voter
	for _, w := range l.voters {
		m, known := v.member(w.ID)
		switch {
		case v.Gone[w.ID] || !known && w.Ends < v.Ended:
		case known && !m.Votes:
		default:
			voters = append(voters, w)
		}
	}
	for _, m := range v.Members {
		if !m.Votes || v.Gone[m.ID] {
			continue
		}
		w := Voter{ID: m.ID, Serial: m.Serial, Ends: m.Ends}
		i, ok := slices.BinarySearchFunc(voters, m.ID, func(w Voter, id ids.NodeID) int { return w.ID.Compare(id) })
		if !ok {
			voters = slices.Insert(voters, i, w)
		} else if w.Ends > voters[i].Ends {
			voters[i] = w
		}
	}
	if !equalVoters(voters, l.voters) {
		l.met = false
	}
	l.voters = voters
	l.joined = l.joined || v.Founder || slices.ContainsFunc(voters, func(w Voter) bool { return w.ID != v.Self })
	return l
}

// clone returns a ledger whose promises can be changed, without the void ones.
func (l Ledger) clone(v View) Ledger {
	next := make(map[Block]Promise, len(l.promises)+1)
	for b, p := range l.promises {
		if l.holds(v, p) {
			next[b] = p
		}
	}
	l.promises = next
	return l
}

// Begin promises blocks to this node itself, as far as they are promised to no
// other: the first vote of a claim.
func (l Ledger) Begin(v View, blocks []Block) Ledger {
	l = l.Learn(v).clone(v)
	own, _ := v.member(v.Self)
	for _, b := range blocks {
		if _, taken := l.promises[b]; !taken {
			l.promises[b] = Promise{Block: b, To: v.Self, Seq: own.Record.Seq}
		}
	}
	return l
}

// Release ends claims of this node.
func (l Ledger) Release(v View, blocks []Block) Ledger {
	l = l.clone(v)
	for _, b := range blocks {
		if l.promises[b].To == v.Self {
			delete(l.promises, b)
		}
	}
	return l
}

// Errors of Settle.
var (
	errElectorate = errors.New("the voters are others by now")
	errNoMajority = errors.New("there is no majority")
	errListed     = errors.New("another node's record lists the block")
	errNoClaim    = errors.New("this node does not claim the block")
	errNotListed  = errors.New("this node's record does not list the block")
)

// Settle makes a claim of this node one that addresses may be handed out from. The
// tally says which voters have granted it, in which electorate, and since when: what
// was granted to an earlier claim says nothing, because who granted that has seen it end.
//
// The argument: each voter grants a block to one node until that node's own record
// has dropped it, on disk before it says so. Those who granted this claim counted the
// same voters as this node does now. So a second owner needs a majority of the same
// voters and one of them to break its promise; or another set of voters, which has
// one of them in its majority, too, if it differs by one node (watched); or it has
// settled before, and then its record is known to that node, and refused by it.
func (l Ledger) Settle(v View, t Tally) (Ledger, error) {
	l = l.Learn(v)
	b := t.Block
	p := l.promises[b]
	own, _ := v.member(v.Self)
	switch e := l.Electorate(); {
	case p.To != v.Self || !p.Settled && p.Seq != t.Began:
		return l, errNoClaim
	case p.Settled:
		return l, nil
	case e.Hash != t.Hash:
		return l, errElectorate
	case !own.lists(b):
		return l, errNotListed // what the others do not see they could not refuse to one another
	case !l.enough(v.Self, t.Granted):
		return l, errNoMajority
	}
	if _, listed := v.lister(b, v.Self); listed {
		return l, errListed
	}
	l = l.clone(v)
	p.Settled = true
	l.promises[b] = p
	return l, nil
}

// enough reports whether these grants and this node's own make a majority.
func (l Ledger) enough(self ids.NodeID, granted map[ids.NodeID]bool) bool {
	e := l.Electorate()
	if !l.joined || !e.Has(self) || e.sum(granted)+e.Weight(self) < e.Need() {
		return false
	}
	w := e.watched(self, granted)
	return w.IsZero() || w == self || l.met
}

// Meet notes that another node has answered. If it is the one to be watched, counts
// the same voters, and its record is known here as it was then, what that lists is
// promised to it: so it cannot be lost with a cache by the time this node decides
// without it. What follows has to be on disk before the answer counts.
func (l Ledger) Meet(v View, r Request, ans Answer) Ledger {
	if ans.Code != Decided {
		return l
	}
	l = l.Learn(v)
	e := l.Electorate()
	m, known := v.member(r.To)
	if l.met || e.Hash != r.Ask.Voters || r.To != e.watched(v.Self, nil) || !known || m.Record.Seq < ans.Seq {
		return l
	}
	l = l.clone(v)
	l.met = true
	for _, n := range m.Record.Networks {
		for _, prefix := range n.Blocks {
			b := Block{n.Name, prefix}
			if _, taken := l.promises[b]; !taken {
				l.promises[b] = Promise{Block: b, To: r.To, Seq: m.Record.Seq}
			}
		}
	}
	return l
}
