package secure

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// block puts lo up and the unreachable defaults in place. Without them an
// address without a route would give the same error today, but only because
// no link here brings a default of its own.
func (n *Namespace) block() error {
	if err := n.h.LoopbackUp(); err != nil {
		return err
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		ok, err := n.blocked(family)
		if err != nil {
			return err
		}
		if ok {
			continue
		}
		if err := n.h.RouteReplace(unreachable(family)); err != nil {
			return fmt.Errorf("add unreachable default: %w", err)
		}
	}
	return nil
}

// unreachable is the default route of a family. Metric 1 puts it before any
// default that a foreign link could bring.
func unreachable(family int) *netlink.Route {
	dst := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if family == unix.AF_INET6 {
		dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return &netlink.Route{Family: family, Dst: dst, Type: unix.RTN_UNREACHABLE,
		Protocol: nl.RouteProtocol, Priority: 1}
}

func (n *Namespace) blocked(family int) (bool, error) {
	routes, err := n.ours(family)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(routes, isBlock), nil
}

func isBlock(r netlink.Route) bool {
	if r.Type != unix.RTN_UNREACHABLE || r.Priority != 1 || r.Table != unix.RT_TABLE_MAIN {
		return false
	}
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// ours lists the routes of a family that carry our protocol number, of all
// tables.
func (n *Namespace) ours(family int) ([]netlink.Route, error) {
	filter := &netlink.Route{Protocol: nl.RouteProtocol, Table: unix.RT_TABLE_UNSPEC}
	routes, err := n.h.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

// spot is where a route to a peer belongs.
type spot struct {
	table int
	peer  netip.Addr
}

// peerRoute is one of our routes to a peer as the kernel has it.
type peerRoute struct {
	spot
	link int // 0 unless it leads to exactly one device
	raw  netlink.Route
}

func (n *Namespace) peerRoutes() ([]peerRoute, error) {
	routes, err := n.ours(unix.AF_INET6)
	if err != nil {
		return nil, err
	}
	var out []peerRoute
	for _, r := range routes {
		if isBlock(r) {
			continue
		}
		p := peerRoute{spot: spot{table: r.Table}, raw: r}
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones == 128 && r.Type == unix.RTN_UNICAST && r.Gw == nil {
				p.peer, _ = netip.AddrFromSlice(r.Dst.IP)
				p.link = r.LinkIndex
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// devices lists the links that routes may lead into, by name: tunnel devices
// that are up, never some other link that happens to have the name.
func (n *Namespace) devices() (map[string]int, error) {
	links, err := n.h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := make(map[string]int, len(links))
	for _, l := range links {
		if isTunnel(l) && l.Attrs().Flags&net.FlagUp != 0 {
			out[l.Attrs().Name] = l.Attrs().Index
		}
	}
	return out, nil
}

// setRoutes makes the routes to peers, and those for probes, exactly as given.
func (n *Namespace) setRoutes(main, probes []Route) error {
	devices, err := n.devices()
	if err != nil {
		return err
	}
	errs := make([]error, 0, 4)
	tables, err := n.dropRules(probes, devices)
	errs = append(errs, err)
	want := make(map[spot]Route, len(main)+len(probes))
	for _, r := range main {
		want[spot{unix.RT_TABLE_MAIN, r.Peer}] = r
	}
	for _, r := range probes {
		if table, ok := tables[r.Device]; ok {
			want[spot{table, r.Peer}] = r
		} else {
			errs = append(errs, &RouteError{Route: r, Err: ErrNoDevice})
		}
	}
	errs = append(errs, n.putRoutes(want, devices), n.addRules(tables))
	return errors.Join(errs...)
}

// putRoutes makes our routes to peers exactly want. A route that differs is
// replaced, not deleted and added, so that there is no instant without one.
func (n *Namespace) putRoutes(want map[spot]Route, devices map[string]int) error {
	have, err := n.peerRoutes()
	if err != nil {
		return err
	}
	old := make(map[spot]int, len(have))
	for _, r := range have {
		old[r.spot] = r.link
	}
	alive := slices.Collect(maps.Values(devices))
	var errs []error
	keep := make(map[spot]int, len(want))
	for at, r := range want {
		index, ok := devices[r.Device]
		was, had := old[at]
		err := ErrNoDevice
		if ok {
			err = nil
			if !had || was != index {
				err = n.h.RouteReplace(toPeer(at, index))
			}
		}
		if err == nil {
			keep[at] = index
			continue
		}
		errs = append(errs, &RouteError{Route: r, Err: err})
		if had && slices.Contains(alive, was) {
			// It led into a tunnel and still does: a new way that does not
			// come about must not cost the old one.
			keep[at] = was
		}
	}
	return errors.Join(append(errs, n.dropRoutes(keep))...)
}

// dropRoutes removes the routes of ours that do not lead to a kept peer
// through its device.
func (n *Namespace) dropRoutes(keep map[spot]int) error {
	have, err := n.peerRoutes()
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range have {
		if index, ok := keep[r.spot]; ok && r.link == index {
			continue
		}
		if err := n.h.RouteDel(&r.raw); err != nil && !nl.IsNotExist(err) {
			errs = append(errs, fmt.Errorf("delete route to %s: %w", r.raw.Dst, err))
		}
	}
	return errors.Join(errs...)
}

func toPeer(at spot, link int) *netlink.Route {
	return &netlink.Route{
		Family:    unix.AF_INET6,
		Dst:       &net.IPNet{IP: at.peer.AsSlice(), Mask: net.CIDRMask(128, 128)},
		LinkIndex: link,
		Table:     at.table,
		Protocol:  nl.RouteProtocol,
		Scope:     netlink.SCOPE_UNIVERSE,
	}
}

// innerAddrs lists the addresses on lo, without 127.0.0.0/8 and ::1.
func (n *Namespace) innerAddrs() ([]netlink.Addr, error) {
	lo, err := n.h.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find lo: %w", err)
	}
	addrs, err := n.h.AddrList(lo, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list addresses of lo: %w", err)
	}
	return slices.DeleteFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLoopback() }), nil
}

// settleTime bounds the wait for a new inner address; it takes a millisecond
// on an idle machine.
const settleTime = 5 * time.Second

// setInner makes inner, with /128, the only address on lo; the zero address
// means none. lo carries it because it is always up and belongs to no tunnel.
// A new address can be used when setInner returns.
func (n *Namespace) setInner(ctx context.Context, inner netip.Addr) error {
	have, err := n.innerAddrs()
	if err != nil {
		return err
	}
	lo, err := n.h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	found := !inner.IsValid()
	var errs []error
	for _, a := range have {
		ones, _ := a.Mask.Size()
		if ip, _ := netip.AddrFromSlice(a.IP); ip.Unmap() == inner && ones == 128 {
			found = true
			continue
		}
		if err := n.h.AddrDel(lo, &a); err != nil && !nl.IsNotExist(err) {
			errs = append(errs, fmt.Errorf("delete address %s: %w", a.IPNet, err))
		}
	}
	if !found {
		addr := &netlink.Addr{
			IPNet: &net.IPNet{IP: inner.AsSlice(), Mask: net.CIDRMask(128, 128)},
			Flags: unix.IFA_F_NODAD,
		}
		if err := n.h.AddrReplace(lo, addr); err != nil {
			return errors.Join(append(errs, fmt.Errorf("add inner address %s: %w", inner, err))...)
		}
		ctx, cancel := context.WithTimeout(ctx, settleTime)
		defer cancel()
		errs = append(errs, n.h.WaitLocal(ctx, inner))
	}
	return errors.Join(errs...)
}
