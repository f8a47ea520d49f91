package ipam

import (
	"maps"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Pauses of the asking side.
const (
	// spare is how long only as many nodes are asked as a majority needs.
	spare = 300 * time.Millisecond
	// retryMin and retryMax bound the pause before a node is asked again.
	retryMin = 50 * time.Millisecond
	retryMax = 5 * time.Second
	// patience is how long the older of two nodes that claim one block waits for
	// the younger to give it up.
	patience = 3 * time.Second
	// maxAsking bounds how many nodes are asked at once.
	maxAsking = 64
)

// Claims are a node's claims that are not settled, and what others said to them. It
// lives in memory: after a restart the others are asked again.
type Claims struct {
	open   map[Block]*open
	voters Electorate
	asked  map[ids.NodeID]*asked
}

// open is one claim.
type open struct {
	since   time.Time
	began   uint64 // Own.Began
	granted map[ids.NodeID]bool
	refused map[ids.NodeID]ids.NodeID // and whose it is
}

// asked is what is known about asking one node.
type asked struct {
	busy  bool
	next  time.Time // not before
	pause time.Duration
	heard bool // it has answered in this electorate
	dead  bool // gossip did not count it when it was last looked at
}

// Request is an Ask to be sent. Give its answer, or that there is none, to Answer.
type Request struct {
	To  ids.NodeID
	Ask Ask

	about map[Block]*open // as they were then: an answer about an earlier claim says nothing about a later one
}

// Tally is a claim that enough voters have granted.
type Tally struct {
	Block   Block
	Began   uint64   // Own.Began
	Hash    [32]byte // of the electorate
	Granted map[ids.NodeID]bool
}

// Lost is a claim that can win no majority.
type Lost struct {
	Block  Block
	Holder ids.NodeID // who has it; zero: not known
}

// Step is what is to be done about the claims.
type Step struct {
	Ask    []Request
	Settle []Tally   // by Ledger.Settle
	Lost   []Lost    // by Ledger.Release
	Wake   time.Time // the next step is due then; zero: when something is heard
}

// Next looks at the claims of the ledger. The ledger must be on disk.
func (c *Claims) Next(now time.Time, v View, l Ledger) Step {
	l = l.Learn(v)
	c.refresh(now, v, l)
	var s Step
	own, _ := v.member(v.Self)
	wanted := map[ids.NodeID]map[Block]*open{}
	for _, b := range slices.SortedFunc(maps.Keys(c.open), Block.compare) {
		o := c.open[b]
		if !own.lists(b) {
			continue // the record with it is on its way
		}
		if m, listed := v.lister(b, v.Self); listed {
			// The younger yields; the older would have to wait for one that does not
			// hear it.
			if wait := o.since.Add(patience).Sub(now); m.older(own) || wait <= 0 {
				s.Lost = append(s.Lost, Lost{b, m.ID})
			} else {
				s.wake(now.Add(wait))
			}
			continue
		}
		if l.enough(v.Self, o.granted) {
			s.Settle = append(s.Settle, Tally{b, o.began, c.voters.Hash, maps.Clone(o.granted)})
			continue
		}
		if holder, lost := o.hopeless(c.voters); lost {
			s.Lost = append(s.Lost, Lost{b, holder})
			continue
		}
		for _, id := range c.next(now, v, o, &s) {
			if wanted[id] == nil {
				wanted[id] = map[Block]*open{}
			}
			wanted[id][b] = o
		}
	}
	c.greet(now, v, l, wanted, &s)
	c.requests(own.Record.Seq, wanted, &s)
	return s
}

// greet asks the node that is to be watched for nothing but an answer, once in an
// electorate: it may be away by the time there is a claim.
func (c *Claims) greet(now time.Time, v View, l Ledger, wanted map[ids.NodeID]map[Block]*open, s *Step) {
	id := c.voters.watched(v.Self, nil)
	if l.met || id.IsZero() || id == v.Self || wanted[id] != nil || !c.voters.Has(v.Self) {
		return
	}
	switch a := c.asked[id]; {
	case a != nil && a.busy:
	case a != nil && now.Before(a.next):
		s.wake(a.next)
	default:
		wanted[id] = map[Block]*open{}
	}
}

func (s *Step) wake(at time.Time) {
	if s.Wake.IsZero() || at.Before(s.Wake) {
		s.Wake = at
	}
}

// refresh takes up new claims, forgets those that have ended or are settled, and
// forgets what was said when the voters were others.
func (c *Claims) refresh(now time.Time, v View, l Ledger) {
	if c.open == nil {
		c.open, c.asked = map[Block]*open{}, map[ids.NodeID]*asked{}
	}
	mine := map[Block]bool{}
	for _, o := range l.Own(v.Self) {
		if o.Settled {
			continue
		}
		mine[o.Block] = true
		if have := c.open[o.Block]; have == nil || have.began != o.Began {
			c.open[o.Block] = newOpen(now, o.Began)
		}
	}
	maps.DeleteFunc(c.open, func(b Block, _ *open) bool { return !mine[b] })
	if e := l.Electorate(); e.Hash != c.voters.Hash {
		for b, o := range c.open {
			c.open[b] = newOpen(o.since, o.began)
		}
		for id, a := range c.asked {
			if e.Has(id) {
				c.asked[id] = &asked{busy: a.busy}
			} else if !a.busy {
				delete(c.asked, id)
			}
		}
		c.voters = e
	}
	for id, a := range c.asked {
		m, _ := v.member(id)
		if a.dead && m.Alive { // it is back: what it did not answer is no reason to wait
			a.pause, a.next = 0, time.Time{}
		}
		a.dead = !m.Alive
	}
}

func newOpen(since time.Time, began uint64) *open {
	return &open{since: since, began: began, granted: map[ids.NodeID]bool{}, refused: map[ids.NodeID]ids.NodeID{}}
}

// hopeless reports whether too many have refused, and whose the block is.
func (o *open) hopeless(e Electorate) (holder ids.NodeID, lost bool) {
	against := 0
	for id, h := range o.refused {
		against += e.Weight(id)
		if holder.IsZero() || h.Compare(holder) < 0 {
			holder = h
		}
	}
	all := 0
	for _, w := range e.Voters {
		all += e.Weight(w.ID)
	}
	return holder, all-against < e.Need()
}

// next returns the nodes to ask about a claim now: as many as it needs, then all.
func (c *Claims) next(now time.Time, v View, o *open, s *Step) []ids.NodeID {
	order := c.order(v)
	weight := c.voters.Weight(v.Self) + c.voters.sum(o.granted)
	all := len(c.voters.Voters) <= 3 || !now.Before(o.since.Add(spare))
	if !all {
		s.wake(o.since.Add(spare))
	}
	var out []ids.NodeID
	for _, id := range order {
		if o.granted[id] {
			continue
		}
		if !all && weight >= c.voters.Need() {
			break
		}
		weight += c.voters.Weight(id)
		a := c.asked[id]
		if a != nil && a.busy {
			continue
		}
		if a != nil && now.Before(a.next) {
			s.wake(a.next)
			continue
		}
		out = append(out, id)
	}
	return out
}

// order lists the other voters: those that answer first, and then from this node on
// round the ring of IDs, so that not everybody asks the same ones.
func (c *Claims) order(v View) []ids.NodeID {
	var out []ids.NodeID
	at := 0
	for i, w := range c.voters.Voters {
		if w.ID == v.Self {
			at = i
		}
	}
	rank := map[ids.NodeID]int{}
	for i := range c.voters.Voters {
		w := c.voters.Voters[(at+i)%len(c.voters.Voters)]
		if w.ID == v.Self {
			continue
		}
		if m, _ := v.member(w.ID); !m.Alive {
			rank[w.ID] = 1
		}
		if a := c.asked[w.ID]; a != nil && a.pause > 0 && !a.heard {
			rank[w.ID]++
		}
		out = append(out, w.ID)
	}
	slices.SortStableFunc(out, func(a, b ids.NodeID) int { return rank[a] - rank[b] })
	return out
}

// requests makes one request for each node, of what is wanted of it.
func (c *Claims) requests(seq uint64, wanted map[ids.NodeID]map[Block]*open, s *Step) {
	busy := 0
	for _, a := range c.asked {
		if a.busy {
			busy++
		}
	}
	nodes := slices.SortedFunc(maps.Keys(wanted), ids.NodeID.Compare)
	for _, id := range nodes {
		if busy >= maxAsking {
			return // the next answer makes room
		}
		busy++
		list := slices.SortedFunc(maps.Keys(wanted[id]), Block.compare)
		list = list[:min(len(list), MaxAsk)]
		r := Request{To: id, Ask: Ask{Voters: c.voters.Hash, Seq: seq, Blocks: list}, about: map[Block]*open{}}
		for _, b := range list {
			r.about[b] = wanted[id][b]
		}
		a := c.asked[id]
		if a == nil {
			a = &asked{}
			c.asked[id] = a
		}
		a.busy = true
		s.Ask = append(s.Ask, r)
	}
}

// Answer takes what became of a request; err says that there was no answer.
func (c *Claims) Answer(now time.Time, r Request, ans Answer, err error) {
	a := c.asked[r.To]
	if a == nil {
		return
	}
	a.busy = false
	a.pause = min(max(2*a.pause, retryMin), retryMax)
	a.next = now.Add(a.pause)
	if err != nil || r.Ask.Voters != c.voters.Hash || ans.Code != Decided || len(ans.Verdicts) != len(r.Ask.Blocks) {
		a.heard = a.heard && err == nil
		return
	}
	a.heard = true
	settled := true
	for i, b := range r.Ask.Blocks {
		o := c.open[b]
		if o == nil || o != r.about[b] {
			continue
		}
		said := ans.Verdicts[i]
		delete(o.refused, r.To)
		switch said.Verdict {
		case Granted:
			o.granted[r.To] = true
		case Refused:
			o.refused[r.To] = said.Holder
		}
		settled = settled && said.Verdict == Granted
	}
	if settled {
		a.pause, a.next = 0, time.Time{} // it may be asked about the next claim at once
	}
}

// Waiting is a claim that waits for others.
type Waiting struct {
	Block
	Since     time.Time
	Have      int          // weight of its grants, this node's own included
	Need, All int          // weight that settles it, and of all voters
	Silent    []ids.NodeID // voters that have said neither yes nor no, ascending
}

// Waiting returns the claims that wait, in the order of blocks.
func (c *Claims) Waiting(self ids.NodeID) []Waiting {
	var out []Waiting
	for b, o := range c.open {
		w := Waiting{Block: b, Since: o.since, Need: c.voters.Need(), Have: c.voters.Weight(self) + c.voters.sum(o.granted)}
		for _, voter := range c.voters.Voters {
			w.All += c.voters.Weight(voter.ID)
			if _, no := o.refused[voter.ID]; !no && !o.granted[voter.ID] && voter.ID != self {
				w.Silent = append(w.Silent, voter.ID)
			}
		}
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b Waiting) int { return a.compare(b.Block) })
	return out
}
