package config

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

// options checks what a network says about its addresses, and what it lets through.
func (c *checker) options(path string, raw rawNetwork, subnets []netip.Prefix) netdef.Options {
	var o netdef.Options
	for _, g := range c.parts(path+".gateways", raw.Gateways, subnets, part{limit: MaxSubnets, example: "10.77.0.1", one: true, host: true}) {
		o.Gateways = append(o.Gateways, g.Addr())
	}
	o.Ranges = c.parts(path+".ip_ranges", raw.Ranges, subnets, part{limit: MaxSubnets, example: "10.77.4.0/22", one: true})
	o.Reserved = c.parts(path+".reserve", raw.Reserved, subnets, part{limit: netdef.MaxReserved, example: "10.77.0.10"})
	if raw.Internal != nil {
		o.Internal = *raw.Internal
	}
	if raw.NoBroadcast != nil {
		o.NoBroadcast = *raw.NoBroadcast
	}
	o = o.Canonical()
	c.rangesUsable(path, raw, o, subnets)
	return o
}

// part says what a list of parts of subnets may hold.
type part struct {
	limit   int
	example string
	one     bool // at most one in each subnet
	host    bool // addresses, and such that a host can have
}

// parts parses addresses and prefixes, each within a subnet.
func (c *checker) parts(path string, raw []string, subnets []netip.Prefix, want part) []netip.Prefix {
	if !c.usable(path) {
		return nil
	}
	if len(raw) > want.limit {
		c.fail(path, fmt.Sprintf("%d of them, at most %d fit into a node's record", len(raw), want.limit), "remove some")
		raw = raw[:want.limit]
	}
	var out []netip.Prefix
	for i, s := range raw {
		p := fmt.Sprintf("%s[%d]", path, i)
		if !c.usable(p) {
			continue
		}
		if pfx, ok := c.part(p, s, subnets, want, out); ok {
			out = append(out, pfx)
		}
	}
	return out
}

func (c *checker) part(path, s string, subnets []netip.Prefix, want part, have []netip.Prefix) (netip.Prefix, bool) {
	pfx, err := netip.ParsePrefix(s)
	if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
		pfx, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	if err != nil {
		c.fail(path, fmt.Sprintf("%q is neither an address nor a prefix", shorten(s)), fmt.Sprintf("for example %q", want.example))
		return pfx, false
	}
	in := slices.IndexFunc(subnets, func(n netip.Prefix) bool { return n.IsValid() && n.Bits() <= pfx.Bits() && n.Contains(pfx.Addr()) })
	switch {
	case pfx != pfx.Masked():
		c.fail(path, s+" has bits set behind the prefix", fmt.Sprintf("write %q", pfx.Masked()))
	case in < 0 && slices.Contains(subnets, netip.Prefix{}):
		return pfx, false // a subnet that could not be read may hold it
	case in < 0:
		c.fail(path, fmt.Sprintf("%s is in no subnet of the network", s), "give one within "+netdef.Text(subnets))
	case want.host && !pfx.IsSingleIP():
		c.fail(path, s+" is no address", fmt.Sprintf("for example %q", want.example))
	case want.host && netdef.Edge(subnets[in], pfx.Addr()):
		c.fail(path, fmt.Sprintf("%s is the first or the last address of %s, which is no host's", s, subnets[in]), fmt.Sprintf("for example %q", subnets[in].Addr().Next()))
	case want.one && slices.ContainsFunc(have, func(o netip.Prefix) bool { return subnets[in].Contains(o.Addr()) }):
		c.fail(path, fmt.Sprintf("%s is the second one in subnet %s", s, subnets[in]), "keep one of them")
	case slices.Contains(have, pfx):
		c.fail(path, s+" is in the list twice", "remove it")
	default:
		return pfx, true
	}
	return pfx, false
}

// mostTried is how many addresses of a range are looked at; longer ones have free
// addresses, since no more than a few prefixes are reserved.
const mostTried = 1 << 10

// rangesUsable refuses ranges from which no address can be given.
func (c *checker) rangesUsable(path string, raw rawNetwork, o netdef.Options, subnets []netip.Prefix) {
	for i, s := range raw.Ranges {
		r, err := netip.ParsePrefix(s)
		if err != nil || !slices.Contains(o.Ranges, r) {
			continue
		}
		subnet := subnets[slices.IndexFunc(subnets, func(n netip.Prefix) bool { return n.Overlaps(r) })]
		tried, free := 0, false
		for a := r.Addr(); r.Contains(a) && tried < mostTried && !free; a = a.Next() {
			free = !o.Withheld(subnet, a)
			tried++
		}
		if !free && tried < mostTried {
			c.fail(fmt.Sprintf("%s.ip_ranges[%d]", path, i), s+" has no address that an endpoint could get", "give a larger one, or reserve less of it")
		}
	}
}

// labels checks labels; they are no part of what nodes have to agree on.
func (c *checker) labels(path string, raw []string) []string {
	if !c.usable(path) {
		return nil
	}
	if len(raw) > netdef.MaxLabels {
		c.fail(path, fmt.Sprintf("%d labels, at most %d", len(raw), netdef.MaxLabels), "remove some")
	}
	for i, l := range raw {
		p := fmt.Sprintf("%s[%d]", path, i)
		switch {
		case !c.usable(p):
		case !netdef.ValidLabel(l):
			c.fail(p, fmt.Sprintf("%q is not a label", shorten(l)), fmt.Sprintf("1 to %d printable ASCII characters without spaces, such as team=web", netdef.MaxLabel))
		case slices.Contains(raw[:i], l):
			c.fail(p, l+" is in the list twice", "remove it")
		}
	}
	return slices.Sorted(slices.Values(raw))
}
