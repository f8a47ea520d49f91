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
	for _, e := range b.in.Tunnels.Plan.Devices {
		if d, ok := b.in.Tunnels.device(e); ok {
			r.Tunnels = append(r.Tunnels, record.Tunnel{
				Epoch: e, Lane: lane, Instance: instance(b.in.Self.Previous, d), Wire: d.Wire, Public: d.Public, Port: d.Port,
			})
		}
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
