package nl

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// aliasPrefix starts the alias of every link that an agent has made.
const aliasPrefix = "secure-overlay/"

// Route is how the kernel would send to an address.
type Route struct {
	Device string
	Source netip.Addr // zero if the kernel names none
	MTU    int        // bytes of IP packet: of the link, or of the route if that is less
}

// RouteTo asks the kernel for the route to dst; nothing is sent. Without a
// route the error matches the errno, such as ENETUNREACH.
//
// The MTU is that of the link and of the configured route. What path MTU
// discovery has learned is left out on purpose: anyone who can forge an ICMP
// error could shrink every network with it.
func (h *Handle) RouteTo(dst netip.Addr) (Route, error) {
	found, err := h.RouteGet(net.IP(dst.AsSlice()))
	if err == nil && len(found) == 0 {
		err = unix.ENETUNREACH
	}
	if err != nil {
		return Route{}, fmt.Errorf("look up route to %s: %w", dst, err)
	}
	link, err := h.LinkByIndex(found[0].LinkIndex)
	if err != nil {
		return Route{}, fmt.Errorf("look up route to %s: link %d: %w", dst, found[0].LinkIndex, err)
	}
	r := Route{Device: link.Attrs().Name, MTU: link.Attrs().MTU}
	r.Source, _ = netip.AddrFromSlice(found[0].Src)
	r.Source = r.Source.Unmap()
	match, err := h.RouteGetWithOptions(net.IP(dst.AsSlice()), &netlink.RouteGetOptions{FIBMatch: true})
	if err == nil && len(match) > 0 && match[0].MTU > 0 {
		r.MTU = min(r.MTU, match[0].MTU)
	}
	return r, nil
}

// Address is an address of a link.
type Address struct {
	Addr   netip.Addr
	Device string
	MTU    int // of the link
}

// GlobalAddrs lists the addresses by which another host can reach this
// namespace: global unicast (RFC 4193 included), on a link that is up, not
// loopback, not deprecated, tentative, failed or temporary. Links of ours are
// left out: the host itself may be an endpoint, but nobody who is not on the
// overlay network already can reach it there. Sorted by address.
func (h *Handle) GlobalAddrs() ([]Address, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	up := make(map[int]*netlink.LinkAttrs, len(links))
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagUp != 0 && a.Flags&net.FlagLoopback == 0 && !strings.HasPrefix(a.Alias, aliasPrefix) {
			up[a.Index] = a
		}
	}
	addrs, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	const unfit = unix.IFA_F_DEPRECATED | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED | unix.IFA_F_TEMPORARY
	var out []Address
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		ip = ip.Unmap()
		flags := a.Flags
		if ip.Is4() {
			// IFA_F_TEMPORARY is IFA_F_SECONDARY on IPv4: a second
			// address of a subnet is a good address.
			flags &^= unix.IFA_F_SECONDARY
		}
		link := up[a.LinkIndex]
		if !ok || link == nil || flags&unfit != 0 || !ip.IsGlobalUnicast() {
			continue
		}
		out = append(out, Address{Addr: ip, Device: link.Name, MTU: link.MTU})
	}
	slices.SortFunc(out, func(a, b Address) int { return a.Addr.Compare(b.Addr) })
	return out, nil
}
