package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
	"github.com/secure-overlay/secure-overlay/tunnel/wguser"
	"github.com/secure-overlay/secure-overlay/vxlan"
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
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{t: t, fabric: tunneltest.NewFabric(), board: &board{members: map[ids.NodeID]membership.Member{}, wakes: map[ids.NodeID]chan struct{}{}}, dir: t.TempDir()}
}

// board is where every node's newest record hangs.
type board struct {
	mu      sync.Mutex // guards all below
	members map[ids.NodeID]membership.Member
	wakes   map[ids.NodeID]chan struct{}
	hidden  bool // readers see their own record only
	unsync  bool // no member confirms anything
}

func (b *board) set(fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn()
	b.wake()
}

// wake tells everybody to look. b.mu is held.
func (b *board) wake() {
	for _, w := range b.wakes {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

func (b *board) record(id ids.NodeID) record.Node {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.members[id].Record
}

// fakeGossip is one node's view of the board.
type fakeGossip struct {
	board *board
	self  membership.Member
}

func (g *fakeGossip) Publish(n record.Node) {
	g.board.mu.Lock()
	defer g.board.mu.Unlock()
	m := g.self
	m.Record, m.Record.ID = n, g.self.ID
	if fmt.Sprint(g.board.members[m.ID].Record) != fmt.Sprint(m.Record) {
		g.board.members[m.ID] = m
		g.board.wake()
	}
}

func (g *fakeGossip) Changes() <-chan struct{} {
	g.board.mu.Lock()
	defer g.board.mu.Unlock()
	return g.board.wakes[g.self.ID]
}

func (g *fakeGossip) Snapshot() membership.Snapshot {
	g.board.mu.Lock()
	defer g.board.mu.Unlock()
	s := membership.Snapshot{Self: g.self.ID}
	for id, m := range g.board.members {
		if id != g.self.ID && g.board.hidden {
			continue
		}
		m.Synced = !g.board.unsync
		s.Members = append(s.Members, m)
	}
	slices.SortFunc(s.Members, func(a, b membership.Member) int { return a.ID.Compare(b.ID) })
	return s
}

func (g *fakeGossip) Leave(context.Context) error {
	g.board.set(func() {
		m := g.board.members[g.self.ID]
		m.State = membership.StateDead
		g.board.members[g.self.ID] = m
	})
	return nil
}

// fakeGuard remembers the last spec.
type fakeGuard struct {
	mu      sync.Mutex // guards all below
	spec    secure.Spec
	verify  error
	removed bool
}

func (g *fakeGuard) Set(_ context.Context, s secure.Spec) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.spec = s
	return nil
}

func (g *fakeGuard) Verify(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.verify
}

func (g *fakeGuard) Remove() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removed = true
	return nil
}

func (g *fakeGuard) Close() error { return nil }

// fakeOverlay remembers the last specs. It outlives loops, as the kernel does.
type fakeOverlay struct {
	mu     sync.Mutex // guards all below
	specs  []vxlan.Spec
	broken map[string]error // by interface name of an endpoint
	born   vxlan.Birthplace // overrides where devices were born
	syncs  int
}

func (o *fakeOverlay) Sync(_ context.Context, want []vxlan.Spec) ([]vxlan.Op, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.syncs++
	o.specs = want
	var errs []error
	for _, s := range want {
		for _, e := range s.Endpoints {
			if err := o.broken[e.Ifname]; err != nil {
				errs = append(errs, &vxlan.Error{Network: s.Network, Endpoint: e.ID, Err: err})
			}
		}
	}
	return nil, errors.Join(errs...)
}

func (o *fakeOverlay) Observe(context.Context, []vxlan.Spec) (vxlan.Observed, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out vxlan.Observed
	for _, s := range o.specs {
		d := &vxlan.Device{Kind: "vxlan", Birth: vxlan.BornHost, VNI: s.VNI}
		if s.Encrypted {
			d.Birth = vxlan.BornSecure
		}
		if o.born != "" {
			d.Birth = o.born
		}
		out.Networks = append(out.Networks, vxlan.Network{Name: s.Network, Exists: true, Device: d})
	}
	return out, nil
}

func (o *fakeOverlay) Remove(context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.specs = nil
	return nil
}

func (o *fakeOverlay) Close() error { return nil }

func (o *fakeOverlay) spec(network string) vxlan.Spec {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.specs {
		if s.Network == network {
			return s
		}
	}
	return vxlan.Spec{}
}

// fakeHost has one address and a route to everywhere.
type fakeHost struct{ addr netip.Addr }

func (h fakeHost) RouteTo(dst netip.Addr) (nl.Route, error) {
	if dst.Is4() != h.addr.Is4() {
		return nl.Route{}, unix.ENETUNREACH
	}
	return nl.Route{Device: "eth0", Source: h.addr, MTU: 1500}, nil
}

func (h fakeHost) GlobalAddrs() ([]nl.Address, error) {
	return []nl.Address{{Addr: h.addr, Device: "eth0", MTU: 1500}}, nil
}

// fakeNS is an endpoint's namespace; its path is its name.
type fakeNS struct{ path string }

func (n fakeNS) ID() nl.ID {
	h := ids.NodeIDOf([32]byte([]byte(n.path + "................................")[:32]))
	return nl.ID{Dev: 4, Ino: uint64(h[0])<<24 | uint64(h[1])<<16 | uint64(h[2])<<8 | uint64(h[3])}
}
func (n fakeNS) Links() ([]string, error) { return []string{"lo", "taken0"}, nil }
func (n fakeNS) Close()                   {}

func openFakeNS(path string) (endpointNS, error) {
	switch path {
	case "/run/netns/missing":
		return nil, os.ErrNotExist
	case "/etc/hosts":
		return nil, nl.ErrNotNamespace
	}
	return fakeNS{path: path}, nil
}

// machine is one node: what survives its agent, and the agent.
type machine struct {
	w       *world
	id      ids.NodeID
	n       int
	cfg     config.Config
	overlay *fakeOverlay
	guard   *fakeGuard
	host    *tunneltest.FakeHost
	driver  func(tunnel.Driver) tunnel.Driver // wraps it; nil: as it is

	agent *Agent
	stop  context.CancelFunc
	done  chan error
}

// machine makes node n (from 1) with the networks; its agent is not started.
func (w *world) machine(n int, networks ...config.Network) *machine {
	id := ids.NodeID{byte(n), 0xaa, byte(n)}
	m := &machine{
		w: w, n: n, id: id, overlay: &fakeOverlay{broken: map[string]error{}}, guard: &fakeGuard{},
		host: w.fabric.AddHost(id, v4(n).Addr()),
		cfg: config.Config{
			RuntimeDir: filepath.Join(w.dir, fmt.Sprint("run", n)),
			Control:    config.Control{Bind: netip.MustParseAddrPort("0.0.0.0:7946")},
			Data:       config.Data{Port: config.DefaultDataPort, VXLANPort: config.DefaultVXLANPort},
			Networks:   networks,
		},
	}
	w.board.set(func() { w.board.wakes[id] = make(chan struct{}, 1) })
	return m
}

// start runs an agent's loop as Run does, over the fakes.
func (m *machine) start() *machine {
	m.w.t.Helper()
	a := New(Options{Config: m.cfg, Log: slog.New(slog.DiscardHandler)})
	a.openEndpoint = openFakeNS
	identity := keystore.Identity{
		ID: m.id, Hostname: fmt.Sprint("web-", m.n),
		Cert: keys.Cert{Serial: uint64(m.n)},
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
	l.gossip = &fakeGossip{board: m.w.board, self: membership.Member{
		ID: m.id, Hostname: identity.Hostname, Serial: uint64(m.n), State: membership.StateAlive,
	}}
	l.guard, l.overlay, l.host = m.guard, m.overlay, fakeHost{addr: v4(m.n).Addr()}
	kind := m.w.fabric.Kind()
	if l.driver, err = kind.Open(context.Background(), tunnel.Env{Node: m.id}); err != nil {
		m.w.t.Fatal(err)
	}
	if m.driver != nil {
		l.driver = m.driver(l.driver)
	}
	l.facts = DriverFacts{Name: kind.Name, Wire: wireOf(kind.Compatible), OverheadV4: 60, OverheadV6: 80}
	l.restore()
	ctx, cancel := context.WithCancel(context.Background())
	m.agent, m.stop, m.done = a, cancel, make(chan error, 1)
	go func() {
		l.waitForCache(ctx)
		err := l.run(ctx)
		close(a.stopped)
		_ = lock.Close()
		m.done <- err
	}()
	m.w.t.Cleanup(m.kill)
	return m
}

// kill ends the agent as SIGKILL would: nothing is taken down.
func (m *machine) kill() {
	if m.stop != nil {
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
	for range 200 {
		if cond() {
			return
		}
		<-time.After(50 * time.Millisecond)
	}
	w.t.Fatalf("waited 10 s for %s", what)
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
