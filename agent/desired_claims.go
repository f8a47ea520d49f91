package agent

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// ownEndpoint is an attachment of this node that may be plugged in.
type ownEndpoint struct {
	Attachment
	mac ids.MAC
}

// remoteEndpoint is an accepted endpoint of another node.
type remoteEndpoint struct {
	node  ids.NodeID
	mac   ids.MAC
	addrs []netip.Addr
	names []string // its own first, then its services
}

// claim is an endpoint before it is known who wins.
type claim struct {
	owner
	mac   ids.MAC
	addrs []netip.Addr
	names []string
	own   *Attachment // nil for another node's
}

// settleAddresses decides which node has which address and MAC. Two nodes can
// claim the same one after a partition, or by an explicit address. Then the
// member with the lower certificate serial wins, on every node alike; the
// loser's endpoint is not reachable, and the loser itself unplugs it, because
// it would answer for the address on its own side.
func (b *build) settleAddresses() {
	for _, n := range b.nets {
		claims := b.claims(n)
		slices.SortStableFunc(claims, func(x, y claim) int {
			return cmp.Or(cmp.Compare(x.serial, y.serial), x.node.Compare(y.node), bytes.Compare(x.mac[:], y.mac[:]))
		})
		macs, addrs := map[ids.MAC]ids.NodeID{}, map[netip.Addr]ids.NodeID{}
		lost := newDisputes()
		for _, c := range claims {
			if what, winner, ok := contested(c, macs, addrs); ok {
				lost.add(c.node, winner, what)
				if c.own != nil {
					b.unplug(*c.own, fmt.Sprintf("%s belongs to an endpoint of %s, which is the older member", what, b.title(winner)))
				}
				continue
			}
			// The whole endpoint is accepted or none of it, so that what
			// it loses does not depend on who looks.
			macs[c.mac] = c.node
			for _, a := range c.addrs {
				addrs[a] = c.node
			}
			if c.own != nil {
				n.local = append(n.local, ownEndpoint{Attachment: *c.own, mac: c.mac})
			} else {
				n.remote = append(n.remote, remoteEndpoint{node: c.node, mac: c.mac, addrs: c.addrs, names: c.names})
			}
		}
		lost.report(b, n)
	}
	for _, a := range b.in.Attachments {
		if _, ok := b.in.Config.Network(a.Network); !ok {
			b.unplug(a, fmt.Sprintf("network %s is not in the configuration any more", a.Network))
		}
	}
	for _, n := range b.nets {
		for _, e := range n.local {
			if !n.wanted {
				b.unplug(e.Attachment, n.reason)
			}
		}
	}
}

// contested reports what of c an earlier claim has, and whose it is.
func contested(c claim, macs map[ids.MAC]ids.NodeID, addrs map[netip.Addr]ids.NodeID) (what string, winner ids.NodeID, ok bool) {
	for _, a := range c.addrs {
		if w, ok := addrs[a]; ok {
			return "address " + a.String(), w, true
		}
	}
	if w, ok := macs[c.mac]; ok {
		return "MAC " + c.mac.String(), w, true
	}
	return "", ids.NodeID{}, false
}

// claims collects the endpoints of a network on this node and on those that
// agree about it.
func (b *build) claims(n *network) []claim {
	var out []claim
	for i := range b.in.Attachments {
		a := &b.in.Attachments[i]
		if a.Network != n.Name {
			continue
		}
		c := claim{owner: b.in.Self.rank(), own: a}
		for _, p := range a.Addrs {
			if !usable(n, p.Addr()) {
				b.unplug(*a, fmt.Sprintf("address %s is not one of network %s any more", p.Addr(), n.Name))
				break
			}
			c.addrs = append(c.addrs, p.Addr())
		}
		if len(c.addrs) < len(a.Addrs) || len(c.addrs) == 0 {
			continue
		}
		c.mac = macOf(n.Network, *a)
		out = append(out, c)
	}
	for _, p := range n.alike {
		bad := 0
		for _, a := range p.Record.Attached {
			if a.VNI != n.VNI {
				continue
			}
			c := claim{owner: p.rank(), mac: a.MAC, names: append([]string{a.Name}, a.Services...)}
			for _, addr := range a.Addrs {
				if usable(n, addr) {
					c.addrs = append(c.addrs, addr)
				}
			}
			if len(c.addrs) < len(a.Addrs) {
				bad++
			}
			if len(c.addrs) > 0 || len(a.Addrs) == 0 {
				out = append(out, c)
			}
		}
		if bad > 0 {
			b.problem("address-invalid", n.Name,
				fmt.Sprintf("network %s: node %s announces %d endpoints with addresses outside the subnets or reserved ones; those addresses are ignored", n.Name, p.title(), bad),
				"look at the endpoints on that node with secure-overlay endpoint ls")
		}
	}
	return out
}

// macOf is the MAC of an endpoint of this node.
func macOf(n config.Network, a Attachment) ids.MAC {
	if a.MAC != (ids.MAC{}) || len(a.Addrs) == 0 {
		return a.MAC
	}
	return ids.EndpointMAC(n.VNI, a.Addrs[0].Addr())
}

// usable reports whether an endpoint of the network may have the address.
func usable(n *network, a netip.Addr) bool {
	for _, s := range n.Subnets {
		if s.Contains(a) {
			return !n.Withheld(s, a)
		}
	}
	return false
}

// subnetOf returns the subnet of a network that contains an address.
func subnetOf(subnets []netip.Prefix, a netip.Addr) (netip.Prefix, bool) {
	i := slices.IndexFunc(subnets, func(s netip.Prefix) bool { return s.Contains(a) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return subnets[i], true
}

func (b *build) unplug(a Attachment, reason string) {
	if _, ok := b.out.View.Endpoints[a.ID]; ok {
		return
	}
	b.out.View.Endpoints[a.ID] = reason
	b.problem("endpoint-unplugged", a.ID,
		fmt.Sprintf("endpoint %s of network %s is not connected: %s", a.ID, a.Network, reason),
		"secure-overlay detach "+a.ID+", then attach it again")
}

// disputes counts lost claims, so that a node with thousands of them makes
// one line for each winner and loser.
type disputes struct {
	order []pair
	first map[pair]string
	count map[pair]int
}

type pair struct{ loser, winner ids.NodeID }

func newDisputes() *disputes {
	return &disputes{first: map[pair]string{}, count: map[pair]int{}}
}

func (d *disputes) add(loser, winner ids.NodeID, what string) {
	p := pair{loser, winner}
	if d.count[p] == 0 {
		d.order = append(d.order, p)
		d.first[p] = what
	}
	d.count[p]++
}

func (d *disputes) report(b *build, n *network) {
	for _, p := range d.order {
		more := ""
		if d.count[p] > 1 {
			more = fmt.Sprintf(" and %d more", d.count[p]-1)
		}
		b.problem("address-dispute", n.Name,
			fmt.Sprintf("network %s: %s and %s both have %s%s; the older member %s keeps it, the other endpoint is not reachable",
				n.Name, b.title(p.winner), b.title(p.loser), d.first[p], more, b.title(p.winner)),
			"detach the endpoint on "+b.title(p.loser)+" and attach it again without --ip")
	}
}
