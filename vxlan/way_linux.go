package vxlan

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

// ErrRouteTaken: the endpoint's namespace has a default route that is not ours.
var ErrRouteTaken = errors.New("the namespace has a default route")

// defaultRoute is the route to everywhere by a gateway that a link leads to.
func defaultRoute(l netlink.Link, gateway netip.Addr) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: l.Attrs().Index, Gw: gateway.AsSlice(), Protocol: nl.RouteProtocol,
		Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
	}
	if gateway.Is6() {
		r.Dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	return r
}

// changeWay adds or deletes a default route of an endpoint. It is never one that
// replaces another: who made that other one may depend on it.
func (p *Programmer) changeWay(r *room, op Op) error {
	return p.withInner(r, op.Endpoint, func(_ *nl.Namespace, h *nl.Handle, l netlink.Link) error {
		route := defaultRoute(l, op.Addr)
		if op.Kind == OpDelWay {
			if err := h.RouteDel(route); err != nil && !nl.IsNotExist(err) {
				return fmt.Errorf("delete default route by %s: %w", op.Addr, err)
			}
			return nil
		}
		err := h.RouteAdd(route)
		if nl.IsExist(err) {
			return fmt.Errorf("%w of %s", ErrRouteTaken, familyName(op.Addr))
		}
		if err != nil {
			return fmt.Errorf("add default route by %s: %w", op.Addr, err)
		}
		return nil
	})
}

func familyName(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// waysOf lists the gateways of our default routes by a link.
func waysOf(h *nl.Handle, l netlink.Link) ([]netip.Addr, error) {
	var out []netip.Addr
	filter := &netlink.Route{Protocol: nl.RouteProtocol, LinkIndex: l.Attrs().Index, Table: unix.RT_TABLE_MAIN}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := h.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes of endpoint: %w", err)
		}
		for _, r := range routes {
			gateway, ok := netip.AddrFromSlice(r.Gw)
			if r.Dst != nil {
				ones, _ := r.Dst.Mask.Size()
				ok = ok && ones == 0
			}
			if ok {
				out = append(out, gateway.Unmap())
			}
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out, nil
}
