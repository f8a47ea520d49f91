package wg

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Keepalive is the persistent keepalive of the initiating side. The
// responding side has no endpoint, so it cannot start a handshake: when its
// packets find no session it depends on the initiator to make one. With the
// keepalive the initiator handshakes as soon as the peer is added, again
// whenever a session passes 120 s, and for ever while the peer is away, at no
// more than one packet in 10 s. It also keeps the mappings of a NAT between
// them open. The responder has none: two keepalive timers would be two
// initiators once it has learned an endpoint (DESIGN.md section 5).
const Keepalive = 10 * time.Second

// SessionLife is how long a session can carry data after its handshake:
// WireGuard's Reject-After-Time. A peer whose last handshake is older has no
// working session.
const SessionLife = 180 * time.Second

// Want is what one device should have.
type Want struct {
	Port  uint16
	Peers []Peer
}

// Peer is one wanted peer of a device.
type Peer struct {
	ID       ids.NodeID
	Key      keys.TunnelPublic
	Inner    netip.Addr
	Endpoint netip.AddrPort // zero on the responding side
}

// Applied remembers, by peer key, the endpoint that the last Set wanted. It is
// empty after a restart.
type Applied map[keys.TunnelPublic]netip.AddrPort

// Past is what a driver remembers of a device beside what the device itself
// knows.
type Past struct {
	Applied Applied
	// Anew are peers whose entries are to be made again (see knock.go).
	Anew map[keys.TunnelPublic]bool
}

// Plan returns the change that makes have match want, as a difference: peers
// that are right do not appear in it. It reports false if nothing is to do.
// Peers to remove come first, so that an inner address goes straight from a
// peer's old key to its new one.
func Plan(want Want, have *wgtypes.Device, past Past, now time.Time) (wgtypes.Config, bool) {
	var cfg wgtypes.Config
	if have.ListenPort != int(want.Port) {
		port := int(want.Port)
		cfg.ListenPort = &port
	}
	existing := make(map[keys.TunnelPublic]*wgtypes.Peer, len(have.Peers))
	for i := range have.Peers {
		existing[keys.TunnelPublic(have.Peers[i].PublicKey)] = &have.Peers[i]
	}
	wanted := make(map[keys.TunnelPublic]bool, len(want.Peers))
	var changes []wgtypes.PeerConfig
	for _, p := range want.Peers {
		wanted[p.Key] = true
		was := existing[p.Key]
		if was == nil || past.Anew[p.Key] {
			changes = append(changes, newPeer(p))
			continue
		}
		last, known := past.Applied[p.Key]
		if c, ok := changePeer(p, was, known && last != p.Endpoint, now); ok {
			changes = append(changes, c)
		}
	}
	for key := range existing {
		if !wanted[key] || past.Anew[key] {
			cfg.Peers = append(cfg.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true})
		}
	}
	byKey := func(a, b wgtypes.PeerConfig) int { return bytes.Compare(a.PublicKey[:], b.PublicKey[:]) }
	slices.SortFunc(cfg.Peers, byKey)
	slices.SortFunc(changes, byKey)
	cfg.Peers = append(cfg.Peers, changes...)
	return cfg, cfg.ListenPort != nil || len(cfg.Peers) > 0
}

func newPeer(p Peer) wgtypes.PeerConfig {
	c := wgtypes.PeerConfig{
		PublicKey:         wgtypes.Key(p.Key),
		ReplaceAllowedIPs: true,
		AllowedIPs:        []net.IPNet{hostNet(p.Inner)},
		// Always named, also where it is zero: see keepaliveFor.
		PersistentKeepaliveInterval: keepaliveFor(p),
	}
	if p.Endpoint.IsValid() {
		c.Endpoint = net.UDPAddrFromAddrPort(unmap(p.Endpoint))
	}
	return c
}

// changePeer compares one peer. moved says that the spec names another
// endpoint than the last Set did.
func changePeer(p Peer, was *wgtypes.Peer, moved bool, now time.Time) (wgtypes.PeerConfig, bool) {
	c := wgtypes.PeerConfig{
		PublicKey: wgtypes.Key(p.Key), UpdateOnly: true, PersistentKeepaliveInterval: keepaliveFor(p),
	}
	changed := false
	// Exactly one allowed address. WireGuard drops a decrypted packet whose
	// source is not allowed for its key, so this line is what keeps a member
	// from speaking with another's inner address.
	if inner := hostNet(p.Inner); len(was.AllowedIPs) != 1 || was.AllowedIPs[0].String() != inner.String() {
		c.ReplaceAllowedIPs, c.AllowedIPs, changed = true, []net.IPNet{inner}, true
	}
	changed = changed || *c.PersistentKeepaliveInterval != was.PersistentKeepaliveInterval
	if p.Endpoint.IsValid() && endpointOf(was) != unmap(p.Endpoint) {
		// WireGuard has learned another address from the peer's own
		// authenticated packets. That beats the spec while it works. It does
		// not when the spec has changed since, or when the session is dead: a
		// learned address that answers no more would otherwise stay for ever,
		// since the other side has no endpoint to call from.
		dead := now.Sub(was.LastHandshakeTime) > SessionLife
		if moved || dead {
			c.Endpoint, changed = net.UDPAddrFromAddrPort(unmap(p.Endpoint)), true
		}
	}
	return c, changed
}

// keepaliveFor is the peer's persistent keepalive; zero switches it off. Every
// peer in a change names it. In one request wireguard-go carries "keepalives
// were just switched on, send one" over to the peers that follow (pkaOn in
// its device/uapi.go), unless they name an interval themselves; a responder
// would start a handshake with nowhere to send it, and while it does, an
// initiation that arrives is lost for 5 s.
func keepaliveFor(p Peer) *time.Duration {
	d := time.Duration(0)
	if p.Endpoint.IsValid() {
		d = Keepalive
	}
	return &d
}

// endpointOf returns the peer's present endpoint, or the zero value.
func endpointOf(p *wgtypes.Peer) netip.AddrPort {
	if p.Endpoint == nil {
		return netip.AddrPort{}
	}
	return unmap(p.Endpoint.AddrPort())
}

// unmap gives an address one form: wgctrl reports IPv4 endpoints in 16 bytes.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func hostNet(a netip.Addr) net.IPNet {
	return net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
