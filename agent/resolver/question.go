package resolver

import (
	"strings"

	"github.com/miekg/dns"
)

// headerSize is the size of a message's header in bytes (RFC 1035, 4.1.1).
const headerSize = 12

// question is one well-formed question of a client.
type question struct {
	msg    *dns.Msg
	opt    *dns.OPT // nil without EDNS (RFC 6891)
	labels []string // of the name, lower case, first one first; none for the root
	size   int      // bytes of the largest answer that the client takes this way
}

// parse reads a client's packet. With no question there may be a complaint, which
// is then the answer; with neither, the packet gets no answer.
func parse(packet []byte, stream bool) (q *question, complaint []byte) {
	// An answer to an answer could go round between two servers for ever.
	if len(packet) < headerSize || packet[2]&0x80 != 0 {
		return nil, nil
	}
	if packet[2]>>3&0x0f != dns.OpcodeQuery {
		return nil, header(packet, dns.RcodeNotImplemented)
	}
	msg := new(dns.Msg)
	if err := msg.Unpack(packet); err != nil {
		return nil, header(packet, dns.RcodeFormatError)
	}
	if len(msg.Question) != 1 || len(msg.Answer) != 0 || len(msg.Ns) != 0 {
		return nil, header(packet, dns.RcodeFormatError)
	}
	q = &question{msg: msg, size: dns.MinMsgSize}
	for _, rr := range msg.Extra {
		opt, ok := rr.(*dns.OPT)
		if ok && q.opt != nil { // RFC 6891, 6.1.1
			return nil, header(packet, dns.RcodeFormatError)
		}
		if ok {
			q.opt = opt
		}
	}
	switch {
	case stream:
		q.size = dns.MaxMsgSize
	case q.opt != nil:
		q.size = min(max(int(q.opt.UDPSize()), dns.MinMsgSize), udpSize)
	}
	// An escaped dot is no end of a label here, and equals none in a table.
	q.labels = dns.SplitDomainName(strings.ToLower(q.name()))
	return q, nil
}

func (q *question) name() string { return q.msg.Question[0].Name }

func (q *question) qtype() uint16 { return q.msg.Question[0].Qtype }

// header makes an answer to a packet that could not be read: there is no question to
// repeat.
func header(packet []byte, rcode byte) []byte {
	h := make([]byte, headerSize)
	copy(h, packet[:2])
	h[2] = 0x80 | packet[2]&0x79 // QR; opcode and RD as they came
	h[3] = rcode
	return h
}

// reply begins an answer: id, question, RD and CD are the client's.
func (q *question) reply(rcode int) *dns.Msg { return new(dns.Msg).SetRcode(q.msg, rcode) }

// pack makes the packet of an answer, so that it fits what the client takes.
// What does not fit is left out and said to be missing (TC): the client asks
// again over TCP.
func (q *question) pack(m *dns.Msg) []byte {
	if q.opt != nil {
		m.SetEdns0(udpSize, q.opt.Do())
	}
	m.Truncate(q.size)
	out, err := m.Pack()
	if err == nil && len(out) <= q.size {
		return out
	}
	// A record that came from a resolver and cannot be written again, or is longer
	// than Truncate thought.
	short := q.reply(dns.RcodeServerFailure)
	if err == nil {
		short.Rcode, short.Truncated = dns.RcodeSuccess, true
	}
	if out, err = short.Pack(); err != nil {
		return nil
	}
	return out
}

// upstream is the question as it is asked at a resolver of the host: with an
// id of its own, and with EDNS if the client has it, but without the client's options, which are
// for this hop only or tell of the client.
func (q *question) upstream() *dns.Msg {
	m := &dns.Msg{Question: q.msg.Question}
	m.Id = dns.Id() // from crypto/rand
	m.RecursionDesired = q.msg.RecursionDesired
	m.AuthenticatedData = q.msg.AuthenticatedData
	m.CheckingDisabled = q.msg.CheckingDisabled
	if q.opt != nil {
		m.SetEdns0(udpSize, q.opt.Do())
	}
	return m
}

// belongs reports whether r answers what m asks. Somebody who does not see the
// question has to guess the id and, because the socket is connected, its port. The case
// of the name may differ: some resolvers write it in their own.
func belongs(m, r *dns.Msg) bool {
	if !r.Response || r.Id != m.Id || r.Opcode != m.Opcode || len(r.Question) != 1 {
		return false
	}
	asked, got := m.Question[0], r.Question[0]
	return strings.EqualFold(asked.Name, got.Name) && asked.Qtype == got.Qtype && asked.Qclass == got.Qclass
}

// relay makes the client's answer out of a resolver's. EDNS is between neighbours: the
// resolver's goes, and pack puts this server's in.
func (q *question) relay(r *dns.Msg) *dns.Msg {
	if r.Rcode > 0xf && q.opt == nil {
		return q.reply(dns.RcodeServerFailure) // has no place without EDNS
	}
	m := q.reply(r.Rcode)
	m.Truncated = r.Truncated
	m.RecursionAvailable = r.RecursionAvailable
	m.AuthenticatedData = r.AuthenticatedData
	m.Answer, m.Ns = r.Answer, r.Ns
	for _, rr := range r.Extra {
		switch rr.Header().Rrtype {
		case dns.TypeOPT, dns.TypeTSIG, dns.TypeSIG:
		default:
			m.Extra = append(m.Extra, rr)
		}
	}
	return m
}
