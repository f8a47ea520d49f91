package wg

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

var (
	now   = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	addrA = netip.MustParseAddr("fd00::a")
	addrB = netip.MustParseAddr("fd00::b")
	epA   = netip.MustParseAddrPort("198.18.0.1:51871")
	epA2  = netip.MustParseAddrPort("198.18.0.9:51871")
	ep6   = netip.MustParseAddrPort("[fd00:198:18::1]:51871")
)

func key(n byte) keys.TunnelPublic { return keys.TunnelPublic{n} }

// has makes an existing peer as the kernel reports one.
func has(n byte, inner netip.Addr, endpoint string, keepalive, handshakeAge time.Duration) wgtypes.Peer {
	p := wgtypes.Peer{PublicKey: wgtypes.Key(key(n)), PersistentKeepaliveInterval: keepalive}
	if inner.IsValid() {
		p.AllowedIPs = []net.IPNet{hostNet(inner)}
	}
	if endpoint != "" {
		a := netip.MustParseAddrPort(endpoint)
		// 16 bytes also for IPv4, as wgctrl does.
		p.Endpoint = &net.UDPAddr{IP: net.IP(a.Addr().AsSlice()).To16(), Port: int(a.Port())}
	}
	if handshakeAge != 0 {
		p.LastHandshakeTime = now.Add(-handshakeAge)
	}
	return p
}

func secret(n byte) keys.TunnelSecret {
	s, err := keys.TunnelSecretFromRaw32(bytes.Repeat([]byte{n}, 32))
	if err != nil {
		panic(err)
	}
	return s
}

// under makes an existing peer have a preshared key.
func under(n byte, p wgtypes.Peer) wgtypes.Peer {
	secret(n).Expose(func(raw []byte) { copy(p.PresharedKey[:], raw) })
	return p
}

// show writes a change down, one line for each part.
func show(c Change) string {
	if c.Empty() && len(c.Gone) == 0 {
		return "nothing"
	}
	var lines []string
	for _, p := range c.Gone {
		lines = append(lines, fmt.Sprintf("gone peer %d", p.Public[0]))
	}
	cfg := c.Config
	if cfg.PrivateKey != nil || cfg.ReplacePeers || cfg.FirewallMark != nil {
		lines = append(lines, "FORBIDDEN")
	}
	if cfg.ListenPort != nil {
		lines = append(lines, fmt.Sprintf("port %d", *cfg.ListenPort))
	}
	for _, p := range cfg.Peers {
		l := fmt.Sprintf("peer %d", p.PublicKey[0])
		switch {
		case p.Remove:
			l = "remove " + l
		case p.UpdateOnly:
			l = "change " + l
		default:
			l = "add " + l
		}
		if p.Endpoint != nil {
			l += " endpoint " + p.Endpoint.String()
		}
		if p.ReplaceAllowedIPs {
			l += " only"
		}
		for _, a := range p.AllowedIPs {
			l += " " + a.String()
		}
		if p.PersistentKeepaliveInterval != nil {
			l += fmt.Sprintf(" keepalive %v", *p.PersistentKeepaliveInterval)
		}
		if p.PresharedKey != nil {
			l += fmt.Sprintf(" secret %d", p.PresharedKey[0])
			if p.UpdateOnly {
				l += " FORBIDDEN"
			}
		}
		lines = append(lines, l)
	}
	return strings.Join(lines, "\n")
}

func TestPlan(t *testing.T) {
	const young, old = time.Minute, 4 * time.Minute
	dead := map[keys.TunnelPublic]bool{key(1): true}
	initiator := []Peer{{Public: key(1), Inner: addrA, Endpoint: epA}}
	responder := []Peer{{Public: key(1), Inner: addrA}}
	for _, c := range []struct {
		name string
		want []Peer
		have []wgtypes.Peer
		past Past
		plan string
	}{
		{name: "empty", plan: "nothing"},
		{
			name: "new peers", want: []Peer{{Public: key(2), Inner: addrB}, {Public: key(1), Inner: addrA, Endpoint: epA}},
			plan: "add peer 1 endpoint 198.18.0.1:51871 only fd00::a/128 keepalive 10s\n" +
				"add peer 2 only fd00::b/128 keepalive 0s",
		},
		{
			name: "new peer on IPv6", want: []Peer{{Public: key(1), Inner: addrA, Endpoint: ep6}},
			plan: "add peer 1 endpoint [fd00:198:18::1]:51871 only fd00::a/128 keepalive 10s",
		},
		{
			name: "endpoint mapped into IPv6", want: []Peer{{Public: key(1), Inner: addrA,
				Endpoint: netip.MustParseAddrPort("[::ffff:198.18.0.1]:51871")}},
			plan: "add peer 1 endpoint 198.18.0.1:51871 only fd00::a/128 keepalive 10s",
		},
		{
			name: "initiator as it should be", want: initiator,
			have: []wgtypes.Peer{has(1, addrA, "198.18.0.1:51871", Keepalive, 0)}, plan: "nothing",
		},
		{
			name: "responder has learned an endpoint", want: responder,
			have: []wgtypes.Peer{has(1, addrA, "198.18.0.7:999", 0, young)}, plan: "nothing",
		},
		{
			name: "removed", have: []wgtypes.Peer{has(3, addrB, "", 0, young), has(2, addrA, "", 0, young)},
			plan: "remove peer 2\nremove peer 3",
		},
		{
			name: "an address goes to a new key", want: initiator,
			have: []wgtypes.Peer{has(9, addrA, "198.18.0.1:51871", Keepalive, young)},
			plan: "remove peer 9\nadd peer 1 endpoint 198.18.0.1:51871 only fd00::a/128 keepalive 10s",
		},
		{
			name: "others are not mentioned",
			want: []Peer{{Public: key(1), Inner: addrA, Endpoint: epA}, {Public: key(2), Inner: addrB}},
			have: []wgtypes.Peer{has(1, addrA, "198.18.0.1:51871", Keepalive, young)},
			plan: "add peer 2 only fd00::b/128 keepalive 0s",
		},
		{
			name: "allowed address lost", want: responder, have: []wgtypes.Peer{has(1, netip.Addr{}, "", 0, young)},
			plan: "change peer 1 only fd00::a/128 keepalive 0s",
		},
		{
			name: "allowed address wrong", want: responder, have: []wgtypes.Peer{has(1, addrB, "", 0, young)},
			plan: "change peer 1 only fd00::a/128 keepalive 0s",
		},
		{
			name: "one allowed address too many", want: responder,
			have: []wgtypes.Peer{{
				PublicKey: wgtypes.Key(key(1)), LastHandshakeTime: now,
				AllowedIPs: []net.IPNet{hostNet(addrA), hostNet(addrB)},
			}},
			plan: "change peer 1 only fd00::a/128 keepalive 0s",
		},
		{
			name: "becomes initiator", want: initiator, have: []wgtypes.Peer{has(1, addrA, "", 0, 0)},
			plan: "change peer 1 endpoint 198.18.0.1:51871 keepalive 10s",
		},
		{
			name: "becomes responder", want: responder,
			have: []wgtypes.Peer{has(1, addrA, "198.18.0.1:51871", Keepalive, young)},
			plan: "change peer 1 keepalive 0s",
		},
		{
			name: "roamed", want: initiator, have: []wgtypes.Peer{has(1, addrA, "198.18.0.9:51871", Keepalive, young)},
			past: Past{Applied: Applied{key(1): epA}}, plan: "nothing",
		},
		{
			name: "roamed and adopted", want: initiator,
			have: []wgtypes.Peer{has(1, addrA, "198.18.0.9:51871", Keepalive, young)}, plan: "nothing",
		},
		{
			name: "roamed and silent", want: initiator,
			have: []wgtypes.Peer{has(1, addrA, "198.18.0.9:51871", Keepalive, old)},
			past: Past{Applied: Applied{key(1): epA}, Dead: dead}, plan: "change peer 1 endpoint 198.18.0.1:51871 keepalive 10s",
		},
		{
			name: "roamed, adopted and silent", want: initiator,
			have: []wgtypes.Peer{has(1, addrA, "198.18.0.9:51871", Keepalive, old)},
			past: Past{Dead: dead}, plan: "change peer 1 endpoint 198.18.0.1:51871 keepalive 10s",
		},
		{
			name: "roamed, and the clock says it was long ago", want: initiator,
			have: []wgtypes.Peer{has(1, addrA, "198.18.0.9:51871", Keepalive, 3652*24*time.Hour)},
			past: Past{Applied: Applied{key(1): epA}}, plan: "nothing",
		},
		{
			name: "the spec has changed", want: initiator,
			have: []wgtypes.Peer{has(1, addrA, "198.18.0.9:51871", Keepalive, young)},
			past: Past{Applied: Applied{key(1): epA2}}, plan: "change peer 1 endpoint 198.18.0.1:51871 keepalive 10s",
		},
		{
			name: "the spec has changed to where the peer is", want: initiator,
			have: []wgtypes.Peer{has(1, addrA, "198.18.0.1:51871", Keepalive, young)},
			past: Past{Applied: Applied{key(1): epA2}}, plan: "nothing",
		},
		{
			name: "made anew", want: initiator,
			have: []wgtypes.Peer{has(1, addrA, "198.18.0.1:51871", Keepalive, 0)},
			past: Past{Anew: map[keys.TunnelPublic]bool{key(1): true}},
			plan: "remove peer 1\nadd peer 1 endpoint 198.18.0.1:51871 only fd00::a/128 keepalive 10s",
		},
		{
			name: "new peer with a secret", want: []Peer{{Public: key(1), Inner: addrA, Key: secret(7).ID(), Secret: secret(7)}},
			plan: "add peer 1 only fd00::a/128 keepalive 0s secret 7",
		},
		{
			name: "secret installed and forgotten", want: []Peer{{Public: key(1), Inner: addrA, Key: secret(7).ID()}},
			have: []wgtypes.Peer{under(7, has(1, addrA, "", 0, young))}, plan: "nothing",
		},
		{
			name: "secret installed and repeated",
			want: []Peer{{Public: key(1), Inner: addrA, Key: secret(7).ID(), Secret: secret(7)}},
			have: []wgtypes.Peer{under(7, has(1, addrA, "", 0, young))}, plan: "nothing",
		},
		{
			name: "another secret", want: []Peer{{Public: key(1), Inner: addrA, Key: secret(8).ID(), Secret: secret(8)}},
			have: []wgtypes.Peer{under(7, has(1, addrA, "", 0, young))},
			plan: "remove peer 1\nadd peer 1 only fd00::a/128 keepalive 0s secret 8",
		},
		{
			name: "a secret for one that had none",
			want: []Peer{{Public: key(1), Inner: addrA, Key: secret(8).ID(), Secret: secret(8)}},
			have: []wgtypes.Peer{has(1, addrA, "", 0, young)},
			plan: "remove peer 1\nadd peer 1 only fd00::a/128 keepalive 0s secret 8",
		},
		{
			name: "a secret that nobody has", want: []Peer{{Public: key(1), Inner: addrA, Key: secret(8).ID()}},
			have: []wgtypes.Peer{under(7, has(1, addrA, "", 0, young))}, plan: "gone peer 1\nremove peer 1",
		},
		{
			name: "a secret that nobody has, of a new peer", want: []Peer{{Public: key(1), Inner: addrA, Key: secret(8).ID()}},
			plan: "gone peer 1",
		},
		{
			name: "no secret any more", want: responder, have: []wgtypes.Peer{under(7, has(1, addrA, "", 0, young))},
			plan: "remove peer 1\nadd peer 1 only fd00::a/128 keepalive 0s",
		},
		{
			name: "sending half after the receiving half",
			want: []Peer{{Public: key(1), Inner: addrA, Key: secret(7).ID(), Endpoint: epA}},
			have: []wgtypes.Peer{under(7, has(1, addrA, "", 0, 0))},
			plan: "change peer 1 endpoint 198.18.0.1:51871 keepalive 10s",
		},
		{
			name: "made anew with the secret it has",
			want: []Peer{{Public: key(1), Inner: addrA, Key: secret(7).ID(), Endpoint: epA}},
			have: []wgtypes.Peer{under(7, has(1, addrA, "198.18.0.1:51871", Keepalive, 0))},
			past: Past{Anew: map[keys.TunnelPublic]bool{key(1): true}},
			plan: "remove peer 1\nadd peer 1 endpoint 198.18.0.1:51871 only fd00::a/128 keepalive 10s secret 7",
		},
		{
			name: "made anew, but nobody has the secret",
			want: []Peer{{Public: key(1), Inner: addrA, Key: secret(8).ID(), Endpoint: epA}},
			have: []wgtypes.Peer{under(7, has(1, addrA, "198.18.0.1:51871", Keepalive, 0))},
			past: Past{Anew: map[keys.TunnelPublic]bool{key(1): true}},
			plan: "gone peer 1\nremove peer 1",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			have := &wgtypes.Device{ListenPort: 51871, Peers: c.have}
			change := Plan(Want{Port: 51871, Peers: c.want}, have, c.past)
			if diff := cmp.Diff(c.plan, show(change)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			change.Wipe()
			for _, p := range change.Config.Peers {
				if p.PresharedKey != nil && *p.PresharedKey != (wgtypes.Key{}) {
					t.Error("Wipe has left a secret")
				}
			}
		})
	}
	if got := show(Plan(Want{Port: 51900}, &wgtypes.Device{ListenPort: 51871}, Past{})); got != "port 51900" {
		t.Errorf("new port: %s", got)
	}
}

func TestInnerOf(t *testing.T) {
	wide := hostNet(addrA)
	wide.Mask = net.CIDRMask(64, 128)
	for _, c := range []struct {
		allowed []net.IPNet
		want    netip.Addr
	}{
		{[]net.IPNet{hostNet(addrA)}, addrA}, {nil, netip.Addr{}}, {[]net.IPNet{wide}, netip.Addr{}},
		{[]net.IPNet{hostNet(addrA), hostNet(addrB)}, netip.Addr{}},
	} {
		if got := InnerOf(&wgtypes.Peer{AllowedIPs: c.allowed}); got != c.want {
			t.Errorf("inner of %v = %s, want %s", c.allowed, got, c.want)
		}
	}
}

func TestUsable(t *testing.T) {
	node := ids.NodeIDOf([32]byte{1})
	esp := tunnel.ESP{Local: netip.MustParseAddr("198.18.0.1"), Remote: netip.MustParseAddr("198.18.0.2"), In: 1000}
	spec := tunnel.Spec{
		Devices: []tunnel.Device{{Epoch: 1, Port: 51871, MTU: 1400}, {Epoch: 2, MTU: 1400}},
		Peers: []tunnel.Peer{{ID: node, Inner: node.InnerAddr(), Keys: []tunnel.PeerKey{
			{Epoch: 1, Key: 1, ESP: esp}, {Epoch: 2, Public: key(1)},
		}}},
	}
	got, err := Usable(spec)
	var pe *tunnel.PeerError
	if !errors.As(err, &pe) || pe.Peer != node || !strings.Contains(err.Error(), "device of epoch 2 lane 0: has no port") {
		t.Errorf("usable: %v", err)
	}
	if len(got.Devices) != 1 || len(got.Peers) != 1 || len(got.Peers[0].Keys) != 1 || got.Peers[0].Keys[0].Epoch != 2 {
		t.Errorf("usable: %+v", got)
	}
	if len(spec.Peers[0].Keys) != 2 || len(spec.Devices) != 2 {
		t.Error("the spec itself was changed")
	}
}

func TestKnocker(t *testing.T) {
	want := Want{Peers: []Peer{{Public: key(1), Inner: addrA, Endpoint: epA}, {Public: key(2), Inner: addrB}}}
	silent := []wgtypes.Peer{has(1, addrA, "198.18.0.1:51871", Keepalive, 0), has(2, addrB, "", 0, 0)}
	k := knocker{}
	knocks := func(after time.Duration, have []wgtypes.Peer) bool {
		t.Helper()
		due := k.due(want, have, nil, now.Add(after))
		if due[key(2)] {
			t.Errorf("after %v: the responding side knocks", after)
		}
		return due[key(1)]
	}
	for _, c := range []struct {
		after time.Duration
		have  []wgtypes.Peer
		want  bool
	}{
		{after: 0}, // about to be made
		{after: 100 * time.Millisecond, have: silent},
		{after: 800 * time.Millisecond, have: silent, want: true},
		{after: 1500 * time.Millisecond, have: silent},
		{after: 2400 * time.Millisecond, have: silent, want: true},
		{after: 4 * time.Second, have: silent},
		{after: 5500 * time.Millisecond, have: silent, want: true},
		{after: time.Minute, have: silent}, // WireGuard's own timer from here
	} {
		if got := knocks(c.after, c.have); got != c.want {
			t.Errorf("after %v: knock = %v, want %v", c.after, got, c.want)
		}
	}
	// Another secret is another entry, so the knocking starts again.
	want.Peers[0].Key = secret(1).ID()
	if knocks(time.Minute, silent) || !knocks(time.Minute+800*time.Millisecond, silent) {
		t.Error("does not knock under another secret")
	}
	// A session ends it for good, also when the session dies of age.
	answered := []wgtypes.Peer{has(1, addrA, "198.18.0.1:51871", Keepalive, time.Hour)}
	if knocks(2*time.Minute, answered) || len(k) != 0 {
		t.Errorf("knocks on a peer that has answered; remembers %v", k)
	}
	// An adopted peer without a session has waited since the adoption.
	if knocks(time.Hour, silent) || !knocks(time.Hour+time.Second, silent) {
		t.Error("an adopted silent peer is not knocked on")
	}
	if k.due(Want{}, silent, nil, now); len(k) != 0 {
		t.Errorf("remembers peers that are gone: %v", k)
	}
}

// TestSessions: how old a session is follows from when its date changed, whatever
// the date is.
func TestSessions(t *testing.T) {
	day := 24 * time.Hour
	s := Sessions{}
	dead := func(after, dated time.Duration) bool {
		t.Helper()
		return s.See([]wgtypes.Peer{has(1, addrA, "", 0, -dated), has(2, addrB, "", 0, 0)}, now.Add(after))[key(1)]
	}
	// Adopted with a date of ten years ago: the clock may have been set since.
	for _, c := range []struct {
		after, dated time.Duration
		want         bool
	}{
		{0, -3652 * day, false},
		{SessionLife, -3652 * day, false},
		{SessionLife + time.Second, -3652 * day, true},
		{SessionLife + 2*time.Second, day, false}, // a handshake, after the clock was put forward
		{SessionLife + 182*time.Second, day, false},
		{SessionLife + 183*time.Second, day, true},
		{SessionLife + 184*time.Second, -day, false}, // and one after it was put back
	} {
		if got := dead(c.after, c.dated); got != c.want {
			t.Errorf("after %v, dated %v: dead %t", c.after, c.dated, got)
		}
	}
	if _, known := s[key(2)]; known || len(s) != 1 {
		t.Errorf("remembers a handshake that never was: %v", s)
	}
	if s.See(nil, now.Add(time.Hour)); len(s) != 0 {
		t.Errorf("remembers peers that are gone: %v", s)
	}
}

// TestResponderForgets: the responding side makes the entry of a dead session anew,
// once, and the initiating side does not.
func TestResponderForgets(t *testing.T) {
	want := Want{Peers: []Peer{{Public: key(1), Inner: addrA, Endpoint: epA}, {Public: key(2), Inner: addrB}}}
	both := []wgtypes.Peer{has(1, addrA, "198.18.0.1:51871", Keepalive, time.Hour), has(2, addrB, "198.18.0.2:51871", 0, time.Hour)}
	alive, dead := map[keys.TunnelPublic]bool{}, map[keys.TunnelPublic]bool{key(1): true, key(2): true}
	k := knocker{}
	if due := k.due(want, both, alive, now); len(due) != 0 {
		t.Errorf("sessions that live: %v", due)
	}
	if due := k.due(want, both, dead, now); len(due) != 1 || !due[key(2)] {
		t.Errorf("dead sessions: %v", due)
	}
	both[1] = has(2, addrB, "", 0, 0)
	for after := range 10 {
		if due := k.due(want, both, map[keys.TunnelPublic]bool{key(1): true}, now.Add(time.Duration(after)*time.Minute)); len(due) != 0 {
			t.Errorf("an entry without a session, %d minutes later: %v", after, due)
		}
	}
}
