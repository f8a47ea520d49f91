package gateway_test

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/vxlan"
	"github.com/secure-overlay/secure-overlay/vxlan/gateway"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bench is a node with two networks, an endpoint and the gateway on each, and a host
// outside.
type bench struct {
	t       *testing.T
	lab     *netlab.Lab
	node    *netlab.Host
	outside *netlab.Host
	g       *gateway.Namespace
	p       *vxlan.Programmer
	boxes   []*netlab.Box
}

// subnets of network i.
func subnets(i int) (v4, v6 netip.Prefix) {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i), 0}), 24), netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x77, 3: byte(i)}), 64)
}

func host(p netip.Prefix, n int) netip.Prefix {
	a := p.Addr()
	for range n {
		a = a.Next()
	}
	return netip.PrefixFrom(a, p.Bits())
}

func newBench(t *testing.T) *bench {
	t.Helper()
	netlab.Require(t, netlab.FeatureNetns)
	lab, err := netlab.New("gateway")
	ok(t, err)
	t.Cleanup(func() { ok(t, lab.Close()) })
	b := &bench{t: t, lab: lab}
	b.node, err = lab.Host("node")
	ok(t, err)
	b.outside, err = lab.Host("outside")
	ok(t, err)
	b.ensure()
	t.Cleanup(func() { _ = b.g.Remove() })
	b.p = vxlan.NewProgrammer(vxlan.Options{Host: b.node.NS(), Dir: filepath.Join(lab.Dir(), "netns")})
	t.Cleanup(func() { ok(t, errors.Join(b.p.Remove(context.Background()), b.p.Close())) })
	id, err := b.g.NS().ID()
	ok(t, err)
	var specs []vxlan.Spec
	for i := range 2 {
		box, err := lab.Container("box" + string(rune('0'+i)))
		ok(t, err)
		b.boxes = append(b.boxes, box)
		boxID, err := box.NS().ID()
		ok(t, err)
		v4, v6 := subnets(i)
		specs = append(specs, vxlan.Spec{
			Network: "net" + string(rune('0'+i)), VNI: ids.VNI(100 + i), Local: b.node.V4(), Port: 4789, MTU: 1450,
			Endpoints: []vxlan.Endpoint{{
				ID: "000000000000", MAC: ids.MAC{2, 0, 0, 0, byte(i), 1}, Netns: b.g.NS().Path(), NsID: id, Ifname: gateway.LinkName(ids.VNI(100 + i)),
				Addrs: []netip.Prefix{host(v4, 1), host(v6, 1)}, Apart: true,
			}, {
				ID: "000000000001", MAC: ids.MAC{2, 0, 0, 0, byte(i), 2}, Netns: box.Path(), NsID: boxID, Ifname: "eth0",
				Addrs: []netip.Prefix{host(v4, 2), host(v6, 2)}, Ways: []netip.Addr{host(v4, 1).Addr(), host(v6, 1).Addr()},
			}},
		})
	}
	_, err = b.p.Sync(context.Background(), specs)
	ok(t, err)
	return b
}

func (b *bench) ensure() {
	b.t.Helper()
	var err error
	b.g, err = gateway.Ensure(filepath.Join(b.lab.Dir(), "gateway"), ids.NodeID{1}, b.node.NS())
	ok(b.t, err)
}

func (b *bench) forwards(yes bool) {
	b.t.Helper()
	value := "0"
	if yes {
		value = "1"
	}
	ok(b.t, b.node.Sysctl("net/ipv4/ip_forward", value))
	ok(b.t, b.node.Sysctl("net/ipv6/conf/all/forwarding", value))
}

func out(networks ...int) gateway.Spec {
	s := gateway.Spec{}
	for i := range 2 {
		v4, v6 := subnets(i)
		s.Closed = append(s.Closed, v4, v6)
	}
	s.Closed = append(s.Closed, netip.MustParsePrefix("10.99.0.0/16"))
	for _, i := range networks {
		v4, v6 := subnets(i)
		s.Out = append(s.Out, gateway.Network{Link: gateway.LinkName(ids.VNI(100 + i)), Subnets: []netip.Prefix{v4, v6}})
	}
	return s
}

// reaches reports whether all or none of three pings are answered.
func (b *bench) reaches(from *nl.Namespace, to netip.Addr, want bool, what string) {
	b.t.Helper()
	timeout := 2 * time.Second
	if !want {
		timeout = 200 * time.Millisecond
	}
	r, err := netlab.Ping(context.Background(), from, to, netlab.PingOptions{Count: 3, Timeout: timeout})
	ok(b.t, err)
	if got := r.Received == 3; got != want || !want && r.Received > 0 {
		b.t.Errorf("%s: %d of 3 pings answered (%v), want answers: %v", what, r.Received, r.SendErr, want)
	}
}

func (b *bench) set(s gateway.Spec) {
	b.t.Helper()
	ok(b.t, b.g.Set(context.Background(), s))
}

// TestWayOut: endpoints of a network with a way out reach a host outside, by the
// node's own address, and nothing else becomes reachable by it.
func TestWayOut(t *testing.T) {
	b := newBench(t)
	v4, v6 := subnets(0)
	other4, _ := subnets(1)
	b.set(out())
	b.reaches(b.boxes[0].NS(), host(v4, 1).Addr(), true, "the gateway")
	b.reaches(b.boxes[0].NS(), host(v6, 1).Addr(), true, "the gateway on IPv6")
	b.reaches(b.boxes[0].NS(), b.outside.V4(), false, "outside, without a way out")

	err := b.g.Set(context.Background(), out(0))
	if !errors.Is(err, gateway.ErrNoForwarding) {
		t.Fatalf("on a host that does not forward: %v", err)
	}
	b.reaches(b.boxes[0].NS(), b.outside.V4(), false, "outside, by a host that does not forward")

	b.forwards(true)
	b.set(out(0))
	source := func(a netip.Addr) netlab.Matcher {
		return func(f []byte) bool {
			if a.Is4() {
				return len(f) > 33 && f[12] == 8 && netip.AddrFrom4([4]byte(f[26:30])) == a
			}
			return len(f) > 53 && f[12] == 0x86 && netip.AddrFrom16([16]byte(f[22:38])) == a
		}
	}
	own, leaked := b.capture(source(b.node.V4())), b.capture(source(host(v4, 2).Addr()))
	own6, leaked6 := b.capture(source(b.node.V6())), b.capture(source(host(v6, 2).Addr()))
	b.reaches(b.boxes[0].NS(), b.outside.V4(), true, "outside")
	b.reaches(b.boxes[0].NS(), b.outside.V6(), true, "outside on IPv6")
	if o, o6, l, l6 := own.Stop(), own6.Stop(), leaked.Stop(), leaked6.Stop(); o.Matched < 3 || o6.Matched < 3 || l.Matched+l6.Matched > 0 {
		t.Errorf("packets outside: %d and %d from the node's addresses, %d and %d from the endpoint's", o.Matched, o6.Matched, l.Matched, l6.Matched)
	}
	b.reaches(b.boxes[1].NS(), b.outside.V4(), false, "outside, from the network without a way out")
	b.reaches(b.boxes[0].NS(), host(other4, 2).Addr(), false, "the other network")
	b.reaches(b.boxes[0].NS(), b.node.V4(), false, "the node itself")
	ok(t, b.outside.Route(v4, b.node))
	ok(t, routeToGateway(b.node.NS(), v4))
	b.reaches(b.outside.NS(), host(v4, 2).Addr(), false, "the endpoint, from outside")

	// Addresses of overlay networks never leave, whatever routes there are.
	ok(t, b.outside.Own(netip.MustParsePrefix("10.99.0.9/32")))
	ok(t, b.node.Route(netip.MustParsePrefix("10.99.0.0/16"), b.outside))
	b.reaches(b.node.NS(), netip.MustParseAddr("10.99.0.9"), true, "positive control: an overlay address that the host has a route to")
	b.reaches(b.boxes[0].NS(), netip.MustParseAddr("10.99.0.9"), false, "an overlay address")

	// A sender that claims an address of no network here.
	ok(t, b.boxes[0].Own(netip.MustParsePrefix("192.0.2.9/32")))
	forged := b.capture(func(f []byte) bool { return len(f) > 33 && f[12] == 8 && f[23] == 17 })
	in, err := netlab.OpenInjector(b.boxes[0].NS())
	ok(t, err)
	defer func() { _ = in.Close() }()
	packet := netlab.UDPPacket(netip.MustParseAddrPort("192.0.2.9:7"), netip.AddrPortFrom(b.outside.V4(), 7), []byte("forged"))
	ok(t, in.Frame("eth0", netlab.EthernetFrame([6]byte{2, 0, 0, 0, 0, 2}, [6]byte{2, 0, 0, 0, 0, 1}, packet)))
	b.reaches(b.boxes[0].NS(), b.outside.V4(), true, "outside, behind the forged packet")
	if c := forged.Stop(); c.Matched > 0 {
		t.Errorf("%d packets with a source of no network left", c.Matched)
	}
}

func (b *bench) capture(m netlab.Matcher) *netlab.Capture {
	b.t.Helper()
	c, err := netlab.OpenCapture(b.outside.NS(), netlab.HostLink, m)
	ok(b.t, err)
	return c
}

// TestWayOutIsKept: equal specs change nothing, another agent adopts what is there,
// damage is mended, and removal leaves the host as it was.
func TestWayOutIsKept(t *testing.T) {
	b := newBench(t)
	b.forwards(true)
	before, err := netlab.Snapshot(b.node.NS())
	ok(t, err)
	b.set(out(0, 1))
	snap := func() string {
		t.Helper()
		host, err := netlab.Snapshot(b.node.NS())
		ok(t, err)
		inside, err := netlab.Snapshot(b.g.NS())
		ok(t, err)
		return host + inside
	}
	have := snap()
	b.set(out(0, 1))
	if got := snap(); got != have {
		t.Errorf("an equal spec changed\n%s\nto\n%s", have, got)
	}
	ok(t, b.g.Close())
	b.ensure()
	b.reaches(b.boxes[0].NS(), b.outside.V4(), true, "outside, while no agent runs")
	b.set(out(0, 1))
	if got := snap(); got != have {
		t.Errorf("the next agent changed\n%s\nto\n%s", have, got)
	}
	h, err := b.node.NS().Handle()
	ok(t, err)
	defer h.Close()
	up, err := h.LinkByName(gateway.Uplink)
	ok(t, err)
	for name, harm := range map[string]func() error{
		"link down":    func() error { return h.LinkSetDown(up) },
		"link deleted": func() error { return h.LinkDel(up) },
		"rules gone":   func() error { return flush(b.node.NS()) },
		"rules inside": func() error { return flush(b.g.NS()) },
	} {
		if up, err = h.LinkByName(gateway.Uplink); err != nil {
			t.Fatal(err)
		}
		ok(t, harm())
		b.set(out(0, 1))
		b.reaches(b.boxes[0].NS(), b.outside.V4(), true, "outside, after "+name)
		b.reaches(b.boxes[0].NS(), b.node.V4(), false, "the node itself, after "+name)
	}
	b.set(out(1))
	b.reaches(b.boxes[0].NS(), b.outside.V4(), false, "outside, once there is no way out")
	b.reaches(b.boxes[1].NS(), b.outside.V4(), true, "outside, from the network that keeps it")
	b.set(out())
	after, err := netlab.Snapshot(b.node.NS())
	ok(t, err)
	if after != before {
		t.Errorf("the host had\n%s\nand has\n%s", before, after)
	}
}

// TestForeignLinkStays: a link of the uplink's name that is not ours is not touched.
func TestForeignLinkStays(t *testing.T) {
	b := newBench(t)
	b.forwards(true)
	h, err := b.node.NS().Handle()
	ok(t, err)
	defer h.Close()
	ok(t, h.LinkAdd(other()))
	if err := b.g.Set(context.Background(), out(0)); !errors.Is(err, gateway.ErrForeign) {
		t.Errorf("a link of the name: %v", err)
	}
	b.reaches(b.boxes[0].NS(), b.outside.V4(), false, "outside")
	b.set(out())
	if _, err := h.LinkByName(gateway.Uplink); err != nil {
		t.Errorf("the foreign link: %v", err)
	}
}
