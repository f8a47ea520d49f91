package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// connectPeers gives each member that shares an encrypted network a tunnel,
// or a reason why it gets none. No other way exists for such a network.
func (b *build) connectPeers() {
	wanted := map[*peer]bool{}
	for _, n := range b.nets {
		if !n.has(true) || !n.wanted {
			continue
		}
		for _, p := range n.agreed {
			if tunnelled(theirs(n, p)) {
				wanted[p] = true
			}
		}
	}
	holders := b.keyHolders(wanted)
	for _, p := range b.peers {
		if wanted[p] {
			b.connectPeer(p, holders)
		}
	}
	for _, n := range b.nets {
		if n.Clear() || !n.wanted {
			continue // see connectPlaintext for those with both forms
		}
		for _, p := range n.agreed {
			if p.link != nil {
				n.links = append(n.links, *p.link)
			}
		}
	}
}

func (b *build) connectPeer(p *peer, holders map[keys.TunnelPublic]owner) {
	refuse := func(code, reason, fix string) {
		p.refusal = reason
		b.problem(code, p.ID.String(), fmt.Sprintf("no tunnel to node %s: %s", p.title(), reason), fix)
	}
	l, ok := b.pairUp(p)
	if !ok {
		return // see nameApart
	}
	if len(theirTunnels(p.Record)) == 0 {
		refuse("peer-incompatible", "it has no tunnel device that this node can talk to", "see secure-overlay doctor on node "+p.title())
		return
	}
	for _, t := range theirTunnels(p.Record) {
		// Two entries with one key would fight for the allowed addresses of one
		// WireGuard peer, so that a member could cut off another by publishing
		// its key. The older member keeps it; whoever lies is named by its own
		// signature.
		if o, taken := holders[t.Public]; taken && o.node != p.ID {
			refuse("tunnel-key-dispute", "it announces the tunnel key of "+b.title(o.node), "find out which of the two nodes is not what it claims to be")
			continue
		}
		p.tunnels = append(p.tunnels, t)
	}
	if len(p.tunnels) == 0 {
		return
	}
	l.tunnel = true
	p.link = &l
	pair := rotate.Peer{ID: p.ID}
	for _, t := range p.tunnels {
		pair.Devices = append(pair.Devices, deviceIn(t))
	}
	b.out.Pairs = append(b.out.Pairs, pair)
	b.followPair(p)
}

// followPair turns what the rotation machine says about a pair into a line of
// the status, where it needs somebody to do something.
func (b *build) followPair(p *peer) {
	i := slices.IndexFunc(b.in.Tunnels.Plan.Progress, func(g rotate.Progress) bool { return g.Peer == p.ID })
	if i < 0 {
		return
	}
	switch g := b.in.Tunnels.Plan.Progress[i]; {
	case g.Step == rotate.StepRefused:
		p.refusal = g.Reason
		fix := "set the same driver for the network on both nodes, or rotate to one that both have: secure-overlay keys rotate --driver auto"
		if node := b.withoutUDP(p); node != "" {
			fix = "set ipsec.encap: auto on " + node + " and start its agent again; or " + fix
		}
		b.problem("peer-incompatible", p.ID.String(), fmt.Sprintf("no tunnel to node %s: %s", p.title(), b.incompatible(p)), fix)
	case g.Tx != 0 && !g.FullMTU && b.in.Underlay.Limits[p.link.to.Control.Addr()] == 0:
		b.problem("mtu-black-hole", p.ID.String(),
			fmt.Sprintf("packets of full size do not reach node %s through the tunnel, small ones do: something on the underlay swallows them; what passes is being looked for", p.title()),
			"wait some seconds; or lower the MTU of this host's underlay link to what the path carries")
	}
}

// keyHolders says who owns each tunnel key: the oldest member that announces
// it, and this node for its own.
func (b *build) keyHolders(wanted map[*peer]bool) map[keys.TunnelPublic]owner {
	holders := map[keys.TunnelPublic]owner{}
	for p := range wanted {
		for _, t := range theirTunnels(p.Record) {
			if o, ok := holders[t.Public]; !ok || p.rank().before(o) {
				holders[t.Public] = p.rank()
			}
		}
	}
	for _, d := range b.in.Tunnels.Devices {
		holders[d.Public] = b.in.Self.rank()
	}
	// Devices without a key of their own (ESP) have nothing to dispute about.
	delete(holders, keys.TunnelPublic{})
	return holders
}

// theirTunnels lists the devices of a record that make sense: of this version's
// lane, and with what their wire needs.
func theirTunnels(r record.Node) []record.Tunnel {
	var out []record.Tunnel
	for _, t := range r.Tunnels {
		switch {
		case t.Lane != lane:
		case t.Wire == record.WireWireGuard && (t.Public.IsZero() || t.Port == 0):
		case t.Wire == record.WireESPUDP && t.Port == 0:
		case t.Wire == record.WireWireGuard, t.Wire.ESP():
			out = append(out, t)
		}
	}
	return out
}

// incompatible says which devices the two nodes have.
func (b *build) incompatible(p *peer) string {
	list := func(has []string) string {
		if len(has) == 0 {
			return "no tunnel"
		}
		return strings.Join(has, ", ")
	}
	var own, their []string
	for _, d := range b.in.Tunnels.Devices {
		own = append(own, fmt.Sprintf("%s (epoch %d)", wireName(d.Wire), d.Epoch))
	}
	for _, t := range p.Record.Tunnels {
		their = append(their, fmt.Sprintf("%s (epoch %d)", wireName(t.Wire), t.Epoch))
	}
	return fmt.Sprintf("this node speaks %s, it speaks %s", list(own), list(their))
}

// withoutUDP names the node of a pair that takes no ESP in UDP, where the other
// takes nothing else; empty: that is not what keeps them apart.
func (b *build) withoutUDP(p *peer) string {
	for _, t := range p.tunnels {
		d, ok := b.in.Tunnels.device(t.Epoch)
		switch {
		case !ok || d.meet(t).ok:
		case d.Wire == record.WireESP && t.Wire == record.WireESPUDP:
			return "this node"
		case d.Wire == record.WireESPUDP && t.Wire == record.WireESP:
			return "node " + p.title()
		}
	}
	return ""
}

// wireName names a wire protocol for people.
func wireName(w record.Wire) string {
	switch w {
	case record.WireWireGuard:
		return "WireGuard"
	case record.WireESP:
		return "ESP"
	case record.WireESPUDP:
		return "ESP in UDP"
	case record.WireNone:
		return "none"
	default:
		return fmt.Sprintf("protocol %d", w)
	}
}

// pairUp chooses the underlay addresses of a pair: the first address of the
// lower node for which the other has one of the same family. Both sides come
// to the same answer, so both count the same overhead.
func (b *build) pairUp(p *peer) (link, bool) {
	match := func(own int, to record.Underlay) bool {
		return b.in.Underlay.Own[own].Control.Addr().Is4() == to.Control.Addr().Is4()
	}
	if b.in.Self.ID.Compare(p.ID) < 0 {
		for i := range b.in.Underlay.Own {
			for _, to := range p.Record.Underlay {
				if match(i, to) {
					return link{peer: p, own: i, to: to}, true
				}
			}
		}
		return link{}, false
	}
	for _, to := range p.Record.Underlay {
		for i := range b.in.Underlay.Own {
			if match(i, to) {
				return link{peer: p, own: i, to: to}, true
			}
		}
	}
	return link{}, false
}

// nameApart says of each node that shares networks with this one, but no family of the
// underlay, that nothing connects the two: once, and on both of them. It is a
// problem of this pair alone. What is of the cluster reaches both by way of others.
func (b *build) nameApart() {
	if len(b.in.Underlay.Own) == 0 {
		return // reported
	}
	own := make([]netip.Addr, len(b.in.Underlay.Own))
	for i, o := range b.in.Underlay.Own {
		own[i] = o.Control.Addr()
	}
	for _, p := range b.peers {
		if !b.apart(p) {
			continue
		}
		var shared []string
		for _, n := range b.nets {
			if n.wanted && slices.Contains(n.agreed, p) {
				shared = append(shared, n.Name)
			}
		}
		if len(shared) == 0 {
			continue
		}
		var their []netip.Addr
		for _, u := range p.Record.Underlay {
			their = append(their, u.Control.Addr())
		}
		b.problem("no-common-family", p.ID.String(),
			fmt.Sprintf("nothing connects this node with node %s on %s: the two have no underlay address of one family; this node has %s, it has %s",
				p.title(), strings.Join(shared, ", "), families(own), families(their)),
			"give one of the two nodes an address of the other's family; where control.advertise or control.bind names an address, other nodes know no other")
	}
}

// families names those of some addresses, for people.
func families(list []netip.Addr) string {
	v6 := slices.ContainsFunc(list, netip.Addr.Is6)
	switch {
	case len(list) == 0:
		return "no address"
	case !v6:
		return "IPv4 only"
	case slices.ContainsFunc(list, netip.Addr.Is4):
		return "both"
	}
	return "IPv6 only"
}

// apart reports whether this node and a peer have no family of the underlay in common,
// so that nothing can go from one to the other. Both say so by their records.
func (b *build) apart(p *peer) bool {
	_, ok := b.pairUp(p)
	return !ok
}

// connectPlaintext finds the way to the other nodes of each network without
// encryption, and of each that changes it.
func (b *build) connectPlaintext() {
	for _, n := range b.nets {
		if !n.Clear() || !n.wanted {
			continue
		}
		open := map[*peer]link{}
		if len(b.in.Underlay.Own) > 0 {
			open = b.clearLinks(n)
		}
		for _, p := range n.agreed {
			if l, ok := b.choose(n, p, open); ok {
				n.links = append(n.links, l)
			}
		}
	}
}

// clearLinks finds the ways to the nodes of a network that receive it in clear, and
// where this node sends from: IPv4 between two nodes that both have it, else IPv6.
// A pair decides that by its own two records, so both choose the same, and a
// node of another kind that joins changes nothing between those that were there.
// A VXLAN device has one family; where a node needs both, it has two.
func (b *build) clearLinks(n *network) map[*peer]link {
	own := func(is4 bool) int {
		return slices.IndexFunc(b.in.Underlay.Own, func(o OwnAddr) bool { return o.Control.Addr().Is4() == is4 })
	}
	out := map[*peer]link{}
	used := map[bool]bool{} // families, by whether they are IPv4
	for _, p := range n.agreed {
		if !clearOf(theirs(n, p)) {
			continue
		}
		for _, is4 := range []bool{true, false} {
			i, k := own(is4), slices.IndexFunc(p.Record.Underlay, func(u record.Underlay) bool { return isV4(u) == is4 })
			if i >= 0 && k >= 0 {
				out[p], used[is4] = link{peer: p, own: i, to: p.Record.Underlay[k]}, true
				break
			}
		}
	}
	if len(used) == 0 {
		used[own(true) >= 0] = true // nobody is there yet
	}
	for _, is4 := range []bool{true, false} {
		if used[is4] {
			n.vteps = append(n.vteps, b.in.Underlay.Own[own(is4)].Control.Addr())
		}
	}
	return out
}

// choose picks the way by which frames of a network go to a peer: while the network
// changes its form, the new one as soon as the peer receives by it. Of a tunnel it
// has to be proved, too, that packets pass; and the peer says that it has the form
// only when its guard lets in whom it knows to be on the network, in either form.
func (b *build) choose(n *network, p *peer, open map[*peer]link) (link, bool) {
	inClear, ok := open[p]
	tunnel := n.has(true) && p.link != nil && tunnelled(theirs(n, p))
	switch {
	case !n.Moving:
		return inClear, ok
	case tunnel && n.Encrypted && (b.proved(p) || !ok):
		return *p.link, true
	case ok:
		return inClear, true
	case tunnel:
		return *p.link, true
	}
	return link{}, false
}

// proved reports whether the tunnel to a peer carries packets.
func (b *build) proved(p *peer) bool {
	return slices.ContainsFunc(b.in.Tunnels.Plan.Pairs, func(q rotate.Pair) bool { return q.Peer == p.ID && q.Main })
}

func isV4(u record.Underlay) bool { return u.Control.Addr().Is4() }
