package ipsec_test

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
)

// TestNoCleartext takes away, under load, what encrypts: on the sender and on
// the receiver, one thing after the other and all at once.
func TestNoCleartext(t *testing.T) {
	w := newWorld(t, 2)
	// Each host would send on whatever comes up in its namespace.
	for i, n := range w.nodes {
		ok(t, n.host.Sysctl("net/ipv6/conf/all/forwarding", "1"))
		n.defaultRoute(t, w.nodes[1-i])
	}
	w.join(1)
	caps := must(w.lab.CaptureAll(netlab.ContainsMarker([]byte(marker))))(t)
	inside := 0 // frames with cleartext in the host namespaces
	var locals []*netlab.Capture
	for _, n := range w.nodes {
		locals = append(locals, must(netlab.OpenCapture(n.env.Host, "lo", netlab.ContainsMarker([]byte(marker))))(t))
	}
	f := w.flow(0, 1, 500, 200)
	ok(t, f.WaitReceived(w.limit(), 50))
	for _, attack := range []struct {
		name string
		do   func(*netlink.Handle, *node) error
		gone bool // secrets are needed to repair it
	}{
		{"policies flushed", func(k *netlink.Handle, _ *node) error { return k.XfrmPolicyFlush() }, false},
		{"associations flushed", func(k *netlink.Handle, _ *node) error { return k.XfrmStateFlush(0) }, true},
		{"link deleted", func(_ *netlink.Handle, n *node) error { return n.deleteLink() }, false},
		{"all of it", func(k *netlink.Handle, n *node) error {
			return errors.Join(k.XfrmPolicyFlush(), k.XfrmStateFlush(0), n.deleteLink())
		}, true},
	} {
		for i := range w.nodes {
			k := must(kernel(w.nodes[i].env.Host))(t)
			w.nodes[0].forget()
			w.nodes[1].forget()
			ok(t, attack.do(k, w.nodes[i]))
			_ = k.Close()
			before := f.Result()
			w.waitFor("more attempts to send", func() bool {
				r := f.Result()
				return r.Sent+r.SendErrors >= before.Sent+before.SendErrors+100
			})
			if r := f.Result(); r.Received > before.Received+20 {
				t.Errorf("node %d, %s: %d packets arrived after it", i, attack.name, r.Received-before.Received)
			}
			err := w.nodes[i].driver.Set(w.ctx, w.nodes[i].spec)
			if gone := errors.Is(err, tunnel.ErrSecretGone); gone != attack.gone || (err != nil && !gone) {
				t.Errorf("node %d, %s: repair says %v", i, attack.name, err)
			}
			if attack.gone {
				w.agree(1)
				w.setAll()
			}
			w.routeAll(1)
			ok(t, f.WaitReceived(w.limit(), 20))
		}
	}
	r := f.Stop()
	c := caps.Counts()
	for _, l := range locals {
		inside += int(l.Stop().Matched)
	}
	if c.Matched != 0 || c.Dropped != 0 || inside != 0 || c.Frames < 1000 {
		t.Errorf("captured: %+v, in the hosts %d", c, inside)
	}
	t.Logf("%d packets sent, %d refused, %d arrived; %d frames seen, 0 with cleartext", r.Sent, r.SendErrors, r.Received, c.Frames)
	w.control(caps)
}

// control sends the marker in the clear, which the captures must see.
func (w *world) control(caps *netlab.Captures) {
	w.t.Helper()
	before := caps.Counts().Matched
	f := must(netlab.StartUDPFlow(w.ctx, netlab.FlowOptions{
		From: w.nodes[0].env.Host, To: w.nodes[1].env.Host, Dst: netip.AddrPortFrom(w.nodes[1].host.V4(), 0),
		Marker: []byte(marker),
	}))(w.t)
	ok(w.t, f.WaitReceived(w.limit(), 10))
	f.Stop()
	if n := caps.Stop().Matched - before; n < 20 {
		w.t.Errorf("positive control: %d frames matched", n)
	}
}

// defaultRoute makes the host namespace send everything to another node.
func (n *node) defaultRoute(t *testing.T, to *node) {
	t.Helper()
	h := must(n.env.Host.Handle())(t)
	defer h.Close()
	l := must(h.LinkByName(netlab.HostLink))(t)
	all := &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	ok(t, h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: all, Gw: to.host.V6().AsSlice()}))
}

func (n *node) deleteLink() error {
	h, err := n.env.Secure.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(n.device(1))
	if err != nil {
		return err
	}
	return h.LinkDel(l)
}

// families are the two kinds of underlay.
func families() map[string]func(netip.Addr) bool {
	return map[string]func(netip.Addr) bool{"IPv4": netip.Addr.Is4, "IPv6": netip.Addr.Is6}
}

// TestForgedInnerSource sends with the address of another member, past the
// checks at the sender, and looks at what the receiver says.
func TestForgedInnerSource(t *testing.T) {
	for name, family := range families() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3)
			w.addDevice(1, 1400)
			for _, p := range [][2]int{{0, 1}, {0, 2}, {1, 2}} {
				w.agreePair(p[0], p[1], 1, family)
			}
			w.setAll()
			w.routeAll(1)
			loosen(t, &tunneltest.Host{Env: w.nodes[1].env}, "")
			before := w.nodes[0].xfrmStat(t)
			got := w.deliver(1, 0, w.nodes[2].inner, 20)
			if bad := changed(before, w.nodes[0].xfrmStat(t)); got != 0 || len(bad) != 1 || bad["XfrmInStateMismatch"] != 20 {
				t.Errorf("%d forged packets of 20 arrived, counters %v", got, bad)
			}
			if got := w.deliver(1, 0, w.nodes[1].inner, 20); got != 20 {
				t.Errorf("%d honest packets of 20 arrived", got)
			}
		})
	}
}

// TestPoliciesSwitchedOff wants no peer to be heard on an address for which
// the kernel would not look at selectors.
func TestPoliciesSwitchedOff(t *testing.T) {
	for name, family := range families() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			w.addDevice(1, 1400)
			w.agreePair(0, 1, 1, family)
			w.setAll()
			w.routeAll(1)
			f := w.flow(1, 0, 200, 100)
			ok(t, f.WaitReceived(w.limit(), 5))
			sysctl := map[string]string{"IPv4": "net/ipv4/conf/all/disable_policy", "IPv6": "net/ipv6/conf/eth0/disable_policy"}[name]
			ok(t, w.nodes[0].host.Sysctl(sysctl, "1"))
			err := w.nodes[0].driver.Set(w.ctx, w.nodes[0].spec)
			var pe *tunnel.PeerError
			if !errors.As(err, &pe) || pe.Peer != w.nodes[1].env.Node || !strings.Contains(err.Error(), sysctl) {
				t.Errorf("set says %v", err)
			}
			if left := must(leftovers([]*tunneltest.Host{{Env: w.nodes[0].env}}))(t); len(left) != 0 {
				t.Errorf("installed are %q", left)
			}
			ok(t, w.nodes[0].host.Sysctl(sysctl, "0"))
			if err := w.nodes[0].driver.Set(w.ctx, w.nodes[0].spec); !errors.Is(err, tunnel.ErrSecretGone) {
				t.Errorf("set with secrets that have been used says %v", err)
			}
			w.agreePair(0, 1, 1, family)
			w.setAll()
			ok(t, f.WaitReceived(w.limit(), 5))
		})
	}
}

// deliver sends n packets from node i to node j with any inner source, and
// returns how many had arrived when a packet of another node came.
func (w *world) deliver(i, j int, source netip.Addr, n int) int {
	w.t.Helper()
	at := w.nodes[j].inner
	var c *net.UDPConn
	ok(w.t, w.nodes[j].env.Secure.Do(func() (err error) {
		c, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		return err
	}))
	defer func() { _ = c.Close() }()
	to := c.LocalAddr().(*net.UDPAddr).AddrPort()
	send := func(from *node, source netip.Addr, payload string) {
		in := must(netlab.OpenInjector(from.env.Secure))(w.t)
		defer func() { _ = in.Close() }()
		ok(w.t, in.UDP(netip.AddrPortFrom(source, 4242), to, []byte(payload)))
	}
	for range n {
		send(w.nodes[i], source, "packet")
	}
	other := 3 - i - j
	ok(w.t, c.SetReadDeadline(time.Now().Add(patience)))
	got, buf := 0, make([]byte, 100)
	for send(w.nodes[other], w.nodes[other].inner, "fence"); ; {
		size, err := c.Read(buf)
		ok(w.t, err)
		if string(buf[:size]) == "fence" {
			return got
		}
		got++
	}
}
