package record

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
)

var (
	begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	noon  = begin.AddDate(0, 0, 10)
)

func authority(t testing.TB) *membertest.Authority {
	t.Helper()
	a, err := membertest.New("record", begin)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func member(t testing.TB, a *membertest.Authority, name string) keystore.Identity {
	t.Helper()
	return memberFrom(t, a, name, 1, begin)
}

func memberFrom(t testing.TB, a *membertest.Authority, name string, serial uint64, from time.Time) keystore.Identity {
	t.Helper()
	id, err := a.Member(name, serial, from)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// example is a record with everything in it, in canonical order.
func example(id ids.NodeID, seq uint64) Node {
	return Node{
		ID:  id,
		Seq: seq,
		Underlay: []Underlay{
			{Control: netip.MustParseAddrPort("198.18.0.2:7946"), MTU: 1500},
			{Control: netip.MustParseAddrPort("[2001:db8::2]:7946"), MTU: 9000},
		},
		Tunnels: []Tunnel{
			{Epoch: 7, Lane: 0, Instance: 1, Wire: WireWireGuard, Public: keys.TunnelPublic{1, 2, 3}, Port: 51871},
			{Epoch: 8, Lane: 0, Instance: 2, Wire: WireESP},
		},
		Networks: []Network{
			{
				Name: "blue", VNI: 4242, Encrypted: true, VTEPPort: 4789,
				Subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fd00:1::/64")},
				Blocks:  []netip.Prefix{netip.MustParsePrefix("10.1.3.0/24")},
				Options: netdef.Options{
					Gateways: []netip.Addr{netip.MustParseAddr("10.1.255.1")},
					Ranges:   []netip.Prefix{netip.MustParsePrefix("10.1.0.0/17")},
					Reserved: []netip.Prefix{netip.MustParsePrefix("10.1.0.16/28"), netip.MustParsePrefix("fd00:1::7/128")},
				},
			},
			{Name: "Red.Team", VNI: 9000, VTEPPort: 4790, Options: netdef.Options{Internal: true, NoBroadcast: true}},
		},
		Attached: []Attached{
			{VNI: 4242, MAC: ids.MAC{2, 0, 0, 0, 0, 1}, Addrs: []netip.Addr{netip.MustParseAddr("10.1.3.5"), netip.MustParseAddr("fd00:1::5")}},
			{VNI: 4242, MAC: ids.MAC{2, 0, 0, 0, 0, 2}, Name: "web-1", Services: []string{"shop", "web"}},
		},
	}
}

// largest fills every list to its limit.
func largest(id ids.NodeID) Node {
	n := Node{ID: id, Seq: 1}
	ip := netip.MustParseAddr("2001:db8::1")
	for range MaxEndpoints {
		ip = ip.Next()
		n.Underlay = append(n.Underlay, Underlay{Control: netip.AddrPortFrom(ip, 7946), MTU: 1500})
	}
	for i := range MaxTunnels {
		n.Tunnels = append(n.Tunnels, Tunnel{Epoch: ids.Epoch(i + 1), Wire: WireWireGuard, Public: keys.TunnelPublic{1}, Port: 1})
	}
	for i := range MaxNetworks {
		w := Network{Name: fmt.Sprintf("%063d", i), VNI: ids.VNI(i + 1), Encrypted: true, VTEPPort: 4789}
		for s := range MaxSubnets {
			subnet := netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/32", s+1))
			w.Subnets = append(w.Subnets, subnet)
			w.Gateways = append(w.Gateways, subnet.Addr().Next())
			w.Ranges = append(w.Ranges, netip.PrefixFrom(subnet.Addr(), 48))
			w.Reserved = append(w.Reserved, netip.PrefixFrom(subnet.Addr(), 64))
		}
		for b := range MaxBlocks {
			w.Blocks = append(w.Blocks, netip.MustParsePrefix(fmt.Sprintf("fd00:1:%x::/48", b)))
		}
		n.Networks = append(n.Networks, w)
	}
	for i := range MaxAttached {
		// 32 bytes each: MaxNames.
		a := Attached{
			VNI: ids.VNI(i%MaxNetworks + 1), MAC: ids.MAC{2, 0, 0, 0, byte(i >> 8), byte(i)},
			Name: fmt.Sprintf("%016d", i), Services: []string{fmt.Sprintf("%015d", i)},
		}
		for k := range MaxAddrs {
			a.Addrs = append(a.Addrs, netip.MustParseAddr(fmt.Sprintf("fd00:1::%x:%x", i, k+1)))
		}
		n.Attached = append(n.Attached, a)
	}
	return n
}

func sign(t testing.TB, n Node, key keys.NodePrivate) []byte {
	t.Helper()
	raw, err := Sign(n, key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func entry(t testing.TB, id keystore.Identity, n Node) Entry {
	t.Helper()
	n.ID = id.ID
	return Entry{Credential: id.Credential, Record: sign(t, n, id.Node)}
}
