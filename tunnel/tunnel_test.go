package tunnel_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

func kind(name string, err error) tunnel.Kind {
	return tunnel.Kind{Name: name, Probe: func(context.Context, tunnel.Env) error { return err }}
}

func TestSelect(t *testing.T) {
	missing := &tunnel.UnsupportedError{Driver: "first", Feature: "kernel WireGuard", Since: "Linux 5.6", Err: errors.New("no such device")}
	broken := errors.New("no permission")
	k, refused, err := tunnel.Select(t.Context(), tunnel.Env{}, []tunnel.Kind{
		kind("first", missing), kind("second", nil), kind("third", nil),
	})
	if err != nil || k.Name != "second" || len(refused) != 1 || refused[0].Kind != "first" || !errors.Is(refused[0].Err, tunnel.ErrNotSupported) {
		t.Errorf("select = %q, %v, %v", k.Name, refused, err)
	}
	_, refused, err = tunnel.Select(t.Context(), tunnel.Env{}, []tunnel.Kind{kind("first", missing), kind("second", broken)})
	if len(refused) != 2 || !errors.Is(err, tunnel.ErrNotSupported) || !errors.Is(err, broken) {
		t.Errorf("no driver works: %v, %v", refused, err)
	}
	for _, part := range []string{"kernel WireGuard is missing", "since Linux 5.6", "no such device", "no permission"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
	if _, _, err := tunnel.Select(t.Context(), tunnel.Env{}, nil); err == nil {
		t.Error("no kinds: no error; there is no plaintext to fall back to")
	}
}

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

func FuzzParseMark(f *testing.F) {
	f.Add(tunnel.Mark{Node: ids.NodeIDOf([32]byte{1}), Protocol: "wg", Driver: "userspace", Epoch: 3}.String())
	f.Add("secure-overlay/x/wg/y/1/0")
	f.Fuzz(func(t *testing.T, alias string) {
		if m, ok := tunnel.ParseMark(alias); ok && m.String() != alias {
			t.Errorf("%q parses, but prints as %q", alias, m)
		}
	})
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
		{Epoch: 0, Port: 1, MTU: 1400}, {Epoch: 2, MTU: 1400}, {Epoch: 2, Port: 1, MTU: 1279}, {Epoch: 2, Port: 1, MTU: 65500},
		{Epoch: 2, Port: dev.Port, MTU: 1400}, {Epoch: 1, Port: 1, MTU: 1400},
	} {
		got, err := tunnel.Spec{Devices: []tunnel.Device{dev, bad}}.Usable()
		if err == nil || len(got.Devices) != 1 || got.Devices[0] != dev {
			t.Errorf("device %+v: %v, usable %+v", bad, err, got.Devices)
		}
	}
	if err := (tunnel.Spec{Devices: []tunnel.Device{dev}, Peers: []tunnel.Peer{good}}).Validate(); err != nil {
		t.Errorf("a good spec: %v", err)
	}
}

var byValue = []cmp.Option{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}
