package tunneltest

import (
	"bytes"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

func testTraffic(t *testing.T, h Harness)     { checkTraffic(t, h, 0) }
func testTrafficIPv6(t *testing.T, h Harness) { checkTraffic(t, h, 1) }

// checkTraffic sends both ways, small and full-size, with only the lower ID
// knowing where the other is.
func checkTraffic(t *testing.T, h Harness, family int) {
	m := newMesh(t, h, 2)
	m.family = family
	start := time.Now()
	m.addEpoch(1)
	m.routeAll(1)
	if m.specs[1].Peers[0].Keys[0].Endpoint.IsValid() {
		t.Fatal("the higher ID has an endpoint")
	}
	a, b := m.listen(0), m.listen(1)
	// Without a packet to send the initiator makes the session by itself.
	m.waitFor("the first handshake", func() bool { return !m.peer(1, 0, 1).LastHandshake.IsZero() })
	for _, size := range []int{1, 100, 1400 - headers} {
		b.deliver(a, text("back", size))
		a.deliver(b, text("there", size))
	}
	for i := range m.hosts {
		p := m.peer(i, 1-i, 1)
		if p.LastHandshake.Before(start.Add(-time.Second)) || p.LastHandshake.After(time.Now().Add(time.Second)) {
			t.Errorf("host %d: handshake at %v", i, p.LastHandshake)
		}
		if p.RxBytes < 1400 || p.TxBytes < 1400 {
			t.Errorf("host %d: counters %d, %d", i, p.RxBytes, p.TxBytes)
		}
		if p.Endpoint.Addr() != m.hosts[1-i].Underlay[family] || p.Endpoint.Port() != firstPort {
			t.Errorf("host %d: endpoint %s", i, p.Endpoint)
		}
		if got, want := p.Public, m.device(1-i, 1).Public; got != want {
			t.Errorf("host %d: peer key %s, want %s", i, got, want)
		}
	}
}

// testInitiatorFirst lets the initiator call before the responder knows its
// key. WireGuard alone would call again after 5 s; with a Set now and then, as
// the agent's loop makes them, it must be sooner.
func testInitiatorFirst(t *testing.T, h Harness) {
	m := newMesh(t, h, 2)
	for i := range m.hosts {
		m.specs[i].Devices = []tunnel.Device{{Epoch: 1, Port: firstPort, MTU: 1400}}
		m.set(i)
	}
	m.exchangeKeys(1)
	m.set(0)
	if h.Kind.Name != FakeName {
		// The initiation is out, and lost.
		m.waitFor("the first call", func() bool { return m.peer(0, 1, 1).TxBytes > 0 })
	}
	m.set(1)
	start := time.Now()
	m.awaitHandshake(0, 1)
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("the handshake came after %v", took)
	}
	// What it took must not be repeated once there is a session.
	was := m.peer(0, 1, 1).LastHandshake
	m.set(0)
	if p := m.peer(0, 1, 1); !p.LastHandshake.Equal(was) {
		t.Errorf("another handshake at %v", p.LastHandshake)
	}
}

// awaitHandshake applies host i's spec until it has a session with host j.
func (m *mesh) awaitHandshake(i, j int) {
	m.t.Helper()
	m.waitFor("a handshake", func() bool {
		m.set(i)
		return !m.peer(i, j, 1).LastHandshake.IsZero()
	})
}

// testOtherPeers adds and removes host 2 while hosts 0 and 1 talk.
func testOtherPeers(t *testing.T, h Harness) {
	m := newTunnels(t, h, 3)
	a, b, c := m.listen(0), m.listen(1), m.listen(2)
	a.deliver(b, []byte("first"))
	a.deliver(c, []byte("first"))
	was := m.peer(0, 1, 1)
	there, back := startFlow(a, b), startFlow(b, a)
	for range 5 {
		m.dropPeer(0, 2)
		m.dropPeer(1, 2)
		m.set(0)
		m.set(1)
		if n := len(m.device(0, 1).Peers); n != 1 {
			t.Errorf("%d peers after the removal", n)
		}
		there.waitMore(m, 5)
		m.exchangeKeys(1)
		m.set(0)
		m.set(1)
		back.waitMore(m, 5)
	}
	there.finish(m)
	back.finish(m)
	p := m.peer(0, 1, 1)
	if !p.LastHandshake.Equal(was.LastHandshake) || p.RxBytes < was.RxBytes || p.TxBytes < was.TxBytes {
		t.Errorf("the other session was disturbed: before %+v, after %+v", was, p)
	}
}

func testRemovedPeer(t *testing.T, h Harness) {
	m := newTunnels(t, h, 3)
	a, b, c := m.listen(0), m.listen(1), m.listen(2)
	b.deliver(a, []byte("welcome"))
	c.deliver(a, []byte("welcome"))
	m.dropPeer(0, 1)
	m.set(0)
	m.sendMany(1, 0, b, a, []byte("removed"))
	m.mustNotArrive(c, a, []byte("removed"))
	// Once it is back it is heard again: it was the removal that stopped it.
	m.exchangeKeys(1)
	m.awaitHandshake(0, 1)
	b.deliver(a, []byte("back again"))
}

// testForeignSource sends with an inner address that is not the sender's: one
// that nobody has, and one of another member.
func testForeignSource(t *testing.T, h Harness) {
	m := newTunnels(t, h, 3)
	a, b, c := m.listen(0), m.listen(1), m.listen(2)
	b.deliver(a, []byte("welcome"))
	c.deliver(a, []byte("welcome"))
	nobody := m.listenOn(1, Nodes(1)[0].InnerAddr())
	m.sendMany(1, 0, nobody, a, []byte("nobody"))
	m.mustNotArrive(c, a, []byte("nobody"))
	// Host 1 takes host 2's address for itself.
	stolen := m.listenOn(1, m.hosts[2].Inner())
	m.sendMany(1, 0, stolen, a, []byte("stolen"))
	m.mustNotArrive(b, a, []byte("stolen"))
	c.deliver(a, []byte("still here"))
}

// sendMany sends packets that should not arrive, and waits until the sending
// device has sent them, so that they are on their way before what follows.
func (m *mesh) sendMany(i, j int, from, to *socket, payload []byte) {
	m.t.Helper()
	const packets = 20
	before := m.peer(i, j, 1).TxBytes
	for range packets {
		if err := from.send(to, payload); err != nil {
			m.t.Fatalf("send: %v", err)
		}
	}
	m.waitFor("packets to be sent", func() bool {
		return m.peer(i, j, 1).TxBytes >= before+packets*uint64(headers+len(payload))
	})
}

// mustNotArrive waits until a packet of another sender has arrived, and fails
// if one of the unwanted came before it.
func (m *mesh) mustNotArrive(other, to *socket, unwanted []byte) {
	m.t.Helper()
	for _, got := range other.deliver(to, []byte("a packet that may arrive")) {
		if bytes.Equal(got, unwanted) {
			m.t.Fatalf("a packet %q arrived", unwanted)
		}
	}
}

// testNewKey gives a peer a new key under the same inner address, as after a
// restart of its machine.
func testNewKey(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	a, b := m.listen(0), m.listen(1)
	a.deliver(b, []byte("before"))
	if err := m.drivers[1].Remove(m.ctx); err != nil {
		t.Fatal(err)
	}
	m.set(1)
	m.exchangeKeys(1)
	m.setAll()
	m.routeAll(1)
	if n := len(m.device(0, 1).Peers); n != 1 {
		t.Errorf("%d peers, the old key is still there", n)
	}
	a.deliver(b, []byte("after"))
	b.deliver(a, []byte("and back"))
}

// testTwoEpochs moves traffic to a second epoch and back again under load,
// one side after the other, and then ends the first epoch.
func testTwoEpochs(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	a, b := m.listen(0), m.listen(1)
	a.deliver(b, []byte("first"))
	there, back := startFlow(a, b), startFlow(b, a)
	there.waitMore(m, 20)
	m.addEpoch(2)
	one, two := m.device(0, 1), m.device(0, 2)
	if one.Public == two.Public || one.Port == two.Port || one.Name == two.Name {
		t.Errorf("the epochs share something: %+v, %+v", one, two)
	}
	m.waitFor("a session on the second epoch", func() bool {
		return !m.peer(0, 1, 2).LastHandshake.IsZero() && !m.peer(1, 0, 2).LastHandshake.IsZero()
	})
	for _, epoch := range []ids.Epoch{2, 1, 2} {
		m.route(0, 1, epoch)
		there.waitMore(m, 20)
		m.route(1, 0, epoch)
		back.waitMore(m, 20)
	}
	there.finish(m)
	back.finish(m)
	for i := range m.hosts {
		m.specs[i].Devices = m.specs[i].Devices[1:]
		m.specs[i].Peers[0].Keys = m.specs[i].Peers[0].Keys[1:]
	}
	m.setAll()
	if s := m.state(0); len(s.Devices) != 1 || s.Devices[0].Public != two.Public {
		t.Errorf("after the end of the first epoch: %+v", s)
	}
	// Those flows still own the sockets; a new pair sends on.
	m.listen(0).deliver(m.listen(1), []byte("last"))
}
