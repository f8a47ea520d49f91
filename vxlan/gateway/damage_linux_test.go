package gateway_test

import (
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/vxlan/gateway"
)

// flush empties a namespace's ruleset, as `nft flush ruleset` does.
func flush(ns *nl.Namespace) error {
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		return err
	}
	c.FlushRuleset()
	return c.Flush()
}

// other is a link of the uplink's name that is none.
func other() netlink.Link {
	a := netlink.NewLinkAttrs()
	a.Name = gateway.Uplink
	return &netlink.Bridge{LinkAttrs: a}
}

// routeToGateway gives a host a route into an overlay network, so that nothing but
// rules is in the way.
func routeToGateway(ns *nl.Namespace, p netip.Prefix) error {
	h, err := ns.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	dst := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
	return h.RouteReplace(&netlink.Route{Dst: dst, Gw: net.IPv4(169, 254, 119, 2)})
}
