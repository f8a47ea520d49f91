package membership

import (
	"bytes"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// TestLearnedSeedsOfMixedUnderlays: what is kept for the next start is what this node can call, the
// address of its own family of nodes that have both.
func TestLearnedSeedsOfMixedUnderlays(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:7946"), netip.MustParseAddrPort("[2001:db8::1]:7946")
	member := func(i byte, state State, addrs ...netip.AddrPort) Member {
		m := Member{ID: ids.NodeID{i}, State: state}
		for _, a := range addrs {
			m.Record.Underlay = append(m.Record.Underlay, record.Underlay{Control: a})
		}
		return m
	}
	other4, other6 := netip.MustParseAddrPort("192.0.2.2:7946"), netip.MustParseAddrPort("[2001:db8::2]:7946")
	others := []Member{member(2, StateAlive, other4, other6), member(3, StateDead, v4), member(4, StateIndirect, v6), member(5, StateAlive)}
	for name, c := range map[string]struct {
		own  []netip.AddrPort
		want []netip.AddrPort
	}{
		"IPv4 only": {[]netip.AddrPort{v4}, []netip.AddrPort{other4, v4}},
		"IPv6 only": {[]netip.AddrPort{v6}, []netip.AddrPort{other6, v6}},
		"both":      {[]netip.AddrPort{v4, v6}, []netip.AddrPort{other4, v4, v6}},
		"not known": {nil, []netip.AddrPort{other4, v4, v6}},
	} {
		s := Snapshot{Self: ids.NodeID{1}, Members: append([]Member{member(1, StateAlive, c.own...)}, others...)}
		got := learnedSeeds(s)
		if len(got) == 0 || got[0] != c.want[0] {
			t.Errorf("%s: %v, want the live node's %v first", name, got, c.want[0])
		}
		slices.SortFunc(got, netip.AddrPort.Compare)
		slices.SortFunc(c.want, netip.AddrPort.Compare)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// mixedNode is what node i of a cluster publishes whose first two nodes have both
// families, and of the others every other one IPv4 and IPv6 only.
func mixedNode(i, v int) record.Node {
	n := content(i, v)
	six := record.Underlay{Control: netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 15: byte(i)}), 7946), MTU: 1500}
	switch {
	case i < 2:
		n.Underlay = append(n.Underlay, six)
	case i%2 == 1:
		n.Underlay = []record.Underlay{six}
	}
	return n
}

// TestMixedUnderlays: of sixteen nodes two have both families, so of two random ones the chance
// is one in two that they cannot call each other, and of memberlist's three
// helpers that none of them can help. All the same nobody is shown as suspect or dead that is
// not, for ten minutes; what one node says is everywhere within seconds; and whoever
// ends is dead everywhere, and alive again.
func TestMixedUnderlays(t *testing.T) {
	virtually(t, func(t *testing.T, l *lab) {
		const size = 16
		apart := func(i, k int) bool { return i > 1 && k > 1 && (i-k)%2 != 0 }
		index := map[ids.NodeID]int{}
		var nodes []*node
		for i := range size {
			index[l.identity(i).ID] = i
		}
		l.net.setBroken(func(from, to ids.NodeID) bool { return apart(index[from], index[to]) })
		for i := range size {
			n := l.start(i, lan)
			n.Publish(mixedNode(i, 0))
			nodes = append(nodes, n)
		}
		calm := func() bool {
			for _, n := range nodes {
				s := n.Snapshot()
				if len(s.Members) != size {
					return false
				}
				for _, m := range s.Members {
					want := StateAlive
					if apart(n.i, index[m.ID]) {
						want = StateIndirect
					}
					if m.State != want {
						t.Logf("node %d shows node %d as %s", n.i, index[m.ID], m.State)
						return false
					}
				}
			}
			return true
		}
		comes(t, 0, time.Minute, "all nodes know each other", calm)
		watch(t, 10*time.Minute, "everybody is there, and nobody says otherwise", calm)

		var worst time.Duration
		for v := 1; v <= 20; v++ {
			from := nodes[v%size]
			from.Publish(mixedNode(from.i, v))
			began := time.Now()
			for _, n := range nodes {
				n.until("the new record", shows(from.self, from.i, v))
			}
			worst = max(worst, time.Since(began))
		}
		t.Logf("a record is everywhere after %v at most", worst)
		if worst > 10*time.Second {
			t.Errorf("a record was everywhere after %v only", worst)
		}

		ended := nodes[3]
		ended.stop()
		comes(t, 0, 2*time.Minute, "the one that ended is dead everywhere", func() bool {
			return !slices.ContainsFunc(nodes, func(n *node) bool {
				m, ok := n.Snapshot().Member(ended.self)
				return n != ended && (!ok || m.State != StateDead)
			})
		})
		l.run(ended)
		ended.Publish(mixedNode(3, 99))
		comes(t, 0, time.Minute, "it is back everywhere", calm)
		for _, n := range nodes {
			n.stop()
		}
	})
}

// TestRelayGoesOneHop: a packet is carried on to a member that can be called, and to nobody
// else: not to strangers, and not to one that would need a further hop.
func TestRelayGoesOneHop(t *testing.T) {
	l := newLab(t)
	index := map[ids.NodeID]int{}
	for i := range 4 {
		index[l.identity(i).ID] = i
	}
	apart := func(i, k int) bool { return i > 1 && k > 1 && (i-k)%2 != 0 }
	var mu sync.Mutex
	carried := map[[2]int]int{}
	l.net.setBroken(func(from, to ids.NodeID) bool { return apart(index[from], index[to]) })
	l.net.setDrop(func(from, to ids.NodeID, b []byte) bool {
		mu.Lock()
		defer mu.Unlock()
		if len(b) > 1 && b[0] == userMessage && b[1] == messageRelay && bytes.HasSuffix(b, []byte("marked")) {
			carried[[2]int{index[from], index[to]}]++
		}
		return false
	})
	var nodes []*node
	for i := range 4 {
		n := l.start(i)
		n.Publish(mixedNode(i, 0))
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		n.until("four live members", func(s Snapshot) bool {
			return len(s.Members) == 4 && !slices.ContainsFunc(s.Members, func(m Member) bool { return !m.State.Live() })
		})
	}
	packet := append([]byte{userMessage, 99}, "marked"...)
	nodes[0].relay(nodes[3].self, packet)    // has a way
	nodes[2].relay(nodes[3].self, packet)    // would need a further hop
	nodes[0].relay(ids.NodeID{0xff}, packet) // a stranger
	nodes[0].relay(nodes[0].self, packet)    // for itself
	mu.Lock()
	defer mu.Unlock()
	if len(carried) != 1 || carried[[2]int{0, 3}] != 1 {
		t.Errorf("carried on: %v, want once from 0 to 3", carried)
	}
}
