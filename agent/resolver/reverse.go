package resolver

import (
	"net/netip"
	"slices"
	"strconv"
)

// reversed is what a name below in-addr.arpa (RFC 1035, 3.5) or ip6.arpa (RFC
// 3596, 2.5) stands for.
type reversed struct {
	Addrs netip.Prefix // the addresses whose names end so; of one address if the name is whole
	Whole bool         // the name of one address
	Below bool         // has further labels, which belong to no address
	Top   string       // the domain of the address family
}

// parseReverse takes the labels of a name, lower case, first one first.
func parseReverse(labels []string) (reversed, bool) {
	n := len(labels)
	if n < 2 || labels[n-1] != "arpa" {
		return reversed{}, false
	}
	digits := labels[:n-2]
	var r reversed
	switch labels[n-2] {
	case "in-addr":
		var b [4]byte
		used := readDigits(digits, len(b), func(i int, s string) bool {
			v, err := strconv.ParseUint(s, 10, 8)
			b[i] = byte(v)
			return err == nil && strconv.FormatUint(v, 10) == s
		})
		r = reversed{Addrs: netip.PrefixFrom(netip.AddrFrom4(b), 8*used), Whole: used == 4, Top: "in-addr.arpa."}
		r.Below = used < len(digits)
	case "ip6":
		var b [16]byte
		used := readDigits(digits, 2*len(b), func(i int, s string) bool {
			v, err := strconv.ParseUint(s, 16, 4)
			b[i/2] |= byte(v) << (4 * (1 - i%2))
			return err == nil && len(s) == 1
		})
		r = reversed{Addrs: netip.PrefixFrom(netip.AddrFrom16(b), 4*used), Whole: used == 32, Top: "ip6.arpa."}
		r.Below = used < len(digits)
		// Of an IPv4 address in IPv6 form: it must leave the node as little as the
		// address itself.
		if a := r.Addrs.Addr(); a.Is4In6() && r.Addrs.Bits() >= 96 {
			r.Addrs = netip.PrefixFrom(a.Unmap(), r.Addrs.Bits()-96)
		}
	default:
		return reversed{}, false
	}
	r.Whole = r.Whole && !r.Below
	return r, true
}

// readDigits gives at most limit labels to read, the last one first, until it
// refuses one, and returns how many it took.
func readDigits(labels []string, limit int, read func(i int, label string) bool) int {
	for i := range min(limit, len(labels)) {
		if !read(i, labels[len(labels)-1-i]) {
			return i
		}
	}
	return min(limit, len(labels))
}

// inside reports whether all addresses of p lie in one of the subnets.
func inside(p netip.Prefix, subnets []netip.Prefix) bool {
	return slices.ContainsFunc(subnets, func(s netip.Prefix) bool {
		return s.Bits() <= p.Bits() && s.Contains(p.Addr())
	})
}

// contains reports whether a lies in one of the subnets.
func contains(subnets []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Contains(a) })
}
