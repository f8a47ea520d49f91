package ipam

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// model is a cluster whose nodes run the code of this package over a network that
// loses, repeats, delays and reorders, in one direction or both, on disks that keep
// what was written and processes that end at any point.
type model struct {
	t      testing.TB
	rng    *rand.Rand
	now    time.Time
	nodes  []*mnode // all that ever joined, by number
	blocks []Block
	mail   []letter
	cut    map[[2]int]bool // from, to
	broken string          // a mutant; empty: the code as it is
	last   uint64          // serial
	most   int             // members
	every  int             // steps from one change of the members to the next

	double string // the first block that had two owners, and how
	counts map[string]int
}

// mnode is a node: what is on its disk, and its process.
type mnode struct {
	n      int
	id     ids.NodeID
	serial uint64
	out    bool // has left or is revoked

	disk     Stored
	cacheRec map[ids.NodeID]record.Node // record cache on disk, of some time ago
	cacheOut map[ids.NodeID]bool
	seq      uint64 // sequence numbers reserved so far

	up     bool
	boot   int // counts its processes
	ledger Ledger
	claims *Claims
	known  map[ids.NodeID]record.Node // its own, too
	gone   map[ids.NodeID]bool
	begun  map[Block]bool // claims that its record lists or is to list, not in the ledger yet
	drops  map[Block]bool // claims that are to end
	todo   []Tally        // settlements that wait for the disk
}

// letter is a message under way.
type letter struct {
	from, to int
	boot     int // of the process that asked
	ask      *Request
	ans      *Answer // nil: it is the request
}

const networkName = "blue"

func newModel(t testing.TB, seed uint64, nodes int, broken string) *model {
	m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 7)), now: time.Unix(1_000_000, 0), cut: map[[2]int]bool{}, broken: broken, most: 6, every: 700, counts: map[string]int{}}
	for i := range 2 + seed%6 {
		m.blocks = append(m.blocks, Block{networkName, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i * 16)}), 28)})
	}
	for range nodes {
		m.join()
		m.quiesce()
	}
	return m
}

// join adds a node, which hears of the others from one of them.
func (m *model) join() {
	m.last++
	n := &mnode{n: len(m.nodes), serial: m.last, id: ids.NodeID{byte(m.rng.Uint32()), byte(len(m.nodes) + 1)}, disk: Stored{}}
	m.nodes = append(m.nodes, n)
	m.start(n)
	if n.n == 0 {
		return
	}
	members := slices.DeleteFunc(slices.Clone(m.nodes[:n.n]), func(o *mnode) bool { return o.out || !o.up })
	m.hear(n, members[m.rng.IntN(len(members))])
}

func (m *model) start(n *mnode) {
	n.up, n.boot = true, n.boot+1
	n.ledger, n.claims = Open(n.disk, n.id), &Claims{}
	if m.broken == "voters are forgotten" {
		n.ledger.voters = nil
	}
	n.known, n.gone = maps.Clone(n.cacheRec), maps.Clone(n.cacheOut)
	if n.known == nil {
		n.known, n.gone = map[ids.NodeID]record.Node{}, map[ids.NodeID]bool{}
	}
	if m.broken == "alone at first" {
		n.ledger.joined = true
	}
	n.begun, n.drops, n.todo = map[Block]bool{}, map[Block]bool{}, nil
}

// view is what a node knows.
func (m *model) view(n *mnode) View {
	v := View{Self: n.id, Founder: n.n == 0, Gone: n.gone}
	for _, o := range m.nodes {
		if r, ok := n.known[o.id]; ok && !n.gone[o.id] {
			v.Members = append(v.Members, Member{ID: o.id, Serial: o.serial, Votes: true, Ends: 1, Alive: !m.cut[[2]int{n.n, o.n}], Record: r})
		}
	}
	slices.SortFunc(v.Members, func(a, b Member) int { return a.ID.Compare(b.ID) })
	return v
}

// save puts a ledger on the disk, and then into use, unless the process ends before
// or after. It reports whether the process is still there.
func (m *model) save(n *mnode, next Ledger) bool {
	if next.Equal(n.ledger) {
		return true
	}
	if m.chance(1, 200) {
		m.crash(n)
		return false
	}
	n.disk = next.Store()
	if m.chance(1, 200) {
		m.crash(n)
		return false
	}
	n.ledger = next
	return true
}

func (m *model) crash(n *mnode) { n.up = false; m.counts["crash"]++ }

func (m *model) chance(k, of int) bool { return m.rng.IntN(of) < k }

// listed are the blocks that a node's record has to list.
func (m *model) listed(n *mnode) map[Block]bool {
	out := maps.Clone(n.begun)
	for _, o := range n.ledger.Own(n.id) {
		if !n.drops[o.Block] {
			out[o.Block] = true
		}
	}
	return out
}

// publish signs a record, if there is something new to say, and if what it leaves out
// has ended on the disk.
func (m *model) publish(n *mnode) {
	listed := m.listed(n)
	if gone := n.ledger.Unlisted(n.id, listed); len(gone) > 0 && m.broken != "published before it is released" {
		return
	}
	rec := record.Node{ID: n.id, Networks: []record.Network{{Name: networkName}}}
	for _, b := range slices.SortedFunc(maps.Keys(listed), Block.compare) {
		rec.Networks[0].Blocks = append(rec.Networks[0].Blocks, b.Prefix)
	}
	have, ok := n.known[n.id]
	if ok && slices.Equal(have.Networks[0].Blocks, rec.Networks[0].Blocks) {
		return
	}
	n.seq++
	rec.Seq = max(n.seq, have.Seq+1)
	n.seq = rec.Seq
	n.known[n.id] = rec
	m.counts["publish"]++
}

// hear gives a node all that another one knows.
func (m *model) hear(n, from *mnode) {
	for id := range from.known {
		m.learn(n, from, id)
	}
	maps.Copy(n.gone, from.gone)
}

// learn gives it one record.
func (m *model) learn(n, from *mnode, id ids.NodeID) {
	if r, ok := from.known[id]; ok && r.Seq > n.known[id].Seq {
		n.known[id] = r
	}
}

// check looks for blocks with two owners. Who has left or was thrown out owns none.
func (m *model) check(what string) {
	owner := map[Block]int{}
	for _, n := range m.nodes {
		if n.out {
			continue
		}
		has := map[Block]bool{}
		for _, p := range n.disk.Promises {
			has[p.Block] = p.To == n.id && p.Settled
		}
		for _, o := range n.ledger.Own(n.id) {
			has[o.Block] = has[o.Block] || n.up && o.Settled
		}
		for b, mine := range has {
			if !mine {
				continue
			}
			if o, taken := owner[b]; taken && m.double == "" {
				m.double = fmt.Sprintf("after %s: %s is settled by nodes %d and %d", what, b, o, n.n)
			}
			owner[b] = n.n
		}
	}
	if m.double == "" && len(owner) > m.counts["most owned"] {
		m.counts["most owned"] = len(owner)
	}
}

// members are those that are still in the cluster.
func (m *model) members() []*mnode {
	return slices.DeleteFunc(slices.Clone(m.nodes), func(n *mnode) bool { return n.out })
}

// quiesce lets all members run, hear of each other, and write down who votes.
func (m *model) quiesce() {
	clear(m.cut)
	for _, l := range m.mail { // no call lasts for ever
		if from := m.nodes[l.from]; from.up && from.boot == l.boot {
			from.claims.Answer(m.now, *l.ask, Answer{}, errLost)
		}
	}
	m.mail = nil
	for range 4 {
		for _, n := range m.members() {
			if !n.up {
				m.start(n)
			}
			n.todo = nil
			for b := range n.drops {
				m.save(n, n.ledger.Release(m.view(n), []Block{b}))
			}
			if n.up {
				clear(n.drops)
				m.publish(n)
			}
		}
		for _, n := range m.members() {
			for _, o := range m.members() {
				if n.up && o.up && n != o {
					m.hear(n, o)
				}
			}
		}
	}
	for _, n := range m.members() {
		for !n.up || !m.save(n, n.ledger.Learn(m.view(n))) {
			m.start(n)
			for _, o := range m.members() {
				m.hear(n, o)
			}
		}
		n.cacheRec, n.cacheOut = maps.Clone(n.known), maps.Clone(n.gone)
	}
}

// TestOneOwner: whatever the network, the disks and the processes do, no block has
// two owners; and when all is well again every claim ends, and every node that wants
// a block has one.
func TestOneOwner(t *testing.T) {
	steps := 100_000
	if testing.Short() || slowness > 1 { // there is one goroutine
		steps = 20_000
	}
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			m := newModel(t, seed, 1+int(seed)%5, "")
			m.most = min(m.most, len(m.blocks)) // so that there is one for each
			m.run(steps)
			if m.double != "" {
				t.Fatal(m.double)
			}
			m.live()
			t.Logf("%v", m.counts)
			if m.counts["settled"] < steps/1000 || m.counts["crash"] < steps/1000 || m.counts["members changed"] < steps/5000 {
				t.Errorf("too little happened: %v", m.counts)
			}
		})
	}
}
