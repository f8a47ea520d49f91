package vxlan

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Observe reads every network in the folder and changes nothing. The
// endpoints in want say in which namespaces to look for the inner ends. A
// network that cannot be read is marked Unread and its *Error joined to the
// result, which is usable all the same.
func (p *Programmer) Observe(ctx context.Context, want []Spec) (Observed, error) {
	names, err := p.networks()
	if err != nil {
		return Observed{}, err
	}
	specs := make(map[string]Spec, len(want))
	for _, s := range want {
		specs[s.Network] = s
	}
	var have Observed
	var errs []error
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return Observed{}, err
		}
		n, err := p.observe(name, specs[name])
		if err != nil {
			errs = append(errs, &Error{Network: name, Err: err})
			n = Network{Name: name, Unread: true}
		}
		have.Networks = append(have.Networks, n)
	}
	return have, errors.Join(errs...)
}

func (p *Programmer) observe(name string, want Spec) (Network, error) {
	n := Network{Name: name}
	r, err := p.open(name)
	if errors.Is(err, nl.ErrNotNamespace) || errors.Is(err, os.ErrNotExist) {
		return n, nil
	}
	if err != nil {
		return n, err
	}
	n.Exists = true
	drift, err := r.ns.SysctlDrift(sysctls())
	if err != nil {
		return n, err
	}
	n.Tuned = len(drift) == 0
	links, err := r.h.LinkList()
	if err != nil {
		return n, fmt.Errorf("list links: %w", err)
	}
	flags, err := portFlags(r)
	if err != nil {
		return n, err
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	v := view{p: p, r: r, want: want, names: names, flags: flags, device: map[int]string{}}
	if err := v.links(&n, links); err != nil {
		return n, err
	}
	return n, v.entries(&n)
}

// view is one reading of a namespace.
type view struct {
	p      *Programmer
	r      *room
	want   Spec
	names  map[int]string // of links, by index
	flags  map[int]PortFlags
	bridge int            // index, 0 if there is none
	device map[int]string // names of the VXLAN devices, by index
}

func (v *view) links(n *Network, links []netlink.Link) error {
	// The bridge first: whether others are in it is seen by its index.
	for _, l := range links {
		if b, ok := v.readBridge(l); ok {
			n.Bridge = &b
		}
	}
	for _, l := range links {
		a := l.Attrs()
		id, isPort := strings.CutPrefix(a.Name, portPrefix)
		switch {
		case a.Name == bridgeName || a.Flags&net.FlagLoopback != 0:
		case isDevice(a.Name):
			d, err := v.readDevice(l)
			if err != nil {
				return err
			}
			n.Devices = append(n.Devices, d)
		case isPort && l.Type() == "veth" && isEndpointID(id):
			port, err := v.readPort(l, id)
			if err != nil {
				return err
			}
			n.Ports = append(n.Ports, port)
		case v.inBridge(a):
			n.Strays = append(n.Strays, a.Name)
		}
	}
	slices.SortFunc(n.Devices, func(a, b Device) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(n.Ports, func(a, b Port) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(n.Strays)
	return nil
}

// isEndpointID reports whether s looks like an Endpoint.ID.
func isEndpointID(s string) bool {
	return len(s) == 12 && strings.Trim(s, "0123456789abcdef") == ""
}

func (v *view) inBridge(a *netlink.LinkAttrs) bool {
	return v.bridge != 0 && a.MasterIndex == v.bridge
}

func isUp(a *netlink.LinkAttrs) bool { return a.Flags&net.FlagUp != 0 }

func (v *view) readBridge(l netlink.Link) (Bridge, bool) {
	a := l.Attrs()
	if a.Name != bridgeName {
		return Bridge{}, false
	}
	b := Bridge{Kind: l.Type(), MTU: a.MTU, Up: isUp(a), Marked: a.Alias == v.p.bridgeMark()}
	if br, ok := l.(*netlink.Bridge); ok {
		v.bridge = a.Index
		b.Fixed = a.HardwareAddr.String() == bridgeMAC().String()
		b.Snooping = br.MulticastSnooping != nil && *br.MulticastSnooping
		b.VLANs = br.VlanFiltering != nil && *br.VlanFiltering ||
			br.VlanDefaultPVID != nil && *br.VlanDefaultPVID != 0
	}
	return b, true
}

func (v *view) readDevice(l netlink.Link) (Device, error) {
	a := l.Attrs()
	d := Device{Name: a.Name, Kind: l.Type(), Birth: BornUnknown, MTU: a.MTU, Up: isUp(a),
		InBridge: v.inBridge(a), Flags: v.flags[a.Index]}
	x, ok := l.(*netlink.Vxlan)
	if !ok {
		return d, nil
	}
	v.device[a.Index] = a.Name
	birth, err := v.birth(a)
	if err != nil {
		return d, err
	}
	d.Birth, d.VNI, d.Port, d.Plain = birth, ids.VNI(x.VxlanId), uint16(x.Port), isPlain(x)
	if ip, ok := netip.AddrFromSlice(x.SrcAddr); ok {
		d.Local = ip.Unmap()
	}
	d.Marked = a.Alias == v.p.deviceMark(DeviceSpec{Birth: birth})
	return d, nil
}

// birth asks the kernel where a device's sockets are. The device's own word,
// its alias, could be old or forged; IFLA_LINK_NETNSID is what the VXLAN
// driver itself uses (vxlan_get_link_net). Without that number the sockets
// are in this very namespace, which is neither birthplace.
func (v *view) birth(a *netlink.LinkAttrs) (Birthplace, error) {
	if a.NetNsID < 0 {
		return BornUnknown, nil
	}
	for _, b := range []Birthplace{BornSecure, BornHost} {
		ns, err := v.p.birthplace(b)
		if err != nil {
			continue // not configured, so it cannot be that one
		}
		id, err := v.r.h.GetNetNsIdByFd(ns.FD())
		if err != nil {
			return BornUnknown, fmt.Errorf("identify %s namespace: %w", b, err)
		}
		if id >= 0 && id == a.NetNsID {
			return b, nil
		}
	}
	return BornUnknown, nil
}

func (v *view) readPort(l netlink.Link, id string) (Port, error) {
	a := l.Attrs()
	port := Port{ID: id, MTU: a.MTU, Up: isUp(a), Marked: a.Alias == v.p.endpointMark(id),
		InBridge: v.inBridge(a), Flags: v.flags[a.Index]}
	i := slices.IndexFunc(v.want.Endpoints, func(e Endpoint) bool { return e.ID == id })
	if i < 0 {
		return port, nil
	}
	ns, err := openEndpoint(v.want.Endpoints[i])
	if errors.Is(err, ErrEndpointGone) {
		return port, nil
	}
	if err != nil {
		return port, err
	}
	defer func() { _ = ns.Close() }()
	h, err := ns.Handle()
	if err != nil {
		return port, err
	}
	defer h.Close()
	inner, err := innerLink(v.r, h, ns, a)
	if nl.IsNotExist(err) {
		port.Where = InnerLost
		return port, nil
	}
	if err != nil {
		return port, err
	}
	port.Where = InnerThere
	port.Inner, err = v.readInner(h, inner, v.want.Endpoints[i])
	if nl.IsNotExist(err) {
		port.Where = InnerLost // went away between two requests
		return port, nil
	}
	return port, err
}

// innerLink finds the other end of a port in the endpoint's namespace, by
// what the kernel knows of the pair and not by name. The error matches
// nl.IsNotExist if it is not there.
func innerLink(r *room, h *nl.Handle, ns *nl.Namespace, port *netlink.LinkAttrs) (netlink.Link, error) {
	id, err := r.h.GetNetNsIdByFd(ns.FD())
	if err != nil {
		return nil, fmt.Errorf("identify endpoint's namespace: %w", err)
	}
	if id < 0 || id != port.NetNsID {
		return nil, fmt.Errorf("find link of endpoint: %w", unix.ENODEV)
	}
	l, err := h.LinkByIndex(port.ParentIndex)
	if err != nil {
		return nil, fmt.Errorf("find link of endpoint: %w", err)
	}
	if l.Type() != "veth" || l.Attrs().ParentIndex != port.Index {
		return nil, fmt.Errorf("find link of endpoint: %w", unix.ENODEV)
	}
	return l, nil
}

// openEndpoint opens an endpoint's namespace and makes sure that it is the one
// that was attached: a path or PID may name another one by now.
func openEndpoint(e Endpoint) (*nl.Namespace, error) {
	ns, err := nl.OpenNamespace(e.Netns)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, nl.ErrNotNamespace) || errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("%w: %w", ErrEndpointGone, err)
	}
	if err != nil {
		return nil, err
	}
	id, err := ns.ID()
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	if !id.Is(e.NsID) {
		_ = ns.Close()
		return nil, fmt.Errorf("%w: %s names another one", ErrEndpointGone, e.Netns)
	}
	return ns, nil
}

func (v *view) readInner(h *nl.Handle, l netlink.Link, want Endpoint) (Inner, error) {
	a := l.Attrs()
	in := Inner{MTU: a.MTU, Up: isUp(a), Marked: a.Alias == v.p.endpointMark(want.ID)}
	copy(in.MAC[:], a.HardwareAddr)
	addrs, err := h.AddrList(l, unix.AF_UNSPEC)
	if err != nil {
		return in, fmt.Errorf("list addresses of endpoint: %w", err)
	}
	for _, addr := range addrs {
		ip, _ := netip.AddrFromSlice(addr.IP)
		ones, _ := addr.Mask.Size()
		prefix := netip.PrefixFrom(ip.Unmap(), ones)
		in.Addrs = append(in.Addrs, prefix)
		if addr.Protocol == nl.RouteProtocol {
			in.Ours = append(in.Ours, prefix)
		}
	}
	slices.SortFunc(in.Addrs, netip.Prefix.Compare)
	slices.SortFunc(in.Ours, netip.Prefix.Compare)
	if len(want.Ways) > 0 { // they never change, so where none are wanted none are looked for
		in.Ways, err = waysOf(h, l)
	}
	return in, err
}

// entries reads both FDBs in one dump, and the bridge's neighbours.
func (v *view) entries(n *Network) error {
	if v.bridge == 0 && len(v.device) == 0 {
		return nil
	}
	fdb, err := v.r.h.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return fmt.Errorf("list FDB: %w", err)
	}
	const static = netlink.NUD_PERMANENT | netlink.NUD_NOARP
	// Of a remote endpoint there is one in each of the two tables.
	n.Forwards, n.Stations = make([]Forward, 0, len(fdb)/2), make([]Station, 0, len(fdb)/2)
	for _, e := range fdb {
		mac := ids.MAC{}
		copy(mac[:], e.HardwareAddr)
		switch {
		case e.Flags&netlink.NTF_SELF != 0:
			if name, ok := v.device[e.LinkIndex]; ok {
				vtep, _ := netip.AddrFromSlice(e.IP)
				n.Forwards = append(n.Forwards, Forward{Device: name, MAC: mac, VTEP: vtep.Unmap(), Dynamic: e.State&static == 0})
			}
		case e.MasterIndex == v.bridge && v.bridge != 0 && e.State&netlink.NUD_PERMANENT == 0:
			n.Stations = append(n.Stations, Station{MAC: mac, Port: v.names[e.LinkIndex],
				VLAN: e.Vlan, Dynamic: e.State&static == 0})
		}
	}
	if v.bridge == 0 {
		return nil
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := v.r.h.NeighList(v.bridge, family)
		if err != nil {
			return fmt.Errorf("list neighbours: %w", err)
		}
		n.Neighbours = slices.Grow(n.Neighbours, len(list))
		for _, e := range list {
			ip, _ := netip.AddrFromSlice(e.IP)
			if ip.IsMulticast() || e.State&netlink.NUD_NOARP != 0 || e.State == netlink.NUD_NONE {
				continue // the kernel's own, for addresses that need no asking
			}
			nb := Neighbour{Addr: ip.Unmap(), Dynamic: e.State&netlink.NUD_PERMANENT == 0}
			copy(nb.MAC[:], e.HardwareAddr)
			n.Neighbours = append(n.Neighbours, nb)
		}
	}
	return nil
}
