package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
)

var errForeign = errors.New("the answer is not to this question")

// forward asks the host's resolvers, in order, and makes the client's answer of
// the first good one. A question over TCP is asked over TCP.
func (s *Server) forward(ctx context.Context, t *table, q *question, stream bool) *dns.Msg {
	queue := usable(s.options.Upstreams(), t.overlay)
	var last *dns.Msg
	for n := 0; n < attempts && len(queue) > 0 && ctx.Err() == nil; n++ {
		to := queue[0]
		queue = queue[1:]
		r, err := ask(ctx, to, q, stream)
		if err != nil {
			s.options.Log.Debug("resolver gives no answer", logkey.Addr, to.String(), logkey.Error, err)
			queue = append(queue, to)
			continue
		}
		switch r.Rcode {
		case dns.RcodeServerFailure, dns.RcodeNotImplemented, dns.RcodeRefused:
			// As resolv.conf(5) has it, the next may know better; this one was asked.
			last = r
			continue
		}
		return q.relay(r)
	}
	if last != nil {
		return q.relay(last)
	}
	return q.failure()
}

// failure is the answer when nobody could be asked. Recursion is available in
// principle.
func (q *question) failure() *dns.Msg {
	m := q.reply(dns.RcodeServerFailure)
	m.RecursionAvailable = true
	return m
}

// usable are the resolvers outside of the overlay networks. One within could be this
// server, or another node's that forwards here: a question would go round.
func usable(all []netip.AddrPort, overlay []netip.Prefix) []netip.AddrPort {
	var out []netip.AddrPort
	for _, u := range all {
		if a := u.Addr().Unmap(); u.IsValid() && !contains(overlay, a.WithZone("")) {
			out = append(out, netip.AddrPortFrom(a, u.Port()))
		}
	}
	return out
}

// ask asks one resolver, again over TCP if its answer was cut. If that fails, the
// client gets the cut answer, and tries TCP itself.
func ask(ctx context.Context, to netip.AddrPort, q *question, stream bool) (*dns.Msg, error) {
	if stream {
		return exchange(ctx, "tcp", to, q.upstream())
	}
	r, err := exchange(ctx, "udp", to, q.upstream())
	if err != nil || !r.Truncated {
		return r, err
	}
	if whole, err := exchange(ctx, "tcp", to, q.upstream()); err == nil {
		return whole, nil
	}
	return r, nil
}

// exchange sends one question and waits for its answer. Each has a socket of its own,
// connected: the kernel picks a random port, and takes packets only from the resolver.
func exchange(ctx context.Context, network string, to netip.AddrPort, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })()
	conn := &dns.Conn{Conn: raw, UDPSize: maxQuestion}
	if err := conn.WriteMsg(m); err != nil {
		return nil, err
	}
	for {
		p, err := conn.ReadMsgHeader(nil)
		if err != nil && !errors.Is(err, dns.ErrShortRead) {
			return nil, err
		}
		if r, ok := read(p); ok && belongs(m, r) {
			return r, nil
		}
		// Over UDP it may be forged, and the true one still on its way.
		if network != "udp" {
			return nil, errForeign
		}
	}
}

// read reads a resolver's packet. One whose records would be something else once they
// are written again is refused: the library reads a record without data, and
// what it makes of that no client can read.
func read(packet []byte) (*dns.Msg, bool) {
	r := new(dns.Msg)
	if r.Unpack(packet) != nil {
		return nil, false
	}
	again, err := r.Pack()
	return r, err == nil && new(dns.Msg).Unpack(again) == nil
}
