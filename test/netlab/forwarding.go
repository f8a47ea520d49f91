package netlab

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Forwarding describes where a namespace sends frames, in sorted lines: the
// entries of bridges and VXLAN devices, and neighbours. What the kernel learned by
// itself, and may forget, is left out.
func Forwarding(ns *nl.Namespace) (string, error) {
	h, err := ns.Handle()
	if err != nil {
		return "", fmt.Errorf("describe forwarding: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return "", fmt.Errorf("describe forwarding of %s: %w", ns.Path(), err)
	}
	names := linkNames(links)
	var lines []string
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET, unix.AF_INET6} {
		list, err := h.NeighList(0, family)
		if err != nil {
			return "", fmt.Errorf("describe forwarding of %s: %w", ns.Path(), err)
		}
		for _, e := range list {
			// Multicast groups of the namespace's own are no forwarding either.
			own := e.IP.IsMulticast() || len(e.HardwareAddr) > 0 && e.HardwareAddr[0]&1 != 0 && e.IP == nil
			if e.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) == 0 || own {
				continue
			}
			lines = append(lines, fmt.Sprintf("family %d %s at %v vlan %d dev %s flags %x", family, e.HardwareAddr, e.IP, e.Vlan, names[e.LinkIndex], e.Flags))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n", nil
}
