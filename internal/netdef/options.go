package netdef

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Options are part of a network's definition: nodes that differ in them do not
// connect it. The zero value is what a network has of which nobody said anything.
// Lists are ascending and without duplicates once they are Canonical.
type Options struct {
	Gateways    []netip.Addr   `json:"gateways,omitempty"`     // at most one in a subnet; default: its second address
	Ranges      []netip.Prefix `json:"ip_ranges,omitempty"`    // at most one in a subnet: where addresses that nobody chose come from
	Reserved    []netip.Prefix `json:"reserve,omitempty"`      // no endpoint gets these
	Internal    bool           `json:"internal,omitempty"`     // no way out of the network, and no names but those in it
	NoBroadcast bool           `json:"no_broadcast,omitempty"` // frames for all do not leave their node
}

// Limits of one definition.
const (
	MaxReserved = 8  // prefixes
	MaxLabels   = 16 // of a network
	MaxLabel    = 63 // bytes of a label
)

// Canonical returns a copy in canonical order that shares nothing with o.
func (o Options) Canonical() Options {
	o.Gateways = slices.Clone(o.Gateways)
	for i := range o.Gateways {
		o.Gateways[i] = o.Gateways[i].Unmap()
	}
	slices.SortFunc(o.Gateways, netip.Addr.Compare)
	o.Ranges, o.Reserved = Prefixes(o.Ranges), Prefixes(o.Reserved)
	return o
}

// Prefixes returns a copy of a list without host bits, ascending.
func Prefixes(in []netip.Prefix) []netip.Prefix {
	out := slices.Clone(in)
	for i := range out {
		out[i] = out[i].Masked()
	}
	slices.SortFunc(out, ComparePrefix)
	return out
}

// ComparePrefix orders prefixes by address, then by length.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// Difference is a part of a definition in which two of them differ, as texts.
type Difference struct{ Field, Here, There string }

// Differences lists what is not alike in two definitions, by the names that the
// parts have in a file. The order of lists is no part of a definition.
func (o Options) Differences(their Options) []Difference {
	var out []Difference
	add := func(field, here, there string) {
		if here != there {
			out = append(out, Difference{field, here, there})
		}
	}
	a, b := o.Canonical(), their.Canonical()
	add("gateways", Text(a.Gateways), Text(b.Gateways))
	add("ip_ranges", Text(a.Ranges), Text(b.Ranges))
	add("reserve", Text(a.Reserved), Text(b.Reserved))
	add("internal", strconv.FormatBool(a.Internal), strconv.FormatBool(b.Internal))
	add("no_broadcast", strconv.FormatBool(a.NoBroadcast), strconv.FormatBool(b.NoBroadcast))
	return out
}

// Text is a list on one line, as a command takes it.
func Text[T interface{ String() string }](list []T) string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.String()
	}
	return strings.Join(out, ",")
}

// Gateway returns the address of a subnet that is the node's own on every node: its
// resolver, and the way out.
func (o Options) Gateway(subnet netip.Prefix) netip.Addr {
	i := slices.IndexFunc(o.Gateways, subnet.Contains)
	if i < 0 {
		return subnet.Masked().Addr().Next()
	}
	return o.Gateways[i]
}

// Range returns the part of a subnet from which addresses come that nobody chose.
func (o Options) Range(subnet netip.Prefix) netip.Prefix {
	i := slices.IndexFunc(o.Ranges, subnet.Overlaps)
	if i < 0 {
		return subnet.Masked()
	}
	return o.Ranges[i]
}

// Edge reports whether an address of subnet can be no host's: the first (network, or
// subnet-router anycast, RFC 4291 2.6.1), and on IPv4 the last (broadcast).
func Edge(subnet netip.Prefix, a netip.Addr) bool {
	return a == subnet.Masked().Addr() || a.Is4() && !subnet.Contains(a.Next())
}

// Withheld reports whether an address of subnet can be no endpoint's: those of Edge,
// the gateway, and what is reserved.
func (o Options) Withheld(subnet netip.Prefix, a netip.Addr) bool {
	return Edge(subnet, a) || a == o.Gateway(subnet) || slices.ContainsFunc(o.Reserved, func(r netip.Prefix) bool { return r.Contains(a) })
}

// ValidLabel reports whether s can be a label of a network, such as team=web: 1 to 63
// printable ASCII characters without spaces.
func ValidLabel(s string) bool {
	return len(s) >= 1 && len(s) <= MaxLabel && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
