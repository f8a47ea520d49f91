package vxlan

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

func TestMTUChanges(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	one, two, three := a.attach(1), a.attach(2), b.attach(3)
	meet(a, b)
	// Below 1280 a link has no IPv6; it comes back with the size.
	for _, mtu := range []int{1430, 1300, 1000, 1400, 1430} {
		for _, n := range w.nodes {
			n.spec.MTU = mtu
			for i := range n.spec.Endpoints {
				n.spec.Endpoints[i].Addrs = addrs(n.spec.Endpoints[i].Addrs[0].Addr(), mtu >= minIPv6MTU)
			}
		}
		meet(a, b)
		a.sync()
		b.sync()
		for _, pair := range [][2]member{{one, three}, {three, two}, {one, two}} {
			ping(t, pair[0], pair[1].Endpoint.Addrs[0].Addr(), mtu)
			if mtu >= minIPv6MTU {
				ping(t, pair[0], pair[1].Endpoint.Addrs[1].Addr(), mtu)
			}
		}
		tooLarge(t, one, three, mtu+1)
	}
}

// addrs returns an endpoint's addresses from its IPv4 one.
func addrs(a netip.Addr, both bool) []netip.Prefix {
	out := []netip.Prefix{netip.PrefixFrom(a, 24)}
	if b := a.As4(); both {
		out = append(out, netip.PrefixFrom(v6(int(b[2])<<8|int(b[3])), 64))
	}
	return out
}

func TestEndpointsComeAndGo(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	one, two := a.attach(1), b.attach(2)
	meet(a, b)
	a.sync()
	b.sync()
	empty := snapshot(t, w.outer.Switch())
	pingBoth(t, one, two, a.spec.MTU)

	// Other addresses on the same endpoint; what somebody else added stays.
	ok(t, one.box.Address("eth0", netip.MustParsePrefix("192.0.2.1/32")))
	a.spec.Endpoints[0].Addrs = []netip.Prefix{netip.PrefixFrom(v4(9), 24), netip.PrefixFrom(v6(9), 64)}
	meet(a, b)
	a.sync()
	b.sync()
	if got := len(a.observe().Networks[0].Ports[0].Inner.Ours); got != 2 {
		t.Errorf("%d addresses of ours, want 2", got)
	}
	if r, err := netlab.Ping(context.Background(), one.box.NS(), netip.MustParseAddr("192.0.2.1"), netlab.PingOptions{}); err != nil || r.Received != 1 {
		t.Errorf("an address that was not ours is gone: %+v, %v", r, err)
	}
	one.Endpoint = a.spec.Endpoints[0]
	pingBoth(t, two, one, a.spec.MTU)

	// Re-attached under a new ID with the same name in the same namespace.
	a.spec.Endpoints[0].ID = "00000000abcd"
	a.sync()
	pingBoth(t, two, one, a.spec.MTU)

	// The endpoint moves to the other node, MAC and addresses with it.
	moved := b.attach(5)
	b.spec.Endpoints[1].MAC, b.spec.Endpoints[1].Addrs = one.Endpoint.MAC, one.Endpoint.Addrs
	moved.Endpoint = b.spec.Endpoints[1]
	three := a.attach(6)
	a.spec.Endpoints = a.spec.Endpoints[1:]
	meet(a, b)
	b.sync()
	a.sync()
	pingBoth(t, three, moved, a.spec.MTU)
	pingBoth(t, two, moved, a.spec.MTU)

	// The endpoint's namespace ends: the veth goes with it, and the agent
	// hears of it.
	ok(t, w.outer.Remove(three.box))
	deadline := time.Now().Add(10 * time.Second)
	for len(a.observe().Networks[0].Ports) > 0 {
		if time.Now().After(deadline) {
			t.Fatal("the port of a dead namespace is still there")
		}
	}
	if _, err := a.p.Sync(context.Background(), []Spec{a.spec}); blamed(err, three.ID) == nil {
		t.Errorf("sync with a dead endpoint = %v", err)
	}
	if after := snapshot(t, w.outer.Switch()); after != empty {
		t.Error("something appeared in the switch's namespace")
	}
}

func TestIPv4OnlyEndpointHasNoIPv6(t *testing.T) {
	w := newWorld(t, 1)
	a := w.nodes[0]
	m := a.attach(1)
	a.spec.Endpoints[0].Addrs = addrs(v4(1), false)
	a.sync()
	for key, want := range map[string]string{"disable_ipv6": "1", "accept_ra": "0"} {
		drift, err := m.box.NS().SysctlDrift([]nl.Sysctl{{Key: "ipv6/conf/eth0/" + key, Value: want}})
		if err != nil || len(drift) != 0 {
			t.Errorf("%s is not %s: %v", key, want, err)
		}
	}
	a.spec.Endpoints[0].Addrs = addrs(v4(1), true)
	a.sync()
}

func TestManyEntries(t *testing.T) {
	w := newWorld(t, 1)
	a := w.nodes[0]
	const endpoints, remotes, nodes = 50, 2000, 100
	box, err := w.outer.Container("many")
	ok(t, err)
	for i := range endpoints {
		e := endpoint(t, box, i+1)
		e.Ifname = fmt.Sprintf("eth%d", i)
		a.spec.Endpoints = append(a.spec.Endpoints, e)
	}
	for i := range remotes {
		a.spec.Remotes = append(a.spec.Remotes, Remote{MAC: mac(1000 + i),
			Addrs: []netip.Addr{v4(1000 + i), v6(1000 + i)}, VTEP: v6(i % nodes)})
	}
	for i := range nodes {
		a.spec.Flood = append(a.spec.Flood, v6(i))
	}
	start := time.Now()
	ops, err := a.p.Sync(context.Background(), []Spec{a.spec})
	ok(t, err)
	first := time.Since(start)
	start = time.Now()
	a.quiet()
	second := time.Since(start)
	t.Logf("%d endpoints, %d remotes, %d nodes: %d operations in %v; observe and plan in %v",
		endpoints, remotes, nodes, len(ops), first, second)
	start = time.Now()
	ok(t, a.p.Remove(context.Background()))
	t.Logf("removed in %v", time.Since(start))
}

// TestVTEPMoveLosesNothing lets a station flap between two nodes under load:
// its forwarding entry is replaced, never absent.
func TestVTEPMoveLosesNothing(t *testing.T) {
	w := newWorld(t, 3)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	one, two := a.attach(1), b.attach(2)
	meet(a, b, c)
	for _, n := range w.nodes {
		n.sync()
	}
	at := capture(t, b.secure.Box, netlab.HostLink, flowPackets)
	flow, err := netlab.StartUDPFlow(context.Background(), netlab.FlowOptions{
		From: one.box.NS(), To: two.box.NS(), Dst: netip.AddrPortFrom(v4(2), 0), Rate: 2000})
	ok(t, err)
	atC := capture(t, c.secure.Box, netlab.HostLink, flowPackets)
	for i := range 40 {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		a.spec.Remotes[0].VTEP = []netip.Addr{c.spec.Local, b.spec.Local}[i%2]
		seen, where := at.Counts().Matched, at
		if i%2 == 0 {
			seen, where = atC.Counts().Matched, atC
		}
		_, err := a.p.Sync(ctx, []Spec{a.spec})
		ok(t, err)
		ok(t, where.WaitMatched(ctx, seen+5))
		cancel()
	}
	sent := flow.Stop().Sent
	pingBoth(t, one, two, 100) // behind the last packet of the flow
	got := at.Stop().Matched + atC.Stop().Matched
	if lost := int64(sent) - int64(got); lost > 0 {
		t.Errorf("%d of %d packets were lost in 40 moves", lost, sent)
	}
	t.Logf("%d packets, 40 moves, %d seen on the wires", sent, got)
}

// flowPackets matches VXLAN packets that carry IPv4 UDP.
func flowPackets(f []byte) bool {
	in := inner(f)
	return len(in) > 34 && in[12] == 8 && in[13] == 0 && in[23] == 17
}

// TestBurst: the stack of an endpoint cuts what it sends into packets of the size that the network
// names, and goes by the kernel's where it names none.
func TestBurst(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes[0]
	is := func(m member) uint32 {
		h, err := m.box.NS().Handle()
		ok(t, err)
		defer h.Close()
		l, err := h.LinkByName("eth0")
		ok(t, err)
		return l.Attrs().GSOMaxSize
	}
	one := n.attach(1)
	n.sync()
	n.spec.Burst = 57_432
	two := n.attach(2)
	n.sync()
	if is(one) != 65_536 || is(two) != 57_432 {
		t.Errorf("%d bytes without a burst, %d with one of %d", is(one), is(two), n.spec.Burst)
	}
}
