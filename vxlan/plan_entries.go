package vxlan

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// entries plans forwarding and neighbour entries. On the way up a frame's path
// is complete before anybody is told of it: VTEP, then bridge port, then the
// neighbour that makes ARP point at it. On the way down the reverse.
func (p *planner) entries() {
	w := p.wanted()
	p.addForwards(w)
	p.addStations(w)
	p.addNeighbours(w)
	p.delNeighbours(w)
	p.delStations(w)
	p.delForwards(w)
}

// table is the desired content of all entry tables.
type table struct {
	forwards   map[ids.MAC]netip.Addr
	flood      map[netip.Addr]bool
	stations   map[ids.MAC]string
	neighbours map[netip.Addr]ids.MAC
}

// wanted builds the tables. Where two records claim one MAC or address the
// agent has decided already; should it not have, a local endpoint wins over a
// remote one and the first over later ones, so that the outcome is stable.
func (p *planner) wanted() table {
	w := table{
		forwards:   make(map[ids.MAC]netip.Addr),
		flood:      make(map[netip.Addr]bool),
		stations:   make(map[ids.MAC]string),
		neighbours: make(map[netip.Addr]ids.MAC),
	}
	for _, e := range sorted(p.want.Endpoints, func(a, b Endpoint) int { return cmp.Compare(a.ID, b.ID) }) {
		setOnce(w.stations, e.MAC, portName(e.ID))
		for _, a := range e.Addrs {
			p.wantNeighbour(w, a.Addr(), e.MAC)
		}
	}
	for _, r := range p.want.Remotes {
		if _, taken := w.stations[r.MAC]; taken || unusable(r.MAC) {
			continue
		}
		w.stations[r.MAC] = deviceName
		w.forwards[r.MAC] = r.VTEP
		for _, a := range r.Addrs {
			p.wantNeighbour(w, a, r.MAC)
		}
	}
	for _, v := range p.want.Flood {
		w.flood[v] = true
	}
	return w
}

// unusable reports a MAC that names no single station: from such a record
// would follow an entry for frames to many.
func unusable(m ids.MAC) bool { return m == ids.MAC{} || m[0]&1 == 1 }

func (p *planner) wantNeighbour(w table, a netip.Addr, m ids.MAC) {
	if a.Is6() && p.want.MTU < minIPv6MTU {
		return // the kernel keeps no IPv6 neighbours on such a link
	}
	setOnce(w.neighbours, a, m)
}

func setOnce[K comparable, V any](m map[K]V, k K, v V) {
	if _, ok := m[k]; !ok {
		m[k] = v
	}
}

func compareMAC(a, b ids.MAC) int { return bytes.Compare(a[:], b[:]) }

// keys returns the keys of a map in order, so that plans are stable.
func keys[K comparable, V any](m map[K]V, compare func(a, b K) int) []K {
	out := make([]K, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.SortFunc(out, compare)
	return out
}

func setOf[T comparable](list []T) map[T]bool {
	m := make(map[T]bool, len(list))
	for _, v := range list {
		m[v] = true
	}
	return m
}

func (p *planner) addForwards(w table) {
	have := setOf(p.have.Forwards)
	for _, v := range keys(w.flood, netip.Addr.Compare) {
		if !have[Forward{VTEP: v}] {
			p.add(Op{Kind: OpAddFlood, VTEP: v})
		}
	}
	for _, m := range keys(w.forwards, compareMAC) {
		if f := (Forward{MAC: m, VTEP: w.forwards[m]}); !have[f] {
			p.add(Op{Kind: OpSetForward, MAC: m, VTEP: f.VTEP})
		}
	}
}

func (p *planner) delForwards(w table) {
	have := sorted(p.have.Forwards, func(a, b Forward) int {
		return cmp.Or(compareMAC(a.MAC, b.MAC), a.VTEP.Compare(b.VTEP))
	})
	for _, f := range have {
		if (f.MAC == ids.MAC{}) {
			if !w.flood[f.VTEP] {
				p.add(Op{Kind: OpDelFlood, VTEP: f.VTEP, Why: dynamic(f.Dynamic)})
			}
			continue
		}
		// A wanted MAC with a wrong VTEP has been replaced by OpSetForward:
		// the kernel keeps one destination for a unicast MAC (measured).
		if _, ok := w.forwards[f.MAC]; !ok {
			p.add(Op{Kind: OpDelForward, MAC: f.MAC, VTEP: f.VTEP, Why: dynamic(f.Dynamic)})
		}
	}
}

func dynamic(yes bool) string { return is(yes, "not from a record") }

func (p *planner) addStations(w table) {
	have := setOf(p.have.Stations)
	for _, m := range keys(w.stations, compareMAC) {
		if s := (Station{MAC: m, Port: w.stations[m]}); !have[s] {
			p.add(Op{Kind: OpSetStation, MAC: m, Link: s.Port})
		}
	}
}

func (p *planner) delStations(w table) {
	have := sorted(p.have.Stations, func(a, b Station) int {
		return cmp.Or(compareMAC(a.MAC, b.MAC), cmp.Compare(a.Port, b.Port), cmp.Compare(a.VLAN, b.VLAN))
	})
	for _, s := range have {
		// A wanted MAC on another port has been moved by OpSetStation: a
		// bridge has one entry for each MAC and VLAN.
		if _, ok := w.stations[s.MAC]; ok && s.VLAN == 0 {
			continue
		}
		p.add(Op{Kind: OpDelStation, MAC: s.MAC, Link: s.Port, VLAN: s.VLAN, Why: dynamic(s.Dynamic)})
	}
}

func (p *planner) addNeighbours(w table) {
	have := setOf(p.have.Neighbours)
	for _, a := range keys(w.neighbours, netip.Addr.Compare) {
		if n := (Neighbour{Addr: a, MAC: w.neighbours[a]}); !have[n] {
			p.add(Op{Kind: OpSetNeighbour, Addr: a, MAC: n.MAC})
		}
	}
}

func (p *planner) delNeighbours(w table) {
	have := sorted(p.have.Neighbours, func(a, b Neighbour) int { return a.Addr.Compare(b.Addr) })
	for _, n := range have {
		if _, ok := w.neighbours[n.Addr]; !ok {
			p.add(Op{Kind: OpDelNeighbour, Addr: n.Addr, MAC: n.MAC, Why: dynamic(n.Dynamic)})
		}
	}
}
