package ipam

import (
	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Ask is a request: grant me these blocks.
type Ask struct {
	Voters [32]byte // hash of the asker's electorate
	Seq    uint64   // of the asker's record, which lists the blocks
	Blocks []Block  // at most MaxAsk, ascending; none: whether the voters are the same is all that is asked
}

// MaxAsk is how many blocks a request can name.
const MaxAsk = 256

// Verdict is what a node says to one block.
type Verdict uint8

// The verdicts.
const (
	Granted Verdict = 0 // promised to the asker, on disk
	Refused Verdict = 1 // it is another node's: Holder
	Later   Verdict = 2 // the asker's record with it has not come here, or a younger node has to give it up first
	Full    Verdict = 3 // this node can keep no more promises
)

// Code is what a node says to a whole request.
type Code uint8

// The codes.
const (
	Decided Code = 0 // a verdict for each block
	Differs Code = 1 // this node counts other voters, or has yet to publish all that it owns
)

// Answer is the answer to an Ask.
type Answer struct {
	Code     Code
	Seq      uint64     // of the answering node's own record
	Verdicts []ForBlock // one for each block, in their order; none unless Decided
}

// ForBlock is a verdict.
type ForBlock struct {
	Verdict
	Holder ids.NodeID // if Refused; else zero
}

// Serve answers another node's request. The ledger that it returns has to be on disk
// before the answer is sent; if it cannot be written there is no answer.
func (l Ledger) Serve(v View, from ids.NodeID, ask Ask) (Answer, Ledger) {
	l = l.Learn(v)
	own, _ := v.member(v.Self)
	ans := Answer{Seq: own.Record.Seq}
	e := l.Electorate()
	// With other voters in mind the asker's majority may be none of ours. The answer
	// differs until one of both has heard of whoever joined or left.
	asker, known := v.member(from)
	if e.Hash != ask.Voters || !known || !e.Has(from) || !e.Has(v.Self) || !l.allListed(own) {
		ans.Code = Differs
		return ans, l
	}
	l = l.clone(v)
	kept := 0
	for _, p := range l.promises {
		if p.To == from {
			kept++
		}
	}
	for _, b := range ask.Blocks {
		said := l.judge(v, asker, ask.Seq, b, kept)
		if said.Verdict == Granted {
			if l.promises[b].To != from {
				kept++
			}
			l.promises[b] = Promise{Block: b, To: from, Seq: asker.Record.Seq}
		}
		ans.Verdicts = append(ans.Verdicts, said)
	}
	return ans, l
}

// allListed reports whether this node's record, as it knows it, lists all that it has
// settled. After a start it may be an older one, from a cache: whoever relied on it
// (Meet) would take the rest for free.
func (l Ledger) allListed(own Member) bool {
	for b, p := range l.promises {
		if p.To == own.ID && p.Settled && !own.lists(b) {
			return false
		}
	}
	return true
}

// judge decides about one block. l has no void promises.
func (l Ledger) judge(v View, asker Member, seq uint64, b Block, kept int) ForBlock {
	// A promise refers to a record that lists the block, and that this node holds.
	// So a request that comes late, after its claim has ended, gets nothing, and
	// whoever exchanges records with this node learns what it has promised.
	if asker.Record.Seq < seq || !asker.lists(b) {
		return ForBlock{Verdict: Later}
	}
	p, promised := l.promises[b]
	if promised && p.To != asker.ID {
		return ForBlock{Refused, p.To}
	}
	// A record that lists the block may be that of its owner, who has settled it
	// when this node was no member yet, or was not asked.
	if m, listed := v.lister(b, asker.ID); listed {
		if asker.older(m) {
			return ForBlock{Verdict: Later} // it yields, or it has settled and others say so
		}
		return ForBlock{Refused, m.ID}
	}
	if !promised && (kept >= MaxPromisesNode || len(l.promises) >= MaxPromises) {
		return ForBlock{Verdict: Full}
	}
	return ForBlock{Verdict: Granted}
}
