package agent

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// buildTunnel writes the tunnel device, its peers, and what the secure
// namespace lets through.
func (b *build) buildTunnel() {
	b.out.Secure = secure.Spec{Inner: b.in.Self.ID.InnerAddr(), VXLANPort: b.in.Config.Data.VXLANPort}
	mtu, any := tunnel.MinMTU, false
	for _, n := range b.nets {
		if n.Encrypted && n.wanted {
			any = true
			// The device takes the largest frame that a network sends; what
			// is too large for one peer is kept back by the networks shared
			// with that peer.
			mtu = max(mtu, n.mtu+vxlanOverheadV6)
		}
	}
	if !any {
		return
	}
	b.out.Tunnel.Devices = []tunnel.Device{{Epoch: epoch, Lane: lane, Port: b.in.Config.Data.Port, MTU: min(mtu, tunnel.MaxMTU)}}
	device, exists := b.in.Driver.device()
	for _, p := range b.peers {
		if p.link == nil {
			continue
		}
		b.out.Tunnel.Peers = append(b.out.Tunnel.Peers, p.tunnel)
		if exists {
			b.out.Secure.Routes = append(b.out.Secure.Routes, secure.Route{Peer: p.tunnel.Inner, Device: device.Name})
		}
	}
	for _, n := range b.nets {
		for _, l := range n.links {
			if n.Encrypted {
				b.out.Secure.Members = append(b.out.Secure.Members, secure.Member{Inner: l.peer.ID.InnerAddr(), VNI: n.VNI})
			}
		}
	}
	slices.SortFunc(b.out.Secure.Members, func(x, y secure.Member) int {
		return cmp.Or(x.Inner.Compare(y.Inner), cmp.Compare(x.VNI, y.VNI))
	})
}

// buildNetworks writes the overlay specs.
func (b *build) buildNetworks() {
	for _, n := range b.nets {
		if !n.wanted {
			continue
		}
		if n.Encrypted {
			n.vtep = b.in.Self.ID.InnerAddr()
		}
		if !n.vtep.IsValid() {
			continue // a plaintext network without any underlay address; reported
		}
		s := vxlan.Spec{
			Network: n.Name, VNI: n.VNI, Encrypted: n.Encrypted,
			Local: n.vtep, Port: b.in.Config.Data.VXLANPort, MTU: n.mtu,
		}
		vteps := map[ids.NodeID]netip.Addr{}
		for _, l := range n.links {
			vtep := l.to.Control.Addr()
			if n.Encrypted {
				// Never an underlay address: inside the secure namespace
				// only inner addresses have a route, and this is the line
				// that decides where frames of the network are sent.
				vtep = l.peer.ID.InnerAddr()
			}
			vteps[l.peer.ID] = vtep
			s.Flood = append(s.Flood, vtep)
		}
		for _, r := range n.remote {
			if vtep, ok := vteps[r.node]; ok {
				s.Remotes = append(s.Remotes, vxlan.Remote{MAC: r.mac, Addrs: r.addrs, VTEP: vtep})
			}
		}
		for _, e := range n.local {
			s.Endpoints = append(s.Endpoints, vxlan.Endpoint{
				ID: e.ID, MAC: e.mac, Addrs: e.Addrs, Netns: e.Netns, NsID: e.NsID, Ifname: e.Ifname,
			})
		}
		slices.SortFunc(s.Flood, netip.Addr.Compare)
		s.Flood = slices.Compact(s.Flood)
		slices.SortFunc(s.Remotes, func(x, y vxlan.Remote) int { return bytes.Compare(x.MAC[:], y.MAC[:]) })
		slices.SortFunc(s.Endpoints, func(x, y vxlan.Endpoint) int { return cmp.Compare(x.ID, y.ID) })
		b.out.Networks = append(b.out.Networks, s)
	}
	slices.SortFunc(b.out.Networks, func(x, y vxlan.Spec) int { return cmp.Compare(x.Network, y.Network) })
}

// buildRecord writes what other nodes learn about this one.
func (b *build) buildRecord() {
	r := record.Node{ID: b.in.Self.ID}
	for i, o := range b.in.Underlay.Own {
		if len(r.Underlay) < record.MaxEndpoints {
			r.Underlay = append(r.Underlay, record.Underlay{Control: o.Control, MTU: uint16(b.ownMTU[i])}) //nolint:gosec // at most MaxUint16, see measure
		}
	}
	if d, ok := b.in.Driver.device(); ok && len(b.out.Tunnel.Devices) > 0 {
		r.Tunnels = []record.Tunnel{{
			Epoch: epoch, Lane: lane, Instance: b.instance(d), Wire: b.in.Driver.Wire, Public: d.Public, Port: d.Port,
		}}
	}
	for _, n := range b.nets {
		r.Networks = append(r.Networks, record.Network{
			Name: n.Name, VNI: n.VNI, Encrypted: n.Encrypted, Subnets: n.Subnets,
			Blocks: n.blocks, VTEPPort: b.in.Config.Data.VXLANPort,
		})
		if !n.wanted {
			continue
		}
		for _, e := range n.local {
			if e.Ready {
				a := record.Attached{VNI: n.VNI, MAC: e.mac}
				for _, p := range e.Addrs {
					a.Addrs = append(a.Addrs, p.Addr())
				}
				r.Attached = append(r.Attached, a)
			}
		}
	}
	b.out.Record = r.Canonical()
}

// instance counts how often the tunnel device was made anew, from what was
// published last: a new key is a new device.
func (b *build) instance(d tunnel.DeviceState) uint32 {
	for _, t := range b.in.Self.Previous.Tunnels {
		if t.Epoch == epoch && t.Lane == lane {
			if t.Public == d.Public {
				return t.Instance
			}
			return t.Instance + 1
		}
	}
	return 1
}
