package tunneltest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"runtime"
	"slices"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// testSecretNotKept sets the same spec without its secrets, as an agent does
// that has forgotten them, while traffic flows.
func testSecretNotKept(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	a, b := m.listen(0), m.listen(1)
	a.deliver(b, []byte("first"))
	was := []tunnel.PeerState{m.peer(0, 1, 1), m.peer(1, 0, 1)}
	there, back := startFlow(a, b), startFlow(b, a)
	for i := range m.hosts {
		m.forgetSecrets(i)
	}
	for range 5 {
		m.setAll()
		there.waitMore(m, 5)
		back.waitMore(m, 5)
	}
	there.finish(m)
	back.finish(m)
	for i := range m.hosts {
		p := m.peer(i, 1-i, 1)
		if p.Key == 0 || p.Key != m.agreement(0, 1, 1).secret.ID() {
			t.Errorf("host %d: key %s, want %s", i, p.Key, m.agreement(0, 1, 1).secret.ID())
		}
		if !p.LastHandshake.Equal(was[i].LastHandshake) || p.In != was[i].In || p.Out != was[i].Out ||
			p.RxBytes < was[i].RxBytes || p.TxBytes < was[i].TxBytes {
			t.Errorf("host %d: the session was disturbed: before %+v, after %+v", i, was[i], p)
		}
	}
}

// testSecretGone names secrets that are neither installed nor given.
func testSecretGone(t *testing.T, h Harness) {
	m := newTunnels(t, h, 3)
	a, b, c := m.listen(0), m.listen(1), m.listen(2)
	a.deliver(b, []byte("first"))
	c.deliver(a, []byte("first"))
	good := m.peer(0, 1, 1)
	there, back := startFlow(a, b), startFlow(b, a)
	gone := func() {
		t.Helper()
		k := m.key(0, 2, 1)
		k.Secret = keys.TunnelSecret{}
		m.put(0, 2, k)
		for range 2 {
			err := m.drivers[0].Set(m.ctx, m.specs[0])
			var pe *tunnel.PeerError
			if !errors.Is(err, tunnel.ErrSecretGone) || !errors.As(err, &pe) || pe.Peer != m.hosts[2].Env.Node {
				t.Errorf("set without the secret: %v", err)
			}
			there.waitMore(m, 5)
		}
		// What was installed under another key must not live on, either.
		if peers := m.device(0, 1).Peers; len(peers) != 1 || peers[0].ID != m.hosts[1].Env.Node {
			t.Errorf("peers after the set: %+v", peers)
		}
	}
	m.agree(0, 2, 1)
	gone()
	m.dropPeer(0, 2)
	m.set(0)
	gone()
	back.waitMore(m, 5)
	there.finish(m)
	back.finish(m)
	if p := m.peer(0, 1, 1); !p.LastHandshake.Equal(good.LastHandshake) || p.Key != good.Key || p.TxBytes < good.TxBytes {
		t.Errorf("the other session was disturbed: before %+v, after %+v", good, p)
	}
	m.agree(0, 2, 1)
	m.exchangeKeys(1)
	m.establish(0, 2, 1)
	c.deliver(m.listen(0), []byte("with a new secret"))
}

// testKnowsKeys lets a new driver say what is installed before anybody has
// told it.
func testKnowsKeys(t *testing.T, h Harness) {
	m := newTunnels(t, h, 3)
	before := m.state(0)
	if err := m.drivers[0].Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	m.drivers[0] = m.open(0)
	after := m.state(0)
	if len(after.Devices) != 1 {
		t.Fatalf("devices: %+v", after.Devices)
	}
	for n, d := range after.Devices {
		old := before.Devices[n]
		if d.Name != old.Name || d.Epoch != old.Epoch || d.Public != old.Public || d.Port != old.Port || len(d.Peers) != 2 {
			t.Fatalf("device: %+v, was %+v", d, old)
		}
		for j := 1; j <= 2; j++ {
			k := m.key(0, j, d.Epoch)
			at := slices.IndexFunc(d.Peers, func(p tunnel.PeerState) bool { return p.Inner == m.hosts[j].Inner() })
			if at < 0 {
				t.Errorf("epoch %d: no peer has the inner address of host %d: %+v", d.Epoch, j, d.Peers)
				continue
			}
			if p := d.Peers[at]; p.Key != k.Key || p.Public != k.Public || p.In != k.ESP.In || p.Out != k.ESP.Out {
				t.Errorf("epoch %d: peer %+v, want key %s", d.Epoch, p, k.Key)
			} else if h.Keyless && (p.Local != k.ESP.Local || p.Endpoint.Addr() != k.ESP.Remote) {
				t.Errorf("epoch %d: peer between %s and %s, want %s and %s", d.Epoch, p.Local, p.Endpoint, k.ESP.Local, k.ESP.Remote)
			}
		}
	}
	// What it says is enough to go on without the secrets.
	m.forgetSecrets(0)
	m.set(0)
	m.listen(0).deliver(m.listen(1), []byte("with the old keys"))
}

// testOtherSecret gives one end another secret than the other, so that no
// packet passes, and then the right one.
func testOtherSecret(t *testing.T, h Harness) {
	m := newTunnels(t, h, 3)
	a, b, c := m.listen(0), m.listen(1), m.listen(2)
	a.deliver(b, []byte("first"))
	c.deliver(a, []byte("first"))
	c.deliver(b, []byte("first"))
	for wrong := range 2 { // both the side that initiates and the other
		m.agree(0, 1, 1)
		m.exchangeKeys(1)
		k := m.key(wrong, 1-wrong, 1)
		k.Secret = m.randomSecret()
		k.Key = k.Secret.ID()
		m.put(wrong, 1-wrong, k)
		m.set(1)
		m.set(0)
		m.refused(a, b, c)
		m.exchangeKeys(1)
		m.establish(0, 1, 1)
		a.deliver(b, text("after", 100+wrong))
		b.deliver(a, text("after", 100+wrong))
	}
}

// refused sends between a (host 0) and b (host 1) until each end has had the
// chance to take a packet of the other, and fails if one arrives. Packets of c
// are the clock.
func (m *mesh) refused(a, b, c *socket) {
	m.t.Helper()
	unwanted := []byte("under another secret")
	tried := func() bool {
		if m.h.Keyless {
			return m.peer(0, 1, 1).TxPackets > 0 && m.peer(1, 0, 1).TxPackets > 0
		}
		// The responder has answered, and the initiator cannot read it.
		return m.peer(1, 0, 1).TxBytes > 0
	}
	for done := 0; done < 5; {
		// Errors mean that the device has no session, as it should be.
		_ = a.send(b, unwanted)
		_ = b.send(a, unwanted)
		for _, to := range []*socket{a, b} {
			m.mustNotArrive(c, to, unwanted)
		}
		if tried() {
			done++
		} else {
			m.set(0) // the initiator tries again
		}
	}
	if !m.h.Keyless && !m.peer(0, 1, 1).LastHandshake.IsZero() {
		m.t.Error("the initiator has made a handshake under another secret")
	}
}

func testLowerReceives(t *testing.T, h Harness)  { checkReceiveFirst(t, h, 0) }
func testHigherReceives(t *testing.T, h Harness) { checkReceiveFirst(t, h, 1) }

// checkReceiveFirst installs the halves of a pair in the order in which agents
// do: who receives first, sends last.
func checkReceiveFirst(t *testing.T, h Harness, first int) {
	m := newMesh(t, h, 2)
	m.addDevices(1)
	second := 1 - first
	m.put(first, second, receiving(m.key(first, second, 1)))
	m.set(first)
	if p := m.peer(first, second, 1); p.Key != m.agreement(0, 1, 1).secret.ID() || p.Out != 0 || h.Keyless && p.In == 0 {
		t.Errorf("peer with the receiving half alone: %+v", p)
	}
	m.put(second, first, m.key(second, first, 1))
	m.set(second)
	m.routeAll(1)
	if h.Keyless {
		// Who has both halves can send already, and is heard.
		f := startFlow(m.listen(second), m.listen(first))
		f.waitMore(m, 20)
		f.finish(m)
		if p := m.peer(first, second, 1); p.TxPackets != 0 {
			t.Errorf("host %d has sent without a sending half", first)
		}
	}
	m.put(first, second, m.key(first, second, 1))
	m.set(first)
	m.waitFor("a session", func() bool { return m.established(0, 1, 1) })
	there, back := startFlow(m.listen(0), m.listen(1)), startFlow(m.listen(1), m.listen(0))
	there.waitMore(m, 20)
	back.waitMore(m, 20)
	there.finish(m)
	back.finish(m)
}

// testNoSecret joins peers without a secret, gives them one, and takes it away
// again. The entry is made anew each time, so nothing of a session stays.
func testNoSecret(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	a, b := m.listen(0), m.listen(1)
	with := m.agreement(0, 1, 1).secret.ID()
	for _, want := range []keys.KeyID{with, 0, with} {
		for i := range m.hosts {
			k := m.key(i, 1-i, 1)
			if want == 0 {
				k.Key, k.Secret = 0, keys.TunnelSecret{}
			}
			m.put(i, 1-i, k)
			m.set(i)
			if p := m.peer(i, 1-i, 1); p.Key != want {
				t.Errorf("host %d: key %s, want %s", i, p.Key, want)
			}
		}
		m.establish(0, 1, 1)
		payload := bytes.Repeat([]byte{byte(want)}, 50)
		a.deliver(b, payload)
		b.deliver(a, payload)
	}
}

// testNoCopies looks for a secret, and what the wire makes of it, in the memory
// of this process, which is the agent's, after it was installed, read back many
// times and replaced.
func testNoCopies(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	m.agree(0, 1, 1)
	k := m.key(0, 1, 1)
	needles := needlesFor(k, m.hosts[0].Env.Node, m.hosts[1].Env.Node)
	count := func(what string) int {
		t.Helper()
		runtime.GC()
		total := 0
		for name, n := range needles {
			found, err := n.CountIn(os.Getpid())
			if err != nil {
				t.Fatal(err)
			}
			if found > 0 {
				t.Logf("%s: %d copies of %s", what, found, name)
			}
			total += found
		}
		return total
	}
	if count("in use") == 0 {
		t.Error("a secret in use is not found, so this shows nothing")
	}
	m.exchangeKeys(1)
	m.setAll()
	m.agreement(0, 1, 1).secret.Wipe()
	for i := range m.hosts {
		m.forgetSecrets(i)
	}
	for range 10 {
		m.setAll()
		m.state(0)
	}
	if left := count("installed"); left != 0 {
		t.Errorf("%d copies are left when it is installed", left)
	}
	m.agree(0, 1, 1)
	m.exchangeKeys(1)
	m.establish(0, 1, 1)
	if left := count("replaced"); left != 0 {
		t.Errorf("%d copies are left when it is replaced", left)
	}
}

// needlesFor makes needles of a secret, in the forms in which it could lie about.
func needlesFor(k tunnel.PeerKey, mine, theirs ids.NodeID) map[string]Needle {
	out := map[string]Needle{}
	k.Secret.Expose(func(raw []byte) {
		text := hex.AppendEncode(make([]byte, 0, 64), raw)
		defer clear(text)
		out["the secret"], out["the secret as text"] = NewNeedle(raw), NewNeedle(text)
	})
	k.Secret.ExposeESP(mine, theirs, k.ESP.Out, func(m []byte) { out["the sending key"] = NewNeedle(m[:32]) })
	k.Secret.ExposeESP(theirs, mine, k.ESP.In, func(m []byte) { out["the receiving key"] = NewNeedle(m[:32]) })
	return out
}
