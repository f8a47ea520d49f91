package resolver

import (
	"bytes"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// seeds are packets of all kinds.
func seeds(f *testing.F) [][]byte {
	var out [][]byte
	for _, name := range []string{"web.red.team.overlay.", "no.", "example.com.", ".", `a\.b.red.team.overlay.`, "5.0.20.10.in-addr.arpa.", nibbles("fd20::5"), "x.overlay."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypePTR, dns.TypeSOA, dns.TypeANY, dns.TypeAXFR} {
			out = append(out,
				packetOf(f, name, qtype),
				packetOf(f, name, qtype, func(m *dns.Msg) { m.SetEdns0(4096, true) }),
				packetOf(f, name, qtype, func(m *dns.Msg) { m.Response = true }))
		}
	}
	return append(out, nil, make([]byte, headerSize), []byte{1, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1})
}

// checkReply wants an answer to belong to its packet and to fit.
func checkReply(t *testing.T, packet, answer []byte, limit int) *dns.Msg {
	t.Helper()
	if len(answer) < headerSize || len(answer) > limit {
		t.Fatalf("answer of %d bytes, at most %d fit", len(answer), limit)
	}
	if !bytes.Equal(answer[:2], packet[:2]) || answer[2]&0x80 == 0 || (answer[2]^packet[2])&0x79 != 0 {
		t.Fatalf("header %x answers %x", answer[:headerSize], packet[:headerSize])
	}
	m := unpacked(t, answer)
	if len(m.Question) > 1 {
		t.Fatalf("%d questions in the answer", len(m.Question))
	}
	return m
}

// local is a second opinion on what must not leave the node, by other means.
func local(name string) bool {
	name = strings.ToLower(name)
	labels := dns.CountLabel(name)
	return labels == 1 || dns.IsSubDomain("overlay.", name) ||
		labels > 4 && (dns.IsSubDomain("0.20.10.in-addr.arpa.", name) || dns.IsSubDomain("30.10.in-addr.arpa.", name))
}

// FuzzRespond gives a network's table whatever a client may send.
func FuzzRespond(f *testing.F) {
	for _, p := range seeds(f) {
		f.Add(p, false)
		f.Add(p, true)
	}
	open, closed := redTeam(), redTeam()
	closed.Internal = true
	tables := []*table{newTable(open, overlay()), newTable(closed, overlay())}
	f.Fuzz(func(t *testing.T, packet []byte, stream bool) {
		limit := udpSize
		if stream {
			limit = dns.MaxMsgSize
		}
		for _, tab := range tables {
			given := bytes.Clone(packet)
			answer, q := tab.respond(packet, stream)
			if !bytes.Equal(given, packet) {
				t.Fatal("the packet was changed")
			}
			if (answer != nil || q != nil) && (len(packet) < headerSize || packet[2]&0x80 != 0) {
				t.Fatalf("%x gets an answer", packet)
			}
			if answer != nil && q != nil {
				t.Fatal("answered and forwarded")
			}
			if answer != nil {
				m := checkReply(t, packet, answer, limit)
				if tab.zone.Internal == m.RecursionAvailable && len(m.Question) == 1 {
					t.Fatalf("recursion available: %v", m.RecursionAvailable)
				}
			}
			if q == nil {
				continue
			}
			if tab.zone.Internal || local(q.name()) {
				t.Fatalf("%s is forwarded", q.name())
			}
			checkReply(t, packet, q.pack(q.failure()), limit)
			if asked, err := q.upstream().Pack(); err != nil {
				t.Fatalf("the question cannot be asked: %v", err)
			} else if m := unpacked(t, asked); m.Response || m.Question[0] != q.msg.Question[0] {
				t.Fatalf("asked for %v instead of %v", m.Question, q.msg.Question)
			}
		}
	})
}

// FuzzRelay gives a question whatever a resolver may answer.
func FuzzRelay(f *testing.F) {
	for _, p := range seeds(f) {
		f.Add(p, uint16(0), false)
		f.Add(p, uint16(800), true)
	}
	full := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
	full.Response = true
	for _, s := range []string{
		"www.example.com. 60 IN CNAME example.com.", "example.com. 60 IN A 192.0.2.1", "example.com. 60 IN TXT \"x\" \"y\"",
		"example.com. 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 example.com. AAAA", "example.com. 1 IN TYPE65280 \\# 2 0102",
		"example.com. 60 IN HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1", "example.com. 1 IN NAPTR 1 1 \"a\" \"b\" \"c\" .",
	} {
		rr, err := dns.NewRR(s)
		if err != nil {
			f.Fatal(err)
		}
		full.Answer = append(full.Answer, rr)
	}
	full.SetEdns0(4096, true)
	p, err := full.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p, uint16(0), false)
	f.Add(p, uint16(1232), false)
	tab := newTable(redTeam(), overlay())
	f.Fuzz(func(t *testing.T, packet []byte, size uint16, stream bool) {
		r, ok := read(packet)
		if !ok {
			return
		}
		ask := packetOf(t, "www.example.com.", dns.TypeA, func(m *dns.Msg) {
			if size != 0 {
				m.SetEdns0(size, true)
			}
		})
		_, q := tab.respond(ask, stream)
		m := checkReply(t, ask, q.pack(q.relay(r)), q.size)
		if len(m.Question) != 1 || m.Question[0] != q.msg.Question[0] {
			t.Fatalf("questions in the answer: %v", m.Question)
		}
		if (m.IsEdns0() != nil) != (size != 0) && m.Rcode != dns.RcodeServerFailure && !m.Truncated {
			t.Fatalf("EDNS in the answer: %v", m.IsEdns0())
		}
		belongs(q.upstream(), r)
	})
}
