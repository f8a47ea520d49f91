package tunnel_test

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

func TestDeviceName(t *testing.T) {
	node := ids.NodeIDOf([32]byte{1})
	seen := map[string]bool{}
	for _, epoch := range []ids.Epoch{1, 2, 3, 998, 999, 1<<32 - 1} {
		for _, lane := range []ids.Lane{0, 1, 25} {
			name := tunnel.DeviceName(node, epoch, lane)
			if len(name) > 15 || seen[name] || !strings.HasPrefix(name, "so"+node.Short()) {
				t.Errorf("epoch %d lane %d: name %q", epoch, lane, name)
			}
			seen[name] = true
		}
	}
}

func TestMark(t *testing.T) {
	m := tunnel.Mark{Node: ids.NodeIDOf([32]byte{1}), Protocol: "wg", Driver: "userspace", Epoch: 1<<32 - 1, Lane: 255}
	text := m.String()
	if want := "secure-overlay/" + m.Node.String() + "/wg/userspace/4294967295/255"; text != want {
		t.Errorf("mark = %q, want %q", text, want)
	}
	if got, ok := tunnel.ParseMark(text); !ok || got != m {
		t.Errorf("parse = %+v, %v", got, ok)
	}
	for _, bad := range []string{
		"", "secure-overlay", text + "/", text + "0", "x" + text, strings.Replace(text, "/wg/", "//", 1),
		strings.Replace(text, "/userspace/", "//", 1), strings.Replace(text, "4294967295", "4294967296", 1),
		strings.Replace(text, "4294967295", "+1", 1), strings.Replace(text, "4294967295", "01", 1),
		strings.ToUpper(text), strings.Replace(text, m.Node.String(), m.Node.Short(), 1),
	} {
		if got, ok := tunnel.ParseMark(bad); ok {
			t.Errorf("%q parses as %+v", bad, got)
		}
	}
}

func TestWireGuardOverhead(t *testing.T) {
	for underlay, want := range map[string]int{"198.18.0.1": 60, "::ffff:198.18.0.1": 60, "fd00::1": 80} {
		if got := tunnel.WireGuardOverhead(netip.MustParseAddr(underlay)); got != want {
			t.Errorf("overhead on %s = %d, want %d", underlay, got, want)
		}
	}
}

func FuzzParseMark(f *testing.F) {
	f.Add(tunnel.Mark{Node: ids.NodeIDOf([32]byte{1}), Protocol: "wg", Driver: "userspace", Epoch: 3}.String())
	f.Add("secure-overlay/x/wg/y/1/0")
	f.Fuzz(func(t *testing.T, alias string) {
		if m, ok := tunnel.ParseMark(alias); ok && m.String() != alias {
			t.Errorf("%q parses, but prints as %q", alias, m)
		}
	})
}

func secret(n byte) keys.TunnelSecret {
	s, err := keys.TunnelSecretFromRaw32(bytes.Repeat([]byte{n}, 32))
	if err != nil {
		panic(err)
	}
	return s
}

func TestUsable(t *testing.T) {
	node := func(n byte) ids.NodeID { return ids.NodeIDOf([32]byte{n}) }
	dev := tunnel.Device{Epoch: 1, Port: 51871, MTU: 1400}
	pub := func(n byte) keys.TunnelPublic { return keys.TunnelPublic{n} }
	good := tunnel.Peer{ID: node(1), Inner: node(1).InnerAddr(), Keys: []tunnel.PeerKey{{Epoch: 1, Public: pub(1)}}}
	with := func(change func(*tunnel.Peer)) tunnel.Peer {
		p := tunnel.Peer{ID: node(2), Inner: node(2).InnerAddr(), Keys: []tunnel.PeerKey{{Epoch: 1, Public: pub(2)}}}
		change(&p)
		return p
	}
	endpoint := func(s string) tunnel.Peer {
		return with(func(p *tunnel.Peer) { p.Keys[0].Endpoint = netip.MustParseAddrPort(s) })
	}
	key := func(change func(*tunnel.PeerKey)) tunnel.Peer {
		return with(func(p *tunnel.Peer) { change(&p.Keys[0]) })
	}
	for _, c := range []struct {
		name string
		bad  tunnel.Peer
		says string
		keys int // usable keys of the bad peer
	}{
		{"no ID", with(func(p *tunnel.Peer) { p.ID = ids.NodeID{} }), "has no ID", 0},
		{"twice", with(func(p *tunnel.Peer) { p.ID = node(1) }), "named twice", 0},
		{"no address", with(func(p *tunnel.Peer) { p.Inner = netip.Addr{} }), "not in fc00::/7", 0},
		{"IPv4", with(func(p *tunnel.Peer) { p.Inner = netip.MustParseAddr("10.0.0.1") }), "not in fc00::/7", 0},
		{"public address", with(func(p *tunnel.Peer) { p.Inner = netip.MustParseAddr("2001:db8::1") }), "not in fc00::/7", 0},
		{"zone", with(func(p *tunnel.Peer) { p.Inner = p.Inner.WithZone("x") }), "not in fc00::/7", 0},
		{"another's address", with(func(p *tunnel.Peer) { p.Inner = good.Inner }), "belongs to another peer", 0},
		{"another's key", with(func(p *tunnel.Peer) { p.Keys[0].Public = pub(1) }), "belongs to another peer", 0},
		{"zero key", with(func(p *tunnel.Peer) { p.Keys[0].Public = keys.TunnelPublic{} }), "key is zero", 0},
		{"no device", with(func(p *tunnel.Peer) { p.Keys[0].Lane = 1 }), "no such device", 0},
		{"two keys", with(func(p *tunnel.Peer) {
			p.Keys = append(p.Keys, tunnel.PeerKey{Epoch: 1, Public: pub(3)})
		}), "has two keys", 1},
		{"no port", endpoint("198.18.0.1:0"), "unicast", 1},
		{"any address", endpoint("0.0.0.0:1"), "unicast", 1},
		{"multicast", endpoint("[ff02::1]:1"), "unicast", 1},
		{"unnamed secret", key(func(k *tunnel.PeerKey) { k.Secret = secret(1) }), "no key ID names", 0},
		{"another secret", key(func(k *tunnel.PeerKey) { k.Secret, k.Key = secret(1), secret(2).ID() }), "not the one", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := tunnel.Spec{Devices: []tunnel.Device{dev}, Peers: []tunnel.Peer{good, c.bad}}.Usable()
			var pe *tunnel.PeerError
			if !errors.As(err, &pe) || pe.Peer != c.bad.ID || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error = %v, want one about %s that says %q", err, c.bad.ID, c.says)
			}
			if diff := cmp.Diff(good, got.Peers[0], byValue...); diff != "" {
				t.Errorf("the good peer (-want +got):\n%s", diff)
			}
			left := 0
			for _, p := range got.Peers[1:] {
				for _, k := range p.Keys {
					left++
					if k.Endpoint.IsValid() {
						t.Errorf("a bad endpoint is left: %s", k.Endpoint)
					}
				}
			}
			if left != c.keys {
				t.Errorf("%d keys of the bad peer are left, want %d", left, c.keys)
			}
		})
	}
	for _, bad := range []tunnel.Device{
		{Epoch: 0, Port: 1, MTU: 1400}, {Epoch: 2, Port: 1, MTU: 1279}, {Epoch: 2, Port: 1, MTU: 65500},
		{Epoch: 2, Port: dev.Port, MTU: 1400}, {Epoch: 1, Port: 1, MTU: 1400},
	} {
		got, err := tunnel.Spec{Devices: []tunnel.Device{dev, bad}}.Usable()
		if err == nil || len(got.Devices) != 1 || got.Devices[0] != dev {
			t.Errorf("device %+v: %v, usable %+v", bad, err, got.Devices)
		}
	}
	portless := []tunnel.Device{{Epoch: 1, MTU: 1400}, {Epoch: 2, MTU: 1400}}
	if got, err := (tunnel.Spec{Devices: portless}).Usable(); err != nil || len(got.Devices) != 2 {
		t.Errorf("devices without ports: %v, usable %+v", err, got.Devices)
	}
	for _, k := range []tunnel.PeerKey{{Key: secret(2).ID()}, {Key: secret(2).ID(), Secret: secret(2)}, {}} {
		k.Epoch, k.Public = 1, pub(2)
		spec := tunnel.Spec{Devices: []tunnel.Device{dev}, Peers: []tunnel.Peer{good, with(func(p *tunnel.Peer) { p.Keys[0] = k })}}
		if err := spec.Validate(); err != nil {
			t.Errorf("a good spec with key %s: %v", k.Key, err)
		}
	}
}

func TestUsableESP(t *testing.T) {
	node := func(n byte) ids.NodeID { return ids.NodeIDOf([32]byte{n}) }
	addr := netip.MustParseAddr
	devices := []tunnel.Device{{Epoch: 1, MTU: 1400}, {Epoch: 2, MTU: 1400}}
	peer := func(n byte, change func(*tunnel.PeerKey)) tunnel.Peer {
		k := tunnel.PeerKey{Epoch: 1, Key: secret(n).ID(), Secret: secret(n), ESP: tunnel.ESP{
			Local: addr("198.18.0.1"), Remote: addr("198.18.0.2"), In: 1000 + ids.SPI(n), Out: 2000 + ids.SPI(n),
		}}
		if change != nil {
			change(&k)
		}
		return tunnel.Peer{ID: node(n), Inner: node(n).InnerAddr(), Keys: []tunnel.PeerKey{k}}
	}
	good := peer(1, nil)
	for says, bad := range map[string]tunnel.Peer{
		"has a public key":                      peer(2, func(k *tunnel.PeerKey) { k.Public = keys.TunnelPublic{1} }),
		"needs a secret":                        peer(2, func(k *tunnel.PeerKey) { k.Key, k.Secret = 0, keys.TunnelSecret{} }),
		"not the one":                           peer(2, func(k *tunnel.PeerKey) { k.Key++ }),
		"addresses invalid IP and 198.18.0.2":   peer(2, func(k *tunnel.PeerKey) { k.ESP.Local = netip.Addr{} }),
		"addresses 198.18.0.1 and 0.0.0.0":      peer(2, func(k *tunnel.PeerKey) { k.ESP.Remote = addr("0.0.0.0") }),
		"addresses 198.18.0.1 and 224.0.0.1":    peer(2, func(k *tunnel.PeerKey) { k.ESP.Remote = addr("224.0.0.1") }),
		"addresses 198.18.0.1 and fd00::1":      peer(2, func(k *tunnel.PeerKey) { k.ESP.Remote = addr("fd00::1") }),
		"198.18.0.1 and ::ffff:198.18.0.2":      peer(2, func(k *tunnel.PeerKey) { k.ESP.Remote = addr("::ffff:198.18.0.2") }),
		"addresses 198.18.0.1 and 198.18.0.1":   peer(2, func(k *tunnel.PeerKey) { k.ESP.Remote = k.ESP.Local }),
		"receiving SPI 0x00000000":              peer(2, func(k *tunnel.PeerKey) { k.ESP.In = 0 }),
		"receiving SPI 0x000000ff":              peer(2, func(k *tunnel.PeerKey) { k.ESP.In = 255 }),
		"sending SPI 0x00000001":                peer(2, func(k *tunnel.PeerKey) { k.ESP.Out = 1 }),
		"port 4500 and does not travel in UDP":  peer(2, func(k *tunnel.PeerKey) { k.ESP.Port = 4500 }),
		"to 198.18.0.1 is used already":         peer(2, func(k *tunnel.PeerKey) { k.ESP.In = 1001 }),
		"to 198.18.0.2 belongs to another peer": peer(2, func(k *tunnel.PeerKey) { k.ESP.Out = 2001 }),
	} {
		got, err := tunnel.Spec{Devices: devices, Peers: []tunnel.Peer{good, bad}}.Usable()
		var pe *tunnel.PeerError
		if !errors.As(err, &pe) || pe.Peer != node(2) || !strings.Contains(err.Error(), says) {
			t.Errorf("error = %v, want one that says %q", err, says)
		}
		if len(got.Peers) != 2 || len(got.Peers[0].Keys) != 1 || len(got.Peers[1].Keys) != 0 {
			t.Errorf("%s: usable %d peers", says, len(got.Peers))
		}
	}
	// Receiving only, and the same index at another address, are right.
	half := peer(2, func(k *tunnel.PeerKey) { k.ESP.Out, k.ESP.InUDP, k.ESP.Port = 0, true, 51871 })
	other := peer(3, func(k *tunnel.PeerKey) { k.ESP.Out, k.ESP.Remote = 2001, addr("198.18.0.3") })
	last := peer(4, func(k *tunnel.PeerKey) { k.ESP.Out = 0 })
	spec := tunnel.Spec{Devices: devices, Peers: []tunnel.Peer{good, half, other, last}}
	if err := spec.Validate(); err != nil {
		t.Errorf("a good spec: %v", err)
	}
}

var byValue = []cmp.Option{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}
