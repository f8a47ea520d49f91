package tunneltest

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
)

// Sizes of WireGuard's messages, in bytes.
const (
	initiationSize = 148
	responseSize   = 92
	dataOverhead   = 32
)

// fakeDevice is a WireGuard device as the kernel keeps it. The fabric's mutex
// guards it.
type fakeDevice struct {
	linkBase
	public wgtypes.Key
	port   int
	peers  map[wgtypes.Key]*fakePeer
}

type fakePeer struct {
	device    *fakeDevice
	key       wgtypes.Key
	preshared wgtypes.Key
	allowed   []netip.Prefix
	endpoint  netip.AddrPort
	keepalive time.Duration
	session   *fakeSession
	rx, tx    int64
}

// fakeSession is what a handshake leaves at both ends. It is theirs only as
// long as both still hold it.
type fakeSession struct {
	ends [2]*fakePeer
	made time.Time
}

// configure applies a change the way the kernel does.
func (d *fakeDevice) configure(cfg wgtypes.Config) error {
	if cfg.ListenPort != nil {
		if d.host.portTaken(*cfg.ListenPort, d) {
			return unix.EADDRINUSE
		}
		d.port = *cfg.ListenPort
	}
	if cfg.ReplacePeers {
		d.peers = map[wgtypes.Key]*fakePeer{}
	}
	for _, c := range cfg.Peers {
		d.configurePeer(c)
	}
	return nil
}

func (h *FakeHost) portTaken(port int, except *fakeDevice) bool {
	return slices.ContainsFunc(h.devices(), func(d *fakeDevice) bool { return d != except && d.port == port })
}

// devices lists the host's WireGuard devices.
func (h *FakeHost) devices() []*fakeDevice {
	var out []*fakeDevice
	for _, l := range h.links {
		if d, ok := l.(*fakeDevice); ok {
			out = append(out, d)
		}
	}
	return out
}

// send implements fakeLink.
func (d *fakeDevice) send(from, to netip.Addr, size int) *FakeHost {
	peer := d.peerFor(to)
	if peer == nil || !peer.hasSession() {
		return nil
	}
	padded := min((size+15)/16*16, d.mtu)
	peer.tx += int64(padded + dataOverhead)
	far := peer.other()
	if !far.alive() || far.session != peer.session {
		return nil
	}
	far.rx += int64(padded + dataOverhead)
	// WireGuard's second check: the source must be one that the key may use.
	if !far.allows(from) {
		return nil
	}
	return far.device.host
}

// hasSession makes sure that p has something to encrypt with. As in real life
// that may be a session which the other end has forgotten; then the packet is
// lost, and only who knows an endpoint can make a new one.
func (p *fakePeer) hasSession() bool {
	return p.connect() || p.session != nil
}

func (d *fakeDevice) configurePeer(c wgtypes.PeerConfig) {
	p := d.peers[c.PublicKey]
	if c.Remove {
		delete(d.peers, c.PublicKey)
		return
	}
	if c.PublicKey == d.public { // ignored, as by the kernel
		return
	}
	if p == nil {
		if c.UpdateOnly {
			return
		}
		p = &fakePeer{device: d, key: c.PublicKey}
		d.peers[c.PublicKey] = p
	}
	if c.PresharedKey != nil { // as in the kernel, a session stays
		p.preshared = *c.PresharedKey
	}
	if c.Endpoint != nil {
		a := c.Endpoint.AddrPort()
		p.endpoint = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	if c.ReplaceAllowedIPs {
		p.allowed = nil
	}
	for _, n := range c.AllowedIPs {
		a, _ := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		d.allow(p, netip.PrefixFrom(a, ones))
	}
	if c.PersistentKeepaliveInterval != nil {
		p.keepalive = *c.PersistentKeepaliveInterval
		if p.keepalive > 0 { // turning it on sends a packet at once
			p.connect()
		}
	}
}

// allow gives an allowed address to one peer and takes it from the one that
// had it: a device's table of allowed addresses has one entry for each.
func (d *fakeDevice) allow(p *fakePeer, prefix netip.Prefix) {
	for _, other := range d.peers {
		other.allowed = slices.DeleteFunc(other.allowed, func(a netip.Prefix) bool { return a == prefix })
	}
	p.allowed = append(p.allowed, prefix)
}

// peerFor returns the peer that packets for an address go to.
func (d *fakeDevice) peerFor(dst netip.Addr) *fakePeer {
	for _, p := range d.peers {
		if p.allows(dst) {
			return p
		}
	}
	return nil
}

func (p *fakePeer) allows(a netip.Addr) bool {
	return slices.ContainsFunc(p.allowed, func(n netip.Prefix) bool { return n.Contains(a) })
}

// alive says whether a peer entry is still the one in its device, and the
// device still there.
func (p *fakePeer) alive() bool {
	return p.device.peers[p.key] == p && p.device.host.links[p.device.name] == fakeLink(p.device)
}

// connect makes sure of a session: it keeps a living one or makes a handshake
// with whoever answers at the endpoint. It reports success.
func (p *fakePeer) connect() bool {
	if p.working() {
		return true
	}
	from, there := p.device.host.source(p.endpoint), p.device.host.fabric.where[p.endpoint.Addr()]
	if !from.IsValid() || there == nil {
		return false
	}
	p.tx += initiationSize
	for _, d := range there.devices() {
		other := d.peers[p.device.public]
		if d.port != int(p.endpoint.Port()) || d.public != p.key || other == nil {
			continue
		}
		other.rx += initiationSize
		other.tx += responseSize
		if other.preshared != p.preshared {
			// The preshared key goes into the response, so it is the initiator
			// who notices.
			return false
		}
		s := &fakeSession{ends: [2]*fakePeer{p, other}, made: time.Now()}
		p.session, other.session = s, s
		// The responder learns where the initiator is.
		other.endpoint = netip.AddrPortFrom(from, uint16(p.device.port))
		p.rx += responseSize
		return true
	}
	return false
}

// working says whether both ends still hold p's session and it is young.
func (p *fakePeer) working() bool {
	s := p.session
	if s == nil || time.Since(s.made) > wg.SessionLife {
		return false
	}
	for _, e := range s.ends {
		if !e.alive() || e.session != s {
			return false
		}
	}
	return true
}

// other returns the peer entry at the far end of the session.
func (p *fakePeer) other() *fakePeer {
	if p.session.ends[0] == p {
		return p.session.ends[1]
	}
	return p.session.ends[0]
}

// source is the host's underlay address of the endpoint's family.
func (h *FakeHost) source(to netip.AddrPort) netip.Addr {
	for _, a := range h.underlay {
		if to.IsValid() && a.Is4() == to.Addr().Is4() {
			return a
		}
	}
	return netip.Addr{}
}

// read returns the device as wgctrl would.
func (d *fakeDevice) read() *wgtypes.Device {
	out := &wgtypes.Device{Name: d.name, PublicKey: d.public, ListenPort: d.port}
	for _, p := range d.peers {
		q := wgtypes.Peer{
			PublicKey: p.key, PresharedKey: p.preshared, PersistentKeepaliveInterval: p.keepalive, ReceiveBytes: p.rx, TransmitBytes: p.tx,
		}
		if p.endpoint.IsValid() {
			q.Endpoint = net.UDPAddrFromAddrPort(p.endpoint)
		}
		if p.session != nil {
			q.LastHandshakeTime = p.session.made
		}
		for _, a := range p.allowed {
			q.AllowedIPs = append(q.AllowedIPs, net.IPNet{
				IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen()),
			})
		}
		out.Peers = append(out.Peers, q)
	}
	return out
}
