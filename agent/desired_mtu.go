package agent

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// What VXLAN adds to a packet of an overlay network: the frame's Ethernet
// header (14), VXLAN (8), UDP (8) and the IP header of the VTEP's family.
const (
	vxlanOverheadV4 = 14 + 8 + 8 + 20
	vxlanOverheadV6 = 14 + 8 + 8 + 40
)

// noUnderlayMTU is assumed while no underlay address is known.
const noUnderlayMTU = 1500

// measure finds how wide this node's underlay is: each own address has the
// MTU of the narrowest route from it to a node it is connected with. That is
// what the record says.
func (b *build) measure() {
	b.ownMTU = make([]int, len(b.in.Underlay.Own))
	for i, o := range b.in.Underlay.Own {
		b.ownMTU[i] = min(o.MTU, math.MaxUint16)
	}
	links := b.links()
	for _, l := range links {
		if r, ok := b.in.Underlay.Routes[l.to.Control.Addr()]; ok && r.MTU > 0 {
			b.ownMTU[l.own] = min(b.ownMTU[l.own], r.MTU)
		} else if !ok {
			b.problem("no-route", l.peer.ID.String(),
				fmt.Sprintf("this host has no route to %s of node %s", l.to.Control.Addr(), l.peer.title()),
				"add a route on this host, or correct control.advertise of node "+l.peer.title())
		}
	}
	for _, l := range links {
		// A way that carries less than it should is as a link that does: by the
		// record all nodes of its networks hear of it.
		if m := b.in.Underlay.Limits[l.to.Control.Addr()]; m > 0 {
			b.ownMTU[l.own] = min(b.ownMTU[l.own], m)
		}
	}
	for _, l := range links {
		l.mtu = b.ownMTU[l.own]
		if l.to.MTU > 0 {
			l.mtu = min(l.mtu, int(l.to.MTU))
		}
	}
	for _, n := range b.nets {
		// Links by tunnels are copies of their peer's.
		for i, l := range n.links {
			if l.tunnel {
				n.links[i] = *l.peer.link
			}
		}
		if n.wanted {
			b.deriveMTU(n)
		}
	}
}

// links returns every link that is in use, each once.
func (b *build) links() []*link {
	var out []*link
	for _, p := range b.peers {
		if p.link != nil {
			out = append(out, p.link)
		}
	}
	for _, n := range b.nets {
		for i := range n.links {
			if !n.links[i].tunnel {
				out = append(out, &n.links[i])
			}
		}
	}
	return out
}

// width is the underlay of one node of a network, in its order of preference.
type width struct {
	who string
	is4 []bool
	mtu []int // 0: unknown
}

// deriveMTU sets a network's MTU: the narrowest underlay of any of its nodes,
// minus what is added on the way. All nodes of the network compute it from
// the same records and so come to the same number, although a narrow route is
// seen from one side only. Different numbers on two nodes would lose packets:
// the receiving side's bridge drops what its own MTU does not allow.
func (b *build) deriveMTU(n *network) {
	underlay, who, is4 := b.narrowest(n)
	derived := underlay - b.cost(n, is4)
	from := fmt.Sprintf("underlay %d of %s", underlay, who)
	if n.Tunnelled() {
		from += fmt.Sprintf(" - %d tunnel - %d vxlan", tunnelOverhead(is4), vxlanOverheadV6)
	} else {
		from += fmt.Sprintf(" - %d vxlan", b.cost(n, is4))
	}
	floor := config.MinMTU
	for _, s := range n.Subnets {
		if s.Addr().Is6() {
			floor = config.MinMTU6
		}
	}
	if derived < floor {
		b.problem("mtu-too-small", n.Name,
			fmt.Sprintf("network %s needs packets of %d bytes, but there is room for %d: %s; larger packets are fragmented or lost", n.Name, floor, derived, from),
			fmt.Sprintf("raise the MTU of the underlay of %s by %d bytes", who, floor-derived))
		derived = floor
	} else if more := padding(derived + vxlanOverheadV6); n.Tunnelled() && more > 0 {
		derived = max(floor, derived-more)
		from += fmt.Sprintf(" - %d padding", more)
	}
	n.mtu, n.fits, n.from = derived, derived, from
	switch {
	case n.MTU == 0:
	case n.MTU <= derived:
		n.mtu, n.from = n.MTU, "config"
	default:
		b.problem("mtu-too-large", n.Name,
			fmt.Sprintf("network %s has mtu %d in the configuration, but there is room for %d: %s; %d is used", n.Name, n.MTU, derived, from, derived),
			fmt.Sprintf("set mtu of network %s to at most %d, or remove it", n.Name, derived))
	}
}

// padding is by how much a packet in the tunnel has to be shorter than what there is
// room for. WireGuard fills it up to a multiple of 16 bytes, but not beyond the MTU of
// the device, which is no less than tunnel.MinMTU: where there is room for less,
// nothing else keeps it from being cut on the underlay.
func padding(room int) int {
	if room >= tunnel.MinMTU || room < 0 {
		return 0
	}
	return room % 16
}

// narrowest returns the least underlay MTU of the nodes of a network, whose
// it is, and the family that its packets travel on at worst.
func (b *build) narrowest(n *network) (mtu int, who string, is4 bool) {
	nodes := b.widths(n)
	first := func(is4 bool) func(width) bool { return func(w width) bool { return w.is4[0] != is4 } }
	only := func(width, int) bool { return true } // mixed: any address may be used
	switch {
	case !n.Tunnelled():
		// Each pair uses IPv4 if both nodes have it. What is for all of them fits
		// every way that some pair uses.
		is4 = !slices.ContainsFunc(nodes, func(w width) bool { return !slices.Contains(w.is4, true) })
		only = func(w width, i int) bool { return w.is4[i] || !is4 }
	case len(nodes) > 0 && !slices.ContainsFunc(nodes, first(true)):
		is4 = true
		only = func(_ width, i int) bool { return i == 0 }
	case !slices.ContainsFunc(nodes, first(false)):
		only = func(_ width, i int) bool { return i == 0 }
	}
	for _, w := range nodes {
		for i, m := range w.mtu {
			if m > 0 && only(w, i) && (mtu == 0 || m < mtu) {
				mtu, who = m, w.who
			}
		}
	}
	if mtu == 0 {
		return noUnderlayMTU, "an unknown link", is4
	}
	return mtu, who, is4
}

// widths lists this node and those it agrees with, as far as they say where
// they are.
func (b *build) widths(n *network) []width {
	var out []width
	own := width{who: "this node"}
	for i, o := range b.in.Underlay.Own {
		own.is4, own.mtu = append(own.is4, o.Control.Addr().Is4()), append(own.mtu, b.ownMTU[i])
	}
	if len(own.mtu) > 0 {
		out = append(out, own)
	}
	for _, p := range n.agreed {
		w := width{who: p.title()}
		for _, u := range p.Record.Underlay {
			w.is4, w.mtu = append(w.is4, u.Control.Addr().Is4()), append(w.mtu, int(u.MTU))
		}
		if len(w.mtu) > 0 {
			out = append(out, w)
		}
	}
	return out
}

// tunnelOverhead is what a tunnel may add on an underlay of a family. It is one
// number for all drivers, so that a network keeps its MTU when its keys, or
// its driver, change.
func tunnelOverhead(is4 bool) int {
	if is4 {
		return tunnel.Overhead(netip.IPv4Unspecified())
	}
	return tunnel.Overhead(netip.IPv6Unspecified())
}

// cost is what is added to a packet of a network on an underlay of a family.
func (b *build) cost(n *network, is4 bool) int {
	switch {
	case n.Tunnelled(): // also while it has both forms: one MTU fits both
		return tunnelOverhead(is4) + vxlanOverheadV6
	case is4:
		return vxlanOverheadV4
	default:
		return vxlanOverheadV6
	}
}

// burst is vxlan.Spec.Burst of an encrypted network: as many full segments of TCP as go, in
// VXLAN in ESP, into one call of the kernel by an encrypting process, which takes a 64 KiB datagram
// and cuts it (UDP_SEGMENT). One segment more would be a second call, on both nodes; for drivers
// in the kernel it changes next to nothing.
func burst(mtu int) int {
	const (
		datagram = 1<<16 - 1 - 40 - 8
		esp      = 8 + 8 + 3 + 2 + 16 // without outer headers
		headers  = 40 + 32            // IPv6, TCP with timestamps
		reserve  = 320                // that Linux keeps for headers (MAX_TCP_HEADER)
	)
	segments := max(1, datagram/(mtu+vxlanOverheadV6+esp))
	return segments*(mtu-headers) + reserve
}
