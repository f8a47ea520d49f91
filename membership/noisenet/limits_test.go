package noisenet

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

func rawDial(t *testing.T, to netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// expectClosed waits until the peer closes, and returns what it sent before.
func expectClosed(t *testing.T, c net.Conn, within time.Duration) []byte {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(within))
	b, err := io.ReadAll(c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("connection is open after %v", within)
	}
	return b
}

// TestStrangersAreRefused sends what strangers may send: nobody gets an answer
// byte, and the log has one line per source and second.
func TestStrangersAreRefused(t *testing.T) {
	c, other := newTestCluster(1), newTestCluster(61)
	began := time.Now()
	n := start(t, c.node(10), nil)
	id := must(accessKeyID(c.access))
	member := header{min: 1, max: 1, kind: streamMember, keyID: id}.encode()
	stranger := other.node(1).party()
	stranger.trust = c.trust
	_, outsider, err := newInitiator(stranger, ids.NodeID{})
	if err != nil {
		t.Fatal(err)
	}
	wrongPSK := append(append([]byte{}, member[:]...), outsider[headerSize:]...)
	future := header{min: 2, max: 9, kind: streamMember, keyID: id}.encode()
	join := header{min: 1, max: 1, kind: streamJoin, keyID: 5}.encode()
	for name, msg := range map[string][]byte{
		"http":             []byte("GET / HTTP/1.1\r\n\r\n"),
		"header only":      member[:],
		"wrong psk":        wrongPSK,
		"other key ID":     outsider,
		"future version":   append(future[:], outsider[headerSize:]...),
		"unasked join":     append(join[:], outsider[headerSize:]...),
		"oversized m1":     append(append([]byte{}, member[:]...), bytes.Repeat([]byte{0xff}, 4000)...),
		"truncated m1":     append(append([]byte{}, member[:]...), 0, 40),
		"truncated header": member[:7],
	} {
		conn := rawDial(t, n.addr())
		if _, err := conn.Write(msg); err != nil {
			t.Fatal(err)
		}
		_ = conn.(*net.TCPConn).CloseWrite()
		if b := expectClosed(t, conn, 10*time.Second); len(b) != 0 {
			t.Errorf("%s: answered with %d bytes", name, len(b))
		}
	}
	// One line per second and source, however many were refused.
	most := 2 + int(time.Since(began)/time.Second)
	if lines := n.log.count("handshake refused"); lines < 1 || lines > most {
		t.Errorf("%d log lines, want 1 to %d", lines, most)
	}
	eventually(t, "the gate is empty", func() bool {
		n.gate.mu.Lock()
		defer n.gate.mu.Unlock()
		return n.gate.used == 0 && len(n.gate.from) == 0
	})
}

// TestMembersAreRefused: peers with the access key but a bad credential.
func TestMembersAreRefused(t *testing.T) {
	c, other := newTestCluster(1), newTestCluster(61)
	for name, tc := range map[string]struct {
		edit func(*Config)
		want string
	}{
		"expired": {func(cfg *Config) {
			cfg.Credential = c.certify(c.node(20), func(cert *keys.Cert) {
				cert.NotBefore, cert.NotAfter = c.epoch.Add(-48*time.Hour), c.epoch.Add(-24*time.Hour)
			})
		}, "has expired"},
		"other cluster": {func(cfg *Config) { cfg.Credential = other.node(20).credential }, "belongs to another cluster"},
		"other Noise key": {func(cfg *Config) {
			cfg.Noise = c.node(30).noise
		}, "another Noise key"},
	} {
		t.Run(name, func(t *testing.T) {
			good, bad := start(t, c.node(10), nil), start(t, c.node(20), tc.edit)
			ctx := testContext(t)
			if _, err := bad.Contact(ctx, good.addr()); !errors.Is(err, ErrHandshake) {
				t.Errorf("contact as initiator: %v, want ErrHandshake", err)
			}
			eventually(t, "refusal is logged", func() bool { return good.log.count("handshake refused") == 1 })
			if good.log.count(tc.want) != 1 {
				t.Errorf("the log does not say %q", tc.want)
			}
			if _, err := good.Contact(ctx, bad.addr()); err == nil {
				t.Error("contact with it as responder succeeded")
			}
			if _, ok := good.Peer(bad.node.id); ok {
				t.Error("it became a peer")
			}
		})
	}
}

func TestSlowLoris(t *testing.T) {
	c := newTestCluster(1)
	n := start(t, c.node(10), func(cfg *Config) {
		cfg.limits.handshake = time.Second
		cfg.limits.unauthenticated, cfg.limits.perSource = 6, 4
		cfg.limits.bucketRate, cfg.limits.bucketBurst = 1000, 1000
	})
	began := time.Now()
	var slow []net.Conn
	for range 4 {
		conn := rawDial(t, n.addr())
		if _, err := conn.Write([]byte("SO")); err != nil {
			t.Fatal(err)
		}
		slow = append(slow, conn)
	}
	eventually(t, "four connections wait", func() bool {
		n.gate.mu.Lock()
		defer n.gate.mu.Unlock()
		return n.gate.used == 4
	})
	// A fifth from the same source is closed at once.
	expectClosed(t, rawDial(t, n.addr()), 10*time.Second)
	eventually(t, "the fifth is refused for its number", func() bool { return n.log.count("too many connections") == 1 })
	for _, conn := range slow {
		expectClosed(t, conn, 10*time.Second)
	}
	if d := time.Since(began); d < 900*time.Millisecond {
		t.Errorf("closed after %v, before the deadline", d)
	}
	// A member gets in again.
	m := start(t, c.node(20), nil)
	if _, err := m.Contact(testContext(t), n.addr()); err != nil {
		t.Error(err)
	}
}

// TestGateMakesRoom: connections that hold all places by sending slowly, from
// many sources, do not keep a member out.
func TestGateMakesRoom(t *testing.T) {
	c := newTestCluster(1)
	n := start(t, c.node(10), func(cfg *Config) { cfg.limits.unauthenticated = 24 })
	for i := range 24 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1, 0, byte(i+1))}}
		conn, err := d.Dial("tcp", n.addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
	}
	eventually(t, "all places are taken", func() bool {
		n.gate.mu.Lock()
		defer n.gate.mu.Unlock()
		return n.gate.used == 24
	})
	m := start(t, c.node(20), nil)
	if _, err := m.Contact(testContext(t), n.addr()); err != nil {
		t.Errorf("contact while strangers hold every place: %v", err)
	}
}

func TestGate(t *testing.T) {
	g := newGate(3, 2)
	src := func(n byte) netip.Prefix { return sourceOf(netip.AddrFrom4([4]byte{198, 18, 0, n})) }
	var evicted []int
	enter := func(id int, n byte) *place { return g.enter(src(n), func() { evicted = append(evicted, id) }) }
	p0, p1 := enter(0, 1), enter(1, 1)
	if p0 == nil || p1 == nil || enter(9, 1) != nil {
		t.Fatal("two places per source, not more")
	}
	p0.prove()
	p2 := enter(2, 2)
	p3 := enter(3, 3) // full: 1 is the longest that has not proved
	if p3 == nil || len(evicted) != 1 || evicted[0] != 1 {
		t.Fatalf("evicted %v, want [1]", evicted)
	}
	p1.leave() // its goroutine ends later
	p2.prove()
	p3.prove()
	if enter(4, 4) != nil {
		t.Error("a connection that has proved was evicted")
	}
	p0.leave()
	p0.leave()
	if enter(5, 4) == nil || g.used != 3 {
		t.Errorf("after one left: %d used", g.used)
	}
}

// TestSilentMember: an authenticated peer that never says what its stream is
// for is not kept.
func TestSilentMember(t *testing.T) {
	c := newTestCluster(1)
	n := start(t, c.node(10), func(cfg *Config) { cfg.limits.handshake = 2 * time.Second })
	conn := rawDial(t, n.addr())
	if _, err := initiate(conn, c.node(20).party(), n.node.id); err != nil {
		t.Fatal(err)
	}
	expectClosed(t, conn, 10*time.Second)
	eventually(t, "its place is free", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.peers[c.node(20).id].accepted == 0
	})
}

func TestBuckets(t *testing.T) {
	b := newBuckets(20, 5)
	now := time.Unix(1_800_000_000, 0)
	p := sourceOf(netip.MustParseAddr("198.18.0.1"))
	for i := range 25 {
		wait, ok := b.reserve(now, p, time.Second)
		if !ok {
			t.Fatalf("handshake %d was refused", i)
		}
		if i < 5 && wait != 0 || i >= 5 && wait != time.Duration(i-4)*50*time.Millisecond {
			t.Errorf("handshake %d waits %v", i, wait)
		}
	}
	if _, ok := b.reserve(now, p, time.Second); ok {
		t.Error("handshake 26 in the first second was admitted")
	}
	if _, ok := b.reserve(now, sourceOf(netip.MustParseAddr("198.18.0.2")), time.Second); !ok {
		t.Error("another source was refused")
	}
	for i := range 3 * maxSources {
		b.allow(now, sourceOf(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})))
	}
	if len(b.entries) != maxSources || b.order.Len() != maxSources {
		t.Errorf("table holds %d and %d", len(b.entries), b.order.Len())
	}
}

func TestSourceOf(t *testing.T) {
	for in, want := range map[string]string{
		"198.18.0.1":            "198.18.0.1/32",
		"::ffff:198.18.0.1":     "198.18.0.1/32",
		"fd00:1:2:3:4:5:6:7":    "fd00:1:2:3::/64",
		"fe80::1%eth0":          "fe80::/64",
		"fd00:1:2:3:ffff::1":    "fd00:1:2:3::/64",
		"2001:db8:0:ff00::1234": "2001:db8:0:ff00::/64",
	} {
		if got := sourceOf(netip.MustParseAddr(in)).String(); got != want {
			t.Errorf("sourceOf(%s) = %s, want %s", in, got, want)
		}
	}
}

// TestHints: unknown sessions are answered with fewer bytes than came, and at
// most once per second and source.
func TestHints(t *testing.T) {
	n := start(t, newTestCluster(1).node(10), nil)
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = u.Close() }()
	head := datagramHeader{kind: datagramData, index: 77, counter: 5}.encode()
	for _, msg := range [][]byte{
		head[:],                              // shorter than any data packet
		append(head[:], make([]byte, 15)...), // one byte short
		bytes.Repeat([]byte{1}, 1400),        // too long, and not canonical
		[]byte("GET /"),
	} {
		if _, err := u.WriteToUDPAddrPort(msg, n.addr()); err != nil {
			t.Fatal(err)
		}
	}
	for range 50 {
		if _, err := u.WriteToUDPAddrPort(append(head[:], make([]byte, 16)...), n.addr()); err != nil {
			t.Fatal(err)
		}
	}
	_ = u.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	buf := make([]byte, 2000)
	var got [][]byte
	for {
		m, _, err := u.ReadFromUDPAddrPort(buf)
		if err != nil {
			break
		}
		got = append(got, append([]byte(nil), buf[:m]...))
	}
	want := datagramHeader{kind: datagramHint, index: 77}.encode()
	if len(got) != 1 || !bytes.Equal(got[0], want[:]) {
		t.Errorf("received %x, want one HINT %x", got, want)
	}
}
