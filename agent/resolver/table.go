package resolver

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// suffix is the domain above those of all networks.
const suffix = "overlay"

// table is what one network's server answers from. It never changes.
type table struct {
	zone    Zone           // a copy of its own
	overlay []netip.Prefix // subnets of all networks
	domain  []string       // labels
	apex    string         // the domain as text, or suffix if the network's name makes no domain
	names   map[string][]netip.Addr
}

func newTable(z Zone, overlay []netip.Prefix) *table {
	text := strings.ToLower(z.Network) + "." + suffix + "."
	t := &table{zone: z.clone(), overlay: overlay, domain: dns.SplitDomainName(text), apex: text}
	if !validDomain(text) {
		t.apex = suffix + "."
	}
	t.names = make(map[string][]netip.Addr, len(z.Names))
	for label, addrs := range t.zone.Names {
		t.names[label] = addrs
		// A name exists if one below it does (RFC 8020): "b" for "a.b".
		for _, rest, more := strings.Cut(label, "."); more; _, rest, more = strings.Cut(rest, ".") {
			if _, ok := t.names[rest]; !ok {
				t.names[rest] = t.zone.Names[rest]
			}
		}
	}
	return t
}

func (z Zone) clone() Zone {
	z.Listen, z.Subnets = slices.Clone(z.Listen), slices.Clone(z.Subnets)
	z.Names, z.Reverse = maps.Clone(z.Names), maps.Clone(z.Reverse)
	for label, addrs := range z.Names {
		z.Names[label] = slices.Clone(addrs)
	}
	return z
}

func (t *table) same(z Zone, overlay []netip.Prefix) bool {
	o := t.zone
	return o.Network == z.Network && o.Internal == z.Internal && slices.Equal(o.Listen, z.Listen) &&
		slices.Equal(o.Subnets, z.Subnets) && slices.Equal(t.overlay, overlay) &&
		maps.EqualFunc(o.Names, z.Names, slices.Equal) && maps.Equal(o.Reverse, z.Reverse)
}

// validDomain reports whether a name can be written in a message. The library
// allows an empty label in the middle of some.
func validDomain(name string) bool {
	_, ok := dns.IsDomainName(name)
	return ok && !strings.Contains(name, "..") && name[0] != '.'
}

// client reports whether a is an address of an endpoint of the network. Whoever
// else reaches a gateway's address learns nothing about the network here, and uses
// no resolver through it.
func (t *table) client(a netip.Addr) bool { return contains(t.zone.Subnets, a.Unmap().WithZone("")) }

// respond takes a client's packet. Out come its answer, or the question that is to
// be forwarded, or neither, if it gets no answer.
func (t *table) respond(packet []byte, stream bool) (answer []byte, forward *question) {
	q, complaint := parse(packet, stream)
	if q == nil {
		return complaint, nil
	}
	m := t.decide(q)
	if m == nil {
		return nil, q
	}
	m.RecursionAvailable = !t.zone.Internal
	return q.pack(m), nil
}

// decide makes the answer, or none if the question is to be forwarded. This
// is where a name stays on the node: everything that find knows is answered
// here, so only what it does not know can be forwarded.
func (t *table) decide(q *question) *dns.Msg {
	switch {
	case q.opt != nil && q.opt.Version() != 0:
		return q.reply(dns.RcodeBadVers) // RFC 6891, 6.1.3
	case q.msg.Question[0].Qclass != dns.ClassINET, metaType(q.qtype()):
		return q.reply(dns.RcodeRefused)
	}
	e, ok := t.find(q.labels)
	switch {
	case ok:
		return t.answer(q, e)
	case t.zone.Internal:
		return q.reply(dns.RcodeRefused)
	}
	return nil
}

// metaType reports whether a type names no records but something to do: zone
// transfers above all (RFC 6895, 3.1), and OPT, which is no question. ANY is answered.
func metaType(t uint16) bool {
	return t == dns.TypeNone || t == dns.TypeOPT || t >= 128 && t < dns.TypeANY
}

// entry is what the table has for a name that belongs here.
type entry struct {
	exists bool
	addrs  []netip.Addr
	ptr    string // a whole name
	apex   bool
	above  string // the domain that the SOA record of a negative answer is of
}

// find looks a name up. Its second result says whether the name is one that
// is answered here.
func (t *table) find(labels []string) (entry, bool) {
	n := len(labels)
	switch {
	case n == 0:
		return entry{}, false
	case hasSuffix(labels, t.domain):
		label := strings.Join(labels[:n-len(t.domain)], ".")
		if label == "" {
			return entry{exists: true, apex: true, addrs: t.zone.Listen, above: t.apex}, true
		}
		addrs, ok := t.names[label]
		return entry{exists: ok, addrs: addrs, above: t.apex}, true
	case n == 1:
		addrs, ok := t.names[labels[0]]
		// "overlay." has names below it, so it exists (RFC 8020).
		return entry{exists: ok || labels[0] == suffix, addrs: addrs, above: "."}, true
	case labels[n-1] == suffix:
		return entry{exists: hasSuffix(t.domain, labels), above: suffix + "."}, true
	}
	return t.findReverse(labels)
}

func (t *table) findReverse(labels []string) (entry, bool) {
	r, ok := parseReverse(labels)
	if !ok || !inside(r.Addrs, t.overlay) {
		return entry{}, false
	}
	e := entry{above: r.Top, exists: !r.Whole && !r.Below}
	// Reverse is also asked for an address outside of the network's subnets: it
	// has none there.
	if label, known := t.zone.Reverse[r.Addrs.Addr()]; known && r.Whole && inside(r.Addrs, t.zone.Subnets) {
		e.exists = true
		if name := label + "." + strings.Join(t.domain, ".") + "."; validDomain(name) {
			e.ptr = name
		}
	}
	return e, true
}

func hasSuffix(labels, end []string) bool {
	return len(labels) >= len(end) && slices.Equal(labels[len(labels)-len(end):], end)
}

// answer makes the answer to a question about an entry, with a SOA record
// where it is negative, which says for how long that may be believed (RFC 2308).
func (t *table) answer(q *question, e entry) *dns.Msg {
	m := q.reply(dns.RcodeSuccess)
	m.Authoritative = true
	if !e.exists {
		m.Rcode = dns.RcodeNameError
	} else {
		m.Answer = t.records(q, e)
	}
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{t.soa(e.above)}
	}
	return m
}

func (t *table) records(q *question, e entry) []dns.RR {
	hdr := dns.RR_Header{Name: q.name(), Rrtype: q.qtype(), Class: dns.ClassINET, Ttl: ttl}
	var rrs []dns.RR
	switch q.qtype() {
	case dns.TypeA, dns.TypeAAAA:
		for _, a := range e.addrs {
			switch a = a.Unmap(); {
			case a.Is4() && hdr.Rrtype == dns.TypeA:
				rrs = append(rrs, &dns.A{Hdr: hdr, A: a.AsSlice()})
			case a.Is6() && hdr.Rrtype == dns.TypeAAAA:
				rrs = append(rrs, &dns.AAAA{Hdr: hdr, AAAA: a.AsSlice()})
			}
		}
		// Clients mostly take the first, and so spread over all.
		rand.Shuffle(len(rrs), func(i, j int) { rrs[i], rrs[j] = rrs[j], rrs[i] })
	case dns.TypePTR:
		if e.ptr != "" {
			rrs = append(rrs, &dns.PTR{Hdr: hdr, Ptr: e.ptr})
		}
	case dns.TypeSOA:
		if e.apex {
			rrs = append(rrs, t.soa(q.name()))
		}
	case dns.TypeNS:
		if e.apex { // the domain's own addresses are the gateway's
			rrs = append(rrs, &dns.NS{Hdr: hdr, Ns: t.apex})
		}
	case dns.TypeANY: // RFC 8482, 4.2
		hdr.Rrtype = dns.TypeHINFO
		rrs = append(rrs, &dns.HINFO{Hdr: hdr, Cpu: "RFC8482"})
	}
	return rrs
}

func (t *table) soa(owner string) dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: owner, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns:  t.apex, Mbox: "hostmaster." + t.apex,
		// Nobody can transfer it, so its serial and times say nothing.
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
	}
}
