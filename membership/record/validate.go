package record

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

// Validate reports whether a record with this content can exist: all limits,
// all values, and that the lists are in canonical order without duplicates.
// It is what Parse demands and what Sign refuses to break. The content of a
// caller may be in any order: Canonical sorts it.
func (n Node) Validate() error {
	if n.ID.IsZero() {
		return malformed("node ID is zero")
	}
	for _, check := range []func() error{n.validFinal, n.validUnderlay, n.validTunnels, n.validNetworks, n.validAttached} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// Canonical returns a copy of n that shares nothing with it, in the order
// that Validate demands: tunnels by epoch, lane and wire, networks by VNI,
// prefixes and addresses ascending, endpoints by VNI and MAC. Underlay keeps
// its order, which is the owner's preference. Addresses lose an IPv4-in-IPv6
// wrapping and prefixes their host bits.
func (n Node) Canonical() Node {
	n.Underlay = slices.Clone(n.Underlay)
	for i := range n.Underlay {
		c := n.Underlay[i].Control
		n.Underlay[i].Control = netip.AddrPortFrom(c.Addr().Unmap(), c.Port())
	}
	n.Tunnels = slices.Clone(n.Tunnels)
	slices.SortFunc(n.Tunnels, compareTunnel)
	n.Networks = slices.Clone(n.Networks)
	for i := range n.Networks {
		n.Networks[i].Subnets = netdef.Prefixes(n.Networks[i].Subnets)
		n.Networks[i].Blocks = netdef.Prefixes(n.Networks[i].Blocks)
		n.Networks[i].Options = n.Networks[i].Options.Canonical()
	}
	slices.SortFunc(n.Networks, func(a, b Network) int { return cmp.Compare(a.VNI, b.VNI) })
	n.Attached = slices.Clone(n.Attached)
	for i := range n.Attached {
		addrs := slices.Clone(n.Attached[i].Addrs)
		for j := range addrs {
			addrs[j] = addrs[j].Unmap()
		}
		slices.SortFunc(addrs, netip.Addr.Compare)
		n.Attached[i].Addrs = addrs
		n.Attached[i].Services = slices.Sorted(slices.Values(n.Attached[i].Services))
	}
	slices.SortFunc(n.Attached, compareAttached)
	return n
}

func compareTunnel(a, b Tunnel) int {
	return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Lane, b.Lane), cmp.Compare(a.Wire, b.Wire))
}

func compareAttached(a, b Attached) int {
	return cmp.Or(cmp.Compare(a.VNI, b.VNI), bytes.Compare(a.MAC[:], b.MAC[:]))
}

// ascending fails unless every element is above the one before it: sorted and
// without duplicates, so that one content has one encoding.
func ascending[E any](what string, s []E, compare func(a, b E) int) error {
	for i := 1; i < len(s); i++ {
		if compare(s[i-1], s[i]) >= 0 {
			return malformed("%s are not in ascending order without duplicates", what)
		}
	}
	return nil
}

// host reports whether a can be the address of one host. An IPv4 address in
// IPv6 clothes has a second spelling and a zone means something on one host
// only, so neither can be in a record.
func host(a netip.Addr) bool {
	return a.IsValid() && !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast()
}

func (n Node) validUnderlay() error {
	if len(n.Underlay) > MaxEndpoints {
		return malformed("%d underlay addresses, at most %d", len(n.Underlay), MaxEndpoints)
	}
	for i, u := range n.Underlay {
		// An IPv6 link-local address is one only together with a zone.
		if a := u.Control.Addr(); !host(a) || a.Is6() && a.IsLinkLocalUnicast() || u.Control.Port() == 0 {
			return malformed("underlay address %s", u.Control)
		}
		for _, o := range n.Underlay[:i] {
			if o.Control == u.Control {
				return malformed("underlay address %s twice", u.Control)
			}
		}
	}
	return nil
}

func (n Node) validTunnels() error {
	if len(n.Tunnels) > MaxTunnels {
		return malformed("%d tunnels, at most %d", len(n.Tunnels), MaxTunnels)
	}
	for _, t := range n.Tunnels {
		switch {
		case t.Epoch == 0:
			return malformed("tunnel with epoch zero")
		case t.Wire == WireNone:
			return malformed("tunnel of epoch %d without a wire protocol", t.Epoch)
		case t.Wire == WireWireGuard && (t.Public.IsZero() || t.Port == 0):
			return malformed("WireGuard tunnel of epoch %d without key or port", t.Epoch)
		}
	}
	return ascending("tunnels", n.Tunnels, compareTunnel)
}

func (n Node) validNetworks() error {
	if len(n.Networks) > MaxNetworks {
		return malformed("%d networks, at most %d", len(n.Networks), MaxNetworks)
	}
	names := make(map[string]bool, len(n.Networks))
	for _, w := range n.Networks {
		if err := w.Validate(); err != nil {
			return err
		}
		if names[w.Name] {
			return malformed("network %q twice", w.Name)
		}
		names[w.Name] = true
	}
	return ascending("networks", n.Networks, func(a, b Network) int { return cmp.Compare(a.VNI, b.VNI) })
}

// Validate reports whether a record can hold the network.
func (w Network) Validate() error {
	if !validName(w.Name) {
		return malformed("network name of %d bytes: want 1..%d printable ASCII characters without spaces", len(w.Name), maxName)
	}
	if !w.VNI.Valid() || w.VTEPPort == 0 {
		return malformed("network %q with VNI %d and VXLAN port %d", w.Name, w.VNI, w.VTEPPort)
	}
	if w.Moved && !w.Both {
		return malformed("network %q has moved and is in one form", w.Name)
	}
	if len(w.Subnets) > MaxSubnets || len(w.Blocks) > MaxBlocks {
		return malformed("network %q with %d subnets and %d blocks, at most %d and %d",
			w.Name, len(w.Subnets), len(w.Blocks), MaxSubnets, MaxBlocks)
	}
	if len(w.Gateways) > MaxSubnets || len(w.Ranges) > MaxSubnets || len(w.Reserved) > netdef.MaxReserved {
		return malformed("network %q with %d gateways, %d address ranges and %d reserved prefixes, at most %d, %d and %d",
			w.Name, len(w.Gateways), len(w.Ranges), len(w.Reserved), MaxSubnets, MaxSubnets, netdef.MaxReserved)
	}
	for _, p := range w.Subnets {
		if !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() || p.Addr().IsMulticast() {
			return malformed("network %q with prefix %s", w.Name, p)
		}
	}
	for _, list := range []struct {
		what string
		have []netip.Prefix
	}{{"subnet", w.Subnets}, {"block", w.Blocks}, {"address range", w.Ranges}, {"reserved prefix", w.Reserved}} {
		for _, p := range list.have {
			if !p.IsValid() || p != p.Masked() || !within(w.Subnets, p) {
				return malformed("network %q with %s %s outside its subnets", w.Name, list.what, p)
			}
		}
		if err := ascending(list.what+"s", list.have, netdef.ComparePrefix); err != nil {
			return err
		}
	}
	for _, g := range w.Gateways {
		if !host(g) || !within(w.Subnets, netip.PrefixFrom(g, g.BitLen())) {
			return malformed("network %q with gateway %s outside its subnets", w.Name, g)
		}
	}
	return ascending("gateways", w.Gateways, netip.Addr.Compare)
}

// within reports whether a prefix is a part of one of the subnets.
func within(subnets []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Bits() <= p.Bits() && s.Contains(p.Addr()) })
}

// validName keeps control characters and spaces out of what ends up in
// tables, logs and file names on every other node.
func validName(s string) bool {
	if len(s) < 1 || len(s) > maxName {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func (n Node) validAttached() error {
	if len(n.Attached) > MaxAttached {
		return malformed("%d endpoints, at most %d", len(n.Attached), MaxAttached)
	}
	names := 0
	joined := make(map[ids.VNI]bool, len(n.Networks))
	for _, w := range n.Networks {
		joined[w.VNI] = true
	}
	for _, a := range n.Attached {
		switch {
		case !joined[a.VNI]:
			return malformed("endpoint %s on VNI %d, which the node does not take part in", a.MAC, a.VNI)
		case a.MAC == ids.MAC{} || a.MAC[0]&1 != 0:
			// A group address would make every other node send the
			// endpoint's network's broadcasts to it as unicast.
			return malformed("endpoint with MAC %s", a.MAC)
		case len(a.Addrs) > MaxAddrs:
			return malformed("endpoint %s with %d addresses, at most %d", a.MAC, len(a.Addrs), MaxAddrs)
		case slices.ContainsFunc(a.Addrs, func(ip netip.Addr) bool { return !host(ip) }):
			return malformed("endpoint %s with an address that is no host's", a.MAC)
		}
		if err := ascending("addresses of an endpoint", a.Addrs, netip.Addr.Compare); err != nil {
			return err
		}
		if err := a.validNames(); err != nil {
			return err
		}
		if names += a.NameSize(); names > MaxNames {
			return malformed("names of endpoints of more than %d bytes", MaxNames)
		}
	}
	return ascending("endpoints", n.Attached, compareAttached)
}

// NameSize is what an endpoint takes of MaxNames.
func (a Attached) NameSize() int {
	n := len(a.Name)
	for _, s := range a.Services {
		n += len(s) + 1
	}
	return n
}

func (a Attached) validNames() error {
	if a.Name != "" && !netdef.IsDNSLabel(a.Name) {
		return malformed("endpoint %s with a name that is no label of a domain name", a.MAC)
	}
	if len(a.Services) > MaxServices {
		return malformed("endpoint %s with %d services, at most %d", a.MAC, len(a.Services), MaxServices)
	}
	if i := slices.IndexFunc(a.Services, func(s string) bool { return !netdef.IsDNSLabel(s) }); i >= 0 {
		return malformed("endpoint %s with a service whose name is no label of a domain name", a.MAC)
	}
	return ascending("services of an endpoint", a.Services, strings.Compare)
}
