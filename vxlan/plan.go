package vxlan

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// Names inside a network's namespace.
const (
	bridgeName = "br0"
	deviceName = "vx0" // of an encrypted network
	clearName4 = "vx1" // of a plaintext network, on an IPv4 underlay
	clearName6 = "vx2" // the same, on IPv6
	portPrefix = "p"   // and the endpoint's ID
)

// nameOf is the name of the device that is born in a place and sends from an address. A
// network that changes its form, or has both families, has several, and none of
// them is renamed.
func nameOf(b Birthplace, local netip.Addr) string {
	switch {
	case b == BornSecure:
		return deviceName
	case local.Is4():
		return clearName4
	}
	return clearName6
}

// isDevice reports whether a link is one of ours by its name.
func isDevice(name string) bool {
	return name == deviceName || name == clearName4 || name == clearName6
}

// minIPv6MTU is the least MTU with which a link has IPv6 at all (RFC 8200
// section 5); below it the kernel has no IPv6 neighbours on it either.
const minIPv6MTU = 1280

// portName is the name of an endpoint's bridge port.
func portName(id string) string { return portPrefix + id }

// Plan returns the ordered changes that turn have into want. It is pure. Empty
// means that the kernel is as desired.
//
// What must not exist goes first, across all networks: a network that is not
// wanted may hold the VNI that another one needs, and a VXLAN device born in
// the wrong namespace must not live a moment longer. Then network by network:
// namespace, bridge, device, ports, entries; of the entries new ones are added
// before old ones are deleted.
func Plan(want []Spec, have Observed) []Op {
	found := make(map[string]Network, len(have.Networks))
	for _, n := range have.Networks {
		found[n.Name] = n
	}
	wanted := make(map[string]bool, len(want))
	for _, s := range want {
		wanted[s.Network] = true
	}
	var ops []Op
	for _, n := range have.Networks {
		if !wanted[n.Name] {
			ops = append(ops, Op{Kind: OpDelNamespace, Network: n.Name})
		}
	}
	planners := make([]*planner, 0, len(want))
	for _, s := range want {
		if found[s.Network].Unread {
			continue // Observe has reported why; a guess could do harm
		}
		p := &planner{want: s, have: found[s.Network]}
		p.clear()
		planners = append(planners, p)
		ops = append(ops, p.ops...)
		p.ops = nil
	}
	for _, p := range planners {
		p.namespace()
		p.bridge()
		p.links()
		p.entries()
		ops = append(ops, p.ops...)
	}
	return ops
}

// planner plans one network. Its methods run in the order in which Plan calls
// them and note in have what a deletion takes with it.
type planner struct {
	want Spec
	have Network
	ops  []Op
}

func (p *planner) add(op Op) {
	op.Network = p.want.Network
	p.ops = append(p.ops, op)
}

func (p *planner) deviceSpec(w way) DeviceSpec {
	return DeviceSpec{VNI: p.want.VNI, Birth: w.birth, Local: w.local, Port: p.want.Port}
}

// clear deletes what only a new thing can replace, and the device of a form that
// the network is not to have any more.
func (p *planner) clear() {
	var kept []Device
	for _, d := range p.have.Devices {
		why := p.misborn(d)
		if why == "" {
			kept = append(kept, d)
			continue
		}
		p.add(Op{Kind: OpDelDevice, Link: d.Name, Why: why})
		p.have.Forwards = slices.DeleteFunc(slices.Clone(p.have.Forwards), func(f Forward) bool { return f.Device == d.Name })
		p.forgetStations(d.Name)
	}
	p.have.Devices = kept
	if b := p.have.Bridge; b != nil && b.Kind != "bridge" {
		p.add(Op{Kind: OpDelBridge, Why: "is of kind " + b.Kind})
		p.have.Bridge = nil
	}
}

// misborn says why an existing device cannot be made the wanted one. The
// birthplace comes first: it alone decides whether a network is encrypted, so
// a device that is not proved to be of the right one is never kept.
func (p *planner) misborn(d Device) string {
	ways := p.want.ways()
	i := slices.IndexFunc(ways, func(w way) bool { return w.name == d.Name })
	if i < 0 {
		return "not wanted"
	}
	want := p.deviceSpec(ways[i])
	switch {
	case d.Kind != "vxlan":
		return "is of kind " + d.Kind
	case d.Birth != want.Birth:
		return "born " + string(d.Birth) + ", not " + string(want.Birth)
	case d.VNI != want.VNI:
		return "vni " + d.VNI.String()
	case d.Local != want.Local:
		return "local " + d.Local.String()
	case d.Port != want.Port:
		return "port differs"
	case !d.Plain:
		return "properties differ"
	}
	return ""
}

func (p *planner) forgetStations(port string) {
	p.have.Stations = slices.DeleteFunc(slices.Clone(p.have.Stations), func(s Station) bool { return s.Port == port })
}

func (p *planner) namespace() {
	switch {
	case !p.have.Exists:
		p.add(Op{Kind: OpAddNamespace})
		p.add(Op{Kind: OpTuneNamespace})
	case !p.have.Tuned:
		p.add(Op{Kind: OpTuneNamespace})
	}
}

func (p *planner) bridge() {
	b := p.have.Bridge
	if b == nil {
		p.add(Op{Kind: OpAddBridge, MTU: p.want.MTU})
		// With the bridge went everything that was in it.
		p.have.Stations, p.have.Neighbours, p.have.Strays = nil, nil, nil
		return
	}
	// The MTU is set together with the ports', see links.
	if why := differs(
		is(!b.Up, "down"), is(!b.Marked, "no mark"), is(!b.Fixed, "mac differs"), is(b.Snooping, "snooping"), is(b.VLANs, "vlans"),
	); why != "" {
		p.add(Op{Kind: OpSetBridge, MTU: p.want.MTU, Why: why})
		if !b.Up || !b.Fixed {
			p.have.Neighbours = nil // a link that goes down or changes its MAC loses them
		}
	} else if b.MTU != p.want.MTU {
		p.add(Op{Kind: OpSetBridge, MTU: p.want.MTU, Why: "mtu differs"})
		if b.MTU < minIPv6MTU {
			p.have.Neighbours = slices.DeleteFunc(slices.Clone(p.have.Neighbours),
				func(n Neighbour) bool { return n.Addr.Is6() })
		}
	}
}

// wantedFlags of a port: nothing is learned and nothing goes to an unknown
// MAC, so that signed records alone decide where frames go; and a frame from
// a MAC that no record places behind the port is dropped.
func wantedFlags(e Endpoint) PortFlags {
	return PortFlags{Lock: true, Isolated: e.Apart, Open: true}
}

// deviceFlags are those of a VXLAN device. It does not get ARP and ND requests that
// the bridge can answer, and what comes in by one form of a network does not go out
// by the other, nor what comes in by one family by the other. While there are two forms, a station may
// be heard behind either, whichever way frames to it go; then nothing can be locked.
// Which family two nodes use both of them know.
func deviceFlags(lock bool) PortFlags {
	return PortFlags{Lock: lock, Suppress: true, Isolated: true, Open: true}
}

func flagFaults(have, want PortFlags) []string {
	if have.NoLock {
		have.Lock, have.NoLock = want.Lock, false // no way to have it
	}
	return []string{
		is(have.Learning, "learning"), is(have.Flood, "flood"), is(want.Lock && !have.Lock, "not locked"), is(have.Lock && !want.Lock, "locked"),
		is(have.Suppress != want.Suppress, "suppression differs"), is(have.Isolated != want.Isolated, "isolation differs"), is(!have.Open, "port settings"),
	}
}

// is returns what if cond holds, for differs.
func is(cond bool, what string) string {
	if cond {
		return what
	}
	return ""
}

func differs(faults ...string) string {
	return strings.Join(slices.DeleteFunc(faults, func(s string) bool { return s == "" }), ", ")
}

// links plans the VXLAN devices and the endpoints. A smaller MTU goes to the
// endpoints first, a larger one to the device first: what an endpoint may send
// always fits through.
func (p *planner) links() {
	for _, name := range p.have.Strays {
		p.add(Op{Kind: OpReleasePort, Link: name, Why: "not ours"})
		p.forgetStations(name)
	}
	if slices.ContainsFunc(p.have.Devices, func(d Device) bool { return d.MTU > p.want.MTU }) {
		p.ports()
		p.devices()
		return
	}
	p.devices()
	p.ports()
}

// devices goes through those that exist first: one that was alone is unlocked
// before there is another.
func (p *planner) devices() {
	ways := p.want.ways()
	there := func(w way) bool { return p.have.device(w.name) != nil }
	for _, w := range ways {
		if there(w) {
			p.device(w, p.want.Other == nil)
		}
	}
	for _, w := range ways {
		if !there(w) {
			p.device(w, p.want.Other == nil)
		}
	}
}

func (p *planner) device(w way, lock bool) {
	set := Op{Kind: OpSetDevice, Link: w.name, MTU: p.want.MTU, Device: p.deviceSpec(w), Lock: lock}
	have := p.have.device(w.name)
	if have == nil {
		p.add(Op{Kind: OpAddDevice, Link: w.name, Device: p.deviceSpec(w), MTU: p.want.MTU})
		p.add(set)
		return
	}
	d := *have
	if p.have.Bridge == nil {
		d.InBridge = false
	}
	faults := []string{
		is(d.MTU != p.want.MTU, "mtu differs"), is(!d.Up, "down"),
		is(!d.Marked, "no mark"), is(!d.InBridge, "not in bridge"),
	}
	if d.InBridge {
		faults = append(faults, flagFaults(d.Flags, deviceFlags(lock))...)
	}
	if set.Why = differs(faults...); set.Why != "" {
		p.add(set)
	}
	if !d.InBridge {
		p.forgetStations(w.name)
	}
}

// ports deletes endpoints first: a new one may take the interface name of one
// that goes.
func (p *planner) ports() {
	wanted := make(map[string]Endpoint, len(p.want.Endpoints))
	for _, e := range p.want.Endpoints {
		wanted[e.ID] = e
	}
	kept := make(map[string]Port, len(p.have.Ports))
	for _, port := range p.have.Ports {
		_, ok := wanted[port.ID]
		if ok && port.Where != InnerLost {
			kept[port.ID] = port
			continue
		}
		why := ""
		if ok {
			why = "other end is gone"
		}
		p.add(Op{Kind: OpDelPort, Endpoint: Endpoint{ID: port.ID}, Why: why})
		p.forgetStations(portName(port.ID))
	}
	for _, e := range sorted(p.want.Endpoints, func(a, b Endpoint) int { return cmp.Compare(a.ID, b.ID) }) {
		port, ok := kept[e.ID]
		if !ok {
			p.newPort(e)
			continue
		}
		p.oldPort(e, port)
	}
}

func (p *planner) newPort(e Endpoint) {
	p.add(Op{Kind: OpAddPort, Endpoint: e, MTU: p.want.MTU})
	p.add(Op{Kind: OpSetPort, Endpoint: e, MTU: p.want.MTU})
	p.add(Op{Kind: OpSetInner, Endpoint: e, MTU: p.want.MTU, Burst: p.want.Burst})
	for _, a := range e.Addrs {
		p.add(Op{Kind: OpAddAddr, Endpoint: e, Prefix: a})
	}
	for _, w := range e.Ways {
		p.add(Op{Kind: OpAddWay, Endpoint: e, Addr: w})
	}
}

func (p *planner) oldPort(e Endpoint, port Port) {
	if p.have.Bridge == nil {
		port.InBridge = false
	}
	faults := []string{
		is(port.MTU != p.want.MTU, "mtu differs"), is(!port.Up, "down"),
		is(!port.Marked, "no mark"), is(!port.InBridge, "not in bridge"),
	}
	if port.InBridge {
		faults = append(faults, flagFaults(port.Flags, wantedFlags(e))...)
	} else {
		p.forgetStations(portName(port.ID))
	}
	if why := differs(faults...); why != "" {
		p.add(Op{Kind: OpSetPort, Endpoint: e, MTU: p.want.MTU, Why: why})
	}
	// What cannot be seen is left alone: as long as the veth pair exists the
	// endpoint lives, even if the path to its namespace does not.
	if port.Where == InnerThere {
		p.inner(e, port.Inner)
	}
}

func (p *planner) inner(e Endpoint, in Inner) {
	if why := differs(
		is(in.MAC != e.MAC, "mac differs"), is(in.MTU != p.want.MTU, "mtu differs"),
		is(!in.Up, "down"), is(!in.Marked, "no mark"),
	); why != "" {
		p.add(Op{Kind: OpSetInner, Endpoint: e, MTU: p.want.MTU, Burst: p.want.Burst, Why: why})
		if in.MTU < minIPv6MTU && p.want.MTU >= minIPv6MTU || !in.Up {
			in.Addrs, in.Ways = nil, nil // IPv6 addresses went when IPv6 did, routes when the link was down
		}
	}
	for _, w := range in.Ways {
		if !slices.Contains(e.Ways, w) {
			p.add(Op{Kind: OpDelWay, Endpoint: e, Addr: w})
		}
	}
	// An IPv4 address that goes takes with it the later ones of its subnet, so
	// here deleting comes first, and all that are wanted are added again.
	for _, a := range in.Ours {
		if slices.Contains(e.Addrs, a) {
			continue
		}
		p.add(Op{Kind: OpDelAddr, Endpoint: e, Prefix: a})
		if a.Addr().Is4() {
			in.Addrs = slices.DeleteFunc(slices.Clone(in.Addrs), func(a netip.Prefix) bool { return a.Addr().Is4() })
		}
	}
	for _, a := range e.Addrs {
		if !slices.Contains(in.Addrs, a) {
			p.add(Op{Kind: OpAddAddr, Endpoint: e, Prefix: a})
		}
	}
	for _, w := range e.Ways {
		if !slices.Contains(in.Ways, w) {
			p.add(Op{Kind: OpAddWay, Endpoint: e, Addr: w})
		}
	}
}

func sorted[T any](in []T, compare func(a, b T) int) []T {
	return slices.SortedFunc(slices.Values(in), compare)
}
