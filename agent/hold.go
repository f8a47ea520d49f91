package agent

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// hold adds to out what the previous agent had set and out does not mention.
// It is for the time after a restart in which this node may not know all
// records yet: adding what is new is right then, removing is not. Nothing
// that out says is changed, except that an MTU does not grow. The tunnels
// themselves are held by the rotation machine (rotate.Observation.Partial).
//
// It cannot connect what should not be: every line of last was once derived
// from signed records and this configuration's networks, an encrypted network
// stays in the secure namespace, and the time is short (see loop.holding).
func hold(out Output, last applied) Output {
	if len(out.Tunnels) > 0 && last.Node == out.Record.ID {
		out.Secure = holdSecure(out.Secure, last, out.Networks)
	}
	out.Record.Underlay = slices.Clone(out.Record.Underlay)
	for i, u := range out.Record.Underlay {
		// A narrow route to a node that is not known yet would be forgotten,
		// and every other node would widen its networks for a moment.
		for _, l := range last.Record.Underlay {
			if l.Control == u.Control {
				out.Record.Underlay[i].MTU = min(u.MTU, l.MTU)
			}
		}
	}
	out.Record.Networks = slices.Clone(out.Record.Networks)
	for i := range out.Record.Networks {
		out.Record.Networks[i].Moved = false // there may be nodes that are not known
	}
	out.Networks = slices.Clone(out.Networks)
	for i, n := range out.Networks {
		for _, l := range last.Networks {
			if l.Network == n.Network && l.VNI == n.VNI {
				out.Networks[i] = holdNetwork(n, l)
			}
		}
	}
	return out
}

// holdSecure keeps routes, and memberships of encrypted networks that this
// node still has. A VNI alone does not name a network: the configuration may
// have given it to another one, whose members are others.
func holdSecure(now secure.Spec, last applied, networks []vxlan.Spec) secure.Spec {
	now.Routes = slices.Clone(now.Routes)
	for _, r := range last.Secure.Routes {
		if !slices.ContainsFunc(now.Routes, func(q secure.Route) bool { return q.Peer == r.Peer }) {
			now.Routes = append(now.Routes, r)
		}
	}
	now.Members = slices.Clone(now.Members)
	for _, m := range last.Secure.Members {
		has := slices.ContainsFunc(networks, func(n vxlan.Spec) bool {
			return n.Way(true) != nil && n.VNI == m.VNI && slices.ContainsFunc(last.Networks, func(l vxlan.Spec) bool {
				return l.Way(true) != nil && l.VNI == n.VNI && l.Network == n.Network
			})
		})
		if has && !slices.Contains(now.Members, m) {
			now.Members = append(now.Members, m)
		}
	}
	slices.SortFunc(now.Routes, func(a, b secure.Route) int { return a.Peer.Compare(b.Peer) })
	slices.SortFunc(now.Members, func(a, b secure.Member) int {
		return cmp.Or(a.Inner.Compare(b.Inner), cmp.Compare(a.VNI, b.VNI))
	})
	return now
}

// holdNetwork keeps what is behind the devices that a network had and still has, and
// those of a further family, which is needed for nodes that are not known yet.
func holdNetwork(now, last vxlan.Spec) vxlan.Spec {
	kept := map[bool][]netip.Addr{} // what forms sent from, by whether they are encrypted
	for _, encrypted := range []bool{true, false} {
		is, was := now.Way(encrypted), last.Way(encrypted)
		if is == nil || was == nil {
			continue
		}
		held := *is
		held.Flood = slices.Clone(is.Flood)
		for _, local := range was.Locals() {
			same := func(a netip.Addr) bool { return a.Is4() == local.Is4() }
			switch {
			case !slices.ContainsFunc(held.Locals(), same) && !encrypted:
				held.Also = local
			case !slices.Contains(held.Locals(), local):
				continue
			}
			kept[encrypted] = append(kept[encrypted], local)
			for _, v := range was.Flood {
				if same(v) && !slices.Contains(held.Flood, v) {
					held.Flood = append(held.Flood, v)
				}
			}
		}
		slices.SortFunc(held.Flood, netip.Addr.Compare)
		now = now.With(encrypted, held)
	}
	if len(kept) == 0 {
		return now
	}
	now.MTU = min(now.MTU, last.MTU)

	macs, addrs := map[ids.MAC]bool{}, map[netip.Addr]bool{}
	for _, r := range now.Remotes {
		macs[r.MAC] = true
		for _, a := range r.Addrs {
			addrs[a] = true
		}
	}
	for _, e := range now.Endpoints {
		macs[e.MAC] = true
		for _, p := range e.Addrs {
			addrs[p.Addr()] = true
		}
	}
	now.Remotes = slices.Clone(now.Remotes)
	for _, r := range last.Remotes {
		if macs[r.MAC] || slices.ContainsFunc(r.Addrs, func(a netip.Addr) bool { return addrs[a] }) {
			continue // it has moved
		}
		encrypted := last.Encrypted != r.Other
		if !slices.ContainsFunc(kept[encrypted], func(a netip.Addr) bool { return a.Is4() == r.VTEP.Is4() }) {
			continue
		}
		r.Other = encrypted != now.Encrypted
		now.Remotes = append(now.Remotes, r)
	}
	slices.SortFunc(now.Remotes, func(a, b vxlan.Remote) int { return bytes.Compare(a.MAC[:], b.MAC[:]) })
	return now
}
