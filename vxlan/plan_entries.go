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
	remotes := len(p.want.Remotes)
	w := table{
		forwards:   make(map[ids.MAC]forward, remotes),
		flood:      make(map[flood]bool),
		stations:   make(map[ids.MAC]string, remotes+len(p.want.Endpoints)),
		neighbours: make(map[netip.Addr]ids.MAC, 2*remotes),
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

// keys returns those keys of a map in order that are wanted, so that plans are stable.
// Nearly always there are none of ten thousands.
func keys[K comparable, V any](m map[K]V, wanted func(K, V) bool, compare func(a, b K) int) []K {
	var out []K
	for k, v := range m {
		if wanted(k, v) {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, compare)
	return out
}

// extra returns those of a list in order that are not wanted.
func extra[T any](list []T, wanted func(T) bool, compare func(a, b T) int) []T {
	var out []T
	for _, v := range list {
		if !wanted(v) {
			out = append(out, v)
		}
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
	lacks := func(v flood, _ bool) bool { return !have[Forward{Device: v.device, VTEP: v.vtep}] }
	for _, v := range keys(w.flood, lacks, compareFlood) {
		p.add(Op{Kind: OpAddFlood, Link: v.device, VTEP: v.vtep})
	}
	missing := func(m ids.MAC, f forward) bool { return !have[Forward{Device: f.device, MAC: m, VTEP: f.vtep}] }
	for _, m := range keys(w.forwards, missing, compareMAC) {
		f := w.forwards[m]
		p.add(Op{Kind: OpSetForward, Link: f.device, MAC: m, VTEP: f.vtep})
	}
}

func (p *planner) delForwards(w table) {
	wanted := func(f Forward) bool {
		if (f.MAC == ids.MAC{}) {
			return w.flood[flood{f.Device, f.VTEP}]
		}
		// A wanted MAC with a wrong VTEP has been replaced by OpSetForward:
		// a device keeps one destination for a unicast MAC (measured).
		to, ok := w.forwards[f.MAC]
		return ok && to.device == f.Device
	}
	for _, f := range extra(p.have.Forwards, wanted, func(a, b Forward) int {
		return cmp.Or(cmp.Compare(a.Device, b.Device), compareMAC(a.MAC, b.MAC), a.VTEP.Compare(b.VTEP))
	}) {
		kind := OpDelForward
		if (f.MAC == ids.MAC{}) {
			kind = OpDelFlood
		}
		p.add(Op{Kind: kind, Link: f.Device, MAC: f.MAC, VTEP: f.VTEP, Why: dynamic(f.Dynamic)})
	}
}

func dynamic(yes bool) string { return is(yes, "not from a record") }

func (p *planner) addStations(w table) {
	have := setOf(p.have.Stations)
	missing := func(m ids.MAC, port string) bool { return !have[Station{MAC: m, Port: port}] }
	for _, m := range keys(w.stations, missing, compareMAC) {
		p.add(Op{Kind: OpSetStation, MAC: m, Link: w.stations[m]})
	}
}

func (p *planner) delStations(w table) {
	// A wanted MAC on another port has been moved by OpSetStation: a
	// bridge has one entry for each MAC and VLAN.
	wanted := func(s Station) bool {
		_, ok := w.stations[s.MAC]
		return ok && s.VLAN == 0
	}
	for _, s := range extra(p.have.Stations, wanted, func(a, b Station) int {
		return cmp.Or(compareMAC(a.MAC, b.MAC), cmp.Compare(a.Port, b.Port), cmp.Compare(a.VLAN, b.VLAN))
	}) {
		p.add(Op{Kind: OpDelStation, MAC: s.MAC, Link: s.Port, VLAN: s.VLAN, Why: dynamic(s.Dynamic)})
	}
}

func (p *planner) addNeighbours(w table) {
	have := setOf(p.have.Neighbours)
	missing := func(a netip.Addr, m ids.MAC) bool { return !have[Neighbour{Addr: a, MAC: m}] }
	for _, a := range keys(w.neighbours, missing, netip.Addr.Compare) {
		p.add(Op{Kind: OpSetNeighbour, Addr: a, MAC: w.neighbours[a]})
	}
}

func (p *planner) delNeighbours(w table) {
	wanted := func(n Neighbour) bool {
		_, ok := w.neighbours[n.Addr]
		return ok
	}
	for _, n := range extra(p.have.Neighbours, wanted, func(a, b Neighbour) int { return a.Addr.Compare(b.Addr) }) {
		p.add(Op{Kind: OpDelNeighbour, Addr: n.Addr, MAC: n.MAC, Why: dynamic(n.Dynamic)})
	}
}
