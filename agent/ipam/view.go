package ipam

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// Block names an address block: a network and a part of one of its subnets.
type Block struct {
	Network string
	Prefix  netip.Prefix
}

// String returns the block for people.
func (b Block) String() string { return b.Prefix.String() + " of network " + b.Network }

// compare orders blocks by network, address and length.
func (b Block) compare(o Block) int {
	return cmp.Or(cmp.Compare(b.Network, o.Network), b.Prefix.Addr().Compare(o.Prefix.Addr()), cmp.Compare(b.Prefix.Bits(), o.Prefix.Bits()))
}

// Member is a node as another one, or it itself, knows it.
type Member struct {
	ID     ids.NodeID
	Serial uint64 // of the certificate
	Votes  bool   // false: an observer
	Ends   int64  // of the certificate, seconds since 1970
	Alive  bool   // gossip counts it: whom to ask first, and nothing else
	Record record.Node
}

// lists reports whether the member's record lists a block.
func (m Member) lists(b Block) bool {
	for _, n := range m.Record.Networks {
		if n.Name == b.Network {
			return slices.Contains(n.Blocks, b.Prefix)
		}
	}
	return false
}

// older reports whether m is the older member: as in disputes (PROTOCOL.md, 13.4).
func (m Member) older(o Member) bool {
	return older(Voter{ID: m.ID, Serial: m.Serial}, Voter{ID: o.ID, Serial: o.Serial})
}

// View is what a node knows of the cluster at one moment, from signed records.
type View struct {
	Self ids.NodeID
	// Founder: nobody admitted this node, so it was the first one. Any other node
	// that knows no member but itself has not heard of them yet.
	Founder bool
	Members []Member // of the cluster now, this node included; ascending by ID
	// Gone are nodes that have left, are revoked, or whose certificates have ended.
	Gone map[ids.NodeID]bool
	// Ended is the time, in seconds since 1970, before which the certificate of a
	// node of which there is no record must have ended for it to be gone, too.
	Ended int64
}

// member returns the member with this ID.
func (v View) member(id ids.NodeID) (Member, bool) {
	i, ok := slices.BinarySearchFunc(v.Members, id, func(m Member, id ids.NodeID) int { return m.ID.Compare(id) })
	if !ok {
		return Member{}, false
	}
	return v.Members[i], true
}

// lister returns a member other than one node whose record lists a block: the
// oldest of them.
func (v View) lister(b Block, except ids.NodeID) (found Member, ok bool) {
	for _, m := range v.Members {
		if m.ID != except && m.lists(b) && (!ok || m.older(found)) {
			found, ok = m, true
		}
	}
	return found, ok
}

// Voter is a member that counts.
type Voter struct {
	ID     ids.NodeID
	Serial uint64
	Ends   int64 // of its certificate, seconds since 1970
}

func older(a, b Voter) bool {
	return cmp.Or(cmp.Compare(a.Serial, b.Serial), a.ID.Compare(b.ID)) < 0
}

// Electorate is the set of nodes whose majority a claim needs.
type Electorate struct {
	Voters []Voter // ascending by ID
	// Hash names the set. Two nodes with equal hashes mean the same nodes.
	Hash   [32]byte
	oldest ids.NodeID
}

// electorate makes the set of voters, which are ascending by ID.
func electorate(voters []Voter) Electorate {
	e := Electorate{Voters: voters}
	h := sha256.New()
	h.Write([]byte("so-voters-v1"))
	var first Voter
	for _, w := range voters {
		h.Write(w.ID[:])
		if e.oldest.IsZero() || older(w, first) {
			first, e.oldest = w, w.ID
		}
	}
	copy(e.Hash[:], h.Sum(nil))
	return e
}

// Has reports whether a node votes.
func (e Electorate) Has(id ids.NodeID) bool {
	_, ok := slices.BinarySearchFunc(e.Voters, id, func(w Voter, id ids.NodeID) int { return w.ID.Compare(id) })
	return ok
}

// Weight is what a node's vote counts. Of two nodes the older one counts twice, so
// that one of them can go on when the other is away. With four or more nodes there
// is no such rule: half of them is no majority, since with it one node that joins or
// leaves while its cluster is cut in two would give each side one.
func (e Electorate) Weight(id ids.NodeID) int {
	switch {
	case !e.Has(id):
		return 0
	case len(e.Voters) == 2 && id == e.oldest:
		return 2
	}
	return 1
}

// Need is the weight that settles a claim: more than half of all.
func (e Electorate) Need() int {
	all := len(e.Voters)
	if all == 2 {
		all = 3
	}
	return all/2 + 1
}

// sum is the weight of a set of nodes.
func (e Electorate) sum(set map[ids.NodeID]bool) (n int) {
	for id, in := range set {
		if in {
			n += e.Weight(id)
		}
	}
	return n
}

// watched returns the node that must have answered in this very electorate before
// others may decide without it, or the zero ID.
//
// Majorities of two sets that differ by one node have a node in common, which
// refuses the second claim to a block. What breaks that is the weight of 2 in a set
// of two: its older node decides alone, and two of three decide without it. So each
// side first hears from the node that it would pass over, which says with that
// that it has gone over to the new set, and what its record lists.
func (e Electorate) watched(self ids.NodeID, granted map[ids.NodeID]bool) ids.NodeID {
	switch {
	case len(e.Voters) == 2 && self == e.oldest:
		for _, w := range e.Voters {
			if w.ID != self && !granted[w.ID] {
				return w.ID
			}
		}
	case len(e.Voters) == 3 && !granted[e.oldest]:
		return e.oldest
	}
	return ids.NodeID{}
}

// SortBlocks sorts blocks in the order that messages have.
func SortBlocks(list []Block) { slices.SortFunc(list, Block.compare) }

func equalVoters(a, b []Voter) bool {
	return slices.EqualFunc(a, b, func(x, y Voter) bool { return bytes.Equal(x.ID[:], y.ID[:]) })
}
