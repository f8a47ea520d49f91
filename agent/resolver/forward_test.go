package resolver

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// replies answers each question with n addresses.
func replies(n int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		m.RecursionAvailable, m.AuthenticatedData = true, r.AuthenticatedData
		for i := range n {
			hdr := dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}
			m.Answer = append(m.Answer, &dns.A{Hdr: hdr, A: net.IPv4(192, 0, 2, byte(i))})
		}
		size := dns.MaxMsgSize
		if w.RemoteAddr().Network() == "udp" {
			size = dns.MinMsgSize
			if opt := r.IsEdns0(); opt != nil {
				size = int(opt.UDPSize())
			}
		}
		m.Truncate(size)
		w.WriteMsg(m)
	}
}

func code(rcode int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(r, rcode)) }
}

// cutting leaves everything to TCP.
func cutting(tcp dns.HandlerFunc) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) {
		if w.RemoteAddr().Network() == "tcp" {
			tcp(w, r)
			return
		}
		m := new(dns.Msg).SetReply(r)
		m.Truncated = true
		w.WriteMsg(m)
	}
}

func hangUp(w dns.ResponseWriter, _ *dns.Msg) { w.Close() }

// silent never answers.
func silent(dns.ResponseWriter, *dns.Msg) {}

// seen wraps a handler and keeps the questions it got, each with its transport.
type seen struct {
	mu  sync.Mutex // guards got, ids
	got []string
	ids map[uint16]bool
}

func (s *seen) wrap(h dns.HandlerFunc) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) {
		s.mu.Lock()
		s.got = append(s.got, w.RemoteAddr().Network()+" "+r.Question[0].Name)
		if s.ids == nil {
			s.ids = make(map[uint16]bool)
		}
		s.ids[r.Id] = true
		s.mu.Unlock()
		h(w, r)
	}
}

func (s *seen) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.got...)
}

// distinct is how many ids the questions had.
func (s *seen) distinct() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ids)
}

// TestForward asks for names of the world, over real sockets.
func TestForward(t *testing.T) {
	dead := netip.MustParseAddrPort("127.0.0.1:1") // nothing listens there
	tests := []struct {
		name    string
		up      []dns.HandlerFunc
		before  []netip.AddrPort // resolvers before those
		network string
		edns    uint16
		want    int // rcode
		answers int // at least; exactly if not cut
		cut     bool
		asked   []string // of all resolvers together
	}{
		{name: "UDP", up: []dns.HandlerFunc{replies(2)}, network: "udp", answers: 2, asked: []string{"udp"}},
		{name: "TCP is asked over TCP", up: []dns.HandlerFunc{replies(2)}, network: "tcp", answers: 2, asked: []string{"tcp"}},
		{name: "all over UDP", up: []dns.HandlerFunc{replies(60)}, network: "udp", edns: 1232, answers: 60, asked: []string{"udp"}},
		{name: "cut, and whole over TCP", up: []dns.HandlerFunc{cutting(replies(20))}, network: "udp", answers: 20, asked: []string{"udp", "tcp"}},
		{name: "cut, and no TCP", up: []dns.HandlerFunc{cutting(hangUp)}, network: "udp", cut: true, asked: []string{"udp", "tcp"}},
		{name: "whole over TCP, too large for the client", up: []dns.HandlerFunc{replies(100)}, network: "udp", edns: 1000, answers: 30, cut: true, asked: []string{"udp", "tcp"}},
		{name: "without EDNS", up: []dns.HandlerFunc{replies(100)}, network: "udp", answers: 10, cut: true, asked: []string{"udp", "tcp"}},
		{name: "large over TCP", up: []dns.HandlerFunc{replies(200)}, network: "tcp", answers: 200, asked: []string{"tcp"}},
		{name: "no such name", up: []dns.HandlerFunc{code(dns.RcodeNameError), replies(1)}, network: "udp", want: dns.RcodeNameError, asked: []string{"udp"}},
		{name: "the next after a failure", up: []dns.HandlerFunc{code(dns.RcodeServerFailure), replies(1)}, network: "udp", answers: 1, asked: []string{"udp", "udp"}},
		{name: "the next after a refusal", up: []dns.HandlerFunc{code(dns.RcodeRefused), replies(1)}, network: "tcp", answers: 1, asked: []string{"tcp", "tcp"}},
		{name: "all refuse", up: []dns.HandlerFunc{code(dns.RcodeServerFailure), code(dns.RcodeRefused)}, network: "udp", want: dns.RcodeRefused, asked: []string{"udp", "udp"}},
		{name: "the next after silence", up: []dns.HandlerFunc{silent, replies(1)}, network: "udp", answers: 1, asked: []string{"udp", "udp"}},
		{name: "the next after nothing", before: []netip.AddrPort{dead}, up: []dns.HandlerFunc{replies(1)}, network: "udp", answers: 1, asked: []string{"udp"}},
		{name: "nothing", before: []netip.AddrPort{dead}, network: "udp", want: dns.RcodeServerFailure},
		{name: "no resolver", network: "udp", want: dns.RcodeServerFailure},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var log seen
			ups := tt.before
			for _, h := range tt.up {
				ups = append(ups, upstream(t, log.wrap(h)))
			}
			_, k := start(t, ups, nil)
			m := new(dns.Msg).SetQuestion("wWw.example.com.", dns.TypeA)
			m.AuthenticatedData = true
			if tt.edns != 0 {
				m.SetEdns0(tt.edns, true)
			}
			r := query(t, k, tt.network, m)
			if r.Rcode != tt.want || r.Truncated != tt.cut || len(r.Answer) < tt.answers || (!tt.cut && len(r.Answer) != tt.answers) {
				t.Errorf("%s, truncated: %v, %d records", dns.RcodeToString[r.Rcode], r.Truncated, len(r.Answer))
			}
			if len(r.Question) != 1 || r.Question[0] != m.Question[0] || (r.IsEdns0() != nil) != (tt.edns != 0) {
				t.Errorf("answer %v", r)
			}
			if r.AuthenticatedData != (len(r.Answer) > 0) || !r.RecursionDesired {
				t.Errorf("flags %s", r.MsgHdr.String())
			}
			var want []string
			for _, network := range tt.asked {
				want = append(want, network+" wWw.example.com.")
			}
			if d := cmp.Diff(want, log.all()); d != "" {
				t.Errorf("asked resolvers (-want +got):\n%s", d)
			}
		})
	}
}

// TestNeverForwarded asks for all that must stay on the node, with a resolver that
// would answer.
func TestNeverForwarded(t *testing.T) {
	var log seen
	up := []netip.AddrPort{upstream(t, log.wrap(replies(1)))}
	_, k := start(t, up, nil)
	for _, name := range []string{"web.", "unknown.", "web.home.overlay.", "x.home.overlay.", "x.other.overlay.", "overlay.", "9.1.0.127.in-addr.arpa.", "77.1.0.127.in-addr.arpa."} {
		for _, network := range []string{"udp", "tcp"} {
			query(t, k, network, new(dns.Msg).SetQuestion(name, dns.TypePTR))
		}
	}
	if got := log.all(); len(got) != 0 {
		t.Errorf("the resolver was asked: %v", got)
	}
	_, k = start(t, up, func(z *Zone) { z.Internal = true })
	if r := query(t, k, "udp", new(dns.Msg).SetQuestion("example.com.", dns.TypeA)); r.Rcode != dns.RcodeRefused {
		t.Errorf("in an internal network: %v", r)
	}
	if got := log.all(); len(got) != 0 {
		t.Errorf("the resolver was asked from an internal network: %v", got)
	}
	_, k = start(t, up, nil)
	query(t, k, "udp", new(dns.Msg).SetQuestion("example.com.", dns.TypeA))
	if got := log.all(); len(got) != 1 { // it would have been seen
		t.Errorf("the resolver was asked: %v", got)
	}
}

// TestForged sends answers to other questions before the true one.
func TestForged(t *testing.T) {
	var log seen
	up := upstream(t, log.wrap(func(w dns.ResponseWriter, r *dns.Msg) {
		bad := func(change func(*dns.Msg)) {
			m := new(dns.Msg).SetReply(r)
			rr, _ := dns.NewRR(r.Question[0].Name + " 60 IN A 203.0.113.66")
			m.Answer = []dns.RR{rr}
			change(m)
			w.WriteMsg(m)
		}
		bad(func(m *dns.Msg) { m.Id++ })
		bad(func(m *dns.Msg) { m.Response = false })
		bad(func(m *dns.Msg) { m.Question[0].Name = "other.example.com." })
		bad(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA })
		bad(func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS })
		bad(func(m *dns.Msg) { m.Question = nil })
		bad(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) })
		w.Write([]byte{1})
		w.Write(append([]byte{byte(r.Id >> 8), byte(r.Id), 0x80, 0, 0, 1, 0, 9}, make([]byte, 10)...))
		r.Question[0].Name = strings.ToUpper(r.Question[0].Name)
		replies(1)(w, r)
	}))
	_, k := start(t, []netip.AddrPort{up}, nil)
	for i := range 20 {
		name := fmt.Sprintf("n%d.example.com.", i)
		r := query(t, k, "udp", new(dns.Msg).SetQuestion(name, dns.TypeA))
		if len(r.Answer) != 1 || r.Question[0].Name != name || strings.Contains(r.Answer[0].String(), "203.0.113") {
			t.Fatalf("answer %v", r)
		}
	}
	if n := log.distinct(); n < 15 { // 20 of 65536 at random
		t.Errorf("20 questions have %d ids", n)
	}
	// Over TCP the first answer counts, and a wrong one is none.
	r := query(t, k, "tcp", new(dns.Msg).SetQuestion("x.example.com.", dns.TypeA))
	if r.Rcode != dns.RcodeServerFailure || len(r.Answer) != 0 {
		t.Errorf("answer over TCP %v", r)
	}
}

// TestTooManyForwards asks more than may wait, and wants the rest to be
// refused at once, names of the network to be answered meanwhile, and all places to be free
// afterwards.
func TestTooManyForwards(t *testing.T) {
	var waiting atomic.Int32
	release := make(chan struct{})
	var once sync.Once
	t.Cleanup(func() { once.Do(func() { close(release) }) })
	up := upstream(t, func(w dns.ResponseWriter, r *dns.Msg) {
		waiting.Add(1)
		<-release
		replies(1)(w, r)
	})
	s, k := start(t, []netip.AddrPort{up}, nil)
	c := dial(t, k, "udp", endpoint())
	ask := func(id int) {
		m := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
		m.Id = uint16(id)
		if err := c.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxForwards {
		ask(i)
	}
	n := s.networks["home"]
	eventually(t, "all places are taken", func() bool { return len(n.forwards) == maxForwards && waiting.Load() >= maxForwards })
	for i := range 50 {
		ask(1000 + i)
		r, err := c.ReadMsg()
		if err != nil || r.Id != uint16(1000+i) || r.Rcode != dns.RcodeServerFailure {
			t.Fatalf("question beyond the bound: %v, %v", r, err)
		}
	}
	if r := query(t, k, "udp", new(dns.Msg).SetQuestion("web.", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("a name of the network meanwhile: %v", r)
	}
	if r := query(t, k, "tcp", new(dns.Msg).SetQuestion("example.com.", dns.TypeA)); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("over TCP beyond the bound: %v", r)
	}
	once.Do(func() { close(release) })
	for range maxForwards {
		if r, err := c.ReadMsg(); err != nil || r.Id >= maxForwards {
			t.Fatalf("a question that waited: %v, %v", r, err)
		}
	}
	eventually(t, "no place is taken", func() bool { return len(n.forwards) == 0 })
	if r := query(t, k, "udp", new(dns.Msg).SetQuestion("example.com.", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("after the flood: %v", r)
	}
}
