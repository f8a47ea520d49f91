package wguser

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestBindKeepsFamiliesApart: packets to peers of both families, in turn, arrive. With
// wireguard-go's own bind those to IPv6 do not, from the first one to IPv4 on.
func TestBindKeepsFamiliesApart(t *testing.T) {
	netlab.Require(t, netlab.FeatureNetns)
	lab, err := netlab.New("bind")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	var hosts []*netlab.Host
	for _, name := range []string{"a", "b", "c"} {
		h, err := lab.Host(name)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	b := newBind()
	if err := hosts[0].NS().Do(func() error {
		_, _, err := b.Open(0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	type end struct {
		socket *net.UDPConn
		to     conn.Endpoint
	}
	var ends []end
	for _, h := range hosts[1:] {
		for _, a := range []netip.Addr{h.V4(), h.V6()} {
			if err := h.NS().Do(func() error {
				s, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
				if err != nil {
					return err
				}
				to, err := b.ParseEndpoint(s.LocalAddr().String())
				ends = append(ends, end{s, to})
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	defer func() {
		for _, e := range ends {
			_ = e.socket.Close()
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	buf := make([]byte, 64)
	for round := range 20 {
		for _, e := range ends {
			if err := b.Send([][]byte{{byte(round)}}, e.to); err != nil {
				t.Fatalf("round %d to %s: %v", round, e.to.DstToString(), err)
			}
			if err := e.socket.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if n, err := e.socket.Read(buf); err != nil || n != 1 || buf[0] != byte(round) {
				t.Fatalf("round %d to %s: % x, %v", round, e.to.DstToString(), buf[:n], err)
			}
		}
	}
}
