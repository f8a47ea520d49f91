package tunneltest

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// comparable state: netip types have unexported fields.
var byValue = []cmp.Option{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func testProbe(t *testing.T, h Harness) {
	m := newMesh(t, h, 1)
	if err := h.Kind.Probe(m.ctx, m.hosts[0].Env); err != nil {
		t.Fatalf("probe: %v", err)
	}
	m.checkNothingLeft()
	for _, c := range []struct {
		underlay string
		want     int
	}{{"198.18.0.1", 60}, {"::ffff:198.18.0.1", 60}, {"fd00::1", 80}} {
		if got := h.Kind.Overhead(netip.MustParseAddr(c.underlay)); got != c.want {
			t.Errorf("overhead on %s = %d, want %d", c.underlay, got, c.want)
		}
	}
}

func testPlacement(t *testing.T, h Harness) {
	m := newMesh(t, h, 2)
	if s := m.state(0); len(s.Devices) != 0 {
		t.Errorf("state before the first set: %+v", s)
	}
	m.addEpoch(1)
	seen := map[keys.TunnelPublic]bool{}
	for i, host := range m.hosts {
		outer, secure, err := host.Net.Links()
		if err != nil {
			t.Fatal(err)
		}
		if len(outer) != 0 {
			t.Errorf("links in the host namespace: %v", outer)
		}
		if _, ok := secure[m.name(i, 1)]; !ok || len(secure) != 1 {
			t.Errorf("links in the secure namespace: %v", secure)
		}
		d := m.device(i, 1)
		want := tunnel.DeviceState{
			Name: m.name(i, 1), Epoch: 1, Public: d.Public, Port: firstPort, MTU: 1400, Up: true, Peers: d.Peers,
		}
		if diff := cmp.Diff(want, d, byValue...); diff != "" {
			t.Errorf("device (-want +got):\n%s", diff)
		}
		if d.Public.IsZero() || seen[d.Public] {
			t.Errorf("public key %s is not the device's own", d.Public)
		}
		seen[d.Public] = true
	}
}

// testRepeat sets the same spec again and again while traffic flows.
func testRepeat(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	a, b := m.listen(0), m.listen(1)
	a.deliver(b, []byte("first"))
	before, link := m.device(0, 1), m.link(0, 1)
	peers := []tunnel.PeerState{m.peer(0, 1, 1), m.peer(1, 0, 1)}
	f := startFlow(a, b)
	for range 20 {
		m.setAll()
		f.waitMore(m, 1)
	}
	f.finish(m)
	after := m.device(0, 1)
	if after.Public != before.Public || m.link(0, 1) != link {
		t.Errorf("the device was made anew")
	}
	for i, was := range peers {
		p := m.peer(i, 1-i, 1)
		if !p.LastHandshake.Equal(was.LastHandshake) || p.Endpoint != was.Endpoint ||
			p.RxBytes < was.RxBytes || p.TxBytes < was.TxBytes {
			t.Errorf("host %d: the session was disturbed: before %+v, after %+v", i, was, p)
		}
	}
}

// link returns the interface index of a device.
func (m *mesh) link(i int, epoch ids.Epoch) int {
	m.t.Helper()
	_, secure, err := m.hosts[i].Net.Links()
	if err != nil {
		m.t.Fatal(err)
	}
	return secure[m.name(i, epoch)]
}

func testDeletedDevice(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	a, b := m.listen(0), m.listen(1)
	a.deliver(b, []byte("before"))
	old := m.device(1, 1).Public
	if err := m.hosts[1].Net.DeleteLink(m.name(1, 1)); err != nil {
		t.Fatal(err)
	}
	if s := m.state(1); len(s.Devices) != 0 {
		t.Errorf("state after the deletion: %+v", s)
	}
	m.set(1)
	d := m.device(1, 1)
	if d.Public.IsZero() || d.Public == old {
		t.Errorf("restored with key %s, the old one was %s", d.Public, old)
	}
	if !d.Up || d.Port != firstPort || len(d.Peers) != 1 {
		t.Errorf("restored device is incomplete: %+v", d)
	}
	m.exchangeKeys(1)
	m.setAll()
	m.routeAll(1)
	a.deliver(b, []byte("after"))
	b.deliver(a, []byte("and back"))
}

func testAdopt(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	a, b := m.listen(0), m.listen(1)
	a.deliver(b, []byte("first"))
	before, link, peer := m.device(0, 1), m.link(0, 1), m.peer(0, 1, 1)
	there, back := startFlow(a, b), startFlow(b, a)
	for range 3 {
		there.waitMore(m, 10)
		if err := m.drivers[0].Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
		there.waitMore(m, 10)
		m.drivers[0] = m.open(m.hosts[0])
		m.set(0)
	}
	back.waitMore(m, 10)
	there.finish(m)
	back.finish(m)
	after, adopted := m.device(0, 1), m.peer(0, 1, 1)
	if after.Public != before.Public || m.link(0, 1) != link {
		t.Errorf("the device was made anew")
	}
	if !adopted.LastHandshake.Equal(peer.LastHandshake) || adopted.Endpoint != peer.Endpoint {
		t.Errorf("the session was disturbed: before %+v, after %+v", peer, adopted)
	}
}

func testPort(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	a, b := m.listen(0), m.listen(1)
	a.deliver(b, []byte("before"))
	old, link := m.device(1, 1).Public, m.link(1, 1)
	m.specs[1].Devices[0].Port = firstPort + 100
	m.set(1)
	d := m.device(1, 1)
	if d.Port != firstPort+100 || d.Public != old || m.link(1, 1) != link {
		t.Errorf("after the change: %+v", d)
	}
	m.exchangeKeys(1)
	m.setAll()
	if p := m.peer(0, 1, 1); p.Endpoint.Port() != firstPort+100 {
		t.Errorf("the endpoint that the spec changed is still %s", p.Endpoint)
	}
	a.deliver(b, []byte("after"))
	b.deliver(a, []byte("and back"))
}

func testMTU(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	a, b := m.listen(0), m.listen(1)
	for _, mtu := range []int{1400, 1280, 1420} {
		for i := range m.hosts {
			m.specs[i].Devices[0].MTU = mtu
		}
		m.setAll()
		if d := m.device(0, 1); d.MTU != mtu || !d.Up {
			t.Errorf("mtu = %d, up = %v; want %d", d.MTU, d.Up, mtu)
		}
		a.deliver(b, text("full", mtu-headers))
		b.deliver(a, text("full", mtu-headers))
		if err := a.send(b, text("too long", mtu-headers+1)); err == nil {
			t.Errorf("mtu %d: a packet of one byte more was taken", mtu)
		}
	}
}

func testBadPeer(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	good := m.specs[0].Peers[0]
	stranger := Nodes(5)
	bad := []tunnel.Peer{
		{ID: stranger[0], Inner: stranger[0].InnerAddr(), Keys: []tunnel.PeerKey{{Epoch: 1}}},
		{ID: stranger[1], Inner: netip.MustParseAddr("198.18.0.9"), Keys: []tunnel.PeerKey{{Epoch: 1, Public: keys.TunnelPublic{1}}}},
		{ID: stranger[2], Inner: good.Inner, Keys: []tunnel.PeerKey{{Epoch: 1, Public: keys.TunnelPublic{2}}}},
		{ID: stranger[3], Inner: stranger[3].InnerAddr(), Keys: []tunnel.PeerKey{{Epoch: 9, Public: keys.TunnelPublic{3}}}},
		{ID: stranger[4], Inner: stranger[4].InnerAddr(), Keys: []tunnel.PeerKey{{Epoch: 1, Public: m.device(0, 1).Public}}},
	}
	a, b := m.listen(0), m.listen(1)
	a.deliver(b, []byte("before"))
	for _, p := range bad {
		spec := m.specs[0]
		spec.Peers = []tunnel.Peer{good, p}
		err := m.drivers[0].Set(m.ctx, spec)
		var pe *tunnel.PeerError
		if !errors.As(err, &pe) || pe.Peer != p.ID {
			t.Errorf("peer %+v: error %v", p, err)
		}
		a.deliver(b, []byte("during"))
	}
	m.set(0)
	if n := len(m.device(0, 1).Peers); n != 1 {
		t.Errorf("%d peers are left", n)
	}
	// A bad device costs only itself, and one that exists stays.
	spec := m.specs[0]
	spec.Devices = []tunnel.Device{{Epoch: 1, Port: 0, MTU: 1400}, {Epoch: 2, Port: firstPort + 1, MTU: 1400}}
	if err := m.drivers[0].Set(m.ctx, spec); err == nil {
		t.Error("a device without a port was taken")
	}
	m.device(0, 2)
	a.deliver(b, []byte("after"))
}

func testRemove(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	m.addEpoch(2)
	for range 2 {
		if err := m.drivers[0].Remove(m.ctx); err != nil {
			t.Errorf("remove: %v", err)
		}
		outer, secure, err := m.hosts[0].Net.Links()
		if err != nil || len(outer) > 0 || len(secure) > 0 {
			t.Errorf("links left: host %v, secure %v, error %v", outer, secure, err)
		}
	}
	m.device(1, 2)
	ended, cancel := context.WithCancel(m.ctx)
	cancel()
	if err := m.drivers[0].Set(ended, m.specs[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("set with an ended context: %v", err)
	}
}
