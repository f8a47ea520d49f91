package agent

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// members lists everybody that gossip or a record knows, and who has left.
func (l *loop) members() []api.Member {
	var out []api.Member
	snap := l.gossip.Snapshot()
	for _, d := range snap.Left {
		out = append(out, api.Member{
			NodeRef: api.NodeRef{ID: d.ID, Name: d.Hostname}, Self: d.ID == l.identity.ID, State: stateLeft, Left: d.At,
			Inner: d.ID.InnerAddr(), Expires: d.Cert.NotAfter,
		})
	}
	for _, m := range snap.Members {
		if snap.HasLeft(m.ID) {
			continue
		}
		a := api.Member{
			NodeRef: api.NodeRef{ID: m.ID, Name: m.Hostname}, Self: m.ID == l.identity.ID,
			State: m.State.String(), Synced: m.Synced, Addr: m.Addr, Inner: m.ID.InnerAddr(),
			LastSeen: m.LastSeen, Expires: m.Cert.NotAfter, Role: roleName(m.Cert.Roles),
		}
		for _, u := range m.Record.Underlay {
			a.Underlay = append(a.Underlay, u.Control)
		}
		for _, t := range m.Record.Tunnels {
			if name := wireName(t.Wire); !slices.Contains(a.Drivers, name) {
				a.Drivers = append(a.Drivers, name)
			}
		}
		for _, n := range m.Record.Networks {
			a.Networks = append(a.Networks, n.Name)
		}
		slices.Sort(a.Networks)
		out = append(out, a)
	}
	slices.SortFunc(out, func(x, y api.Member) int { return cmp.Or(cmp.Compare(x.Name, y.Name), x.ID.Compare(y.ID)) })
	return out
}

// endpoints lists this node's endpoints, then those of the others.
func (l *loop) endpoints() []api.Endpoint {
	var out []api.Endpoint
	for _, at := range l.attachments {
		out = append(out, l.endpoint(at))
	}
	vteps := map[netip.Addr]api.NodeRef{}
	records := map[ids.NodeID]record.Node{}
	for _, m := range l.gossip.Snapshot().Members {
		vteps[m.ID.InnerAddr()] = api.NodeRef{ID: m.ID, Name: m.Hostname}
		records[m.ID] = m.Record
	}
	for _, v := range l.out.View.Networks {
		n, _ := l.here.Network(v.Name)
		for _, id := range v.Agreed {
			for _, at := range records[id].Attached {
				if at.VNI != n.VNI {
					continue
				}
				e := api.Endpoint{Network: n.Name, Node: vteps[id.InnerAddr()], MAC: at.MAC, State: api.StateOK, Name: at.Name, Services: at.Services}
				if !slices.Contains(v.Connected, id) {
					e.State, e.Problem = api.StateFailed, "this node has no way to node "+cmp.Or(e.Node.Name, id.Short())
				}
				for _, a := range at.Addrs {
					bits := a.BitLen()
					if s, ok := subnetOf(n.Subnets, a); ok {
						bits = s.Bits()
					}
					e.Addresses = append(e.Addresses, netip.PrefixFrom(a, bits))
				}
				out = append(out, e)
			}
		}
	}
	return out
}

// networkStep is a network's line in the checklist of up.
func networkStep(v NetworkView) Step {
	s := Step{Name: "network " + v.Name, State: StepDone, Detail: "MTU " + strconv.Itoa(v.MTU) + ": " + v.MTUFrom}
	switch {
	case !v.Wanted:
		s.State, s.Detail = StepFailed, v.Reason
	case len(v.Conflicts) > 0:
		c := v.Conflicts[0]
		s.State, s.Detail = StepWarning, c.Field+" is "+c.Here+" here and "+c.There+" on "+cmp.Or(c.Peer.Name, c.Peer.ID.Short())
	}
	return s
}
