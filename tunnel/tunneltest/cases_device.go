package tunneltest

import (
	"context"
	"crypto/rand"
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
	v4, v6 := h.Kind.Overhead(netip.MustParseAddr("198.18.0.1")), h.Kind.Overhead(netip.MustParseAddr("fd00::1"))
	if mapped := h.Kind.Overhead(netip.MustParseAddr("::ffff:198.18.0.1")); v4 < 20 || v6 != v4+20 || mapped != v4 {
		t.Errorf("overhead = %d on IPv4, %d mapped into IPv6, %d on IPv6", v4, mapped, v6)
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
			Name: m.name(i, 1), Epoch: 1, Public: d.Public, Port: d.Port, MTU: 1400, Up: true, Peers: d.Peers,
			Dropped: d.Dropped, // the kernel greets neighbours and routers by itself
		}
		if !m.hasPort(d, i, 1) || h.Keyless && h.InUDP != (d.Port != 0) {
			t.Errorf("device has port %d", d.Port)
		}
		if diff := cmp.Diff(want, d, byValue...); diff != "" {
			t.Errorf("device (-want +got):\n%s", diff)
		}
		if h.Keyless != d.Public.IsZero() || !h.Keyless && seen[d.Public] {
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
	old, link := m.device(1, 1).Public, m.link(1, 1)
	if err := m.hosts[1].Net.DeleteLink(m.name(1, 1)); err != nil {
		t.Fatal(err)
	}
	if s := m.state(1); len(s.Devices) != 0 {
		t.Errorf("state after the deletion: %+v", s)
	}
	// The agent has not kept the secret, and the driver may have lost it.
	m.forgetSecrets(1)
	if err := m.drivers[1].Set(m.ctx, m.specs[1]); err != nil && !errors.Is(err, tunnel.ErrSecretGone) {
		t.Fatalf("set: %v", err)
	}
	d := m.device(1, 1)
	if !h.Keyless && (d.Public.IsZero() || d.Public == old) || m.link(1, 1) == link {
		t.Errorf("restored with key %s, the old one was %s", d.Public, old)
	}
	if !d.Up || !m.hasPort(d, 1, 1) || d.MTU != 1400 {
		t.Errorf("restored device is incomplete: %+v", d)
	}
	m.exchangeKeys(1)
	m.setAll()
	if n := len(m.device(1, 1).Peers); n != 1 {
		t.Errorf("%d peers on the restored device", n)
	}
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
		m.drivers[0] = m.open(0)
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

// testPort gives a device another port. Of ESP that is a new key, too: an
// association is for the port that it was made for.
func testPort(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	a, b := m.listen(0), m.listen(1)
	a.deliver(b, []byte("before"))
	old, link, was := m.device(1, 1).Public, m.link(1, 1), m.key(0, 1, 1)
	m.specs[1].Devices[0].Port = firstPort + 100
	m.set(1)
	d := m.device(1, 1)
	if d.Port != firstPort+100 || d.Public != old || m.link(1, 1) != link {
		t.Errorf("after the change: %+v", d)
	}
	if h.Keyless {
		was.ESP.Port, was.Secret = firstPort+100, keys.TunnelSecret{}
		m.put(0, 1, was)
		if err := m.drivers[0].Set(m.ctx, m.specs[0]); !errors.Is(err, tunnel.ErrSecretGone) {
			t.Errorf("another port under the same key: %v", err)
		}
		if n := len(m.device(0, 1).Peers); n != 0 {
			t.Errorf("%d peers are left at the former port", n)
		}
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
	bad := m.badPeers(good)
	a, b := m.listen(0), m.listen(1)
	a.deliver(b, []byte("before"))
	for _, p := range bad {
		spec := m.specs[0]
		spec.Peers = []tunnel.Peer{good, p}
		err := m.drivers[0].Set(m.ctx, spec)
		var pe *tunnel.PeerError
		if !errors.As(err, &pe) || pe.Peer != p.ID {
			t.Errorf("peer %s at %s: error %v", p.ID, p.Inner, err)
		}
		a.deliver(b, []byte("during"))
	}
	m.set(0)
	if n := len(m.device(0, 1).Peers); n != 1 {
		t.Errorf("%d peers are left", n)
	}
	// A bad device costs only itself, and one that exists stays.
	spoilt := []tunnel.Device{{Epoch: 1, Port: m.port(0, 1), MTU: 1279}}
	if !h.NoPort {
		spoilt = append(spoilt, tunnel.Device{Epoch: 1, MTU: 1400}) // has no port
	}
	for _, d := range spoilt {
		spec := m.specs[0]
		spec.Devices = []tunnel.Device{d, {Epoch: 2, Port: m.port(0, 2), MTU: 1400}}
		if err := m.drivers[0].Set(m.ctx, spec); err == nil {
			t.Errorf("device %+v was taken", d)
		}
		m.device(0, 2)
		a.deliver(b, []byte("after"))
	}
}

// badPeers makes peers that no spec may have beside a good one.
func (m *mesh) badPeers(good tunnel.Peer) []tunnel.Peer {
	m.t.Helper()
	var out []tunnel.Peer
	add := func(spoil func(*tunnel.Peer)) {
		id := Nodes(1)[0]
		k := tunnel.PeerKey{Epoch: 1, Secret: m.randomSecret()}
		k.Key = k.Secret.ID()
		if m.h.Keyless {
			k.ESP = good.Keys[0].ESP
			k.ESP.In, k.ESP.Out = randomSPI(), randomSPI()
		} else {
			_, _ = rand.Read(k.Public[:])
		}
		p := tunnel.Peer{ID: id, Inner: id.InnerAddr(), Keys: []tunnel.PeerKey{k}}
		spoil(&p)
		out = append(out, p)
	}
	add(func(p *tunnel.Peer) { p.Inner = netip.MustParseAddr("198.18.0.9") })
	add(func(p *tunnel.Peer) { p.Inner = good.Inner })
	add(func(p *tunnel.Peer) { p.Keys[0].Epoch = 9 })
	add(func(p *tunnel.Peer) { p.Keys[0].Key++ })
	add(func(p *tunnel.Peer) { p.Keys[0].Public, p.Keys[0].ESP = keys.TunnelPublic{}, tunnel.ESP{} })
	if m.h.Keyless {
		add(func(p *tunnel.Peer) { p.Keys[0].ESP.Local = netip.MustParseAddr("fd00::9") })
		add(func(p *tunnel.Peer) { p.Keys[0].ESP.In = good.Keys[0].ESP.In })
		add(func(p *tunnel.Peer) { p.Keys[0].Key, p.Keys[0].Secret = 0, keys.TunnelSecret{} })
		return out
	}
	add(func(p *tunnel.Peer) { p.Keys[0].Public = m.device(0, 1).Public }) // the host's own
	add(func(p *tunnel.Peer) { p.Keys[0].Public = good.Keys[0].Public })
	add(func(p *tunnel.Peer) { // of another protocol
		p.Keys[0].Public = keys.TunnelPublic{}
		p.Keys[0].ESP = tunnel.ESP{Local: m.hosts[0].Underlay[0], Remote: m.hosts[1].Underlay[0], In: randomSPI(), InUDP: m.h.InUDP}
	})
	return out
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
