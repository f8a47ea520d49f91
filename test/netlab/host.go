package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// HostLink is the name of a host's underlay link.
const HostLink = "eth0"

// Host is a namespace whose eth0 is plugged into the lab's switch.
type Host struct {
	*Box
	lab  *Lab
	port string
	v4   netip.Addr
	v6   netip.Addr
}

// HostOption changes how a host is made.
type HostOption func(*hostOptions)

type hostOptions struct {
	mtu    int
	v4, v6 bool
}

// WithMTU sets the MTU of the host's link and of its switch port. The
// default is 1500.
func WithMTU(mtu int) HostOption { return func(o *hostOptions) { o.mtu = mtu } }

// V4Only leaves the host without a global IPv6 address.
func V4Only() HostOption { return func(o *hostOptions) { o.v6 = false } }

// V6Only leaves the host without an IPv4 address.
func V6Only() HostOption { return func(o *hostOptions) { o.v4 = false } }

// Host makes a namespace with a link eth0 to the switch, an IPv4 address from
// 198.18.0.0/16 and an IPv6 address from fd00:198:18::/64, both on link, and no
// default route. The first host gets 198.18.0.1 and fd00:198:18::1.
func (l *Lab) Host(name string, opts ...HostOption) (*Host, error) {
	o := hostOptions{mtu: 1500, v4: true, v6: true}
	for _, opt := range opts {
		opt(&o)
	}
	box, err := l.addBox(name)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.nextHost++
	n := l.nextHost
	l.mu.Unlock()
	h := &Host{Box: box, lab: l, port: fmt.Sprintf("p%d", n)}
	if o.v4 {
		h.v4 = netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)})
	}
	if o.v6 {
		a := prefix6.Addr().As16()
		a[14], a[15] = byte(n>>8), byte(n)
		h.v6 = netip.AddrFrom16(a)
	}
	if err := h.plug(o.mtu); err != nil {
		return nil, errors.Join(fmt.Errorf("add host %s: %w", name, err), l.Remove(box))
	}
	l.mu.Lock()
	l.hosts = append(l.hosts, h)
	l.mu.Unlock()
	return h, nil
}

// plug makes the wire between the host and the switch and the addresses on it.
func (h *Host) plug(mtu int) error {
	sw, err := h.lab.sw.ns.Handle()
	if err != nil {
		return err
	}
	defer sw.Close()
	br, err := sw.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = h.port, mtu, br.Attrs().Index
	// The peer is made in the host's namespace at once: its name cannot
	// collide with anything on the way.
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: HostLink, PeerMTU: uint32(mtu),
		PeerNamespace: netlink.NsFd(h.ns.FD()),
	}
	if err := sw.LinkAdd(veth); err != nil {
		return fmt.Errorf("add wire %s: %w", h.port, err)
	}
	if err := linkUp(sw, h.port); err != nil {
		return err
	}
	hh, err := h.ns.Handle()
	if err != nil {
		return err
	}
	defer hh.Close()
	if err := linkUp(hh, HostLink); err != nil {
		return err
	}
	return h.address(hh)
}

// address puts the host's addresses on eth0.
func (h *Host) address(hh *nl.Handle) error {
	link, err := hh.LinkByName(HostLink)
	if err != nil {
		return fmt.Errorf("find link %s: %w", HostLink, err)
	}
	for _, p := range h.Prefixes() {
		addr := &netlink.Addr{IPNet: &net.IPNet{
			IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
		}}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := hh.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	// Also without duplicate address detection the kernel finishes an IPv6
	// address a moment later, and refuses to send from it until then.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return waitFor(ctx, func() bool { return settled(hh, link) },
		func() string { return "addresses of " + HostLink + " are tentative" })
}

// settled reports whether every address of a link can be used.
func settled(hh *nl.Handle, link netlink.Link) bool {
	addrs, err := hh.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if a.Flags&unix.IFA_F_TENTATIVE != 0 {
			return false
		}
	}
	return true
}

// V4 returns the host's IPv4 address, or the zero Addr if it has none.
func (h *Host) V4() netip.Addr { return h.v4 }

// V6 returns the host's global IPv6 address, or the zero Addr if it has none.
func (h *Host) V6() netip.Addr { return h.v6 }

// Addr returns the host's IPv4 address if it has one, else its IPv6 address.
func (h *Host) Addr() netip.Addr {
	if h.v4.IsValid() {
		return h.v4
	}
	return h.v6
}

// Prefixes returns the host's underlay addresses with their prefix lengths.
func (h *Host) Prefixes() []netip.Prefix {
	var ps []netip.Prefix
	if h.v4.IsValid() {
		ps = append(ps, netip.PrefixFrom(h.v4, prefix4.Bits()))
	}
	if h.v6.IsValid() {
		ps = append(ps, netip.PrefixFrom(h.v6, prefix6.Bits()))
	}
	return ps
}

// Port returns the name of the host's port in the switch namespace. A capture
// there sees what the host really sends and receives.
func (h *Host) Port() string { return h.port }

// Renumber gives the host other underlay addresses, as a DHCP server or another place
// does: the old ones are gone before the new ones are there.
func (h *Host) Renumber() error {
	old := h.Prefixes()
	if h.v4.IsValid() {
		a := h.v4.As4()
		a[2]++
		h.v4 = netip.AddrFrom4(a)
	}
	if h.v6.IsValid() {
		a := h.v6.As16()
		a[13]++
		h.v6 = netip.AddrFrom16(a)
	}
	return onLink(h.ns, HostLink, "renumber", func(hh *nl.Handle, link netlink.Link) error {
		for _, p := range old {
			if err := hh.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
				return fmt.Errorf("delete address %s: %w", p, err)
			}
		}
		return h.address(hh)
	})
}

// SetMTU changes the MTU of the host's link and of its switch port.
func (h *Host) SetMTU(mtu int) error {
	return h.bothEnds("set MTU", func(nlh *nl.Handle, link netlink.Link) error { return nlh.LinkSetMTU(link, mtu) })
}

// Narrow makes the switch swallow packets to and from the host that have more bytes,
// in silence, as a path does whose routers say nothing. The host's link keeps its MTU.
func (h *Host) Narrow(mtu int) error {
	return onLink(h.lab.sw.ns, h.port, "narrow", func(nlh *nl.Handle, link netlink.Link) error { return nlh.LinkSetMTU(link, mtu) })
}

// Disconnect pulls the host's plug at the switch: no packet passes until
// Connect, and the host sees its carrier go.
func (h *Host) Disconnect() error {
	return onLink(h.lab.sw.ns, h.port, "disconnect", func(nlh *nl.Handle, link netlink.Link) error { return nlh.LinkSetDown(link) })
}

// Connect undoes Disconnect.
func (h *Host) Connect() error {
	return onLink(h.lab.sw.ns, h.port, "connect", func(nlh *nl.Handle, link netlink.Link) error { return nlh.LinkSetUp(link) })
}

// bothEnds applies fn to both ends of the host's wire.
func (h *Host) bothEnds(verb string, fn func(*nl.Handle, netlink.Link) error) error {
	if err := onLink(h.lab.sw.ns, h.port, verb, fn); err != nil {
		return err
	}
	return onLink(h.ns, HostLink, verb, fn)
}

// onLink applies fn to one link of a namespace.
func onLink(ns *nl.Namespace, name, verb string, fn func(*nl.Handle, netlink.Link) error) error {
	nlh, err := ns.Handle()
	if err != nil {
		return err
	}
	defer nlh.Close()
	link, err := nlh.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	if err := fn(nlh, link); err != nil {
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	return nil
}
