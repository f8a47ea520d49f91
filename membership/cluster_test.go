package membership

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

func TestConverge(t *testing.T) {
	for _, n := range []int{3, 5, 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			l := newLab(t)
			converge(t, l.cluster(n), n)
		})
	}
}

func TestLateJoiner(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(4)
	converge(t, nodes, 4)
	for v := range 5 {
		nodes[1].Publish(content(1, v+1))
	}
	late := l.start(4)
	late.Publish(content(4, 0))
	nodes = append(nodes, late)
	converge(t, nodes, 5)
	late.until("content 5 of node 1", shows(nodes[1].self, 1, 5))
}

// TestWithoutRecord: a member that has not published yet learns everything
// and is shown nowhere.
func TestWithoutRecord(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(2)
	quiet := l.start(2)
	quiet.until("both records", func(s Snapshot) bool { return len(s.Members) == 2 })
	converge(t, nodes, 2)
	quiet.Publish(content(2, 0))
	converge(t, append(nodes, quiet), 3)
}

func TestPublishSpreads(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(5)
	converge(t, nodes, 5)
	for v := 1; v <= 10; v++ {
		from := nodes[v%5]
		from.Publish(content(from.i, v))
		for _, n := range nodes {
			n.until(fmt.Sprintf("content %d of node %d", v, from.i), shows(from.self, from.i, v))
		}
	}
	equal(t, nodes)
}

// TestSyncedTellsWhoHasIt: after a publication the publisher soon knows that
// every member has it, and an equal set is never shown while one has not.
func TestSyncedTellsWhoHasIt(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(5)
	converge(t, nodes, 5)
	allSynced := func(s Snapshot) bool {
		for _, m := range s.Members {
			if !m.Synced {
				return false
			}
		}
		return true
	}
	for v := 1; v <= 5; v++ {
		nodes[0].Publish(content(0, v))
		nodes[0].until("its own content, with all members synced", func(s Snapshot) bool {
			return shows(nodes[0].self, 0, v)(s) && allSynced(s)
		})
		for _, n := range nodes {
			if !shows(nodes[0].self, 0, v)(n.Snapshot()) {
				t.Errorf("node %d counts as synced without content %d", n.i, v)
			}
		}
	}
	for _, n := range nodes {
		n.until("all members synced", allSynced)
	}
}

func TestEqualContentIsNotPublishedAgain(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(content(0, 1))
	n.until("own record", shows(n.self, 0, 1))
	first, _ := n.Snapshot().Member(n.self)
	n.Publish(content(0, 1))
	n.Publish(content(0, 2))
	n.until("second content", shows(n.self, 0, 2))
	second, _ := n.Snapshot().Member(n.self)
	if second.Record.Seq != first.Record.Seq+1 {
		t.Errorf("sequence went from %d to %d, want one step", first.Record.Seq, second.Record.Seq)
	}
}

func TestAdvertiseFillsUnderlay(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(record.Node{})
	n.until("own record", func(s Snapshot) bool {
		m, ok := s.Member(n.self)
		return ok && len(m.Record.Underlay) == 1 && m.Record.Underlay[0].Control == addrOf(0)
	})
}

func TestImpossibleContentIsDropped(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	bad := content(0, 1)
	bad.Networks = nil // the endpoint is on a network the node is not on
	n.Publish(bad)
	n.Publish(content(0, 2))
	n.until("content 2", shows(n.self, 0, 2))
	bad.Attached[0].MAC = ids.MAC{1}
	n.Publish(bad)
	n.Publish(content(0, 3))
	n.until("content 3", shows(n.self, 0, 3))
}

func TestNoSequenceNumber(t *testing.T) {
	l := newLab(t)
	var broken sync.Mutex
	fail := true
	n := l.start(0, func(o *Options) {
		o.NextSeq = func() (uint64, error) {
			broken.Lock()
			defer broken.Unlock()
			if fail {
				return 0, errors.New("disk full")
			}
			return 7, nil
		}
	})
	n.Publish(content(0, 1))
	l.waitLog("no sequence number")
	broken.Lock()
	fail = false
	broken.Unlock()
	n.Publish(content(0, 1))
	n.until("own record", shows(n.self, 0, 1))
}

// TestPartition cuts a cluster in two until each half holds the other for
// dead, lets both go on, and joins them again.
func TestPartition(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(5)
	converge(t, nodes, 5)
	left := map[ids.NodeID]bool{nodes[0].self: true, nodes[1].self: true}
	l.net.setBroken(func(from, to ids.NodeID) bool { return left[from] != left[to] })
	for _, n := range nodes {
		n.until("the other half dead", func(s Snapshot) bool {
			for _, m := range s.Members {
				if (left[m.ID] == left[n.self]) != (m.State == StateAlive) || m.State == StateSuspect {
					return false
				}
			}
			return true
		})
		if s := n.Snapshot(); len(s.Members) != 5 {
			t.Fatalf("node %d forgot a record:\n%s", n.i, describe(s))
		}
	}
	nodes[0].Publish(content(0, 1))
	nodes[4].Publish(content(4, 1))
	nodes[1].until("content of its half", shows(nodes[0].self, 0, 1))
	nodes[2].until("content of its half", shows(nodes[4].self, 4, 1))
	if shows(nodes[0].self, 0, 1)(nodes[2].Snapshot()) {
		t.Fatal("the network is not cut")
	}
	l.net.setBroken(nil)
	start := time.Now()
	converge(t, nodes, 5)
	t.Logf("whole again after %v", time.Since(start))
	for _, n := range nodes {
		n.until("content 1 of node 0", shows(nodes[0].self, 0, 1))
		n.until("content 1 of node 4", shows(nodes[4].self, 4, 1))
	}
}

// TestLateSeed: two clusters that grew apart because the seed was down meet
// when it is there, although nobody is alone.
func TestLateSeed(t *testing.T) {
	l := newLab(t)
	a := []*node{l.start(0), l.start(1)}
	seeds := func(o *Options) { o.Seeds = []netip.AddrPort{addrOf(9), addrOf(2)} }
	b := []*node{l.start(2, seeds), l.start(3, seeds)}
	for _, n := range slices.Concat(a, b) {
		n.Publish(content(n.i, 0))
	}
	converge(t, a, 2)
	converge(t, b, 2)
	bridge := l.start(9)
	bridge.Publish(content(9, 0))
	converge(t, slices.Concat(a, b, []*node{bridge}), 5)
}

func TestRestart(t *testing.T) {
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprintf("cache=%v", cached), func(t *testing.T) {
			l := newLab(t)
			cache := FileCache{Path: filepath.Join(t.TempDir(), "set")}
			nodes := l.cluster(3, func(o *Options) {
				if cached && o.Bind == addrOf(2) {
					o.Cache = cache
				}
			})
			converge(t, nodes, 3)
			before, _ := nodes[2].Snapshot().Member(nodes[2].self)
			nodes[2].stop()
			nodes[0].until("node 2 dead", func(s Snapshot) bool {
				m, _ := s.Member(nodes[2].self)
				return m.State == StateDead
			})
			l.run(nodes[2])
			if cached {
				nodes[2].until("the cached records", func(s Snapshot) bool { return len(s.Members) == 3 })
			}
			nodes[2].Publish(content(2, 0))
			converge(t, nodes, 3)
			after, _ := nodes[2].Snapshot().Member(nodes[2].self)
			if cached && after.Record.Seq != before.Record.Seq {
				t.Errorf("equal content was published again: %d, then %d", before.Record.Seq, after.Record.Seq)
			}
		})
	}
}

// TestRenewedCertificate: a node that comes back with a newer certificate is
// known with that one before it publishes anything.
func TestRenewedCertificate(t *testing.T) {
	l := newLab(t)
	cache := FileCache{Path: filepath.Join(t.TempDir(), "set")}
	nodes := l.cluster(3, func(o *Options) {
		if o.Bind == addrOf(2) {
			o.Cache = cache
		}
	})
	converge(t, nodes, 3)
	nodes[2].stop()
	renewed, err := l.auth.Member(nodes[2].opts.Identity.Hostname, 99, time.Now().Add(-time.Second))
	if err != nil {
		t.Fatal(err)
	}
	nodes[2].opts.Identity = renewed
	l.run(nodes[2])
	for _, n := range nodes {
		n.until("certificate 99", func(s Snapshot) bool {
			m, ok := s.Member(renewed.ID)
			return ok && m.Serial == 99 && shows(renewed.ID, 2, 0)(s)
		})
	}
	converge(t, nodes, 3)
}

// TestIsolatedRestart: a node that restarts while it is cut off still knows
// its peers and their addresses.
func TestIsolatedRestart(t *testing.T) {
	l := newLab(t)
	cache := FileCache{Path: filepath.Join(t.TempDir(), "set")}
	nodes := l.cluster(3, func(o *Options) {
		if o.Bind == addrOf(2) {
			o.Cache = cache
		}
	})
	converge(t, nodes, 3)
	nodes[2].stop()
	cut := nodes[2].self
	l.net.setBroken(func(from, to ids.NodeID) bool { return from == cut || to == cut })
	nodes[2].opts.Seeds = nil
	l.run(nodes[2])
	nodes[2].until("all records", func(s Snapshot) bool { return len(s.Members) == 3 })
	if got := (directory{nodes[2].Cluster}).Underlay(nodes[0].self); !slices.Equal(got, []netip.AddrPort{addrOf(0)}) {
		t.Errorf("directory gives %v", got)
	}
	l.net.setBroken(nil)
	converge(t, nodes, 3)
}

// TestRestoredState: a node whose sequence numbers went back hears its own
// newer record from the others and goes above it.
func TestRestoredState(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(3)
	converge(t, nodes, 3)
	for v := 1; v < 10; v++ {
		nodes[2].Publish(content(2, v))
		nodes[0].until(fmt.Sprintf("content %d", v), shows(nodes[2].self, 2, v))
	}
	nodes[2].stop()
	nodes[2].seq.Store(0)
	l.run(nodes[2])
	nodes[2].Publish(content(2, 77))
	for _, n := range nodes {
		n.until("content 77", shows(nodes[2].self, 2, 77))
	}
	m, _ := nodes[0].Snapshot().Member(nodes[2].self)
	if m.Record.Seq <= 10 {
		t.Errorf("sequence is %d, want more than before the restore", m.Record.Seq)
	}
	converge(t, nodes, 3)
}

func TestLeave(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(3)
	converge(t, nodes, 3)
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := nodes[2].Leave(ctx); err != nil {
		t.Fatal(err)
	}
	nodes[2].stop()
	for _, n := range nodes[:2] {
		n.until("node 2 gone, its record still there", func(s Snapshot) bool {
			m, ok := s.Member(nodes[2].self)
			return ok && m.State == StateDead
		})
	}
	if err := nodes[2].Leave(ctx); err != nil {
		t.Errorf("second Leave: %v", err)
	}
	if err := nodes[2].Run(ctx); err == nil {
		t.Error("second Run did not fail")
	}
}

func TestLearnedSeeds(t *testing.T) {
	l := newLab(t)
	var mu sync.Mutex
	var saved []netip.AddrPort
	n := l.start(0, func(o *Options) {
		o.SaveSeeds = func(s []netip.AddrPort) error {
			mu.Lock()
			defer mu.Unlock()
			saved = s
			return nil
		}
	})
	n.Publish(content(0, 0))
	nodes := []*node{n}
	for i := 1; i < 8; i++ {
		m := l.start(i)
		m.Publish(content(i, 0))
		nodes = append(nodes, m)
	}
	converge(t, nodes, 8)
	n.stop() // saves once more
	mu.Lock()
	defer mu.Unlock()
	if len(saved) != maxLearned || slices.Contains(saved, addrOf(0)) {
		t.Errorf("saved seeds are %v, want %d of other nodes", saved, maxLearned)
	}
}

// TestPostNeverBlocks: callbacks must return whatever the loop does.
func TestPostNeverBlocks(t *testing.T) {
	l := newLab(t)
	c, err := New(Options{Identity: l.identity(0), NextSeq: func() (uint64, error) { return 1, nil }})
	if err != nil {
		t.Fatal(err)
	}
	d := delegate{c}
	for range 3 * maxEvents { // nobody takes them: Run does not run
		d.NotifyJoin(nil)
		d.NotifyMsg(hint{Node: ids.NodeID{1}, Holder: ids.NodeID{2}}.encode())
	}
	if len(c.events) != maxEvents {
		t.Errorf("%d events wait, want %d", len(c.events), maxEvents)
	}
}

func TestOptions(t *testing.T) {
	l := newLab(t)
	good := Options{Identity: l.identity(0), NextSeq: func() (uint64, error) { return 1, nil }}
	for name, spoil := range map[string]func(*Options){
		"no sequence": func(o *Options) { o.NextSeq = nil },
		"profile":     func(o *Options) { o.Profile = "moon" },
		"identity":    func(o *Options) { o.Identity.ID = ids.NodeID{} },
	} {
		o := good
		spoil(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: New accepted it", name)
		}
	}
}
