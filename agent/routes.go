package agent

import (
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// noteRoutes takes over which routes the secure namespace has after Set: those
// of the spec, except the ones that Set blamed.
func (l *loop) noteRoutes() {
	if l.guardFailed {
		return // not known; what was there last stands
	}
	epochs := map[string]ids.Epoch{}
	for _, d := range l.facts.Devices {
		epochs[d.Name] = d.Epoch
	}
	nodes := map[netip.Addr]ids.NodeID{}
	for _, p := range l.facts.Plan.Pairs {
		nodes[p.Peer.InnerAddr()] = p.Peer
	}
	routes := map[ids.NodeID]ids.Epoch{}
	for _, r := range l.out.Secure.Routes {
		id := nodes[r.Peer]
		e, ok := epochs[r.Device]
		if was, had := l.rot.routes[id]; l.routeFailed[r] {
			// Set leaves the former route where it is, if its device lives.
			e, ok = was, had && l.lives(was)
		}
		if ok && !id.IsZero() {
			routes[id] = e
		}
	}
	l.rot.routes = routes
}

func (l *loop) lives(e ids.Epoch) bool {
	_, ok := l.facts.device(e)
	return ok
}

// adoptRoutes reads where a predecessor's routes lead, once, when the devices
// are known.
func (l *loop) adoptRoutes(members []Member) {
	if l.adopted {
		return
	}
	l.adopted = true
	epochs := map[string]ids.Epoch{}
	for _, d := range l.facts.Devices {
		epochs[d.Name] = d.Epoch
	}
	nodes := map[netip.Addr]ids.NodeID{}
	for _, m := range members {
		nodes[m.ID.InnerAddr()] = m.ID
	}
	for _, r := range l.former.Routes {
		id, known := nodes[r.Peer]
		if !known {
			id, known = l.facts.Former[r.Peer]
		}
		if known && epochs[r.Device] != 0 {
			l.rot.routes[id] = epochs[r.Device]
		}
	}
}
