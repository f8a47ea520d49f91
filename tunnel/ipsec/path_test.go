package ipsec_test

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel/ipsec"
)

// TestWholeMTU fills devices whose MTU is the underlay's less the overhead:
// every packet goes as one frame, over both families, and on IPv4 routers may
// cut it.
func TestWholeMTU(t *testing.T) {
	for name, family := range families() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			outer := w.nodes[0].host.V4()
			if !family(outer) {
				outer = w.nodes[0].host.V6()
			}
			mtu := 1500 - ipsec.Kind(ipsec.Options{}).Overhead(outer)
			w.addDevice(1, mtu)
			w.agreePair(0, 1, 1, family)
			w.setAll()
			w.routeAll(1)
			var longest, fragments, dontFragment atomic.Int64
			caps := must(w.lab.CaptureAll(func(frame []byte) bool {
				esp, fragment, df := readESP(frame)
				if fragment {
					fragments.Add(1)
				}
				if esp && df {
					dontFragment.Add(1)
				}
				if esp {
					longest.Store(max(longest.Load(), int64(len(frame)-14)))
				}
				return esp
			}))(t)
			// Each length of padding, up to the MTU.
			for size := mtu - 4; size <= mtu; size++ {
				f := w.flow(0, 1, 100, size-48)
				ok(t, f.WaitReceived(w.limit(), 5))
				w.finish(f)
			}
			c := caps.Stop()
			if c.Matched < 50 || c.Dropped != 0 || fragments.Load() != 0 || dontFragment.Load() != 0 {
				t.Errorf("%+v, %d fragments, %d with DF", c, fragments.Load(), dontFragment.Load())
			}
			// Overhead is a maximum: of the last four lengths one needs all of it.
			if l := longest.Load(); l > 1500 || l < 1497 {
				t.Errorf("the longest packet has %d bytes", l)
			}
			t.Logf("device MTU %d, longest packet %d of 1500 bytes", mtu, longest.Load())
		})
	}
}

// readESP tells whether a frame is ESP, a fragment of an IPv4 packet, and
// whether it may not be fragmented.
func readESP(frame []byte) (esp, fragment, dontFragment bool) {
	if len(frame) < 54 {
		return false, false, false
	}
	switch binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		flags := binary.BigEndian.Uint16(frame[20:])
		return frame[23] == unix.IPPROTO_ESP, flags&0x3fff != 0, flags&0x4000 != 0
	case unix.ETH_P_IPV6:
		return frame[20] == unix.IPPROTO_ESP, frame[20] == unix.IPPROTO_FRAGMENT, false
	}
	return false, false, false
}

// TestSmallerPath puts a router between two hosts that can pass less than
// their links.
func TestSmallerPath(t *testing.T) {
	const mtu, path = 1400, 1390
	for name, family := range families() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			w.addDevice(1, mtu)
			w.agreePair(0, 1, 1, family)
			w.setAll()
			w.routeAll(1)
			w.routeBetween(path)
			f := w.flow(0, 1, 100, mtu-48)
			ok(t, f.WaitReceived(w.limit(), 20))
			r := f.Stop()
			// On IPv4 the router cuts the packet. On IPv6 it says that it
			// cannot, and from then on the inner sender does it.
			if name == "IPv4" && r.Lost() != 0 || r.Lost() > 10 || r.Corrupt != 0 {
				t.Errorf("flow: %+v", r)
			}
			t.Logf("%d of %d packets of %d bytes arrived over a path of %d", r.Received, r.Sent, mtu, path)
		})
	}
}

// routeBetween makes the first two nodes reach each other only through a
// router that passes packets of up to mtu bytes.
func (w *world) routeBetween(mtu int) {
	w.t.Helper()
	router := must(w.lab.Host("router"))(w.t)
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		ok(w.t, router.Sysctl(s, "1"))
	}
	ok(w.t, router.Sysctl("net/ipv4/conf/all/send_redirects", "0"))
	ok(w.t, router.Sysctl("net/ipv4/conf/eth0/send_redirects", "0"))
	for i, n := range w.nodes[:2] {
		far := w.nodes[1-i].host
		addRoute(w.t, n.env.Host, far.V4(), router.V4(), 0)
		addRoute(w.t, n.env.Host, far.V6(), router.V6(), 0)
		addRoute(w.t, router.NS(), far.V4(), netip.Addr{}, mtu)
		addRoute(w.t, router.NS(), far.V6(), netip.Addr{}, mtu)
		// A router on one link tells of the shorter way.
		ok(w.t, n.host.Sysctl("net/ipv6/conf/all/accept_redirects", "0"))
		ok(w.t, n.host.Sysctl("net/ipv6/conf/eth0/accept_redirects", "0"))
	}
}

// addRoute adds a route to one address, through another or on the link.
func addRoute(t *testing.T, ns *nl.Namespace, to, via netip.Addr, mtu int) {
	t.Helper()
	h := must(ns.Handle())(t)
	defer h.Close()
	l := must(h.LinkByName(netlab.HostLink))(t)
	r := &netlink.Route{
		LinkIndex: l.Attrs().Index, MTU: mtu,
		Dst: &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(to.BitLen(), to.BitLen())},
	}
	if via.IsValid() {
		r.Gw = via.AsSlice()
	}
	ok(t, h.RouteAdd(r))
}
