package netlab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// VXLAN makes the plainest VXLAN device there is in the namespace: one remote,
// no bridge, an address on the device itself. Benchmarks compare with it.
func (b *Box) VXLAN(name string, vni int, local, remote netip.Addr, port, mtu int, addr netip.Prefix) error {
	h, err := b.ns.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	dev := &netlink.Vxlan{
		LinkAttrs: named(name), VxlanId: vni, Port: port,
		SrcAddr: local.AsSlice(), Group: remote.AsSlice(),
	}
	dev.MTU = mtu
	if err := h.LinkAdd(dev); err != nil {
		return fmt.Errorf("add VXLAN device %s in %s: %w", name, b.name, err)
	}
	return b.Address(name, addr)
}
