package resolver

import (
	"bytes"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// safeBuffer is a log that goroutines may write while a test reads.
type safeBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func away() Zone {
	return Zone{
		Network: "away", Listen: addrs("127.0.3.1"), Subnets: prefixes("127.0.3.0/24"),
		Names: map[string][]netip.Addr{"web": addrs("127.0.3.9")},
	}
}

// TestSetKeepsSockets changes names under questions, which all get an answer from the
// same sockets.
func TestSetKeepsSockets(t *testing.T) {
	s, k := start(t, nil, nil)
	var stop atomic.Bool
	var asked atomic.Int32
	done := make(chan struct{})
	c, tcp := dial(t, k, "udp", endpoint()), dial(t, k, "tcp", endpoint())
	go func() {
		defer close(done)
		for !stop.Load() {
			if err := c.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA)); err != nil {
				t.Error(err)
				return
			}
			if r, err := c.ReadMsg(); err != nil || r.Rcode != dns.RcodeSuccess || len(r.Answer) == 0 {
				t.Errorf("between two sets: %v, %v", r, err)
				return
			}
			asked.Add(1)
		}
	}()
	z := home()
	for i := range 200 {
		z.Names["web"] = append(z.Names["web"][:1], netip.AddrFrom4([4]byte{127, 0, 1, byte(i)})) // in place
		if err := s.Set([]Zone{z, away()}[:1+i%2]); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "some questions are asked", func() bool { return asked.Load() > 50 })
	stop.Store(true)
	<-done
	if n := k.opened(gateway()); n != 1 {
		t.Errorf("sockets at the gateway were opened %d times", n)
	}
	// The connection is the one from before.
	if err := tcp.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	r, err := tcp.ReadMsg()
	if err != nil || len(r.Answer) != 2 || !strings.Contains(r.String(), "127.0.1.199") {
		t.Errorf("after the last set: %v, %v", r, err)
	}
}

// TestSetCloses takes addresses and networks away, and gives one's address to another.
func TestSetCloses(t *testing.T) {
	s, k := start(t, nil, nil)
	tcp := dial(t, k, "tcp", endpoint())
	eventually(t, "the connection is served", func() bool { return len(s.networks["home"].streams) == 1 })
	z := home()
	z.Listen = append(z.Listen, addr("127.0.1.2"))
	if err := s.Set([]Zone{z}); err != nil {
		t.Fatal(err)
	}
	z.Listen = z.Listen[1:]
	if err := s.Set([]Zone{z}); err != nil {
		t.Fatal(err)
	}
	if r, err := tcp.ReadMsg(); err == nil {
		t.Errorf("the connection to an address that goes gives %v", r)
	}
	if _, _, err := k.open[gateway()].ReadFrom(make([]byte, 1)); err == nil {
		t.Error("the socket at an address that goes is open")
	}
	if n := k.opened(addr("127.0.1.2")); n != 1 {
		t.Errorf("the other address was opened %d times", n)
	}
	// The first in order takes the address that the last had.
	other := away()
	other.Network, other.Listen = "aaa", z.Listen
	if err := s.Set([]Zone{other}); err != nil {
		t.Fatal(err)
	}
	if len(s.networks) != 1 || k.opened(addr("127.0.1.2")) != 2 {
		t.Errorf("%d networks; opened %v", len(s.networks), k.count)
	}
	if err := s.Set(nil); err != nil || len(s.networks) != 0 {
		t.Errorf("without networks: %v, %d left", err, len(s.networks))
	}
}

// TestSetTriesAgain wants an address that cannot be had to be named, to stop nothing
// else, and to be tried again.
func TestSetTriesAgain(t *testing.T) {
	k := newSockets()
	s := New(Options{Listen: k.listen, Upstreams: func() []netip.AddrPort { return nil }, Log: slog.New(slog.DiscardHandler)})
	defer s.Close()
	no := errors.New("no such address")
	k.fail[addr("127.0.3.1")] = no
	for range 2 {
		err := s.Set([]Zone{away(), home(), home()})
		if !errors.Is(err, no) || !strings.Contains(err.Error(), `network "away" at 127.0.3.1: no such address`) || !strings.Contains(err.Error(), `network "home": it is there twice`) {
			t.Fatalf("error %v", err)
		}
		query(t, k, "udp", new(dns.Msg).SetQuestion("web.", dns.TypeA))
	}
	delete(k.fail, addr("127.0.3.1"))
	if err := s.Set([]Zone{away(), home()}); err != nil {
		t.Fatal(err)
	}
	if k.opened(addr("127.0.3.1")) != 1 || k.opened(gateway()) != 1 {
		t.Errorf("opened %v", k.count)
	}
}

// TestSetReopens closes each of the two sockets under the server.
func TestSetReopens(t *testing.T) {
	s, k := start(t, nil, nil)
	for i, kill := range []func() error{
		func() error { return k.open[gateway()].Close() },
		func() error { return k.tcp[gateway()].Close() },
	} {
		socket := s.networks["home"].sockets[gateway()]
		if err := kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the failure is noticed", socket.dead)
		if err := s.Set([]Zone{home()}); err != nil {
			t.Fatal(err)
		}
		if n := k.opened(gateway()); n != 2+i {
			t.Errorf("opened %d times", n)
		}
		for _, network := range []string{"udp", "tcp"} {
			query(t, k, network, new(dns.Msg).SetQuestion("web.", dns.TypeA))
		}
	}
}

// TestOtherNetworksAreHidden wants what one network has to be unknown in another,
// but kept from the host's resolvers.
func TestOtherNetworksAreHidden(t *testing.T) {
	var log seen
	s, k := start(t, []netip.AddrPort{upstream(t, log.wrap(replies(1)))}, nil)
	reverse := new(dns.Msg).SetQuestion("9.3.0.127.in-addr.arpa.", dns.TypePTR)
	if query(t, k, "udp", reverse); len(log.all()) != 1 {
		t.Fatalf("an address of no network: asked %v", log.all())
	}
	if err := s.Set([]Zone{home(), away()}); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*dns.Msg{reverse, new(dns.Msg).SetQuestion("web.away.overlay.", dns.TypeA)} {
		if r := query(t, k, "udp", m); r.Rcode != dns.RcodeNameError || len(log.all()) != 1 {
			t.Errorf("%v; asked %v", r, log.all())
		}
	}
}

// TestResolversInNetworks wants a resolver with an address of an overlay network, this
// one's or another's, not to be asked, though it would answer.
func TestResolversInNetworks(t *testing.T) {
	var log seen
	var ups []netip.AddrPort
	for _, a := range addrs("127.0.1.2", "127.0.3.2") {
		up := upstreamAt(t, a, log.wrap(replies(1)))
		ups = append(ups, up, netip.AddrPortFrom(netip.AddrFrom16(a.As16()), up.Port()))
	}
	ups = append(ups, netip.AddrPort{})
	s, k := start(t, ups, nil)
	ask := func() *dns.Msg { return query(t, k, "udp", new(dns.Msg).SetQuestion("example.com.", dns.TypeA)) }
	if r := ask(); r.Rcode != dns.RcodeSuccess || len(log.all()) != 1 {
		t.Errorf("with a resolver in no network: %v, asked %v", r, log.all())
	}
	if err := s.Set([]Zone{home(), away()}); err != nil {
		t.Fatal(err)
	}
	if r := ask(); r.Rcode != dns.RcodeServerFailure || len(log.all()) != 1 {
		t.Errorf("with resolvers only in networks: %v, asked %v", r, log.all())
	}
}

// BenchmarkSetSame is what the agent does each second with nothing new: 10
// networks of 1000 endpoints.
func BenchmarkSetSame(b *testing.B) {
	var zones []Zone
	for i := range 10 {
		z := Zone{Network: string(rune('a' + i)), Subnets: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16)}}
		z.Names, z.Reverse = make(map[string][]netip.Addr), make(map[netip.Addr]string)
		for j := range 1000 {
			a := netip.AddrFrom4([4]byte{10, byte(i), byte(j >> 8), byte(j)})
			z.Names[a.String()], z.Reverse[a] = []netip.Addr{a}, a.String()
		}
		zones = append(zones, z)
	}
	s := New(Options{Log: slog.New(slog.DiscardHandler)})
	defer s.Close()
	for b.Loop() {
		if err := s.Set(zones); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRespond answers a name of the network.
func BenchmarkRespond(b *testing.B) {
	tab := newTable(redTeam(), overlay())
	p := packetOf(b, "web.red.team.overlay.", dns.TypeA)
	for b.Loop() {
		tab.respond(p, false)
	}
}
