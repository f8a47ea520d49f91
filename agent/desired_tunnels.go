package agent

import (
	"cmp"
	"math"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// buildTunnels writes the spec of each driver: the devices that the rotation
// machine wants, and on each of them the pairs that it wants there.
func (b *build) buildTunnels() {
	b.out.Tunnels = map[string]tunnel.Spec{}
	mtu := b.deviceMTU()
	ports := b.takenPorts()
	for _, e := range b.in.Tunnels.Plan.Devices {
		driver, port := b.deviceOf(e, ports)
		if driver == "" {
			continue // no driver works; reported
		}
		ports[port] = true
		spec := b.out.Tunnels[driver]
		spec.Devices = append(spec.Devices, tunnel.Device{Epoch: e, Lane: lane, Port: port, MTU: b.keptMTU(e, mtu)})
		b.out.Tunnels[driver] = spec
	}
	for driver, spec := range b.out.Tunnels {
		spec.Peers = b.peersOn(spec.Devices)
		b.out.Tunnels[driver] = spec
	}
}

// deviceMTU is what every tunnel device takes: the largest frame that any node
// may send into one of this node's networks. A smaller mtu in this node's own
// configuration does not count, since the others do not know it. What is too
// large for one peer is kept back by the networks shared with that peer.
func (b *build) deviceMTU() int {
	mtu := tunnel.MinMTU
	for _, n := range b.nets {
		if n.has(true) && n.wanted {
			mtu = max(mtu, n.fits+vxlanOverheadV6)
		}
	}
	// Where a way was found to be narrow, devices stay as wide as the link, so that it
	// can be tried whether it still is. Networks are narrower, so nothing else
	// is sent that is as large.
	for _, p := range b.peers {
		if p.link != nil && b.in.Underlay.Limits[p.link.to.Control.Addr()] > 0 {
			mtu = max(mtu, b.topFrame(p))
		}
	}
	return min(mtu, tunnel.MaxMTU)
}

// topFrame is the largest packet that this node's own link and route would let
// through the tunnel to a peer.
func (b *build) topFrame(p *peer) int {
	mtu := min(b.in.Underlay.Own[p.link.own].MTU, math.MaxUint16)
	if r, ok := b.in.Underlay.Routes[p.link.to.Control.Addr()]; ok && r.MTU > 0 {
		mtu = min(mtu, r.MTU)
	}
	return min(mtu-tunnel.Overhead(p.link.to.Control.Addr()), tunnel.MaxMTU)
}

// keptMTU is the MTU of an epoch's device. One that is wider by no more than ESP
// in UDP takes stays as it is. When a pair goes over to that form the networks
// of all nodes become narrower, each node's at its own time; a device that
// followed at once would swallow what others, and this node's own endpoints,
// send in the former size for a moment longer.
func (b *build) keptMTU(e ids.Epoch, mtu int) int {
	for _, d := range b.in.Tunnels.Devices {
		if d.Epoch == e && d.Lane == lane && d.MTU > mtu && d.MTU <= mtu+inUDPMore {
			return d.MTU
		}
	}
	return mtu
}

// inUDPMore is by how many bytes ESP in UDP is longer than the overhead that
// networks reckon with, at most.
const inUDPMore = 5

// frameTo is the largest packet that goes through the tunnel to a peer. Both
// sides derive it from the records of the networks that they share.
func (b *build) frameTo(p *peer) int {
	size := 0
	for _, n := range b.nets {
		if n.has(true) && n.wanted && slices.Contains(n.agreed, p) {
			size = max(size, n.fits+vxlanOverheadV6)
		}
	}
	// Where the underlay is too narrow for a network, which is reported, the
	// pair proves what there is room for.
	return min(size, p.link.mtu-tunnel.Overhead(p.link.to.Control.Addr()), tunnel.MaxMTU)
}

// takenPorts are the ports of the devices that stay.
func (b *build) takenPorts() map[uint16]bool {
	taken := map[uint16]bool{}
	for _, d := range b.in.Tunnels.Devices {
		if slices.Contains(b.in.Tunnels.Plan.Devices, d.Epoch) {
			taken[d.Port] = true
		}
	}
	return taken
}

// deviceOf returns the driver and the port of an epoch's device: those it has,
// or for a new one the driver of the target epoch and the first free of the
// MaxEpochs ports from data.port on. The kernel's ESP needs none of them: in UDP all
// of its devices have the one port that is the driver's own.
func (b *build) deviceOf(e ids.Epoch, taken map[uint16]bool) (driver string, port uint16) {
	base := b.in.Config.Data.Port
	inRange := func(p uint16) bool { return p >= base && p-base < rotate.MaxEpochs }
	if i := slices.IndexFunc(b.in.Tunnels.Devices, func(d OwnDevice) bool { return d.Epoch == e && d.Lane == lane }); i >= 0 {
		d := b.in.Tunnels.Devices[i]
		driver = d.Driver
		if inRange(d.Port) {
			port = d.Port
		}
	}
	if driver == "" {
		driver = b.driverOf(e)
	}
	if e == b.in.Tunnels.Target && b.in.Tunnels.Replace {
		driver = b.in.Tunnels.Driver
	}
	if driver == config.DriverIPsec {
		return driver, 0
	}
	for p := base; port == 0 && inRange(p); p++ {
		if !taken[p] {
			port = p
		}
	}
	return driver, port
}

// driverOf returns the driver for a new device: that of the target, and for an
// epoch that this node has missed one that can talk to what its peers have there.
func (b *build) driverOf(e ids.Epoch) string {
	if e == b.in.Tunnels.Target {
		return b.in.Tunnels.Driver
	}
	for _, p := range b.peers {
		for _, t := range p.tunnels {
			i := slices.IndexFunc(b.in.Tunnels.Devices, func(d OwnDevice) bool { return d.meet(t).ok })
			if t.Epoch == e && i >= 0 {
				return b.in.Tunnels.Devices[i].Driver
			}
		}
	}
	return b.in.Tunnels.Driver
}

// peersOn lists the peers that the rotation machine wants on devices.
func (b *build) peersOn(devices []tunnel.Device) []tunnel.Peer {
	peers := map[ids.NodeID]*tunnel.Peer{}
	for _, pair := range b.in.Tunnels.Plan.Pairs {
		if !slices.ContainsFunc(devices, func(d tunnel.Device) bool { return d.Epoch == pair.Epoch }) {
			continue
		}
		key, ok := b.peerKey(pair)
		if !ok {
			continue // its secret is gone; the machine notices, and the pair agrees on another
		}
		p := peers[pair.Peer]
		if p == nil {
			p = &tunnel.Peer{ID: pair.Peer, Inner: pair.Peer.InnerAddr()}
			peers[pair.Peer] = p
		}
		p.Keys = append(p.Keys, key)
	}
	var out []tunnel.Peer
	for _, p := range peers {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(x, y tunnel.Peer) int { return x.ID.Compare(y.ID) })
	return out
}

// peerKey is what a device holds for a pair. It reports false if that cannot
// be said: the pair's secret is neither installed nor held, or it is held for a
// device that the peer's record does not name (any more).
func (b *build) peerKey(pair rotate.Pair) (tunnel.PeerKey, bool) {
	key := tunnel.PeerKey{Epoch: pair.Epoch, Lane: lane, Key: pair.Key}
	device, ok := b.in.Tunnels.device(pair.Epoch)
	if !ok {
		return key, false
	}
	have, installed := b.in.Tunnels.installed(pair.Peer, pair.Epoch)
	installed = installed && have.Key == pair.Key
	held, isHeld := b.in.Tunnels.Held[heldKey{pair.Peer, pair.Epoch}]
	isHeld = isHeld && held.Key == pair.Key
	if !installed && !isHeld {
		return key, false
	}
	if isHeld {
		key.Secret = held.Secret
	}
	way, known := b.wayTo(pair)
	if device.Wire.ESP() {
		m := device.alone()
		if they := device.meet(way.Tunnel); known && they.ok {
			m = they
		}
		key.ESP = espOf(pair, way, have, held, isHeld)
		if key.ESP.InUDP = m.inUDP(key.ESP.InUDP); key.ESP.InUDP {
			key.ESP.Port = cmp.Or(way.Port, have.Endpoint.Port())
		}
		return key, key.ESP.Local.IsValid() && key.ESP.Remote.IsValid()
	}
	initiates := b.in.Self.ID.Compare(pair.Peer) < 0 && !pair.Draining
	switch {
	case known && (!installed || way.Public == have.Public):
		key.Public = way.Public
		// The lower ID initiates: its entry alone carries an endpoint, from
		// when the peer is ready to answer until nobody sends here.
		if initiates && pair.Send {
			key.Endpoint = netip.AddrPortFrom(way.Remote, way.Port)
		}
	case installed:
		// What the records do not say (any more), or not yet, stays as it is:
		// a secret is installed with the public key that it was agreed for.
		key.Public = have.Public
		if initiates {
			key.Endpoint = have.Endpoint
		}
	}
	return key, !key.Public.IsZero()
}

// way is where a pair's packets go on the underlay, and to which device.
type way struct {
	Local, Remote netip.Addr
	record.Tunnel
	locals, remotes []netip.Addr // every address that either side has
}

// keeps reports whether associations stay where they are: their addresses
// still are addresses of the two nodes. Associations that move are made anew,
// so a further address, which changes what a pair would choose, moves none.
func (w way) keeps(have tunnel.PeerState) bool {
	return slices.Contains(w.locals, have.Local) && slices.Contains(w.remotes, have.Endpoint.Addr())
}

// wayTo finds the device of a peer that a pair is about, in the peer's record.
func (b *build) wayTo(pair rotate.Pair) (way, bool) {
	i, ok := slices.BinarySearchFunc(b.peers, pair.Peer, func(p *peer, id ids.NodeID) int { return p.ID.Compare(id) })
	if !ok || b.peers[i].link == nil {
		return way{}, false
	}
	p := b.peers[i]
	w := way{Local: b.in.Underlay.Own[p.link.own].Control.Addr(), Remote: p.link.to.Control.Addr()}
	for _, o := range b.in.Underlay.Own {
		w.locals = append(w.locals, o.Control.Addr())
	}
	for _, u := range p.Record.Underlay {
		w.remotes = append(w.remotes, u.Control.Addr())
	}
	for _, t := range p.tunnels {
		if t.Epoch == pair.Epoch {
			w.Tunnel = t
			return w, true
		}
	}
	return w, false
}

// espOf describes the associations of a pair. The sending half comes with
// pair.Send and stays from then on.
func espOf(pair rotate.Pair, w way, have tunnel.PeerState, held Held, isHeld bool) tunnel.ESP {
	esp := tunnel.ESP{In: have.In, Out: have.Out, InUDP: have.InUDP, Local: cmpAddr(w.Local, have.Local), Remote: cmpAddr(w.Remote, have.Endpoint.Addr())}
	if w.keeps(have) {
		esp.Local, esp.Remote = have.Local, have.Endpoint.Addr()
	}
	if isHeld {
		esp.In, esp.Out, esp.InUDP = held.In, held.Out, held.InUDP
		if !pair.Send && have.Out != held.Out {
			esp.Out = 0
		}
	}
	return esp
}

// cmpAddr returns the first address that is one.
func cmpAddr(a, b netip.Addr) netip.Addr {
	if a.IsValid() {
		return a
	}
	return b
}

// observe writes down for the rotation machine what this node has and wants.
func (in Input) observe(out Output, target rotate.Observation) rotate.Observation {
	o := target
	for _, n := range in.Config.Networks {
		o.Enabled = o.Enabled || n.Tunnelled()
	}
	inner := map[netip.Addr]ids.NodeID{}
	for addr, id := range in.Tunnels.Former {
		inner[addr] = id
	}
	records := map[ids.NodeID]record.Node{}
	for _, m := range in.Members {
		inner[m.ID.InnerAddr()], records[m.ID] = m.ID, m.Record
	}
	for _, p := range out.Pairs {
		o.Peers = append(o.Peers, in.Tunnels.seen(p, records[p.ID]))
	}
	for _, d := range in.Tunnels.Devices {
		if _, ok := in.Tunnels.device(d.Epoch); !ok {
			continue
		}
		own := rotate.Device{Epoch: d.Epoch, Instance: instance(in.Self.Previous, d), Wire: uint8(d.Wire)}
		o.Devices = append(o.Devices, own)
		for _, p := range d.Peers {
			id, known := inner[p.Inner]
			if !known {
				continue // of nobody; the driver removes it
			}
			if in.half(id, d, p) {
				continue
			}
			o.Installed = append(o.Installed, rotate.Installed{
				Peer: id, Device: own, Theirs: instanceOf(records[id], d, p.Public), Key: p.Key, Forms: d.Forms && in.meeting(id, d.Epoch).choice, RxBytes: p.RxBytes,
				Sends: p.Out != 0 || d.Wire == record.WireWireGuard && (in.Self.ID.Compare(id) > 0 || p.Endpoint.IsValid()),
			})
		}
	}
	slices.SortFunc(o.Devices, func(x, y rotate.Device) int { return cmp.Compare(x.Epoch, y.Epoch) })
	return o
}

// half reports whether a pair's ESP can receive and never will send: its secret
// was lost, with a former agent, between the two halves.
func (in Input) half(id ids.NodeID, d OwnDevice, p tunnel.PeerState) bool {
	held, ok := in.Tunnels.Held[heldKey{id, d.Epoch}]
	return d.Wire.ESP() && p.Out == 0 && (!ok || held.Key != p.Key)
}

// instanceOf returns the instance of a peer's device to which an installed key
// belongs, as far as the peer's record names that key; else 0. A record that
// names another key proves nothing: after a restart it may come from the cache
// and be older than what is installed, and what it says of a newer device is
// for the rotation machine to judge. ESP has no public keys that would tell.
func instanceOf(r record.Node, d OwnDevice, public keys.TunnelPublic) uint32 {
	for _, t := range theirTunnels(r) {
		if t.Epoch == d.Epoch && t.Lane == d.Lane && t.Wire == d.Wire && t.Public == public && !public.IsZero() {
			return t.Instance
		}
	}
	return 0
}
