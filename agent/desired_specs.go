package agent

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// buildSecure writes what the secure namespace lets through, and the way to
// each peer: through the device that the rotation machine has chosen, and for
// probes through those that are being tried.
func (b *build) buildSecure() {
	b.out.Secure = secure.Spec{Inner: b.in.Self.ID.InnerAddr(), VXLANPort: b.in.Config.Data.VXLANPort}
	for _, pair := range b.in.Tunnels.Plan.Pairs {
		d, ok := b.in.Tunnels.device(pair.Epoch)
		if !ok {
			continue
		}
		route := secure.Route{Peer: pair.Peer.InnerAddr(), Device: d.Name}
		if pair.Main {
			b.out.Secure.Routes = append(b.out.Secure.Routes, route)
		}
		if pair.Probe {
			b.out.Secure.Probes = append(b.out.Secure.Probes, route)
		}
	}
	for _, n := range b.nets {
		for _, p := range b.admitted(n) {
			b.out.Secure.Members = append(b.out.Secure.Members, secure.Member{Inner: p.ID.InnerAddr(), VNI: n.VNI})
		}
	}
	slices.SortFunc(b.out.Secure.Members, func(x, y secure.Member) int {
		return cmp.Or(x.Inner.Compare(y.Inner), cmp.Compare(x.VNI, y.VNI))
	})
}

// admitted lists the nodes whose frames of a network are let in from tunnels. While
// the network gets its encrypted form they are all that are on it, before they have
// it themselves: once this node says that it has it, they may send.
func (b *build) admitted(n *network) []*peer {
	if n.Moving && n.has(true) && n.wanted {
		return n.agreed
	}
	var out []*peer
	for _, l := range n.links {
		if l.tunnel {
			out = append(out, l.peer)
		}
	}
	return out
}

// has reports whether the network is to have a form here.
func (n *network) has(encrypted bool) bool {
	if encrypted {
		return n.Tunnelled() && !n.lame
	}
	return n.Clear()
}

// buildNetworks writes the overlay specs.
func (b *build) buildNetworks() {
	for _, n := range b.nets {
		if !n.wanted {
			continue
		}
		s, ok := b.ways(n)
		if !ok {
			continue // a plaintext network without any underlay address; reported
		}
		for _, e := range n.local {
			s.Endpoints = append(s.Endpoints, vxlan.Endpoint{
				ID: e.ID, MAC: e.mac, Addrs: e.Addrs, Netns: e.Netns, NsID: e.NsID, Ifname: e.Ifname, Ways: e.Ways,
			})
		}
		if e, ok := b.gatewayOf(n); ok {
			s.Endpoints = append(s.Endpoints, e)
		}
		slices.SortFunc(s.Remotes, func(x, y vxlan.Remote) int { return bytes.Compare(x.MAC[:], y.MAC[:]) })
		slices.SortFunc(s.Endpoints, func(x, y vxlan.Endpoint) int { return cmp.Compare(x.ID, y.ID) })
		b.out.Networks = append(b.out.Networks, s)
	}
	slices.SortFunc(b.out.Networks, func(x, y vxlan.Spec) int { return cmp.Compare(x.Network, y.Network) })
}

// ways begins the spec of a network: its devices, and which remotes are behind which.
func (b *build) ways(n *network) (vxlan.Spec, bool) {
	s := vxlan.Spec{
		Network: n.Name, VNI: n.VNI, Encrypted: n.Encrypted && !n.lame, Port: b.in.Config.Data.VXLANPort, MTU: n.mtu,
	}
	forms := map[bool]*vxlan.Way{} // by whether it is encrypted
	if n.has(true) {
		s.Burst = burst(n.mtu)
		forms[true] = &vxlan.Way{Local: b.in.Self.ID.InnerAddr()}
	}
	if n.has(false) && len(n.vteps) > 0 {
		forms[false] = &vxlan.Way{Local: n.vteps[0]}
		if len(n.vteps) > 1 {
			forms[false].Also = n.vteps[1]
		}
	}
	if forms[s.Encrypted] == nil {
		s.Encrypted = !s.Encrypted
	}
	main := forms[s.Encrypted]
	if main == nil {
		return s, false
	}
	links := map[ids.NodeID]link{}
	for _, l := range n.links {
		links[l.peer.ID] = l
		way := forms[l.tunnel]
		if !n.NoBroadcast {
			way.Flood = append(way.Flood, l.vtep())
		}
	}
	for _, r := range n.remote {
		if l, ok := links[r.node]; ok {
			s.Remotes = append(s.Remotes, vxlan.Remote{MAC: r.mac, Addrs: r.addrs, VTEP: l.vtep(), Other: l.tunnel != s.Encrypted})
		}
	}
	for _, way := range forms {
		slices.SortFunc(way.Flood, netip.Addr.Compare)
		way.Flood = slices.Compact(way.Flood)
	}
	s = s.With(s.Encrypted, *main)
	s.Other = forms[!s.Encrypted]
	return s, true
}

// vtep is the address that frames to the peer are sent to.
func (l link) vtep() netip.Addr {
	if l.tunnel {
		// Never an underlay address: inside the secure namespace only inner
		// addresses have a route, and this is the line that decides where
		// frames of the network are sent.
		return l.peer.ID.InnerAddr()
	}
	return l.to.Control.Addr()
}

// announce says in which forms a node has a network. What others do follows from it:
// they send by a form that this node says it has, and take one away when nobody
// needs it any more. So it is what the kernel has, not what it is to have.
func (b *build) announce(n *network, r *record.Network) {
	r.Encrypted = n.Encrypted != n.Moving // nothing is there yet: what it was so far
	f, ok := b.in.Forms[n.Name]
	switch {
	case !ok || !n.wanted:
	case f.Encrypted && f.Clear:
		r.Encrypted, r.Both = n.Encrypted, true
		// Between nodes without a common family nothing goes in either form.
		apart := len(slices.DeleteFunc(slices.Clone(n.agreed), func(p *peer) bool { return !b.apart(p) }))
		r.Moved = n.Moving && !f.Old && len(n.links)+apart == len(n.agreed) && len(n.agreed) == len(n.alike) &&
			!slices.ContainsFunc(n.links, func(l link) bool { return l.tunnel != n.Encrypted })
	default:
		r.Encrypted = f.Encrypted
	}
}

// buildRecord writes what other nodes learn about this one.
func (b *build) buildRecord() {
	r := record.Node{ID: b.in.Self.ID, Able: b.in.Tunnels.Able}
	for i, o := range b.in.Underlay.Own {
		if len(r.Underlay) < record.MaxEndpoints {
			r.Underlay = append(r.Underlay, record.Underlay{Control: o.Control, MTU: uint16(b.ownMTU[i])}) //nolint:gosec // at most MaxUint16, see measure
		}
	}
	for _, e := range b.in.Tunnels.Plan.Devices {
		if d, ok := b.in.Tunnels.device(e); ok {
			r.Tunnels = append(r.Tunnels, record.Tunnel{
				Epoch: e, Lane: lane, Instance: instance(b.in.Self.Previous, d), Wire: d.Wire, Public: d.Public, Port: d.Port,
			})
		}
	}
	for _, n := range b.nets {
		own := record.Network{
			Name: n.Name, VNI: n.VNI, Subnets: n.Subnets, Blocks: n.blocks, VTEPPort: b.in.Config.Data.VXLANPort,
			Options: n.Options,
		}
		b.announce(n, &own)
		r.Networks = append(r.Networks, own)
		if !n.wanted {
			continue
		}
		for _, e := range n.local {
			if e.Ready {
				a := record.Attached{VNI: n.VNI, MAC: e.mac, Name: e.Name, Services: e.Services}
				for _, p := range e.Addrs {
					a.Addrs = append(a.Addrs, p.Addr())
				}
				r.Attached = append(r.Attached, a)
			}
		}
	}
	b.out.Record = r.Canonical()
}

// instance counts how often the device of an epoch was made anew, from what
// was published last: another key or another wire is another device.
func instance(previous record.Node, d OwnDevice) uint32 {
	for _, t := range previous.Tunnels {
		if t.Epoch == d.Epoch && t.Lane == d.Lane {
			if t.Public == d.Public && t.Wire == d.Wire {
				return t.Instance
			}
			return t.Instance + 1
		}
	}
	return 1
}
