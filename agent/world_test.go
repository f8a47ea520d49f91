package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/events"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/clock"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
	"github.com/secure-overlay/secure-overlay/tunnel/wguser"
)

// workerWord makes the test binary the worker of the userspace driver.
const workerWord = "worker-of-agent-test"

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == workerWord {
		if err := wguser.RunWorker(context.Background(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// world is a cluster of loops over fakes: records spread at once, tunnels are
// tunneltest's, the overlay remembers what it was told.
type world struct {
	t      *testing.T
	fabric *tunneltest.Fabric
	board  *board
	dir    string
	// blocked are the underlays between two nodes that swallow something: ESP as
	// it is, ESP in UDP.
	mu      sync.Mutex // guards blocked
	blocked map[[2]ids.NodeID]swallows
	narrow  map[[2]ids.NodeID]int // bytes of packet in the tunnel that come through
}

// narrows makes the underlay between two nodes swallow packets in the tunnel of more
// bytes; 0: none.
func (w *world) narrows(a, b *machine, bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.narrow[[2]ids.NodeID{a.id, b.id}], w.narrow[[2]ids.NodeID{b.id, a.id}] = bytes, bytes
}

// carries is what comes through between two nodes.
func (w *world) carries(a, b ids.NodeID) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.narrow[[2]ids.NodeID{a, b}]; n > 0 {
		return n
	}
	return math.MaxInt
}

// swallows is what an underlay does not pass.
type swallows struct{ native, inUDP bool }

// block makes the underlay between two nodes swallow something.
func (w *world) block(a, b *machine, s swallows) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.blocked[[2]ids.NodeID{a.id, b.id}], w.blocked[[2]ids.NodeID{b.id, a.id}] = s, s
}

// passes reports whether what travels so passes between two nodes.
func (w *world) passes(a, b ids.NodeID, inUDP bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.blocked[[2]ids.NodeID{a, b}]
	return !(s.native && !inUDP || s.inUDP && inUDP)
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{t: t, fabric: tunneltest.NewFabric(), board: newBoard(), dir: t.TempDir(), blocked: map[[2]ids.NodeID]swallows{}, narrow: map[[2]ids.NodeID]int{}}
}

func newBoard() *board {
	return &board{
		members: map[ids.NodeID]membership.Member{}, wakes: map[ids.NodeID]chan struct{}{},
		target: item.Target{Epoch: 1, Driver: config.DriverAuto}, floor: item.FirstFloor(),
		agents: map[ids.NodeID]*Agent{}, cut: map[ids.NodeID]membership.Snapshot{}, aged: map[ids.NodeID]record.Node{},
		untold: map[ids.NodeID]bool{}, seqs: map[ids.NodeID]uint64{},
	}
}

// machine is one node: what survives its agent, and the agent.
type machine struct {
	w        *world
	id       ids.NodeID
	n        int
	cfg      config.Config
	overlay  *fakeOverlay
	guard    *fakeGuard
	host     *tunneltest.FakeHost
	driver   func(tunnel.Driver) tunnel.Driver // wraps it; nil: as it is
	slower   error                             // what the driver does without
	issuer   bool                              // it has an issuer key
	roles    uint8                             // in its certificate
	ipsec    bool                              // its kernel has ESP
	encap    string                            // ipsec.encap; empty: none
	userESP  bool                              // it has ESP in userspace
	underlay int                               // MTU of its one underlay link
	events   *events.Log                       // nil: not kept
	disk     *fakeDisk
	clock    *clock.Clock                  // nil: the system clock
	load     func() (config.Config, error) // its file; nil: cannot be read again
	cert     keys.Cert                     // what others see of its certificate

	agent *Agent
	stop  context.CancelFunc
	done  chan error
}

// machine makes node n (from 1) with the networks; its agent is not started.
func (w *world) machine(n int, networks ...config.Network) *machine {
	id := ids.NodeID{byte(n), 0xaa, byte(n)}
	m := &machine{
		w: w, n: n, id: id, overlay: &fakeOverlay{broken: map[string]error{}}, guard: &fakeGuard{}, disk: &fakeDisk{}, underlay: 1500,
		host: w.fabric.AddHost(id, v4(n).Addr()),
		cfg: config.Config{
			RuntimeDir: filepath.Join(w.dir, fmt.Sprint("run", n)),
			Control:    config.Control{Bind: netip.MustParseAddrPort("0.0.0.0:7946")},
			Data:       config.Data{Port: config.DefaultDataPort, VXLANPort: config.DefaultVXLANPort},
			Keys:       config.Keys{Drain: 300 * time.Millisecond, Quiet: 100 * time.Millisecond, HoldDown: 30 * time.Second},
			Networks:   networks,
		},
	}
	w.board.set(func() { w.board.wakes[id] = make(chan struct{}, 1) })
	return m
}

// start runs an agent's loop as Run does, over the fakes.
func (m *machine) start() *machine {
	m.w.t.Helper()
	a := New(Options{Config: m.cfg, Log: slog.New(slog.DiscardHandler), Events: m.events, Clock: m.clock, Load: m.load})
	a.openEndpoint, a.disk, a.blocks.disk = openFakeNS, m.disk, m.disk
	identity := keystore.Identity{
		ID: m.id, Hostname: fmt.Sprint("web-", m.n),
		Cert: keys.Cert{Serial: uint64(m.n)},
	}
	if m.n > 1 {
		identity.Cert.Token = keys.TokenID{1} // the first node admitted it
	}
	dir := files{dir: m.cfg.RuntimeDir}
	lock, err := a.lock(dir)
	if err != nil {
		m.w.t.Fatal(err)
	}
	l := newLoop(a, identity, dir)
	if l.attachments, err = dir.loadAttachments(); err != nil {
		m.w.t.Fatal(err)
	}
	gossip := &fakeGossip{board: m.w.board, self: membership.Member{
		ID: m.id, Hostname: identity.Hostname, Serial: uint64(m.n), State: membership.StateAlive,
		Cert: certOf(m.cert, m.roles),
	}}
	l.claims.asker = gossip
	l.gossip, l.rot.pairs, l.rot.prober, l.floors, l.definer, l.departs = gossip, gossip, fakeProber{m.w}, gossip, gossip, gossip
	if at := m.disk.Departed(); !at.IsZero() { // as membership does
		if err := gossip.Depart(context.Background(), at); err != nil {
			m.w.t.Fatal(err)
		}
	}
	if err := a.blocks.open(m.id, l.clusterView); err != nil {
		m.w.t.Fatal(err)
	}
	l.canIssue = m.issuer
	l.guard, l.overlay, l.host = m.guard, m.overlay, fakeHost{addr: v4(m.n).Addr(), mtu: m.underlay}
	kind := m.w.fabric.Kind()
	kind.Slower = func(context.Context) error { return m.slower }
	if m.driver != nil {
		open := kind.Open
		kind.Open = func(ctx context.Context, env tunnel.Env) (tunnel.Driver, error) {
			d, err := open(ctx, env)
			return m.driver(d), err
		}
	}
	kinds := []tunnel.Kind{kind}
	if m.ipsec {
		port := uint16(4500)
		if cmp.Or(m.encap, config.EncapNone) == config.EncapNone {
			port = 0
		}
		esp := m.w.fabric.ESPKind(port)
		esp.Name = config.DriverIPsec
		switch m.encap {
		case config.EncapAuto:
			esp.InUDP = fakeInUDP
		case config.EncapUDP:
			esp.Compatible = "esp-udp"
			esp.Overhead = func(a netip.Addr) int { return tunnel.WireGuardOverhead(a) + inUDPMore }
		}
		kinds = append(kinds, esp)
	}
	if m.userESP {
		esp := m.w.fabric.UserESPKind()
		esp.Name, esp.InUDP = config.DriverIPsecUser, fakeInUDP
		kinds = append(kinds, esp)
	}
	l.tunnels = newDrivers(kinds, tunnel.Env{Node: m.id}, l.log, l.now)
	l.tunnels.adopt(context.Background())
	m.guard.mu.Lock()
	l.former = secure.State{Routes: m.guard.spec.Routes}
	m.guard.mu.Unlock()
	l.restore()
	ctx, cancel := context.WithCancel(context.Background())
	m.agent, m.stop, m.done = a, cancel, make(chan error, 1)
	m.w.board.set(func() { m.w.board.agents[m.id] = a })
	go func() {
		l.waitForCache(ctx)
		err := l.run(ctx)
		if err == nil {
			err = a.taken(l)
		}
		close(a.stopped)
		_ = lock.Close()
		m.done <- err
	}()
	m.w.t.Cleanup(m.kill)
	return m
}

// certOf is what others see of a machine's certificate.
func certOf(c keys.Cert, roles uint8) keys.Cert {
	c.Roles |= roles
	return c
}

// fakeInUDP is what the real driver says on IPv4, for MTUs that are multiples of
// four.
func fakeInUDP(_ netip.Addr, mtu int) int { return mtu - 62 }

// kill ends the agent as SIGKILL would: nothing is taken down.
func (m *machine) kill() {
	if m.stop != nil {
		m.w.board.set(func() { delete(m.w.board.agents, m.id) })
		m.stop()
		// It has ended by itself, without an error, if Down came before.
		if err := <-m.done; err != nil && !errors.Is(err, context.Canceled) {
			m.w.t.Errorf("killed loop ended with %v", err)
		}
		m.stop = nil
	}
}

// until waits for a condition in virtual time.
func (w *world) until(what string, cond func() bool) {
	w.t.Helper()
	w.within(10*time.Second, what, cond)
}

// within is until with another limit.
func (w *world) within(d time.Duration, what string, cond func() bool) {
	w.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); <-time.After(50 * time.Millisecond) {
		if cond() {
			return
		}
	}
	w.t.Fatalf("waited %s for %s", d, what)
}

// look runs fn in the agent's loop.
func (m *machine) look(fn func(l *loop)) {
	m.w.t.Helper()
	if err := m.agent.do(context.Background(), func(_ context.Context, l *loop) { fn(l) }); err != nil {
		m.w.t.Fatal(err)
	}
}

// watch looks at a condition all along a time.
func (w *world) watch(what string, d time.Duration, cond func() bool) {
	w.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if !cond() {
			w.t.Fatalf("not any more: %s", what)
		}
	}
}

func (m *machine) status() api.Status {
	m.w.t.Helper()
	s, err := m.agent.Status(context.Background())
	if err != nil {
		m.w.t.Fatal(err)
	}
	return s
}

func (m *machine) attach(network, path string, addrs ...string) (api.Endpoint, error) {
	req := api.AttachRequest{Network: network, Netns: path}
	for _, a := range addrs {
		req.Addresses = append(req.Addresses, netip.MustParseAddr(a))
	}
	return m.agent.Attach(context.Background(), req)
}

func (m *machine) mustAttach(network, path string, addrs ...string) api.Endpoint {
	m.w.t.Helper()
	e, err := m.attach(network, path, addrs...)
	if err != nil {
		m.w.t.Fatal(err)
	}
	return e
}

// peers counts the peers that the node's tunnel device has.
func (m *machine) peers() int {
	d, err := m.w.fabric.Kind().Open(context.Background(), tunnel.Env{Node: m.id})
	if err != nil {
		m.w.t.Fatal(err)
	}
	s, err := d.State(context.Background())
	if err != nil || len(s.Devices) == 0 {
		return -1
	}
	return len(s.Devices[0].Peers)
}
