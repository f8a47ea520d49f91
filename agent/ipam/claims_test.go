package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

var noon = time.Unix(1_700_000_000, 0)

func node(i int) ids.NodeID { return ids.NodeID{byte(i)} }

// cluster is what node self sees of n members, whose records list blocks of "blue".
func cluster(self, n int, lists map[int][]Block) View {
	v := View{Self: node(self), Founder: self == 1, Gone: map[ids.NodeID]bool{}}
	for i := 1; i <= n; i++ {
		m := Member{ID: node(i), Serial: uint64(i), Votes: true, Ends: noon.Unix(), Alive: true, Record: record.Node{ID: node(i), Seq: 7}}
		m.Record.Networks = []record.Network{{Name: "blue"}}
		for _, b := range lists[i] {
			m.Record.Networks[0].Blocks = append(m.Record.Networks[0].Blocks, b.Prefix)
		}
		v.Members = append(v.Members, m)
	}
	return v
}

var one, two = block("blue", "10.77.0.0/26"), block("blue", "10.77.0.64/26")

func asked1(s Step) (out []ids.NodeID) {
	for _, r := range s.Ask {
		out = append(out, r.To)
	}
	return out
}

// TestAskNoMoreThanNeeded: a majority is asked at once, with all blocks in one request,
// the rest when that takes long or somebody does not answer; and nobody twice at once.
func TestAskNoMoreThanNeeded(t *testing.T) {
	v := cluster(1, 7, map[int][]Block{1: {one, two}})
	l := Open(Stored{}, v.Self).Begin(v, []Block{one, two})
	var c Claims
	s := c.Next(noon, v, l)
	if got := asked1(s); !slices.Equal(got, []ids.NodeID{node(2), node(3), node(4)}) || !slices.Equal(s.Ask[0].Ask.Blocks, []Block{one, two}) || s.Ask[0].Ask.Seq != 7 {
		t.Fatalf("first: %v", s.Ask)
	}
	if again := c.Next(noon, v, l); len(again.Ask) != 0 {
		t.Errorf("asked again: %v", asked1(again))
	}
	yes := Answer{Seq: 7, Verdicts: []ForBlock{{}, {}}}
	c.Answer(noon, s.Ask[0], yes, nil)
	c.Answer(noon, s.Ask[1], yes, nil)
	c.Answer(noon, s.Ask[2], Answer{}, errLost)
	if next := c.Next(noon, v, l); !slices.Equal(asked1(next), []ids.NodeID{node(5)}) {
		t.Errorf("in place of one that does not answer: %v", asked1(next))
	}
	late := c.Next(noon.Add(spare), v, l)
	if got := asked1(late); !slices.Equal(got, []ids.NodeID{node(4), node(6), node(7)}) {
		t.Errorf("later: %v", got)
	}
	if w := c.Waiting(v.Self); len(w) != 2 || w[0].Have != 3 || w[0].Need != 4 || w[0].All != 7 || len(w[0].Silent) != 4 {
		t.Errorf("waiting: %+v", w)
	}
	c.Answer(noon, late.Ask[0], yes, nil)
	done := c.Next(noon.Add(spare), v, l)
	if len(done.Settle) != 2 {
		t.Fatalf("not settled: %+v", done)
	}
	l, err := l.Settle(v, done.Settle[0])
	if own := l.Own(v.Self); err != nil || !own[0].Settled || own[1].Settled {
		t.Errorf("%+v, %v", own, err)
	}
}

// TestRefusals: a claim ends when no majority is left, and says whose the block is.
func TestRefusals(t *testing.T) {
	v := cluster(1, 5, map[int][]Block{1: {one}})
	l := Open(Stored{}, v.Self).Begin(v, []Block{one})
	var c Claims
	no := Answer{Seq: 7, Verdicts: []ForBlock{{Refused, node(9)}}}
	s := c.Next(noon, v, l)
	c.Answer(noon, s.Ask[0], no, nil)
	c.Answer(noon, s.Ask[1], no, nil)
	s = c.Next(noon.Add(spare), v, l)
	if len(s.Lost) != 0 || len(s.Ask) == 0 {
		t.Fatalf("two of five: %+v", s)
	}
	for _, r := range s.Ask { // those who have refused are asked again: they may have changed their minds
		if r.To == node(4) {
			c.Answer(noon, r, no, nil)
		}
	}
	if s = c.Next(noon.Add(spare), v, l); len(s.Lost) != 1 || s.Lost[0] != (Lost{one, node(9)}) {
		t.Errorf("three of five: %+v", s)
	}
}

// TestYield: the younger of two gives up at once, the older after a while.
func TestYield(t *testing.T) {
	for self, patient := range map[int]bool{1: true, 2: false} {
		v := cluster(self, 3, map[int][]Block{1: {one}, 2: {one}})
		l := Open(Stored{}, v.Self).Begin(v, []Block{one})
		var c Claims
		if s := c.Next(noon, v, l); len(s.Lost) == 1 == patient {
			t.Errorf("node %d: %+v", self, s.Lost)
		}
		if s := c.Next(noon.Add(patience), v, l); len(s.Lost) != 1 {
			t.Errorf("node %d, later: %+v", self, s.Lost)
		}
	}
}

// TestTwo: of two the older decides alone once the other has answered, and the younger
// does not; nobody does who has just joined and knows no other.
func TestTwo(t *testing.T) {
	begin := func(v View, s Stored) Ledger { return Open(s, v.Self).Begin(v, []Block{one}) }
	settle := func(l Ledger, v View, granted map[ids.NodeID]bool) error {
		_, err := l.Settle(v, Tally{Block: one, Began: 7, Hash: l.Electorate().Hash, Granted: granted})
		return err
	}
	older, younger := cluster(1, 2, map[int][]Block{1: {one}}), cluster(2, 2, map[int][]Block{2: {one}})
	l := begin(older, Stored{})
	r := Request{To: node(2), Ask: Ask{Voters: l.Electorate().Hash}}
	met := l.Meet(older, r, Answer{Seq: 7})
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"older, other unheard": {settle(l, older, nil), false},
		"older, granted":       {settle(l, older, map[ids.NodeID]bool{node(2): true}), true},
		"older, met":           {settle(met, older, nil), true},
		"older, other differs": {settle(l.Meet(older, r, Answer{Code: Differs, Seq: 7}), older, nil), false},
		"older, record unseen": {settle(l.Meet(older, r, Answer{Seq: 8}), older, nil), false},
		"younger":              {settle(begin(younger, Stored{}), younger, nil), false},
		"younger, granted":     {settle(begin(younger, Stored{}), younger, map[ids.NodeID]bool{node(1): true}), true},
	} {
		if (c.err == nil) != c.want {
			t.Errorf("%s: %v", name, c.err)
		}
	}
	alone := cluster(1, 1, map[int][]Block{1: {one}})
	if err := settle(begin(alone, Stored{}), alone, nil); err != nil {
		t.Errorf("the first node: %v", err)
	}
	alone.Founder = false
	if err := settle(begin(alone, Stored{}), alone, nil); err == nil {
		t.Error("a node that knows no other took a block")
	}
}

// TestVoters: who counts is kept until there is a reason.
func TestVoters(t *testing.T) {
	v := cluster(1, 4, nil)
	v.Members[3].Votes = false
	l := Open(Stored{}, v.Self).Learn(v)
	voters := func(l Ledger) (out []int) {
		for _, w := range l.Electorate().Voters {
			out = append(out, int(w.ID[0]))
		}
		return out
	}
	if got := voters(l); !slices.Equal(got, []int{1, 2, 3}) {
		t.Errorf("with an observer: %v", got)
	}
	empty := cluster(1, 1, nil)
	if got := voters(Open(l.Store(), v.Self).Learn(empty)); !slices.Equal(got, []int{1, 2, 3}) {
		t.Errorf("without records: %v", got)
	}
	empty.Gone[node(2)] = true
	if got := voters(l.Learn(empty)); !slices.Equal(got, []int{1, 3}) {
		t.Errorf("one has left: %v", got)
	}
	empty.Ended = noon.Unix() + 1
	if got := voters(l.Learn(empty)); !slices.Equal(got, []int{1}) {
		t.Errorf("certificates have ended: %v", got)
	}
}

// TestPromisesAreBounded: one node cannot fill the ledger of another.
func TestPromisesAreBounded(t *testing.T) {
	v := cluster(1, 3, nil)
	var full []Block
	for i := range MaxPromisesNode + 1 {
		full = append(full, Block{fmt.Sprint("n", i%20), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 26)})
	}
	for i := range 20 {
		n := record.Network{Name: fmt.Sprint("n", i)}
		for _, b := range full {
			if b.Network == n.Name {
				n.Blocks = append(n.Blocks, b.Prefix)
			}
		}
		v.Members[1].Record.Networks = append(v.Members[1].Record.Networks, n)
	}
	l := Open(Stored{}, v.Self).Learn(v)
	var last Answer
	for chunk := range slices.Chunk(full, MaxAsk) {
		SortBlocks(chunk)
		last, l = l.Serve(v, node(2), Ask{Voters: l.Electorate().Hash, Seq: 7, Blocks: chunk})
	}
	if got := last.Verdicts[0].Verdict; got != Full || l.Promises() != MaxPromisesNode {
		t.Errorf("verdict %d, %d promises", got, l.Promises())
	}
	// Its record drops them: the next request finds room.
	v.Members[1].Record = record.Node{ID: node(2), Seq: 8, Networks: []record.Network{{Name: "blue", Blocks: []netip.Prefix{one.Prefix}}}}
	if last, l = l.Serve(v, node(2), Ask{Voters: l.Electorate().Hash, Seq: 8, Blocks: []Block{one}}); last.Verdicts[0].Verdict != Granted || l.Promises() != 1 {
		t.Errorf("%+v, %d promises", last, l.Promises())
	}
}
