package resolver

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestNamespaces answers in a namespace, over IPv4 and IPv6, to a client in another,
// while the questions that are forwarded go out from the test's own. Then
// the addresses go and come back, which Set must survive, whether or not
// the kernel tells the sockets.
func TestNamespaces(t *testing.T) {
	netlab.Require(t, netlab.FeatureNetns)
	lab, err := netlab.New("resolver")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	host := func(name string) *netlab.Host {
		h, err := lab.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	gate, client := host("gate"), host("client")
	z := Zone{
		Network: "lab", Listen: []netip.Addr{gate.V4(), gate.V6()}, Subnets: prefixes("198.18.0.0/16", "fd00:198:18::/64"),
		Names: map[string][]netip.Addr{"client": {client.V4(), client.V6()}},
	}
	up := upstream(t, replies(1))
	s := New(Options{
		Listen: func(at netip.AddrPort) (pc net.PacketConn, l net.Listener, err error) {
			err = gate.NS().Do(func() error { pc, l, err = pair(at); return err })
			return pc, l, err
		},
		Upstreams: func() []netip.AddrPort { return []netip.AddrPort{up} },
		Log:       slog.New(slog.DiscardHandler),
	})
	defer s.Close()
	asked := func() {
		t.Helper()
		for _, at := range z.Listen {
			for _, network := range []string{"udp", "tcp"} {
				for name, want := range map[string]string{"client.": client.V4().String(), "www.example.com.": "192.0.2.0"} {
					if got := askIn(t, client.NS(), network, at, name); got != want {
						t.Errorf("%s at %s over %s: %q, want %s", name, at, network, got, want)
					}
				}
			}
		}
	}
	set := func() {
		t.Helper()
		eventually(t, "the names are answered", func() bool { err = s.Set([]Zone{z}); return err == nil })
	}
	set()
	asked()
	restore := withoutAddresses(t, gate)
	if err := s.Set([]Zone{z}); err != nil { // an open socket keeps its address
		t.Error(err)
	}
	restore()
	set()
	asked()
	// A server that begins meanwhile says what it lacks, and goes on when it is there.
	if err := s.Set(nil); err != nil {
		t.Fatal(err)
	}
	restore = withoutAddresses(t, gate)
	if err := s.Set([]Zone{z}); err == nil {
		t.Error("sockets at addresses that are not there")
	}
	restore()
	set()
	asked()
}

// askIn asks from a namespace for an IPv4 address.
func askIn(t *testing.T, ns *nl.Namespace, network string, at netip.Addr, name string) string {
	t.Helper()
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = net.DialTimeout(network, netip.AddrPortFrom(at, port).String(), 10*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	conn := &dns.Conn{Conn: c}
	if err := conn.WriteMsg(new(dns.Msg).SetQuestion(name, dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	r, err := conn.ReadMsg()
	if err != nil {
		t.Fatalf("ask for %s at %s over %s: %v", name, at, network, err)
	}
	if len(r.Answer) != 1 {
		return dns.RcodeToString[r.Rcode]
	}
	return r.Answer[0].(*dns.A).A.String()
}

// withoutAddresses takes a host's addresses away, and gives back what restores them.
func withoutAddresses(t *testing.T, h *netlab.Host) (restore func()) {
	t.Helper()
	handle, err := h.NS().Handle()
	if err != nil {
		t.Fatal(err)
	}
	link, err := handle.LinkByName(netlab.HostLink)
	if err != nil {
		t.Fatal(err)
	}
	all, err := handle.AddrList(link, 0)
	if err != nil {
		t.Fatal(err)
	}
	taken := all[:0]
	for _, a := range all {
		if a.IP.IsLinkLocalUnicast() {
			continue
		}
		if err := handle.AddrDel(link, &a); err != nil {
			t.Fatal(err)
		}
		taken = append(taken, a)
	}
	if len(taken) != 2 {
		t.Fatalf("took %v", taken)
	}
	return func() {
		defer handle.Close()
		for _, a := range taken {
			if err := handle.AddrAdd(link, &a); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := handle.WaitLocal(ctx, h.V6()); err != nil {
			t.Fatal(err)
		}
	}
}
