package vxlan

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestApartEndpoints: each node has an endpoint of one MAC and one address, and
// everybody reaches the one of his own node and no other.
func TestApartEndpoints(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	one, two := a.attach(1), b.attach(2)
	meet(a, b)
	var own []member
	for _, n := range w.nodes {
		m := n.attach(9)
		n.spec.Endpoints[len(n.spec.Endpoints)-1].Apart = true
		own = append(own, m)
		n.sync()
	}
	gateway := own[0].Endpoint.Addrs[0].Addr()
	here := func(f []byte) bool { return len(f) > 23 && f[12] == 8 && f[13] == 0 && f[23] == 1 } // ICMP
	for i, from := range []member{one, two} {
		seen := []*netlab.Capture{capture(t, own[0].box, "eth0", here), capture(t, own[1].box, "eth0", here)}
		pingBoth(t, from, own[i], a.spec.MTU)
		if got := []uint64{seen[0].Stop().Matched, seen[1].Stop().Matched}; got[i] == 0 || got[1-i] != 0 {
			t.Errorf("pings from node %d were seen by %v", i, got)
		}
	}
	pingBoth(t, one, two, a.spec.MTU) // and endpoints reach each other as ever

	// Node b without one of its own does not get to that of a, nor does a frame that
	// is made for it.
	b.spec.Endpoints = b.spec.Endpoints[:1]
	b.sync()
	r, err := netlab.Ping(context.Background(), two.box.NS(), gateway, netlab.PingOptions{Count: 3, Timeout: 100 * time.Millisecond})
	ok(t, err)
	if r.Received > 0 {
		t.Errorf("%d answers from another node's endpoint", r.Received)
	}
	marker := []byte("frame for another node's own")
	seen := capture(t, own[0].box, "eth0", netlab.ContainsMarker(marker))
	in, err := netlab.OpenInjector(two.box.NS())
	ok(t, err)
	defer func() { _ = in.Close() }()
	packet := netlab.UDPPacket(netip.AddrPortFrom(v4(2), 9), netip.AddrPortFrom(gateway, 9), marker)
	for _, dst := range [][6]byte{own[0].Endpoint.MAC, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff}} {
		ok(t, in.Frame("eth0", netlab.EthernetFrame(two.Endpoint.MAC, dst, packet)))
	}
	pingBoth(t, two, one, 100) // behind them in every queue
	if c := seen.Stop(); c.Matched != 0 {
		t.Errorf("%d frames crossed to another node's endpoint", c.Matched)
	}
}

// TestDefaultRoutes are added, mended, and never put in the place of others.
func TestDefaultRoutes(t *testing.T) {
	w := newWorld(t, 1)
	n := w.nodes[0]
	m := n.attach(1)
	e := &n.spec.Endpoints[0]
	e.Ways = []netip.Addr{v4(254), v6(254)}
	n.sync()
	h, err := m.box.NS().Handle()
	ok(t, err)
	defer h.Close()
	eth0, err := h.LinkByName("eth0")
	ok(t, err)
	ways := func() int {
		t.Helper()
		got, err := waysOf(h, eth0)
		ok(t, err)
		return len(got)
	}
	if ways() != 2 {
		t.Fatalf("%d default routes, want 2", ways())
	}
	ok(t, h.RouteDel(defaultRoute(eth0, v4(254))))
	ok(t, h.LinkSetDown(eth0))
	n.sync()
	if ways() != 2 {
		t.Errorf("%d default routes after one was deleted and the link was down", ways())
	}
	// Somebody else's stays, and is said.
	ok(t, h.RouteDel(defaultRoute(eth0, v4(254))))
	foreign := defaultRoute(eth0, v4(77))
	foreign.Protocol = 3
	ok(t, h.RouteAdd(foreign))
	if _, err := n.p.Sync(context.Background(), []Spec{n.spec}); !errors.Is(err, ErrRouteTaken) {
		t.Errorf("a default route that was there: %v", err)
	}
	filter := &netlink.Route{Table: 254}
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_TABLE)
	ok(t, err)
	for _, r := range routes {
		if r.Protocol == nl.RouteProtocol && r.Gw != nil {
			t.Errorf("a second default route %v", r)
		}
	}
	ok(t, h.RouteDel(foreign))
	n.sync()
	if ways() != 2 {
		t.Errorf("%d default routes at the end", ways())
	}
}
