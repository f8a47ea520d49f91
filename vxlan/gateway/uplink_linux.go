package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// mark is the alias of the uplink's ends.
func (n *Namespace) mark() string { return fmt.Sprintf("secure-overlay/%s/uplink", n.node) }

// uplink makes the link to the host's namespace, or what is missing of it.
func (n *Namespace) uplink() error {
	outer, err := n.findUplink()
	if err != nil {
		return err
	}
	if outer == nil {
		if err := n.addUplink(); err != nil {
			return err
		}
		if outer, err = n.findUplink(); err != nil {
			return err
		}
		if outer == nil {
			return fmt.Errorf("link %s went away", Uplink)
		}
	}
	inner, err := n.h.LinkByName(inside)
	if err != nil {
		return fmt.Errorf("find link %s: %w", inside, err)
	}
	for _, end := range []struct {
		h    *nl.Handle
		link netlink.Link
		addr func(v6 bool) netip.Prefix
	}{{n.hostH, outer, hostEnd}, {n.h, inner, innerEnd}} {
		if err := n.setEnd(end.h, end.link, end.addr); err != nil {
			return err
		}
	}
	return nil
}

// findUplink returns the host's end if it is ours and whole, after deleting one whose
// other end is not in the namespace; nil if there is none.
func (n *Namespace) findUplink() (netlink.Link, error) {
	l, err := n.hostH.LinkByName(Uplink)
	if nl.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", Uplink, err)
	}
	if l.Type() != "veth" || l.Attrs().Alias != "" && l.Attrs().Alias != n.mark() {
		return nil, fmt.Errorf("link %s of kind %s in the host's namespace %w", Uplink, l.Type(), ErrForeign)
	}
	inner, err := n.h.LinkByIndex(l.Attrs().ParentIndex)
	if err == nil && inner.Type() == "veth" && inner.Attrs().Name == inside && inner.Attrs().ParentIndex == l.Attrs().Index {
		return l, nil
	}
	if err != nil && !nl.IsNotExist(err) {
		return nil, fmt.Errorf("find link %s: %w", inside, err)
	}
	if err := n.hostH.LinkDel(l); err != nil && !nl.IsNotExist(err) {
		return nil, fmt.Errorf("delete link %s: %w", Uplink, err)
	}
	return nil, nil
}

// addUplink makes the pair, after looking that nobody else has its addresses.
func (n *Namespace) addUplink() error {
	own, err := n.hostH.AddrList(nil, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range own {
		ip, _ := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		have := netip.PrefixFrom(ip.Unmap(), ones)
		if have.Overlaps(hostEnd(false)) || have.Overlaps(hostEnd(true)) {
			return fmt.Errorf("address %s of this host, which overlaps the link to the gateway namespace, %w", have, ErrForeign)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Alias = Uplink, n.mark()
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = inside, netlink.NsFd(n.ns.FD())
	if err := n.hostH.LinkAdd(veth); err != nil {
		return fmt.Errorf("create link %s: %w", Uplink, err)
	}
	_, err = n.host.SetSysctls([]nl.Sysctl{
		{Key: "ipv6/conf/" + Uplink + "/addr_gen_mode", Value: "1", Optional: true},
		{Key: "ipv6/conf/" + Uplink + "/accept_ra", Value: "0", Optional: true},
	})
	return err
}

func (n *Namespace) setEnd(h *nl.Handle, l netlink.Link, addr func(v6 bool) netip.Prefix) error {
	a := l.Attrs()
	if a.Alias != n.mark() {
		if err := h.LinkSetAlias(l, n.mark()); err != nil {
			return fmt.Errorf("set alias of %s: %w", a.Name, err)
		}
	}
	have, err := h.AddrList(l, unix.AF_UNSPEC)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", a.Name, err)
	}
	for _, v6 := range []bool{false, true} {
		want := addr(v6)
		if slices.ContainsFunc(have, func(x netlink.Addr) bool { return x.IP.Equal(want.Addr().AsSlice()) }) {
			continue
		}
		add := &netlink.Addr{IPNet: ipNet(want), Protocol: nl.RouteProtocol}
		if v6 {
			add.Flags = unix.IFA_F_NODAD
		}
		err := h.AddrReplace(l, add)
		if v6 && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP)) {
			continue // IPv6 is off on this host
		}
		if err != nil {
			return fmt.Errorf("add address %s to %s: %w", want, a.Name, err)
		}
	}
	if a.Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", a.Name, err)
		}
	}
	return nil
}

// ipNet is a prefix with its address kept, as the library wants it.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// dropUplink deletes the link and the host's table, if they are there and ours.
func (n *Namespace) dropUplink() error {
	l, err := n.findUplink()
	switch {
	case errors.Is(err, ErrForeign):
		return nil // whoever has it keeps it, and so its table
	case l != nil:
		if err = n.hostH.LinkDel(l); nl.IsNotExist(err) {
			err = nil
		}
	}
	return errors.Join(err, tableOf(n.host).drop())
}

// closedMetric is above that of every route that leads into a network.
const closedMetric = 4000

// routes makes the default routes to the host, and unreachable ones for what must not
// go there.
func (n *Namespace) routes(closed []netip.Prefix) error {
	up, err := n.h.LinkByName(inside)
	if err != nil {
		return fmt.Errorf("find link %s: %w", inside, err)
	}
	want := map[netip.Prefix]*netlink.Route{}
	for _, v6 := range []bool{false, true} {
		everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if v6 {
			everywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		want[everywhere] = &netlink.Route{LinkIndex: up.Attrs().Index, Gw: hostEnd(v6).Addr().AsSlice(), Type: unix.RTN_UNICAST, Priority: closedMetric}
	}
	// Nor to what is local to the host's links: metadata services of clouds are there.
	local := netip.MustParsePrefix("169.254.0.0/16")
	for _, p := range append(slices.Clone(closed), local) {
		want[p.Masked()] = &netlink.Route{Type: unix.RTN_UNREACHABLE, Priority: closedMetric}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if err := n.dropRoutes(family, want); err != nil {
			return err
		}
	}
	for p, r := range want {
		r.Dst, r.Protocol, r.Table = ipNet(p), nl.RouteProtocol, unix.RT_TABLE_MAIN
		err := n.h.RouteReplace(r)
		if p.Addr().Is6() && r.Type == unix.RTN_UNICAST && errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) {
			continue // IPv6 is off on this host
		}
		if err != nil {
			return fmt.Errorf("set route to %s: %w", p, err)
		}
	}
	return nil
}

// dropRoutes deletes our routes that are not wanted any more.
func (n *Namespace) dropRoutes(family int, want map[netip.Prefix]*netlink.Route) error {
	filter := &netlink.Route{Protocol: nl.RouteProtocol, Table: unix.RT_TABLE_MAIN}
	have, err := n.h.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range have {
		p := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if family == unix.AF_INET6 {
			p = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if r.Dst != nil {
			ip, _ := netip.AddrFromSlice(r.Dst.IP)
			ones, _ := r.Dst.Mask.Size()
			p = netip.PrefixFrom(ip.Unmap(), ones)
		}
		if w, ok := want[p]; ok && w.Type == r.Type {
			continue
		}
		if err := n.h.RouteDel(&r); err != nil && !nl.IsNotExist(err) {
			return fmt.Errorf("delete route to %s: %w", p, err)
		}
	}
	return nil
}
