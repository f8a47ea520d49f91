package netlab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"golang.org/x/sys/unix"
)

// Address puts an address on a link of the namespace, which somebody else
// made, and sets the link up.
func (b *Box) Address(link string, p netip.Prefix) error {
	h, err := b.ns.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s in %s: %w", link, b.name, err)
	}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if err := h.AddrAdd(l, addr); err != nil {
		return fmt.Errorf("add address %s to %s in %s: %w", p, link, b.name, err)
	}
	return linkUp(h, link)
}

// Own makes every address of a prefix an address of the namespace: it answers there,
// and may send from each of them, for which an IPv6 socket needs IPV6_FREEBIND.
func (b *Box) Own(p netip.Prefix) error {
	return b.route("lo", netlink.Route{Dst: ipNet(p), Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST})
}

// Route sends what the host has for a prefix by way of another host.
func (h *Host) Route(p netip.Prefix, via *Host) error {
	gateway := via.v4
	if p.Addr().Is6() {
		gateway = via.v6
	}
	return h.route(HostLink, netlink.Route{Dst: ipNet(p), Gw: gateway.AsSlice()})
}

func (b *Box) route(link string, r netlink.Route) error {
	h, err := b.ns.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(link)
	if err != nil {
		return fmt.Errorf("find link %s in %s: %w", link, b.name, err)
	}
	r.LinkIndex = l.Attrs().Index
	if err := h.RouteAdd(&r); err != nil {
		return fmt.Errorf("add route to %s in %s: %w", r.Dst, b.name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Neighbour tells the namespace for good where an address is on a link, so that
// nobody has to ask.
func (b *Box) Neighbour(link string, a netip.Addr, mac [6]byte) error {
	return onLink(b.ns, link, "set neighbour "+a.String()+" on", func(h *nl.Handle, l netlink.Link) error {
		return h.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, HardwareAddr: mac[:], IP: a.AsSlice(),
		})
	})
}
