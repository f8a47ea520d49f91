package resolver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestServe asks for a name of the network over both protocols.
func TestServe(t *testing.T) {
	_, k := start(t, nil, nil)
	for _, network := range []string{"udp", "tcp"} {
		c := dial(t, k, network, endpoint())
		for range 3 {
			m := new(dns.Msg).SetQuestion("web.home.overlay.", dns.TypeA)
			if err := c.WriteMsg(m); err != nil {
				t.Fatal(err)
			}
			r, err := c.ReadMsg()
			if err != nil || r.Id != m.Id || len(r.Answer) != 1 {
				t.Fatalf("%s: %v, %v", network, r, err)
			}
		}
	}
}

// TestStrangers asks from an address outside of the network.
func TestStrangers(t *testing.T) {
	s, k := start(t, nil, nil)
	c := dial(t, k, "tcp", addr("127.0.2.1"))
	// At once, before it has asked, so that it keeps no place of an endpoint's.
	c.SetReadDeadline(time.Now().Add(idleTimeout / 2))
	if _, err := c.Conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("a stranger's connection: %v", err)
	}
	// Packets to one socket are answered in order, so the stranger's would have been
	// answered before the endpoint's.
	c = dial(t, k, "udp", addr("127.0.2.1"))
	if err := c.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	query(t, k, "udp", new(dns.Msg).SetQuestion("web.", dns.TypeA))
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if r, err := c.ReadMsg(); err == nil {
		t.Errorf("over UDP a stranger gets %v", r)
	}
	// Who becomes one loses its connection with the next question.
	c = dial(t, k, "tcp", endpoint())
	eventually(t, "the connection is served", func() bool { return len(s.networks["home"].streams) > 0 })
	z := home()
	z.Subnets = prefixes("127.0.2.0/24")
	if err := s.Set([]Zone{z}); err != nil {
		t.Fatal(err)
	}
	c.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA))
	if r, err := c.ReadMsg(); err == nil {
		t.Errorf("on an old connection a stranger gets %v", r)
	}
}

// TestGarbage sends what is no question, and then one.
func TestGarbage(t *testing.T) {
	_, k := start(t, nil, nil)
	c := dial(t, k, "udp", endpoint())
	for _, p := range [][]byte{{}, {1}, make([]byte, 11), bytes.Repeat([]byte{0xff}, 5000), bytes.Repeat([]byte{0xc0}, 300)} {
		if _, err := c.Conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	query(t, k, "udp", new(dns.Msg).SetQuestion("web.", dns.TypeA))
	for name, p := range map[string][]byte{
		"an answer":           append([]byte{0, 12, 1, 2, 0x80}, make([]byte, 9)...),
		"too long":            binary.BigEndian.AppendUint16(nil, maxQuestion+1),
		"shorter than header": {0, 3, 1, 2, 3},
		"nothing":             {0, 0},
	} {
		c := dial(t, k, "tcp", endpoint())
		if _, err := c.Conn.Write(p); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Conn.Read(make([]byte, 10)); n != 0 || !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
			t.Errorf("%s over TCP: %d bytes, %v", name, n, err)
		}
	}
	query(t, k, "tcp", new(dns.Msg).SetQuestion("web.", dns.TypeA))
}

// TestTooManyStreams opens more TCP connections than a network may have.
func TestTooManyStreams(t *testing.T) {
	s, k := start(t, nil, nil)
	var conns []*dns.Conn
	for range maxStreams {
		conns = append(conns, dial(t, k, "tcp", endpoint()))
	}
	n := s.networks["home"]
	eventually(t, "all places are taken", func() bool { return len(n.streams) == maxStreams })
	c := dial(t, k, "tcp", endpoint())
	c.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA))
	if r, err := c.ReadMsg(); err == nil {
		t.Errorf("one too many gets %v", r)
	}
	conns[0].Close()
	eventually(t, "a place is free", func() bool { return len(n.streams) < maxStreams })
	query(t, k, "tcp", new(dns.Msg).SetQuestion("web.", dns.TypeA))
	// One of them may only ask so much.
	for i := range maxAsked {
		conns[1].WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA))
		if _, err := conns[1].ReadMsg(); err != nil {
			t.Fatalf("question %d: %v", i, err)
		}
	}
	conns[1].WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA))
	if r, err := conns[1].ReadMsg(); err == nil {
		t.Errorf("the question after the last gets %v", r)
	}
}

// TestCloseWhileForwarding closes while a question waits, and wants that to take no
// resolver's time. TestMain sees what is left running.
func TestCloseWhileForwarding(t *testing.T) {
	asked := make(chan struct{}, 10)
	up := upstream(t, func(dns.ResponseWriter, *dns.Msg) { asked <- struct{}{} })
	s, k := start(t, []netip.AddrPort{up}, nil)
	dial(t, k, "tcp", endpoint())
	for _, network := range []string{"udp", "tcp"} {
		c := dial(t, k, network, endpoint())
		if err := c.WriteMsg(new(dns.Msg).SetQuestion("example.com.", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		<-asked
	}
	begin := time.Now()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begin); took > 2*attemptTimeout { // of the three that a question has
		t.Errorf("closing took %v", took)
	}
	if err := s.Set([]Zone{home()}); err == nil {
		t.Error("a closed server is set")
	}
}

// TestNamesStayOutOfTheLog provokes every line of the log.
func TestNamesStayOutOfTheLog(t *testing.T) {
	var buf safeBuffer
	k := newSockets()
	s := New(Options{
		Listen:    k.listen,
		Upstreams: func() []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")} },
		Log:       slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{Level: slog.LevelInfo})),
	})
	defer s.Close()
	if err := s.Set([]Zone{home()}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"secret.example.com.", "secret.", "secret.home.overlay."} {
		query(t, k, "udp", new(dns.Msg).SetQuestion(name, dns.TypeA))
	}
	k.open[gateway()].Close()
	eventually(t, "the failure is in the log", func() bool { return strings.Contains(buf.String(), "until its sockets are open again") })
	if text := buf.String(); strings.Contains(text, "secret") || strings.Count(text, "level=WARN") != 1 {
		t.Errorf("log:\n%s", text)
	}
}

// TestAddrOf knows only the addresses of its own sockets.
func TestAddrOf(t *testing.T) {
	if a := addrOf(&net.UnixAddr{Name: "x"}); a.IsValid() {
		t.Errorf("address %s", a)
	}
}

// stuck is a socket that sends nothing until it is released, as one is whose room
// is taken by packets to endpoints that do not exist.
type stuck struct {
	net.PacketConn
	release chan struct{}
}

func (p stuck) WriteTo(b []byte, to net.Addr) (int, error) {
	<-p.release
	return p.PacketConn.WriteTo(b, to)
}

// TestStuckSender wants questions to be read while nothing can be sent, and answers
// beyond the queue to be dropped.
func TestStuckSender(t *testing.T) {
	var log seen
	up := upstream(t, log.wrap(replies(1)))
	k, release := newSockets(), make(chan struct{})
	s := New(Options{
		Listen: func(at netip.AddrPort) (net.PacketConn, net.Listener, error) {
			pc, l, err := k.listen(at)
			return stuck{pc, release}, l, err
		},
		Upstreams: func() []netip.AddrPort { return []netip.AddrPort{up} },
		Log:       slog.New(slog.DiscardHandler),
	})
	defer s.Close()
	defer close(release)
	if err := s.Set([]Zone{home()}); err != nil {
		t.Fatal(err)
	}
	c, tcp := dial(t, k, "udp", endpoint()), dial(t, k, "tcp", endpoint())
	socket := s.networks["home"].sockets[gateway()]
	// Again and again, because the kernel may drop some before they are read.
	eventually(t, "the queue is full", func() bool {
		for range 50 {
			c.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA))
		}
		return len(socket.queue) == maxQueue
	})
	tcp.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA))
	if r, err := tcp.ReadMsg(); err != nil || len(r.Answer) != 1 {
		t.Errorf("over TCP meanwhile: %v, %v", r, err)
	}
	eventually(t, "a question behind the full queue is forwarded", func() bool {
		c.WriteMsg(new(dns.Msg).SetQuestion("example.com.", dns.TypeA))
		return len(log.all()) > 0
	})
	release <- struct{}{}
	if _, err := c.ReadMsg(); err != nil {
		t.Error(err)
	}
}
