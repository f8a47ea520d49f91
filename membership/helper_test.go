package membership

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// deadline bounds every wait of these tests; none should come near it.
const deadline = 120 * time.Second

// lab is a cluster under test.
type lab struct {
	t         *testing.T
	auth      *membertest.Authority
	net       *fakeNet
	transport func(noisenet.Config) transport
	log       *logBuffer

	// beat and stale are those of the profile; 0, which is usual: nothing of the
	// kind.
	beat, stale time.Duration
}

// newLab runs beside other tests: nearly all of its time is waiting.
func newLab(t *testing.T) *lab {
	t.Helper()
	t.Parallel()
	return serialLab(t)
}

func serialLab(t *testing.T) *lab {
	t.Helper()
	auth, err := membertest.New("membership", time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	n := newFakeNet()
	return &lab{t: t, auth: auth, net: n, transport: n.transport, log: &logBuffer{}}
}

func (l *lab) identity(i int) keystore.Identity {
	l.t.Helper()
	id, err := l.auth.Member(fmt.Sprintf("node%d", i), uint64(i+1), time.Now().Add(-time.Minute))
	if err != nil {
		l.t.Fatal(err)
	}
	return id
}

func addrOf(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, byte(i >> 8), byte(i + 1)}), 7946)
}

// node is one running cluster member.
type node struct {
	*Cluster
	t    *testing.T
	i    int
	opts Options
	stop func()
	seq  *atomic.Uint64
}

// start runs node i with node 0 as its seed.
func (l *lab) start(i int, change ...func(*Options)) *node {
	l.t.Helper()
	n := &node{t: l.t, i: i, seq: &atomic.Uint64{}}
	n.opts = Options{
		Identity:  l.identity(i),
		Bind:      addrOf(i),
		Advertise: []netip.AddrPort{addrOf(i)},
		Seeds:     []netip.AddrPort{addrOf(0)},
		Profile:   ProfileLocal,
		NextSeq:   func() (uint64, error) { return n.seq.Add(1), nil },
		Log:       slog.New(slog.NewTextHandler(l.log, &slog.HandlerOptions{Level: slog.LevelInfo})).With("at", i),
	}
	for _, f := range change {
		f(&n.opts)
	}
	l.run(n)
	return n
}

// run starts n, for the first time or once more after n.stop.
func (l *lab) run(n *node) {
	l.t.Helper()
	c, err := New(n.opts)
	if err != nil {
		l.t.Fatal(err)
	}
	n.Cluster = c
	c.newTransport = l.transport
	c.prof.beat, c.prof.stale = l.beat, l.stale
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				l.t.Errorf("node %d: Run gave %v", n.i, err)
			}
		case <-time.After(deadline):
			l.t.Errorf("node %d: Run did not return", n.i)
		}
	})
	l.t.Cleanup(n.stop)
}

// content is what node i publishes; v makes a difference.
func content(i, v int) record.Node {
	return record.Node{
		Underlay: []record.Underlay{{Control: addrOf(i), MTU: 1500}},
		Networks: []record.Network{{Name: "blue", VNI: 5000, Encrypted: true, VTEPPort: 4789}},
		Attached: []record.Attached{{VNI: 5000, MAC: ids.MAC{2, 0, 0, byte(i), byte(v >> 8), byte(v)}}},
	}
}

// cluster starts n nodes that have published.
func (l *lab) cluster(n int, change ...func(*Options)) []*node {
	l.t.Helper()
	nodes := make([]*node, n)
	for i := range nodes {
		nodes[i] = l.start(i, change...)
		nodes[i].Publish(content(i, 0))
	}
	return nodes
}

// until waits for a condition on the node's snapshot.
func (n *node) until(what string, ok func(Snapshot) bool) {
	n.t.Helper()
	timeout := time.NewTimer(deadline)
	defer timeout.Stop()
	look := time.NewTicker(50 * time.Millisecond) // ok may look at other nodes
	defer look.Stop()
	for {
		s := n.Snapshot()
		if ok(s) {
			return
		}
		select {
		case <-n.Changes():
		case <-look.C:
		case <-timeout.C:
			n.t.Fatalf("node %d did not reach: %s\n%s", n.i, what, describe(s))
		}
	}
}

func describe(s Snapshot) string {
	var b strings.Builder
	fmt.Fprintf(&b, "digest %x\n", s.Digest[:4])
	for _, m := range s.Members {
		fmt.Fprintf(&b, "%s seq %d %s synced=%v\n", m.Hostname, m.Record.Seq, m.State, m.Synced)
	}
	return b.String()
}

// whole reports whether s shows n members, all of them alive.
func whole(n int) func(Snapshot) bool {
	return func(s Snapshot) bool { return len(s.Members) == n && countState(s, StateAlive) == n }
}

func countState(s Snapshot, want State) (n int) {
	for _, m := range s.Members {
		if m.State == want {
			n++
		}
	}
	return n
}

// shows reports whether s holds content v of node i.
func shows(id ids.NodeID, i, v int) func(Snapshot) bool {
	return func(s Snapshot) bool {
		m, ok := s.Member(id)
		return ok && len(m.Record.Attached) == 1 && m.Record.Attached[0].MAC == content(i, v).Attached[0].MAC
	}
}

// converge waits until all nodes hold the same n records and see each other.
func converge(t *testing.T, nodes []*node, n int) {
	t.Helper()
	for _, m := range nodes {
		m.until(fmt.Sprintf("%d members alive", n), whole(n))
	}
	equal(t, nodes)
}

// equal waits until the digests are those of the first node. Nobody may be
// publishing.
func equal(t *testing.T, nodes []*node) {
	t.Helper()
	// Node 0 may be the one that has yet to learn something, after which no
	// other wakes: its digest is read anew at each look.
	for _, m := range nodes[1:] {
		m.until("digest of node 0", func(s Snapshot) bool { return s.Digest == nodes[0].Snapshot().Digest })
	}
}

// logBuffer collects log lines of all nodes.
type logBuffer struct {
	mu    sync.Mutex
	b     bytes.Buffer
	moved chan struct{} // closed by the next write
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if os.Getenv("MEMBERSHIP_TEST_LOG") != "" {
		_, _ = os.Stderr.Write(b)
	}
	if l.moved != nil {
		close(l.moved)
		l.moved = nil
	}
	return l.b.Write(b)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// waitLog waits until a line with this text was logged.
func (l *lab) waitLog(text string) {
	l.t.Helper()
	l.waitLogs(text, 1)
}

// waitLogs waits until n lines with this text were logged.
func (l *lab) waitLogs(text string, n int) {
	l.t.Helper()
	timeout := time.NewTimer(deadline)
	defer timeout.Stop()
	for {
		moved := l.log.next()
		if l.log.count(text) >= n {
			return
		}
		select {
		case <-moved:
		case <-timeout.C:
			l.t.Fatalf("%d lines %q were not logged", n, text)
		}
	}
}

// next returns what the next write closes.
func (l *logBuffer) next() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.moved == nil {
		l.moved = make(chan struct{})
	}
	return l.moved
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	timeout := time.NewTimer(deadline)
	defer timeout.Stop()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for !ok() {
		select {
		case <-look.C:
		case <-timeout.C:
			t.Fatalf("did not come so far: %s", what)
		}
	}
}
