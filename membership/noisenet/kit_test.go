package noisenet

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		code = leaks()
	}
	os.Exit(code)
}

// leaks gives memberlist's probes the seconds they take to notice a shutdown.
func leaks() int {
	var err error
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); {
		if err = goleak.Find(); err == nil {
			return 0
		}
	}
	_, _ = os.Stderr.WriteString(err.Error() + "\n")
	return 1
}

// testCluster can issue credentials.
type testCluster struct {
	trust      keys.Trust
	issuer     keys.IssuerPrivate
	delegation []byte
	access     keys.AccessKey
	epoch      time.Time
}

func raw32(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

// must returns v; a fixed input that does not decode is a bug of the test.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// newTestCluster makes a cluster whose every key follows from seed.
func newTestCluster(seed byte) *testCluster {
	root := must(keys.RootPrivateFromRaw32(raw32(seed)))
	c := &testCluster{
		issuer: must(keys.IssuerPrivateFromRaw32(raw32(seed + 1))),
		access: must(keys.AccessKeyFromRaw32(raw32(seed + 2))),
		epoch:  time.Now().Add(-time.Hour).Truncate(time.Second),
	}
	c.trust = keys.Trust{Cluster: ids.ClusterID{0: seed, 15: seed}, Root: root.Public()}
	c.delegation = keys.SignDelegation(root, keys.Delegation{Cluster: c.trust.Cluster,
		Issuer: c.issuer.Public(), MaxLifetime: 90 * 24 * time.Hour,
		NotBefore: c.epoch, NotAfter: c.epoch.Add(1000 * time.Hour)})
	return c
}

// testNode is one member's keys.
type testNode struct {
	cluster    *testCluster
	id         ids.NodeID
	identity   keys.NodePrivate
	noise      keys.NoisePrivate
	credential keys.Credential
}

func (c *testCluster) node(seed byte) *testNode {
	n := &testNode{cluster: c,
		identity: must(keys.NodePrivateFromRaw32(raw32(seed))),
		noise:    must(keys.NoisePrivateFromRaw32(raw32(seed + 100)))}
	n.id = n.identity.Public().ID()
	n.credential = c.certify(n, func(*keys.Cert) {})
	return n
}

// issuerNode is a node whose certificate says that it is an issuer.
func (c *testCluster) issuerNode(seed byte) *testNode {
	n := c.node(seed)
	n.credential = c.certify(n, func(cert *keys.Cert) { cert.Roles = keys.RoleIssuer })
	return n
}

// certify issues a certificate after edit changed it.
func (c *testCluster) certify(n *testNode, edit func(*keys.Cert)) keys.Credential {
	cert := keys.Cert{Cluster: c.trust.Cluster, Serial: 7, Identity: n.identity.Public(),
		Noise: n.noise.Public(), Hostname: "host", Inner: n.id.InnerAddr(),
		NotBefore: c.epoch, NotAfter: c.epoch.Add(30 * 24 * time.Hour), Issuer: c.issuer.Public()}
	edit(&cert)
	return keys.Credential{Delegation: c.delegation, Cert: keys.SignCert(c.issuer, cert)}
}

func (n *testNode) party() *party {
	p := &party{node: n.id, trust: n.cluster.trust, static: n.noise, credential: n.credential,
		access: n.cluster.access, port: 7946, boot: 1, random: rand.Reader,
		versionMax: versionMax, kem: newKEM()}
	if err := p.prepare(); err != nil {
		panic(err)
	}
	return p
}

// newInitiator begins a handshake under the newest access key.
func newInitiator(p *party, expect ids.NodeID) (*handshake, []byte, error) {
	return newInitiatorWith(p, expect, p.entries()[0])
}

// initiate runs the initiator's side under the newest access key.
func initiate(raw io.ReadWriter, p *party, expect ids.NodeID) (*established, error) {
	return initiateWith(raw, p, expect, p.entries()[0])
}

// directory is a Directory that tests fill.
type directory struct {
	mu    sync.Mutex
	addrs map[ids.NodeID][]netip.AddrPort
}

func (d *directory) Underlay(id ids.NodeID) []netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.addrs[id]
}

func (d *directory) set(id ids.NodeID, a netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.addrs == nil {
		d.addrs = make(map[ids.NodeID][]netip.AddrPort)
	}
	d.addrs[id] = []netip.AddrPort{a}
}

// logBuffer is a slog target that tests read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

func (l *logBuffer) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// running is a transport whose Run is under way.
type running struct {
	*Transport
	node *testNode
	log  *logBuffer
	dir  *directory
	stop func() // ends Run and waits for it
}

// start opens and runs a transport on loopback until the test ends.
func start(t testing.TB, n *testNode, edit func(*Config)) *running {
	t.Helper()
	return startAt(t, n, netip.MustParseAddrPort("127.0.0.1:0"), edit)
}

func startAt(t testing.TB, n *testNode, bind netip.AddrPort, edit func(*Config)) *running {
	t.Helper()
	r := &running{node: n, log: &logBuffer{}, dir: &directory{}}
	cfg := Config{Node: n.id, Trust: n.cluster.trust, Noise: n.noise, Credential: n.credential,
		Access: n.cluster.access, Bind: bind, Directory: r.dir, Log: r.log.logger()}
	if edit != nil {
		edit(&cfg)
	}
	r.Transport = New(cfg)
	if err := r.Open(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(r.stop)
	return r
}

func (r *running) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), r.Port())
}

// eventually waits until ok reports true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 15 s in vain: %s", what)
		}
		<-tick.C
	}
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// counterReader is a deterministic random source for vectors: 32-byte blocks
// that count up from seed.
type counterReader struct{ next byte }

func (c *counterReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = c.next
		c.next++
	}
	return len(b), nil
}

func withLength(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// respondRaw is a responder without a transport, which then does as a test likes.
func respondRaw(raw net.Conn, p *party) (*secureConn, error) {
	var first [headerSize]byte
	if _, err := io.ReadFull(raw, first[:]); err != nil {
		return nil, err
	}
	h, err := newResponder(p, must(parseHeader(first[:])))
	if err != nil {
		return nil, err
	}
	for {
		msg, err := readHandshake(raw, 1, maxHandshake)
		if err != nil {
			return nil, err
		}
		out, done, err := h.step(time.Now(), msg)
		if err != nil {
			return nil, err
		}
		if _, err := raw.Write(out); err != nil {
			return nil, err
		}
		if done != nil {
			return newSecureConn(raw, done, Peer{ID: done.cert.ID()})
		}
	}
}

func parseAddr(a net.Addr) (netip.AddrPort, error) { return netip.ParseAddrPort(a.String()) }
