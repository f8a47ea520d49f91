package netlab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
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
	addr := &netlink.Addr{IPNet: &net.IPNet{
		IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}}
	if err := h.AddrAdd(l, addr); err != nil {
		return fmt.Errorf("add address %s to %s in %s: %w", p, link, b.name, err)
	}
	return linkUp(h, link)
}
