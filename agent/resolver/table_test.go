package resolver

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

const domainSOA = "red.team.overlay. 5 IN SOA red.team.overlay. hostmaster.red.team.overlay. 1 3600 600 86400 5"

func soaOf(owner string) string {
	return owner + strings.TrimPrefix(domainSOA, "red.team.overlay.")
}

// TestAnswers asks a network's table. What is to be forwarded has the answer
// "forward"; other answers begin with their code.
func TestAnswers(t *testing.T) {
	tests := []struct {
		name  string
		qtype uint16
		want  []string
	}{
		{"web.red.team.overlay.", dns.TypeA, []string{"NOERROR", "web.red.team.overlay. 5 IN A 10.20.0.5", "web.red.team.overlay. 5 IN A 10.20.0.6"}},
		{"web.red.team.overlay.", dns.TypeAAAA, []string{"NOERROR", "web.red.team.overlay. 5 IN AAAA fd20::5"}},
		{"WEB.Red.tEAM.oveRLay.", dns.TypeAAAA, []string{"NOERROR", "WEB.Red.tEAM.oveRLay. 5 IN AAAA fd20::5"}},
		{"db.red.team.overlay.", dns.TypeAAAA, []string{"NOERROR", domainSOA}},
		{"db.red.team.overlay.", dns.TypeMX, []string{"NOERROR", domainSOA}},
		{"db.red.team.overlay.", dns.TypeHTTPS, []string{"NOERROR", domainSOA}},
		{"db.red.team.overlay.", dns.TypeSOA, []string{"NOERROR", domainSOA}},
		{"db.red.team.overlay.", dns.TypeNS, []string{"NOERROR", domainSOA}},
		{"no.red.team.overlay.", dns.TypeA, []string{"NXDOMAIN", domainSOA}},
		{"x.web.red.team.overlay.", dns.TypeA, []string{"NXDOMAIN", domainSOA}},
		{"a.b.c.red.team.overlay.", dns.TypeA, []string{"NOERROR", "a.b.c.red.team.overlay. 5 IN A 10.20.0.8"}},
		{"b.c.red.team.overlay.", dns.TypeA, []string{"NOERROR", domainSOA}},
		{"c.red.team.overlay.", dns.TypeA, []string{"NOERROR", domainSOA}},
		{`a\.b.c.red.team.overlay.`, dns.TypeA, []string{"NXDOMAIN", domainSOA}},
		{`web\.red.team.overlay.`, dns.TypeA, []string{"NXDOMAIN", soaOf("overlay.")}},
		{"www.example.com.red.team.overlay.", dns.TypeA, []string{"NXDOMAIN", domainSOA}},
		{"red.team.overlay.", dns.TypeA, []string{"NOERROR", "red.team.overlay. 5 IN A 10.20.0.1"}},
		{"red.team.overlay.", dns.TypeAAAA, []string{"NOERROR", "red.team.overlay. 5 IN AAAA fd20::1"}},
		{"red.team.overlay.", dns.TypeSOA, []string{"NOERROR", domainSOA}},
		{"red.team.overlay.", dns.TypeNS, []string{"NOERROR", "red.team.overlay. 5 IN NS red.team.overlay."}},
		{"red.team.overlay.", dns.TypeTXT, []string{"NOERROR", domainSOA}},
		{"web.red.team.overlay.", dns.TypeANY, []string{"NOERROR", `web.red.team.overlay. 5 IN HINFO "RFC8482" ""`}},
		{"no.red.team.overlay.", dns.TypeANY, []string{"NXDOMAIN", domainSOA}},

		{"team.overlay.", dns.TypeA, []string{"NOERROR", soaOf("overlay.")}},
		{"overlay.", dns.TypeA, []string{"NOERROR", soaOf(".")}},
		{"blue.overlay.", dns.TypeA, []string{"NXDOMAIN", soaOf("overlay.")}},
		{"web.blue.overlay.", dns.TypeA, []string{"NXDOMAIN", soaOf("overlay.")}},
		{"web.team.overlay.", dns.TypeSOA, []string{"NXDOMAIN", soaOf("overlay.")}},

		{"web.", dns.TypeAAAA, []string{"NOERROR", "web. 5 IN AAAA fd20::5"}},
		{"DB.", dns.TypeA, []string{"NOERROR", "DB. 5 IN A 10.20.0.7"}},
		{"db.", dns.TypeAAAA, []string{"NOERROR", soaOf(".")}},
		{"no.", dns.TypeA, []string{"NXDOMAIN", soaOf(".")}},
		{"com.", dns.TypeDS, []string{"NXDOMAIN", soaOf(".")}},
		{`we\b.`, dns.TypeAAAA, []string{"NOERROR", "web. 5 IN AAAA fd20::5"}}, // the same on the wire
		{`we\098.`, dns.TypeAAAA, []string{"NOERROR", "web. 5 IN AAAA fd20::5"}},
		{`www\.example\.com.`, dns.TypeA, []string{"NXDOMAIN", soaOf(".")}},

		{"5.0.20.10.in-addr.arpa.", dns.TypePTR, []string{"NOERROR", "5.0.20.10.in-addr.arpa. 5 IN PTR web-1.red.team.overlay."}},
		{"8.0.20.10.IN-ADDR.arpa.", dns.TypePTR, []string{"NOERROR", "8.0.20.10.IN-ADDR.arpa. 5 IN PTR a.b.c.red.team.overlay."}},
		{"5.0.20.10.in-addr.arpa.", dns.TypeA, []string{"NOERROR", soaOf("in-addr.arpa.")}},
		{"9.3.20.10.in-addr.arpa.", dns.TypePTR, []string{"NXDOMAIN", soaOf("in-addr.arpa.")}},
		{"x.5.0.20.10.in-addr.arpa.", dns.TypePTR, []string{"NXDOMAIN", soaOf("in-addr.arpa.")}},
		{"b._dns-sd._udp.0.0.20.10.in-addr.arpa.", dns.TypePTR, []string{"NXDOMAIN", soaOf("in-addr.arpa.")}},
		{"3.20.10.in-addr.arpa.", dns.TypePTR, []string{"NOERROR", soaOf("in-addr.arpa.")}},
		{"4.20.10.in-addr.arpa.", dns.TypePTR, []string{"forward"}},
		{"20.10.in-addr.arpa.", dns.TypePTR, []string{"forward"}},
		{"1.4.20.10.in-addr.arpa.", dns.TypePTR, []string{"forward"}},
		{"1.2.0.192.in-addr.arpa.", dns.TypePTR, []string{"forward"}}, // in Reverse, but in no subnet
		{"7.7.30.10.in-addr.arpa.", dns.TypePTR, []string{"NXDOMAIN", soaOf("in-addr.arpa.")}},
		{nibbles("fd20::5"), dns.TypePTR, []string{"NOERROR", nibbles("fd20::5") + " 5 IN PTR web-1.red.team.overlay."}},
		{nibbles("fd20::6"), dns.TypePTR, []string{"NXDOMAIN", soaOf("ip6.arpa.")}},
		{nibbles("fd30::5"), dns.TypePTR, []string{"NXDOMAIN", soaOf("ip6.arpa.")}},
		{nibbles("fd21::5"), dns.TypePTR, []string{"forward"}},
		{nibbles("::ffff:10.20.0.9"), dns.TypePTR, []string{"NXDOMAIN", soaOf("ip6.arpa.")}},

		{".", dns.TypeNS, []string{"forward"}},
		{"example.com.", dns.TypeA, []string{"forward"}},
		{"web.example.com.", dns.TypeANY, []string{"forward"}},
		{"overlay.example.com.", dns.TypeA, []string{"forward"}},
		{"x.myoverlay.", dns.TypeA, []string{"forward"}},
		{`x\.overlay.com.`, dns.TypeA, []string{"forward"}},

		{"web.red.team.overlay.", dns.TypeAXFR, []string{"REFUSED"}},
		{"red.team.overlay.", dns.TypeAXFR, []string{"REFUSED"}},
		{"red.team.overlay.", dns.TypeIXFR, []string{"REFUSED"}},
		{"example.com.", dns.TypeAXFR, []string{"REFUSED"}},
		{"example.com.", dns.TypeOPT, []string{"REFUSED"}},
	}
	for _, internal := range []bool{false, true} {
		z := redTeam()
		z.Internal = internal
		tab := newTable(z, overlay())
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s/%s/%v", tt.name, dns.TypeToString[tt.qtype], internal), func(t *testing.T) {
				want := tt.want
				if internal && want[0] == "forward" {
					want = []string{"REFUSED"}
				}
				got := []string{"forward"}
				answer, q := tab.respond(packetOf(t, tt.name, tt.qtype), false)
				if q == nil {
					m := unpacked(t, answer)
					got = append([]string{dns.RcodeToString[m.Rcode]}, texts(m.Answer)...)
					got = append(got, texts(m.Ns)...)
					if m.Authoritative != (m.Rcode != dns.RcodeRefused) || m.RecursionAvailable == internal || !m.RecursionDesired {
						t.Errorf("flags of the answer: %s", m.MsgHdr.String())
					}
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("answer (-want +got):\n%s", d)
				}
			})
		}
	}
}

// nibbles is the reverse name of an IPv6 address (RFC 3596, 2.5).
func nibbles(a string) string {
	b := addr(a).As16()
	digits := strings.Split(hex.EncodeToString(b[:]), "")
	slices.Reverse(digits)
	return strings.Join(digits, ".") + ".ip6.arpa."
}

// TestPackets sends what is not simply a question.
func TestPackets(t *testing.T) {
	edns := func(size uint16, version uint8) func(*dns.Msg) {
		return func(m *dns.Msg) { m.SetEdns0(size, true).IsEdns0().SetVersion(version) }
	}
	two := &dns.A{Hdr: dns.RR_Header{Name: "x.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: []byte{1, 2, 3, 4}}
	tests := []struct {
		name   string
		packet []byte
		want   string // "" for no answer
	}{
		{"good", packetOf(t, "web.", dns.TypeA), "NOERROR"},
		{"empty", nil, ""},
		{"short", make([]byte, headerSize-1), ""},
		{"only a header", make([]byte, headerSize), "FORMERR"},
		{"an answer", packetOf(t, "web.", dns.TypeA, func(m *dns.Msg) { m.Response = true }), ""},
		{"an answer that cannot be read", []byte{1, 2, 0x80, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0xc0}, ""},
		{"an update", packetOf(t, "web.", dns.TypeSOA, func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }), "NOTIMP"},
		{"notify", packetOf(t, "web.", dns.TypeSOA, func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }), "NOTIMP"},
		{"status", packetOf(t, "web.", dns.TypeSOA, func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus }), "NOTIMP"},
		{"no question", packetOf(t, "web.", dns.TypeA, func(m *dns.Msg) { m.Question = nil }), "FORMERR"},
		{"two questions", packetOf(t, "web.", dns.TypeA, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }), "FORMERR"},
		{"with an answer", packetOf(t, "web.", dns.TypeA, func(m *dns.Msg) { m.Answer = []dns.RR{two} }), "FORMERR"},
		{"with an authority", packetOf(t, "web.", dns.TypeA, func(m *dns.Msg) { m.Ns = []dns.RR{two} }), "FORMERR"},
		{"two OPT", packetOf(t, "web.", dns.TypeA, edns(512, 0), edns(512, 0)), "FORMERR"},
		{"cut", packetOf(t, "web.", dns.TypeA)[:headerSize+3], "FORMERR"},
		{"a name that points at itself", []byte{1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}, "FORMERR"},
		{"chaos", packetOf(t, "version.bind.", dns.TypeTXT, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }), "REFUSED"},
		{"class any", packetOf(t, "web.", dns.TypeA, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }), "REFUSED"},
		{"EDNS", packetOf(t, "web.", dns.TypeA, edns(4096, 0)), "NOERROR"},
		{"EDNS of tomorrow", packetOf(t, "web.", dns.TypeA, edns(4096, 1)), "BADVERS"},
		{"further records", packetOf(t, "web.", dns.TypeA, func(m *dns.Msg) { m.Extra = []dns.RR{two} }), "NOERROR"},
	}
	tab := newTable(redTeam(), overlay())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			answer, forward := tab.respond(tt.packet, false)
			if forward != nil {
				t.Fatal("forwarded")
			}
			if answer == nil {
				if tt.want != "" {
					t.Fatalf("no answer, want %s", tt.want)
				}
				return
			}
			m := unpacked(t, answer)
			if got := dns.RcodeToString[m.Rcode]; got != tt.want && !(m.Rcode == dns.RcodeBadVers && tt.want == "BADVERS") {
				t.Errorf("answer %s, want %q", got, tt.want)
			}
			if string(answer[:2]) != string(tt.packet[:2]) || !m.Response || m.Opcode != int(tt.packet[2]>>3&0xf) {
				t.Errorf("header %x to %x", answer[:headerSize], tt.packet)
			}
			if has, asked := m.IsEdns0() != nil, strings.HasPrefix(tt.name, "EDNS"); has != asked {
				t.Errorf("EDNS in the answer: %v, in the question: %v", has, asked)
			}
		})
	}
}

// TestSizes asks for more addresses than fit.
func TestSizes(t *testing.T) {
	z := redTeam()
	for i := range 200 {
		z.Names["many"] = append(z.Names["many"], netip.AddrFrom4([4]byte{10, 20, 1, byte(i)}))
	}
	tab := newTable(z, overlay())
	for _, tt := range []struct {
		name   string
		edns   uint16 // 0: none
		stream bool
		limit  int
		cut    bool
	}{
		{"plain", 0, false, 512, true},
		{"EDNS that is too small", 100, false, 512, true},
		{"EDNS", 800, false, 800, true},
		{"EDNS beyond what is sent", 60000, false, udpSize, true},
		{"TCP", 0, true, 65535, false},
		{"TCP with EDNS", 512, true, 65535, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := packetOf(t, "many.red.team.overlay.", dns.TypeA, func(m *dns.Msg) {
				if tt.edns != 0 {
					m.SetEdns0(tt.edns, false)
				}
			})
			answer, _ := tab.respond(p, tt.stream)
			m := unpacked(t, answer)
			if len(answer) > tt.limit || len(answer) < min(tt.limit, 3200)-32 || m.Truncated != tt.cut || (len(m.Answer) == 200) == tt.cut {
				t.Errorf("%d bytes, %d addresses, truncated: %v", len(answer), len(m.Answer), m.Truncated)
			}
		})
	}
}

// TestOrder wants each address of a name to be the first one now and then.
func TestOrder(t *testing.T) {
	tab := newTable(redTeam(), overlay())
	first := make(map[string]int)
	for range 200 { // one of two never first: 2^-199
		answer, _ := tab.respond(packetOf(t, "web.", dns.TypeA), false)
		first[unpacked(t, answer).Answer[0].(*dns.A).A.String()]++
	}
	if len(first) != 2 {
		t.Errorf("first of the answer: %v", first)
	}
}

// TestNamesThatMakeNoDomain wants names of a single label where the network's name
// cannot be part of a name.
func TestNamesThatMakeNoDomain(t *testing.T) {
	for _, name := range []string{"a..b", "blue.", "..."} {
		z := redTeam()
		z.Network = name
		tab := newTable(z, overlay())
		for ask, want := range map[string]string{"db.": "db. 5 IN A 10.20.0.7", "no.": "", "5.0.20.10.in-addr.arpa.": "", "db.blue.overlay.": ""} {
			qtype := dns.TypeA
			if strings.HasSuffix(ask, "arpa.") {
				qtype = dns.TypePTR
			}
			answer, q := tab.respond(packetOf(t, ask, qtype), false)
			if q != nil || strings.Join(texts(unpacked(t, answer).Answer), " ") != want {
				t.Errorf("network %q, %s: forwarded %v, %v", name, ask, q != nil, unpacked(t, answer))
			}
		}
	}
}

// TestClient says who is answered.
func TestClient(t *testing.T) {
	tab := newTable(redTeam(), overlay())
	for a, want := range map[string]bool{
		"10.20.0.9": true, "::ffff:10.20.3.255": true, "fd20::9": true,
		"10.20.4.1": false, "10.30.0.1": false, "fd30::1": false, "127.0.0.1": false, "fe80::1%lo": false,
	} {
		if got := tab.client(addr(a)); got != want {
			t.Errorf("client %s: %v", a, got)
		}
	}
	if tab.client(netip.Addr{}) {
		t.Error("an unknown address is a client")
	}
}
