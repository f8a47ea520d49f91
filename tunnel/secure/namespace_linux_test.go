package secure

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nft"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const port = 4789

// sameAddr lets cmp compare addresses, whose fields it cannot see.
var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

var (
	self   = netip.MustParseAddr("fd00::1")
	friend = netip.MustParseAddr("fd00::2")
	rogue  = netip.MustParseAddr("fd00::bad")
)

// place is a secure namespace and, on the other end of two veth pairs that
// stand for tunnel devices, a namespace with the peers' addresses.
type place struct {
	n     *Namespace
	peers *nl.Namespace
	ph    *nl.Handle
}

func newPlace(t *testing.T) *place {
	t.Helper()
	if unix.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
	dir := t.TempDir()
	n, err := Ensure(filepath.Join(dir, "secure"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Remove() })
	peers, err := nl.CreateNamespace(filepath.Join(dir, "peers"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = peers.Close(); _ = nl.RemoveNamespace(peers.Path()) })
	ph, err := peers.Handle()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ph.Close)
	p := &place{n: n, peers: peers, ph: ph}
	lo := must(ph.LinkByName("lo"))(t)
	ok(t, ph.LinkSetUp(lo))
	for _, a := range []netip.Addr{friend, rogue} {
		ok(t, ph.AddrAdd(lo, &netlink.Addr{IPNet: toPeer(at(a), 0).Dst, Flags: unix.IFA_F_NODAD}))
		ok(t, ph.WaitLocal(t.Context(), a))
	}
	p.device(t, "soxxxxxxa1", 1)
	p.device(t, "soxxxxxxa2", 2)
	ok(t, ph.RouteReplace(toPeer(at(self), must(ph.LinkByName("soxxxxxxa1"))(t).Attrs().Index)))
	return p
}

// device adds a stand-in for a tunnel device, as a driver would mark it.
func (p *place) device(t *testing.T, name string, epoch ids.Epoch) {
	t.Helper()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: name})
	veth.PeerName, veth.PeerNamespace = name, netlink.NsFd(p.peers.FD())
	ok(t, p.n.h.LinkAdd(veth))
	here, there := must(p.n.h.LinkByName(name))(t), must(p.ph.LinkByName(name))(t)
	mark := tunnel.Mark{Protocol: "wireguard", Driver: "test", Epoch: epoch}
	ok(t, p.n.h.LinkSetAlias(here, mark.String()))
	// A tunnel device resolves no neighbours; veth is made to behave so.
	for h, l := range map[*nl.Handle]netlink.Link{p.n.h: here, p.ph: there} {
		ok(t, h.LinkSetARPOff(l))
		ok(t, h.LinkSetUp(l))
	}
	ok(t, p.ph.LinkSetHardwareAddr(there, here.Attrs().HardwareAddr))
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// at is a peer's place in the main table.
func at(peer netip.Addr) spot { return spot{unix.RT_TABLE_MAIN, peer} }

func spec() Spec {
	return Spec{
		Inner:     self,
		Routes:    []Route{{Peer: friend, Device: "soxxxxxxa1"}},
		Probes:    []Route{{Peer: friend, Device: "soxxxxxxa2"}},
		Members:   []Member{{Inner: friend, VNI: 42}, {Inner: friend, VNI: 0xABCDEF}, {Inner: rogue, VNI: 43}},
		VXLANPort: port,
	}
}

func TestEnsureCreatesAndAdopts(t *testing.T) {
	p := newPlace(t)
	ctx := context.Background()
	ok(t, p.n.Verify(ctx))
	ok(t, p.n.Set(ctx, spec()))
	before := must(p.n.Observe(ctx))(t)
	adopted := must(Ensure(p.n.ns.Path()))(t)
	defer func() { _ = adopted.Close() }()
	if diff := cmp.Diff(before, must(adopted.Observe(ctx))(t), sameAddr); diff != "" {
		t.Errorf("adoption changed the namespace (-before +after):\n%s", diff)
	}
	a, _ := p.n.ns.ID()
	if b, _ := adopted.ns.ID(); a != b {
		t.Errorf("adopted %v, want %v", b, a)
	}
}

func TestEnsureRefusesTheAgentsOwnNamespace(t *testing.T) {
	p := newPlace(t)
	// Inside a namespace of the test, where a failure harms nobody.
	err := p.peers.Do(func() error {
		n, err := Ensure(p.peers.Path())
		if err == nil {
			return errors.Join(errors.New("the agent's own namespace was accepted"), n.Close())
		}
		return nil
	})
	ok(t, err)
	if err := p.send(t, p.peers, friend, rogue, 1, 0); err != nil {
		t.Errorf("the refusal left something behind: %v", err)
	}
}

func TestSetIsCompleteAndQuiet(t *testing.T) {
	p := newPlace(t)
	ctx := context.Background()
	ok(t, p.n.Set(ctx, spec()))
	ok(t, p.n.Verify(ctx))
	want := State{Bound: true, Tuned: true, Blocked: true, Inner: []netip.Addr{self},
		Routes: spec().Routes, Probes: spec().Probes, Intact: true, Port: port,
		Members: spec().Members}
	got := must(p.n.Observe(ctx))(t)
	got.Dropped = 0
	if diff := cmp.Diff(want, got, sameAddr); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	// The same Spec again: the kernel announces every change to its groups.
	watch := newWatch(t, p.n.ns)
	ok(t, p.n.Set(ctx, spec()))
	if n := watch.count(t); n != 0 {
		t.Errorf("a second Set of one Spec caused %d changes", n)
	}
	s := spec()
	s.Members, s.Routes = s.Members[:1], []Route{{Peer: friend, Device: "soxxxxxxa2"}}
	s.Probes = []Route{{Peer: friend, Device: "soxxxxxxa1"}, {Peer: rogue, Device: "soxxxxxxa1"}, {Peer: rogue, Device: "soxxxxxxa2"}}
	ok(t, p.n.Set(ctx, s))
	ok(t, p.n.Verify(ctx))
	s.Probes = nil
	ok(t, p.n.Set(ctx, s))
	ok(t, p.n.Verify(ctx))
	if watch.count(t) == 0 {
		t.Error("the watch saw no change at all")
	}
	s.Inner, s.VXLANPort = netip.MustParseAddr("fd00::7"), 4790
	ok(t, p.n.Set(ctx, s))
	ok(t, p.n.Verify(ctx))
}

func TestMissingDeviceIsUnreachable(t *testing.T) {
	p := newPlace(t)
	ctx := context.Background()
	s := spec()
	other := netip.MustParseAddr("fd00::3")
	s.Routes = append(s.Routes, Route{Peer: other, Device: "soxxxxxxa3"})
	err := p.n.Set(ctx, s)
	var blame *RouteError
	if !errors.Is(err, ErrNoDevice) || !errors.As(err, &blame) || blame.Route.Peer != other {
		t.Fatalf("set = %v", err)
	}
	if err := p.n.Verify(ctx); !errors.Is(err, ErrNoDevice) || errors.Is(err, ErrDrift) {
		t.Errorf("verify = %v", err)
	}
	if err := p.send(t, p.n.ns, self, other, 42, 0); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("send to a peer without device: %v", err)
	}
	ok(t, p.send(t, p.n.ns, self, friend, 42, 0)) // the good peer is not held up
	// The device goes away: unreachable, never another way.
	ok(t, p.n.h.LinkDel(must(p.n.h.LinkByName("soxxxxxxa1"))(t)))
	if err := p.send(t, p.n.ns, self, friend, 42, 0); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("send after the device went away: %v", err)
	}
	// A link that only has the name of a device gets no route.
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: "soxxxxxxa3"})
	veth.PeerName = "evil"
	ok(t, p.n.h.LinkAdd(veth))
	ok(t, p.n.h.LinkSetUp(must(p.n.h.LinkByName("evil"))(t)))
	ok(t, p.n.h.LinkSetUp(must(p.n.h.LinkByName("soxxxxxxa3"))(t)))
	if err := p.n.Set(ctx, s); !errors.Is(err, ErrNoDevice) || !errors.Is(err, ErrForeignLink) {
		t.Errorf("set with an impostor = %v", err)
	}
	if r := must(p.n.Observe(ctx))(t).Routes; len(r) != 0 {
		t.Errorf("routes = %v", r)
	}
}

func TestForeignLinkIsPutDown(t *testing.T) {
	p := newPlace(t)
	ctx := context.Background()
	ok(t, p.n.Set(ctx, spec()))
	ok(t, p.n.h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}))
	ok(t, p.n.h.LinkSetUp(must(p.n.h.LinkByName("eth0"))(t)))
	if err := p.n.Verify(ctx); !errors.Is(err, ErrForeignLink) {
		t.Errorf("verify = %v", err)
	}
	if err := p.n.Set(ctx, spec()); !errors.Is(err, ErrForeignLink) {
		t.Errorf("set = %v", err)
	}
	got := must(p.n.Observe(ctx))(t)
	if diff := cmp.Diff([]ForeignLink{{Name: "eth0", Kind: "bridge"}}, got.Foreign); diff != "" {
		t.Errorf("foreign links (-want +got):\n%s", diff)
	}
	if len(got.Routes) != 1 {
		t.Errorf("the foreign link stopped the good peer: %v", got.Routes)
	}
	ok(t, p.n.h.LinkDel(must(p.n.h.LinkByName("eth0"))(t)))
	ok(t, p.n.Verify(ctx))
}

func TestRepairs(t *testing.T) {
	p := newPlace(t)
	ctx := context.Background()
	conn := must(nftables.New(nftables.WithNetNSFd(p.n.ns.FD())))(t)
	lo := must(p.n.h.LinkByName("lo"))(t)
	chain := &nftables.Chain{Name: "input", Table: nftTable()}
	first := func(t *testing.T) *nftables.Rule {
		return must(conn.GetRules(nftTable(), chain))(t)[1]
	}
	accepting := nftables.ChainPolicyAccept
	// The device with a probe, the one without, and the table of the first.
	probed, other := must(p.n.h.LinkByName("soxxxxxxa2"))(t), must(p.n.h.LinkByName("soxxxxxxa1"))(t)
	table := func(t *testing.T) int {
		tables, _, err := p.n.probeTables()
		ok(t, err)
		return tables["soxxxxxxa2"]
	}
	damage := map[string]func(t *testing.T){
		"flush ruleset": func(t *testing.T) { conn.FlushRuleset() },
		"delete table":  func(t *testing.T) { conn.DelTable(nftTable()) },
		"delete rule":   func(t *testing.T) { ok(t, conn.DelRule(first(t))) },
		"flush chain":   func(t *testing.T) { conn.FlushChain(chain) },
		"delete member": func(t *testing.T) {
			ok(t, conn.SetDeleteElements(nftSet(), []nftables.SetElement{element(spec().Members[0])}))
		},
		"add member": func(t *testing.T) {
			ok(t, conn.SetAddElements(nftSet(), []nftables.SetElement{element(Member{rogue, 42})}))
		},
		"leading accept": func(t *testing.T) {
			conn.InsertRule(&nftables.Rule{Table: nftTable(), Chain: chain, Exprs: nft.Accept()})
		},
		"accepting policy": func(t *testing.T) {
			conn.AddChain(&nftables.Chain{Name: "input", Table: nftTable(), Policy: &accepting})
		},
		"replaced rule": func(t *testing.T) {
			r := first(t)
			r.Exprs = []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}}
			conn.ReplaceRule(r)
		},
		"delete route": func(t *testing.T) { ok(t, p.n.dropRoutes(nil)) },
		"foreign route": func(t *testing.T) {
			ok(t, p.n.h.RouteReplace(toPeer(at(rogue), must(p.n.h.LinkByName("soxxxxxxa2"))(t).Attrs().Index)))
		},
		"wrong device": func(t *testing.T) {
			ok(t, p.n.h.RouteReplace(toPeer(at(friend), must(p.n.h.LinkByName("soxxxxxxa2"))(t).Attrs().Index)))
		},
		"delete probe route": func(t *testing.T) {
			ok(t, p.n.h.RouteDel(toPeer(spot{table(t), friend}, probed.Attrs().Index)))
		},
		"delete probe rule": func(t *testing.T) { ok(t, p.n.h.RuleDel(probeRule("soxxxxxxa2", table(t)))) },
		"probe rule to another table": func(t *testing.T) {
			was := table(t)
			ok(t, p.n.h.RuleDel(probeRule("soxxxxxxa2", was)))
			ok(t, p.n.h.RuleAdd(probeRule("soxxxxxxa2", was+1)))
		},
		"probe rule of another device": func(t *testing.T) { ok(t, p.n.h.RuleAdd(probeRule("soxxxxxxa1", table(t)))) },
		"probe rule without a device":  func(t *testing.T) { ok(t, p.n.h.RuleAdd(probeRule("", table(t)))) },
		"probe rule before others": func(t *testing.T) {
			r := probeRule("soxxxxxxa2", table(t))
			r.Priority = 5
			ok(t, p.n.h.RuleAdd(r))
		},
		"unused probe rule": func(t *testing.T) { ok(t, p.n.h.RuleAdd(probeRule("soxxxxxxa1", table(t)+1))) },
		"second probe route": func(t *testing.T) {
			ok(t, p.n.h.RouteReplace(toPeer(spot{table(t), rogue}, probed.Attrs().Index)))
		},
		"probe route into another device": func(t *testing.T) {
			ok(t, p.n.h.RouteReplace(toPeer(spot{table(t), friend}, other.Attrs().Index)))
		},
		"route in nobody's table": func(t *testing.T) {
			ok(t, p.n.h.RouteReplace(toPeer(spot{table(t) + 7, friend}, probed.Attrs().Index)))
		},
		"no default v6":  func(t *testing.T) { ok(t, p.n.h.RouteDel(unreachable(unix.AF_INET6))) },
		"no default v4":  func(t *testing.T) { ok(t, p.n.h.RouteDel(unreachable(unix.AF_INET))) },
		"lo down":        func(t *testing.T) { ok(t, p.n.h.LinkSetDown(lo)) },
		"no address":     func(t *testing.T) { ok(t, p.n.setInner(ctx, netip.Addr{})) },
		"second address": func(t *testing.T) { ok(t, p.n.h.AddrAdd(lo, &netlink.Addr{IPNet: toPeer(at(rogue), 0).Dst})) },
		"forwarding on": func(t *testing.T) {
			_, err := p.n.ns.SetSysctls([]nl.Sysctl{{Key: "ipv6/conf/all/forwarding", Value: "1"}})
			ok(t, err)
		},
		"unmounted": func(t *testing.T) { ok(t, nl.RemoveNamespace(p.n.ns.Path())) },
	}
	for name, hurt := range damage {
		t.Run(name, func(t *testing.T) {
			ok(t, p.n.Set(ctx, spec()))
			ok(t, p.n.Verify(ctx))
			hurt(t)
			ok(t, conn.Flush())
			if err := p.n.Verify(ctx); !errors.Is(err, ErrDrift) {
				t.Errorf("verify does not see it: %v", err)
			}
			ok(t, p.n.Set(ctx, spec()))
			ok(t, p.n.Verify(ctx))
		})
	}
}

// brokenFirewall fails as a kernel without nftables would.
type brokenFirewall struct{}

func (brokenFirewall) read() (tableState, error) { return tableState{}, nil }
func (brokenFirewall) write(tableState, uint16, []Member) error {
	return unix.EOPNOTSUPP
}

func TestNoFirewallNoTraffic(t *testing.T) {
	p := newPlace(t)
	ctx := context.Background()
	ok(t, p.n.Set(ctx, spec()))
	real := p.n.fw
	p.n.fw = brokenFirewall{}
	if err := p.n.Set(ctx, spec()); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("set = %v", err)
	}
	got := must(p.n.Observe(ctx))(t)
	if len(got.Inner) != 0 || len(got.Routes) != 0 || len(got.Probes) != 0 {
		t.Errorf("still reachable at %v, still sending to %v, %v", got.Inner, got.Routes, got.Probes)
	}
	p.n.fw = real
	ok(t, p.n.Set(ctx, spec()))
	ok(t, p.n.Verify(ctx))
}

func TestManyMembers(t *testing.T) {
	p := newPlace(t)
	ctx := context.Background()
	s := spec()
	for i := range 10000 {
		s.Members = append(s.Members, Member{Inner: friend, VNI: ids.VNI(i + 1000)})
	}
	ok(t, p.n.Set(ctx, s))
	ok(t, p.n.Verify(ctx))
	s.Members = slices.DeleteFunc(s.Members, func(m Member) bool { return m.VNI%2 == 0 })
	ok(t, p.n.Set(ctx, s))
	ok(t, p.n.Verify(ctx))
}

func TestBadSpecsChangeNothing(t *testing.T) {
	p := newPlace(t)
	ctx := context.Background()
	ok(t, p.n.Set(ctx, spec()))
	for name, spoil := range map[string]func(*Spec){
		"no inner":     func(s *Spec) { s.Inner = netip.Addr{} },
		"IPv4 inner":   func(s *Spec) { s.Inner = netip.MustParseAddr("10.0.0.1") },
		"no port":      func(s *Spec) { s.VXLANPort = 0 },
		"two routes":   func(s *Spec) { s.Routes = append(s.Routes, s.Routes[0]) },
		"two probes":   func(s *Spec) { s.Probes = append(s.Probes, s.Probes[0]) },
		"own probe":    func(s *Spec) { s.Probes[0].Peer = self },
		"lo probe":     func(s *Spec) { s.Probes[0].Device = "lo" },
		"any probe":    func(s *Spec) { s.Probes[0].Device = "" },
		"IPv4 probe":   func(s *Spec) { s.Probes[0].Peer = netip.MustParseAddr("10.0.0.1") },
		"own route":    func(s *Spec) { s.Routes[0].Peer = self },
		"lo route":     func(s *Spec) { s.Routes[0].Device = "lo" },
		"IPv4 peer":    func(s *Spec) { s.Routes[0].Peer = netip.MustParseAddr("10.0.0.1") },
		"no VNI":       func(s *Spec) { s.Members[0].VNI = 0 },
		"VNI too big":  func(s *Spec) { s.Members[0].VNI = ids.MaxVNI + 1 },
		"IPv4 member":  func(s *Spec) { s.Members[0].Inner = netip.MustParseAddr("10.0.0.1") },
		"no member ip": func(s *Spec) { s.Members[0].Inner = netip.Addr{} },
	} {
		s := spec()
		spoil(&s)
		if err := p.n.Set(ctx, s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	ok(t, p.n.Verify(ctx))
}

func TestRemoveLeavesNothing(t *testing.T) {
	p := newPlace(t)
	ok(t, p.n.Set(context.Background(), spec()))
	ok(t, p.n.Remove())
	if _, err := os.Stat(p.n.ns.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file is still there: %v", err)
	}
}
