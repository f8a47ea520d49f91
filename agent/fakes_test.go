package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
)

// board is where every node's newest record hangs.
type board struct {
	mu      sync.Mutex // guards all below
	members map[ids.NodeID]membership.Member
	wakes   map[ids.NodeID]chan struct{}
	hidden  bool       // readers see their own record only
	lonely  ids.NodeID // a reader that sees its own record only
	unsync  bool       // no member confirms anything
	// aged are old records that others see in place of a node's newest.
	aged   map[ids.NodeID]record.Node
	target item.Target
	// What every node sees of alarms and of the floor.
	stale     []membership.Stale
	conflicts []membership.Conflict
	heartbeat time.Time
	floor     item.Floor
	agents    map[ids.NodeID]*Agent // that run
	// cut are nodes that nobody can talk to, with what they saw last.
	cut       map[ids.NodeID]membership.Snapshot
	revoked   []item.Revocation
	noRevoker bool // nobody has an issuer key
	networks  []item.Network
	left      []membership.Departed
	noDepart  error                 // why nobody can be told
	untold    map[ids.NodeID]bool   // members that have not said that they know
	seqs      map[ids.NodeID]uint64 // of the newest record of each node
	// published are all records, in the order in which they came.
	published []record.Node
}

// agent returns the running agent of a node, if from can talk to it.
func (b *board) agent(from, to ids.NodeID) (*Agent, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.agents[to]
	_, fromCut := b.cut[from]
	_, toCut := b.cut[to]
	if a == nil || fromCut || toCut {
		return nil, noisenet.ErrUnreachable
	}
	return a, nil
}

// isolate cuts a node off.
func (b *board) isolate(id ids.NodeID) {
	seen := (&fakeGossip{board: b, self: membership.Member{ID: id}}).Snapshot()
	b.set(func() { b.cut[id] = seen })
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

// aim makes an epoch the cluster's target.
func (b *board) aim(e ids.Epoch, driver string) {
	b.set(func() {
		b.target = item.Target{Epoch: e, Driver: driver, Reason: item.ReasonManual, Created: time.Now()}
	})
}

// publishedBy returns how often a node has published, and its records from
// the n-th on.
func (b *board) publishedBy(id ids.NodeID, n int) (all int, records []record.Node) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.published {
		if r.ID != id {
			continue
		}
		if all++; all > n {
			records = append(records, r)
		}
	}
	return all, records
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
	if seen, cut := g.board.cut[m.ID]; cut { // it sees its own record all the same
		i := slices.IndexFunc(seen.Members, func(o membership.Member) bool { return o.ID == m.ID })
		m.Record.Seq = seen.Members[i].Record.Seq
		if fmt.Sprint(seen.Members[i].Record) != fmt.Sprint(m.Record) {
			g.board.seqs[m.ID]++
			m.Record.Seq = g.board.seqs[m.ID]
			seen.Members = slices.Clone(seen.Members)
			seen.Members[i].Record = m.Record
			g.board.cut[m.ID] = seen
			g.board.wake()
		}
		return
	}
	m.Record.Seq = g.board.members[m.ID].Record.Seq
	if fmt.Sprint(g.board.members[m.ID].Record) != fmt.Sprint(m.Record) {
		g.board.seqs[m.ID]++
		m.Record.Seq = g.board.seqs[m.ID]
		g.board.members[m.ID] = m
		g.board.published = append(g.board.published, m.Record)
		g.board.wake()
	}
}

// Claim implements asker.
func (g *fakeGossip) Claim(ctx context.Context, to ids.NodeID, msg []byte) ([]byte, error) {
	a, err := g.board.agent(g.self.ID, to)
	if err != nil {
		return nil, err
	}
	return a.blocks.serve(ctx, g.self.ID, msg)
}

func (g *fakeGossip) Changes() <-chan struct{} {
	g.board.mu.Lock()
	defer g.board.mu.Unlock()
	return g.board.wakes[g.self.ID]
}

func (g *fakeGossip) Snapshot() membership.Snapshot {
	g.board.mu.Lock()
	defer g.board.mu.Unlock()
	if seen, cut := g.board.cut[g.self.ID]; cut {
		return seen
	}
	s := membership.Snapshot{Self: g.self.ID, Target: g.board.target, Revoked: slices.Clone(g.board.revoked), Left: slices.Clone(g.board.left),
		Stale: g.board.stale, Conflicts: g.board.conflicts, Heartbeat: g.board.heartbeat, Floor: g.board.floor,
		Networks: slices.Clone(g.board.networks)}
	for id, m := range g.board.members {
		if id != g.self.ID && s.HasLeft(id) {
			continue
		}
		if id != g.self.ID && slices.ContainsFunc(s.Revoked, func(r item.Revocation) bool { return r.Node == id }) {
			continue
		}
		if id != g.self.ID && (g.board.hidden || g.board.lonely == g.self.ID) {
			continue
		}
		if old, ok := g.board.aged[id]; ok && id != g.self.ID {
			m.Record = old
		}
		m.Synced, m.Told = !g.board.unsync, s.HasLeft(g.self.ID) && !g.board.untold[id]
		s.Members = append(s.Members, m)
	}
	slices.SortFunc(s.Members, func(a, b membership.Member) int { return a.ID.Compare(b.ID) })
	return s
}

// Pair implements pairs.
func (g *fakeGossip) Pair(ctx context.Context, to ids.NodeID, msg []byte) ([]byte, error) {
	a, err := g.board.agent(g.self.ID, to)
	if err != nil {
		return nil, err
	}
	return a.pair(ctx, g.self.ID, msg)
}

// Agree implements pairs: both ends get the same new secret.
func (g *fakeGossip) Agree(ctx context.Context, to ids.NodeID, req []byte) ([]byte, keys.TunnelSecret, bool, error) {
	a, err := g.board.agent(g.self.ID, to)
	if err != nil {
		return nil, keys.TunnelSecret{}, false, err
	}
	resp, take, err := a.agree(ctx, g.self.ID, true, req)
	if err != nil {
		return nil, keys.TunnelSecret{}, false, err
	}
	var raw [32]byte
	_, _ = rand.Read(raw[:])
	secret, err := keys.TunnelSecretFromRaw32(raw[:])
	if err != nil {
		return nil, secret, false, err
	}
	take(secret.Clone())
	return resp, secret, true, nil
}

// Rotate implements pairs.
func (g *fakeGossip) Rotate(_ context.Context, after ids.Epoch, driver string, reason item.Reason) (item.Target, error) {
	var t item.Target
	g.board.set(func() {
		if g.board.target.Epoch <= after {
			g.board.target = item.Target{Epoch: after + 1, Driver: driver, Reason: reason, Created: time.Now()}
		}
		t = g.board.target
	})
	return t, nil
}

// Revoke implements pairs.
func (g *fakeGossip) Revoke(_ context.Context, r item.Revocation) (item.Revocation, error) {
	switch {
	case g.board.noRevoker:
		return r, membership.ErrNotIssuer
	case r.Node == g.self.ID:
		return r, membership.ErrRevokeSelf
	}
	g.board.set(func() { g.board.revoked = append(g.board.revoked, r) })
	return r, nil
}

// RaiseFloor implements floors.
func (g *fakeGossip) RaiseFloor(_ context.Context, least uint8) (item.Floor, error) {
	switch {
	case least > noisenet.VersionMax:
		return item.Floor{}, membership.ErrFloorAhead
	case g.board.noRevoker:
		return item.Floor{}, membership.ErrNotIssuer
	}
	var f item.Floor
	g.board.set(func() { g.board.floor.Min = max(g.board.floor.Min, least); f = g.board.floor })
	return f, nil
}

// SetFloor implements floors. The item is the floor, or bad.
func (g *fakeGossip) SetFloor(raw []byte) (item.Floor, error) {
	if len(raw) != 1 {
		return item.Floor{}, item.ErrOtherSigner
	}
	var f item.Floor
	g.board.set(func() {
		g.board.floor = item.Floor{Min: raw[0], Generation: g.board.floor.Generation + 1, Created: time.Now()}
		f = g.board.floor
	})
	return f, nil
}

// CreateNetwork implements definer.
func (g *fakeGossip) CreateNetwork(_ context.Context, n item.Network) (item.Network, error) {
	if g.board.noRevoker {
		return n, membership.ErrNotIssuer
	}
	g.board.set(func() { g.board.networks = append(g.board.networks, n) })
	return n, nil
}

// mine is a network that this node may change.
func (g *fakeGossip) mine(name string) (item.Network, error) {
	n, ok := clusterNetwork(g.Snapshot(), name)
	switch {
	case g.board.noRevoker:
		return n, membership.ErrNotIssuer
	case !ok:
		return n, membership.ErrNoNetwork
	}
	return n, nil
}

// ChangeNetwork implements definer.
func (g *fakeGossip) ChangeNetwork(_ context.Context, name string, change func(item.Network) (item.Network, error)) (item.Network, error) {
	n, err := g.mine(name)
	if err != nil {
		return n, err
	}
	was := n
	n, err = change(n)
	if err == nil && !was.Clear() && n.Clear() {
		err = item.ErrWeakens
	}
	if err == nil {
		g.put(n)
	}
	return n, err
}

// SetNetwork implements definer. The item is the network's name, made plaintext in
// one step or, with a plus sign before it, in two.
func (g *fakeGossip) SetNetwork(raw []byte) (item.Network, error) {
	name, moving := strings.CutPrefix(string(raw), "+")
	n, ok := clusterNetwork(g.Snapshot(), name)
	if !ok {
		return n, item.ErrOtherSigner
	}
	n.Encrypted, n.Moving, n.Driver = false, moving, item.DriverAuto
	g.put(n)
	return n, nil
}

// put replaces a network.
func (g *fakeGossip) put(n item.Network) {
	g.board.set(func() {
		g.board.networks = slices.Clone(g.board.networks)
		i := slices.IndexFunc(g.board.networks, func(o item.Network) bool { return o.Name == n.Name })
		g.board.networks[i] = n
	})
}

// RemoveNetwork implements definer.
func (g *fakeGossip) RemoveNetwork(_ context.Context, name string) (item.Network, error) {
	n, err := g.mine(name)
	if err != nil {
		return n, err
	}
	g.board.set(func() {
		g.board.networks = slices.DeleteFunc(slices.Clone(g.board.networks), func(n item.Network) bool { return n.Name == name })
	})
	return n, nil
}

// Depart implements departer.
func (g *fakeGossip) Depart(_ context.Context, at time.Time) error {
	if g.board.noDepart != nil {
		return g.board.noDepart
	}
	g.board.set(func() {
		if !slices.ContainsFunc(g.board.left, func(d membership.Departed) bool { return d.ID == g.self.ID }) {
			g.board.left = append(g.board.left, membership.Departed{ID: g.self.ID, Hostname: g.self.Hostname, At: at})
		}
	})
	return nil
}

// fakeDisk is what a node keeps about leaving. It outlives agents.
type fakeDisk struct {
	mu     sync.Mutex // guards all below
	left   time.Time
	ending bool
	broken error
	wiped  []string // what was wiped besides the node's own
	kept   keystore.Promises
}

// breaks makes every write fail, or none.
func (d *fakeDisk) breaks(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = err
}

func (d *fakeDisk) Promises() (keystore.Promises, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.kept, nil
}

func (d *fakeDisk) SavePromises(p keystore.Promises) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken == nil {
		d.kept = p
	}
	return d.broken
}

func (d *fakeDisk) Departed() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.left
}

func (d *fakeDisk) Depart(at time.Time) (time.Time, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken == nil && d.left.IsZero() {
		d.left = at
	}
	return d.left, d.broken
}

func (d *fakeDisk) EndDeparture() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ending = d.broken == nil
	return d.broken
}

func (d *fakeDisk) Wipe(others ...string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wiped = others
	return d.broken
}

// fakeProber finds out whether both ends of a pair hold one key on the
// devices of one epoch, and both devices take packets of the size, which is
// what an echo would show.
type fakeProber struct{ w *world }

func (p fakeProber) Probe(_ context.Context, device string, from, to netip.Addr, size int) error {
	here := p.key(from, to, device)
	there := p.key(to, from, "so"+idOf(to).Short()+device[len("so")+6:])
	// The answer to what is larger than the other's device comes in fragments.
	fits := min(here.mtu, p.w.carries(idOf(from), idOf(to)))
	if here.inUDP {
		fits = min(fits, fakeInUDP(netip.Addr{}, 1500))
	}
	if here.mtu > 0 && size > here.mtu {
		return secure.ErrTooLarge
	}
	if here.id == 0 || here.id != there.id || here.inUDP != there.inUDP || size > fits || here.esp && !p.w.passes(idOf(from), idOf(to), here.inUDP) {
		return secure.ErrNoAnswer
	}
	return nil
}

// fakeKey is what a device holds for a peer.
type fakeKey struct {
	id         keys.KeyID
	mtu        int // of the device
	esp, inUDP bool
}

// idOf is right for the IDs of machines, whose last byte is zero.
func idOf(inner netip.Addr) (id ids.NodeID) {
	b := inner.As16()
	copy(id[:], b[1:])
	return id
}

// key returns what a device holds for a peer.
func (p fakeProber) key(own, peer netip.Addr, device string) fakeKey {
	for _, kind := range []tunnel.Kind{p.w.fabric.Kind(), p.w.fabric.ESPKind(0), p.w.fabric.UserESPKind()} {
		d, err := kind.Open(context.Background(), tunnel.Env{Node: idOf(own)})
		if err != nil {
			return fakeKey{}
		}
		s, err := d.State(context.Background())
		if err != nil {
			return fakeKey{}
		}
		for _, dev := range s.Devices {
			for _, q := range dev.Peers {
				// ESP answers only with its sending half.
				if dev.Name == device && q.Inner == peer && (q.In == 0 || q.Out != 0) {
					return fakeKey{id: q.Key, mtu: dev.MTU, esp: q.In != 0, inUDP: q.InUDP}
				}
			}
		}
	}
	return fakeKey{}
}

func (g *fakeGossip) Leave(context.Context) error {
	g.board.set(func() {
		m := g.board.members[g.self.ID]
		m.State = membership.StateDead
		g.board.members[g.self.ID] = m
	})
	return nil
}
