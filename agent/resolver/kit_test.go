package resolver

import (
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, addr(s))
	}
	return out
}

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// redTeam is a network whose domain has two labels of its own.
func redTeam() Zone {
	return Zone{
		Network: "Red.Team",
		Listen:  addrs("10.20.0.1", "fd20::1"),
		Subnets: prefixes("10.20.0.0/22", "fd20::/64"),
		Names: map[string][]netip.Addr{
			"web":   addrs("10.20.0.5", "10.20.0.6", "fd20::5"),
			"db":    addrs("10.20.0.7"),
			"a.b.c": addrs("10.20.0.8"),
			"six":   addrs("fd20::6"),
		},
		Reverse: map[netip.Addr]string{
			addr("10.20.0.5"): "web-1", addr("fd20::5"): "web-1", addr("10.20.0.8"): "a.b.c",
			addr("192.0.2.1"): "outside", addr("10.30.7.7"): "other", // network's
		},
	}
}

// overlay are the subnets of redTeam, and of another network.
func overlay() []netip.Prefix {
	return prefixes("10.20.0.0/22", "10.30.0.0/16", "fd20::/64", "fd30::/64")
}

// packetOf asks for a name.
func packetOf(t testing.TB, name string, qtype uint16, change ...func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, qtype)
	for _, c := range change {
		c(m)
	}
	p, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func unpacked(t testing.TB, p []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(p); err != nil {
		t.Fatalf("answer %x: %v", p, err)
	}
	return m
}

// texts are records, each in one line with single blanks, sorted.
func texts(rrs []dns.RR) []string {
	var out []string
	for _, rr := range rrs {
		out = append(out, strings.Join(strings.Fields(rr.String()), " "))
	}
	slices.Sort(out)
	return out
}

// sockets opens at a free port of the address, and knows which.
type sockets struct {
	mu    sync.Mutex // guards all
	ports map[netip.Addr]uint16
	open  map[netip.Addr]net.PacketConn
	tcp   map[netip.Addr]net.Listener
	count map[netip.Addr]int
	fail  map[netip.Addr]error
}

func newSockets() *sockets {
	return &sockets{
		ports: map[netip.Addr]uint16{}, open: map[netip.Addr]net.PacketConn{},
		tcp: map[netip.Addr]net.Listener{}, count: map[netip.Addr]int{}, fail: map[netip.Addr]error{},
	}
}

func (s *sockets) listen(at netip.AddrPort) (net.PacketConn, net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := at.Addr()
	if err := s.fail[a]; err != nil {
		return nil, nil, err
	}
	pc, l, err := pair(netip.AddrPortFrom(a, s.ports[a])) // the same again, if it was open before
	if err != nil {
		return nil, nil, err
	}
	s.ports[a] = netip.MustParseAddrPort(l.Addr().String()).Port()
	s.open[a], s.tcp[a] = pc, l
	s.count[a]++
	return pc, l, nil
}

// pair opens UDP and TCP at one port, a free one if it is 0.
func pair(at netip.AddrPort) (net.PacketConn, net.Listener, error) {
	var last error
	for range 20 {
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			return nil, nil, err
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return pc, l, nil
		}
		l.Close()
		last = err
	}
	return nil, nil, last
}

func (s *sockets) at(a netip.Addr) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return netip.AddrPortFrom(a, s.ports[a]).String()
}

func (s *sockets) opened(a netip.Addr) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count[a]
}

// gateway and endpoint are addresses of the network home; the resolvers of the tests
// are elsewhere on loopback.
func gateway() netip.Addr  { return addr("127.0.1.1") }
func endpoint() netip.Addr { return addr("127.0.1.9") }

func home() Zone {
	return Zone{
		Network: "home",
		Listen:  []netip.Addr{gateway()},
		Subnets: prefixes("127.0.1.0/24"),
		Names:   map[string][]netip.Addr{"web": addrs("127.0.1.9")},
		Reverse: map[netip.Addr]string{addr("127.0.1.9"): "web"},
	}
}

// start makes a server with one network, home changed by change, that forwards to ups.
func start(t *testing.T, ups []netip.AddrPort, change func(*Zone)) (*Server, *sockets) {
	t.Helper()
	k := newSockets()
	s := New(Options{Listen: k.listen, Upstreams: func() []netip.AddrPort { return ups }, Log: slog.New(slog.DiscardHandler)})
	t.Cleanup(func() { s.Close() })
	z := home()
	if change != nil {
		change(&z)
	}
	if err := s.Set([]Zone{z}); err != nil {
		t.Fatal(err)
	}
	return s, k
}

// dial connects to the gateway from an address.
func dial(t *testing.T, k *sockets, network string, from netip.Addr) *dns.Conn {
	t.Helper()
	d := net.Dialer{Timeout: 10 * time.Second}
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	} else {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	c, err := d.Dial(network, k.at(gateway()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return &dns.Conn{Conn: c, UDPSize: 4096}
}

// query asks at the gateway, as the endpoint.
func query(t *testing.T, k *sockets, network string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dial(t, k, network, endpoint())
	if err := c.WriteMsg(m); err != nil {
		t.Fatal(err)
	}
	r, err := c.ReadMsg()
	if err != nil {
		t.Fatalf("ask for %s over %s: %v", m.Question[0].Name, network, err)
	}
	if r.Id != m.Id {
		t.Fatalf("the answer has id %d, the question %d", r.Id, m.Id)
	}
	return r
}

// upstream runs a resolver on loopback, outside of all networks.
func upstream(t *testing.T, h dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	return upstreamAt(t, addr("127.0.0.1"), h)
}

func upstreamAt(t *testing.T, a netip.Addr, h dns.HandlerFunc) netip.AddrPort {
	t.Helper()
	pc, l, err := pair(netip.AddrPortFrom(a, 0))
	if err != nil {
		t.Fatal(err)
	}
	for _, srv := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		ready, done := make(chan struct{}), make(chan struct{})
		srv.NotifyStartedFunc = func() { close(ready) }
		go func() { defer close(done); srv.ActivateAndServe() }()
		<-ready
		t.Cleanup(func() { srv.Shutdown(); <-done })
	}
	return netip.MustParseAddrPort(l.Addr().String())
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not so after 20 s: %s", what)
		}
	}
}
