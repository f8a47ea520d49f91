package vxlan

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/test/netlab"
)

func TestOverlayCarriesFramesOfBothFamilies(t *testing.T) {
	for name, setup := range map[string]func(*node){
		"encrypted":             func(*node) {},
		"plaintext v4 underlay": func(n *node) { n.plaintext(false) },
		"plaintext v6 underlay": func(n *node) { n.plaintext(true) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 2)
			a, b := w.nodes[0], w.nodes[1]
			setup(a)
			setup(b)
			one, two, three := a.attach(1), a.attach(2), b.attach(3)
			meet(a, b)
			wire := a.secure.Box
			if !a.spec.Encrypted {
				wire = a.host.Box
			}
			a.sync()
			b.sync()
			asked := capture(t, wire, netlab.HostLink, asking)
			carried := capture(t, wire, netlab.HostLink, func(f []byte) bool { return inner(f) != nil })
			pingBoth(t, one, three, a.spec.MTU)
			pingBoth(t, three, two, a.spec.MTU)
			pingBoth(t, one, two, a.spec.MTU) // on one node
			if c := asked.Stop(); c.Matched != 0 || c.Dropped != 0 {
				t.Errorf("ARP or ND went over the wire: %+v", c)
			}
			if c := carried.Stop(); c.Matched < 40 {
				t.Errorf("positive control: %d VXLAN packets on the wire, want at least 40", c.Matched)
			}
			tooLarge(t, one, three, a.spec.MTU+1)
			checkSockets(t, a)
		})
	}
}

func tooLarge(t *testing.T, from, to member, size int) {
	t.Helper()
	r, err := netlab.Ping(context.Background(), from.box.NS(), to.Endpoint.Addrs[0].Addr(),
		netlab.PingOptions{Size: size - 28, DontFragment: true, Timeout: 10 * time.Millisecond})
	ok(t, err)
	if r.SendErr == nil {
		t.Errorf("a packet of %d bytes was sent: the MTU is not in force", size)
	}
}

// checkSockets proves where the VXLAN socket is.
func checkSockets(t *testing.T, n *node) {
	t.Helper()
	var host, secure []string
	switch {
	case n.spec.Encrypted:
		secure = []string{"6:4789"}
	case n.spec.Local.Is4():
		host = []string{"4:4789"}
	default:
		host = []string{"6:4789"}
	}
	wantSockets(t, "host", n.host.NS(), host...)
	wantSockets(t, "secure", n.secure.NS(), secure...)
	wantSockets(t, "overlay", n.room().ns)
}

func TestUnknownNeighboursAreAskedForAcross(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	one, two := a.attach(1), b.attach(2)
	meet(a, b)
	// The record says nothing of addresses: both sides have to ask.
	a.spec.Remotes[0].Addrs, b.spec.Remotes[0].Addrs = nil, nil
	a.sync()
	b.sync()
	asked := capture(t, a.secure.Box, netlab.HostLink, asking)
	pingBoth(t, one, two, 100)
	if c := asked.Stop(); c.Matched < 4 {
		t.Errorf("%d ARP and ND frames crossed, want at least 4", c.Matched)
	}
}

func TestBroadcastGoesToTheFloodListOnly(t *testing.T) {
	w := newWorld(t, 3)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	one, local := a.attach(1), a.attach(2)
	atB, atC := b.attach(3), c.attach(4)
	meet(a, b, c)
	a.spec.Flood = []netip.Addr{b.spec.Local}
	for _, n := range w.nodes {
		n.sync()
	}
	count := func(kind string, dst [6]byte, wantB, wantC, wantLocal uint64) {
		t.Helper()
		marker := []byte("marker of " + kind)
		seen := func(m member) *netlab.Capture {
			return capture(t, m.box, "eth0", netlab.ContainsMarker(marker))
		}
		toB, toC, here := seen(atB), seen(atC), seen(local)
		payload := netlab.UDPPacket(netip.AddrPortFrom(v4(1), 9), netip.AddrPortFrom(v4(255), 9), marker)
		in, err := netlab.OpenInjector(one.box.NS())
		ok(t, err)
		defer func() { _ = in.Close() }()
		for range 10 {
			ok(t, in.Frame("eth0", netlab.EthernetFrame(one.Endpoint.MAC, dst, payload)))
		}
		// Behind them in every queue.
		pingBoth(t, one, atB, 100)
		pingBoth(t, one, atC, 100)
		pingBoth(t, one, local, 100)
		got := []uint64{toB.Stop().Matched, toC.Stop().Matched, here.Stop().Matched}
		if diff := cmp.Diff([]uint64{wantB, wantC, wantLocal}, got); diff != "" {
			t.Errorf("%s arrived at (B, C, local) (-want +got):\n%s", kind, diff)
		}
	}
	broadcast := [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	count("broadcast", broadcast, 10, 0, 10)
	count("multicast", [6]byte{1, 0, 0x5e, 1, 2, 3}, 10, 0, 10)
	count("unknown unicast", mac(99), 0, 0, 0)
	a.spec.Flood = append(a.spec.Flood, c.spec.Local)
	a.sync()
	count("broadcast to both", broadcast, 10, 10, 10)
	a.spec.Flood = nil
	a.sync()
	count("broadcast to none", broadcast, 0, 0, 10)
}

func TestSpoofedSourcesChangeNothing(t *testing.T) {
	w := newWorld(t, 3)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	one, two := a.attach(1), a.attach(2)
	evil, third := b.attach(3), c.attach(4)
	meet(a, b, c)
	for _, n := range w.nodes {
		n.sync()
	}
	marker := []byte("forged frame")
	before := a.observe()
	at := capture(t, one.box, "eth0", netlab.ContainsMarker(marker))
	out := capture(t, b.secure.Box, netlab.HostLink, netlab.ContainsMarker(marker))
	send := func(from netlab.Injector, link string, src [6]byte) {
		t.Helper()
		payload := netlab.UDPPacket(netip.AddrPortFrom(v4(3), 9), netip.AddrPortFrom(v4(1), 9), marker)
		for range 100 {
			ok(t, from.Frame(link, netlab.EthernetFrame(src, one.Endpoint.MAC, payload)))
		}
	}
	inBox, err := netlab.OpenInjector(evil.box.NS())
	ok(t, err)
	defer func() { _ = inBox.Close() }()
	// An endpoint with another's MAC: stopped by its own port.
	for _, victim := range []member{two, third} {
		send(*inBox, "eth0", victim.Endpoint.MAC)
	}
	pingBoth(t, evil, one, 100)
	if n := out.Counts().Matched; n != 0 {
		t.Errorf("%d forged frames left the endpoint's node", n)
	}
	// A node that lies itself: frames put into its VXLAN device directly.
	inNode, err := netlab.OpenInjector(b.room().ns)
	ok(t, err)
	defer func() { _ = inNode.Close() }()
	send(*inNode, deviceName, two.Endpoint.MAC) // of an endpoint local to the victim's node
	send(*inNode, deviceName, mac(77))          // of nobody
	pingBoth(t, evil, one, 100)
	if n := out.Counts().Matched; n != 200 {
		t.Errorf("positive control: %d forged frames on the wire, want 200", n)
	}
	if n := at.Stop().Matched; n != 0 {
		t.Errorf("%d forged frames arrived", n)
	}
	// What one remote node says in another's name does arrive, but it moves
	// nothing: replies still go to the owner.
	send(*inNode, deviceName, third.Endpoint.MAC)
	pingBoth(t, one, third, 100)
	pingBoth(t, one, two, 100)
	if diff := cmp.Diff(before, a.observe(), sameAddr, samePrefix); diff != "" {
		t.Errorf("forged frames changed the victim's node (-before +after):\n%s", diff)
	}
}

// TestAnnouncementsStayOnTheirNode: what an endpoint says unasked about who has
// which address does not reach other nodes; they know it from records.
func TestAnnouncementsStayOnTheirNode(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	one, two := a.attach(1), b.attach(2)
	meet(a, b)
	a.sync()
	b.sync()
	asked := capture(t, a.secure.Box, netlab.HostLink, asking)
	in, err := netlab.OpenInjector(one.box.NS())
	ok(t, err)
	defer func() { _ = in.Close() }()
	// With the sender's own MAC and the other node's address.
	victim4, victim6 := v4(2).As4(), v6(2).As16()
	for range 10 {
		for _, op := range []byte{1, 2} { // gratuitous request and reply (RFC 5227)
			arp := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, op}, one.Endpoint.MAC[:], victim4[:], make([]byte, 6), victim4[:])
			ok(t, in.Frame("eth0", ether([6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, one.Endpoint.MAC, 0x0806, arp)))
		}
		// Unsolicited advertisement to all nodes (RFC 4861 4.4), override set.
		na := slices.Concat([]byte{136, 0, 0, 0, 0x20, 0, 0, 0}, victim6[:], []byte{2, 1}, one.Endpoint.MAC[:])
		ip := slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(na)), 58, 255}, victim6[:],
			[]byte{0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, na)
		ok(t, in.Frame("eth0", ether([6]byte{0x33, 0x33, 0, 0, 0, 1}, one.Endpoint.MAC, 0x86dd, ip)))
	}
	pingBoth(t, one, two, 100)
	if c := asked.Stop(); c.Matched != 0 || c.Frames == 0 {
		t.Errorf("announcements crossed: %+v", c)
	}
}

func ether(dst, src [6]byte, typ uint16, payload []byte) []byte {
	return slices.Concat(dst[:], src[:], []byte{byte(typ >> 8), byte(typ)}, payload)
}

var (
	sameAddr   = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	samePrefix = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
)

func TestRemovalLeavesNothing(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	one, two := a.attach(1), b.attach(2)
	spaces := []*netlab.Box{a.host.Box, a.secure.Box, one.box}
	var before []string
	for _, s := range spaces {
		before = append(before, snapshot(t, s))
	}
	meet(a, b)
	a.sync()
	b.sync()
	pingBoth(t, one, two, a.spec.MTU)
	ok(t, a.p.Remove(context.Background()))
	for i, s := range spaces {
		if diff := cmp.Diff(before[i], snapshot(t, s)); diff != "" {
			t.Errorf("left in %s (-before +after):\n%s", s.Name(), diff)
		}
	}
	wantSockets(t, "secure", a.secure.NS())
	if left, err := os.ReadDir(a.p.opts.Dir); err != nil || len(left) != 0 {
		t.Errorf("files left: %v, %v", left, err)
	}
	a.sync() // and again from nothing
	pingBoth(t, one, two, a.spec.MTU)
}

func snapshot(t *testing.T, b *netlab.Box) string {
	t.Helper()
	s, err := netlab.Snapshot(b.NS())
	ok(t, err)
	return s
}

func TestRestartAdopts(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	one, two := a.attach(1), b.attach(2)
	meet(a, b)
	a.sync()
	b.sync()
	ok(t, a.p.Close())
	pingBoth(t, one, two, a.spec.MTU) // nobody is needed for traffic
	a.p = a.programmer()
	a.quiet()
}

func TestEncryptionSwitchMovesTheSocket(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	one, two := a.attach(1), b.attach(2)
	for range 2 {
		for _, plain := range []bool{true, false} {
			for _, n := range w.nodes {
				n.spec.Encrypted, n.spec.Local, n.spec.MTU = true, n.secure.V6(), 1430
				if plain {
					n.plaintext(false)
				}
			}
			meet(a, b)
			a.sync()
			b.sync()
			checkSockets(t, a)
			pingBoth(t, one, two, a.spec.MTU)
		}
	}
}

func TestVNIsCanBeSwapped(t *testing.T) {
	w := newWorld(t, 1)
	a := w.nodes[0]
	a.attach(1)
	red := a.spec
	red.Network, red.VNI, red.Endpoints = "Red.Team", testVNI+1, nil
	ctx := context.Background()
	for range 2 {
		_, err := a.p.Sync(ctx, []Spec{a.spec, red})
		ok(t, err)
		a.quiet(a.spec, red)
		a.spec.VNI, red.VNI = red.VNI, a.spec.VNI
	}
	// One network goes, another takes its VNI in the same round.
	red.VNI = a.spec.VNI
	_, err := a.p.Sync(ctx, []Spec{red})
	ok(t, err)
	a.quiet(red)
}

func TestSecureNamespaceMissingMeansNoNetwork(t *testing.T) {
	w := newWorld(t, 1)
	a := w.nodes[0]
	a.attach(1)
	a.p.opts.Secure = nil
	_, err := a.p.Sync(context.Background(), []Spec{a.spec})
	var blame *Error
	if !errors.As(err, &blame) || blame.Network != "blue" || !strings.Contains(err.Error(), "no secure namespace") {
		t.Errorf("sync = %v", err)
	}
	if d := a.observe().Networks[0].Devices; len(d) != 0 {
		t.Errorf("a device was made: %+v", d)
	}
	wantSockets(t, "host", a.host.NS())
}
