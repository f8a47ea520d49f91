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
// working session (Sessions).
const SessionLife = 180 * time.Second

// Want is what one device should have.
type Want struct {
	Port  uint16
	Peers []Peer
}

// Peer is one wanted peer of a device.
type Peer struct {
	ID       ids.NodeID
	Public   keys.TunnelPublic
	Inner    netip.Addr
	Endpoint netip.AddrPort // zero on the responding side
	// Key names the preshared key, zero: none. Secret is that key, or empty if
	// what is installed under Key is to stay.
	Key    keys.KeyID
	Secret keys.TunnelSecret
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
	// Dead are peers whose session carries nothing any more (Sessions.See).
	Dead map[keys.TunnelPublic]bool
}

// Change is what makes a device as it should be.
type Change struct {
	// Config names the peers to remove first, so that an inner address goes
	// straight from a peer's old key to its new one, and an entry that is made
	// anew is gone before it comes back. It holds copies of preshared keys: Wipe
	// clears them.
	Config wgtypes.Config
	// Gone are wanted peers that cannot be there: nobody has their secret.
	Gone []Peer
}

// Empty reports whether nothing is to do.
func (c *Change) Empty() bool {
	return c.Config.ListenPort == nil && len(c.Config.Peers) == 0
}

// Wipe clears the preshared keys.
func (c *Change) Wipe() {
	for _, p := range c.Config.Peers {
		if p.PresharedKey != nil {
			clear(p.PresharedKey[:])
		}
	}
}

// Plan returns the change that makes have match want, as a difference: peers
// that are right do not appear in it. have must still hold the preshared keys:
// an entry that is made anew keeps its own where want brings none.
//
// An entry under another preshared key than the wanted one is made anew and not
// changed: WireGuard would go on with the session under the old key for up to
// three minutes.
func Plan(want Want, have *wgtypes.Device, past Past) Change {
	var c Change
	if have.ListenPort != int(want.Port) {
		port := int(want.Port)
		c.Config.ListenPort = &port
	}
	existing := make(map[keys.TunnelPublic]*wgtypes.Peer, len(have.Peers))
	for i := range have.Peers {
		existing[keys.TunnelPublic(have.Peers[i].PublicKey)] = &have.Peers[i]
	}
	stays := make(map[keys.TunnelPublic]bool, len(want.Peers))
	var changes []wgtypes.PeerConfig
	for _, p := range want.Peers {
		was := existing[p.Public]
		installed := was != nil && KeyIDOf(was) == p.Key
		switch {
		case installed && !past.Anew[p.Public]:
			stays[p.Public] = true
			last, known := past.Applied[p.Public]
			if change, ok := changePeer(p, was, known && last != p.Endpoint, past.Dead[p.Public] || was.LastHandshakeTime.IsZero()); ok {
				changes = append(changes, change)
			}
		case p.Key == 0 || !p.Secret.IsZero():
			changes = append(changes, newPeer(p, nil))
		case installed:
			changes = append(changes, newPeer(p, &was.PresharedKey))
		default:
			c.Gone = append(c.Gone, p)
		}
	}
	for key := range existing {
		if !stays[key] {
			c.Config.Peers = append(c.Config.Peers, wgtypes.PeerConfig{PublicKey: wgtypes.Key(key), Remove: true})
		}
	}
	byKey := func(a, b wgtypes.PeerConfig) int { return bytes.Compare(a.PublicKey[:], b.PublicKey[:]) }
	slices.SortFunc(c.Config.Peers, byKey)
	slices.SortFunc(changes, byKey)
	c.Config.Peers = append(c.Config.Peers, changes...)
	return c
}

// KeyIDOf names the preshared key of a peer as read back.
func KeyIDOf(p *wgtypes.Peer) keys.KeyID {
	// The error says that all bytes are zero, which is WireGuard's "none".
	secret, err := keys.TunnelSecretFromRaw32(p.PresharedKey[:])
	if err != nil {
		return 0
	}
	defer secret.Wipe()
	return secret.ID()
}

// newPeer describes a peer that is not there. Its preshared key is the peer's
// secret, or kept.
func newPeer(p Peer, kept *wgtypes.Key) wgtypes.PeerConfig {
	c := wgtypes.PeerConfig{
		PublicKey:         wgtypes.Key(p.Public),
		ReplaceAllowedIPs: true,
		AllowedIPs:        []net.IPNet{hostNet(p.Inner)},
		// Always named, also where it is zero: see keepaliveFor.
		PersistentKeepaliveInterval: keepaliveFor(p),
	}
	if p.Endpoint.IsValid() {
		c.Endpoint = net.UDPAddrFromAddrPort(unmap(p.Endpoint))
	}
	if p.Key == 0 {
		return c
	}
	c.PresharedKey = new(wgtypes.Key)
	if kept != nil {
		copy(c.PresharedKey[:], kept[:])
	} else {
		p.Secret.Expose(func(raw []byte) { copy(c.PresharedKey[:], raw) })
	}
	return c
}

// changePeer compares one peer. moved says that the spec names another
// endpoint than the last Set did, dead that there is no session.
func changePeer(p Peer, was *wgtypes.Peer, moved, dead bool) (wgtypes.PeerConfig, bool) {
	c := wgtypes.PeerConfig{
		PublicKey: wgtypes.Key(p.Public), UpdateOnly: true, PersistentKeepaliveInterval: keepaliveFor(p),
	}
	changed := false
	// Exactly one allowed address. WireGuard drops a decrypted packet whose
	// source is not allowed for its key, so this line is what keeps a member
	// from speaking with another's inner address.
	if InnerOf(was) != p.Inner {
		c.ReplaceAllowedIPs, c.AllowedIPs, changed = true, []net.IPNet{hostNet(p.Inner)}, true
	}
	changed = changed || *c.PersistentKeepaliveInterval != was.PersistentKeepaliveInterval
	if p.Endpoint.IsValid() && endpointOf(was) != unmap(p.Endpoint) {
		// WireGuard has learned another address from the peer's own
		// authenticated packets. That beats the spec while it works. It does
		// not when the spec has changed since, or when the session is dead: a
		// learned address that answers no more would otherwise stay for ever,
		// since the other side has no endpoint to call from.
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

// InnerOf returns the one inner address that a peer may use, or the zero value
// if it is not exactly one.
func InnerOf(p *wgtypes.Peer) netip.Addr {
	if len(p.AllowedIPs) != 1 {
		return netip.Addr{}
	}
	a, _ := netip.AddrFromSlice(p.AllowedIPs[0].IP)
	if only := hostNet(a); p.AllowedIPs[0].String() != only.String() {
		return netip.Addr{}
	}
	return a
}

// unmap gives an address one form: IPv4 endpoints may come in 16 bytes.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func hostNet(a netip.Addr) net.IPNet {
	return net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
