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
	forwards   map[ids.MAC]forward
	flood      map[flood]bool
	stations   map[ids.MAC]string
	neighbours map[netip.Addr]ids.MAC
}

// forward is where frames to a MAC go: through a device to a VTEP.
type forward struct {
	device string
	vtep   netip.Addr
}

// flood is a destination for frames to many.
type flood forward

func compareFlood(a, b flood) int {
	return cmp.Or(cmp.Compare(a.device, b.device), a.vtep.Compare(b.vtep))
}

// wanted builds the tables. Where two records claim one MAC or address the
// agent has decided already; should it not have, a local endpoint wins over a
// remote one and the first over later ones, so that the outcome is stable.
func (p *planner) wanted() table {
	w := table{
		forwards:   make(map[ids.MAC]forward),
		flood:      make(map[flood]bool),
		stations:   make(map[ids.MAC]string),
		neighbours: make(map[netip.Addr]ids.MAC),
	}
	for _, e := range sorted(p.want.Endpoints, func(a, b Endpoint) int { return cmp.Compare(a.ID, b.ID) }) {
		setOnce(w.stations, e.MAC, portName(e.ID))
		for _, a := range e.Addrs {
			p.wantNeighbour(w, a.Addr(), e.MAC)
		}
	}
	ways := p.want.ways()
	for _, r := range p.want.Remotes {
		i := slices.IndexFunc(ways, func(w way) bool { return w.carries(r) })
		if _, taken := w.stations[r.MAC]; taken || unusable(r.MAC) || i < 0 {
			continue
		}
		name := ways[i].name
		w.stations[r.MAC] = name
		w.forwards[r.MAC] = forward{name, r.VTEP}
		for _, a := range r.Addrs {
			p.wantNeighbour(w, a, r.MAC)
		}
	}
	for _, way := range ways {
		for _, v := range way.flood {
			w.flood[flood{way.name, v}] = true
		}
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
	for _, v := range keys(w.flood, compareFlood) {
		if !have[Forward{Device: v.device, VTEP: v.vtep}] {
			p.add(Op{Kind: OpAddFlood, Link: v.device, VTEP: v.vtep})
		}
	}
	for _, m := range keys(w.forwards, compareMAC) {
		if f := w.forwards[m]; !have[Forward{Device: f.device, MAC: m, VTEP: f.vtep}] {
			p.add(Op{Kind: OpSetForward, Link: f.device, MAC: m, VTEP: f.vtep})
		}
	}
}

func (p *planner) delForwards(w table) {
	have := sorted(p.have.Forwards, func(a, b Forward) int {
		return cmp.Or(cmp.Compare(a.Device, b.Device), compareMAC(a.MAC, b.MAC), a.VTEP.Compare(b.VTEP))
	})
	for _, f := range have {
		if (f.MAC == ids.MAC{}) {
			if !w.flood[flood{f.Device, f.VTEP}] {
				p.add(Op{Kind: OpDelFlood, Link: f.Device, VTEP: f.VTEP, Why: dynamic(f.Dynamic)})
			}
			continue
		}
		// A wanted MAC with a wrong VTEP has been replaced by OpSetForward:
		// a device keeps one destination for a unicast MAC (measured).
		if to, ok := w.forwards[f.MAC]; !ok || to.device != f.Device {
			p.add(Op{Kind: OpDelForward, Link: f.Device, MAC: f.MAC, VTEP: f.VTEP, Why: dynamic(f.Dynamic)})
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
