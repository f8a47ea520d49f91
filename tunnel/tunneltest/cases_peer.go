package tunneltest

import (
	"bytes"
	"testing"
	"time"
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
	m.waitFor("the first handshake", func() bool { return m.established(0, 1, 1) })
	for _, size := range []int{1, 100, 1400 - headers} {
		b.deliver(a, text("back", size))
		a.deliver(b, text("there", size))
	}
	for i := range m.hosts {
		p, wanted := m.peer(i, 1-i, 1), m.key(i, 1-i, 1)
		if p.RxBytes < 1400 || p.TxBytes < 1400 {
			t.Errorf("host %d: counters %d, %d", i, p.RxBytes, p.TxBytes)
		}
		if p.Public != wanted.Public || p.Key != wanted.Key || p.Inner != m.hosts[1-i].Inner() {
			t.Errorf("host %d: peer %+v", i, p)
		}
		if h.Keyless {
			if p.In != wanted.ESP.In || p.Out != wanted.ESP.Out || p.TxPackets < 3 {
				t.Errorf("host %d: peer %+v, want %+v", i, p, wanted.ESP)
			}
			continue
		}
		if p.LastHandshake.Before(start.Add(-time.Second)) || p.LastHandshake.After(time.Now().Add(time.Second)) {
			t.Errorf("host %d: handshake at %v", i, p.LastHandshake)
		}
		if p.Endpoint.Addr() != m.hosts[1-i].Underlay[family] || p.Endpoint.Port() != firstPort {
			t.Errorf("host %d: endpoint %s", i, p.Endpoint)
		}
	}
}

// testInitiatorFirst lets the initiator call before the responder knows its
// key. WireGuard alone would call again after 5 s; with a Set now and then, as
// the agent's loop makes them, it must be sooner.
func testInitiatorFirst(t *testing.T, h Harness) {
	m := newMesh(t, h, 2)
	m.addDevices(1)
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
	m.establish(0, 1, 1)
	b.deliver(a, []byte("back again"))
}

// testForeignSource sends with an inner address that is not the sender's: one
// that nobody has, and one of another member.
func testForeignSource(t *testing.T, h Harness) {
	m := newTunnels(t, h, 3)
	a, b, c := m.listen(0), m.listen(1), m.listen(2)
	b.deliver(a, []byte("welcome"))
	c.deliver(a, []byte("welcome"))
	if h.Loosen != nil {
		h.Loosen(t, m.hosts[1], m.name(1, 1))
	}
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

// testNewKey gives a peer a new device under the same inner address, with a
// new key and a new secret, as after a restart of its machine.
func testNewKey(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	a, b := m.listen(0), m.listen(1)
	a.deliver(b, []byte("before"))
	old := m.peer(0, 1, 1)
	if err := m.drivers[1].Remove(m.ctx); err != nil {
		t.Fatal(err)
	}
	m.specs[1].Peers = nil // agreed for a device that is gone
	m.set(1)
	m.exchangeKeys(1)
	m.setAll()
	m.routeAll(1)
	if n := len(m.device(0, 1).Peers); n != 1 {
		t.Errorf("%d peers, the old key is still there", n)
	}
	p := m.peer(0, 1, 1)
	if p.Key == old.Key || !h.Keyless && p.Public == old.Public || h.Keyless && (p.In == old.In || p.Out == old.Out) {
		t.Errorf("the peer is still the old one: %+v", p)
	}
	a.deliver(b, []byte("after"))
	b.deliver(a, []byte("and back"))
}
