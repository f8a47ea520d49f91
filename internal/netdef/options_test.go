package netdef

import (
	"net/netip"
	"slices"
	"testing"
)

func TestAddresses(t *testing.T) {
	subnet4, subnet6 := netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("fd77::/64")
	o := Options{
		Gateways: []netip.Addr{netip.MustParseAddr("10.77.0.254")},
		Ranges:   []netip.Prefix{netip.MustParsePrefix("10.77.0.64/26")},
		Reserved: []netip.Prefix{netip.MustParsePrefix("10.77.0.16/28"), netip.MustParsePrefix("fd77::9/128")},
	}
	if g := o.Gateway(subnet4); g != o.Gateways[0] {
		t.Errorf("gateway of %s is %s", subnet4, g)
	}
	if g := o.Gateway(subnet6); g != netip.MustParseAddr("fd77::1") {
		t.Errorf("gateway of %s is %s", subnet6, g)
	}
	if r := o.Range(subnet4); r != o.Ranges[0] {
		t.Errorf("range of %s is %s", subnet4, r)
	}
	if r := o.Range(subnet6); r != subnet6 {
		t.Errorf("range of %s is %s", subnet6, r)
	}
	for addr, withheld := range map[string]bool{
		"10.77.0.0": true, "10.77.0.1": false, "10.77.0.15": false, "10.77.0.16": true, "10.77.0.31": true, "10.77.0.32": false,
		"10.77.0.253": false, "10.77.0.254": true, "10.77.0.255": true,
		"fd77::": true, "fd77::1": true, "fd77::2": false, "fd77::9": true, "fd77::ffff:ffff:ffff:ffff": false,
	} {
		a := netip.MustParseAddr(addr)
		subnet := subnet6
		if a.Is4() {
			subnet = subnet4
		}
		if got := o.Withheld(subnet, a); got != withheld {
			t.Errorf("%s withheld: %v", addr, got)
		}
	}
	// The address behind the last one of all there are.
	top := netip.MustParsePrefix("255.255.255.0/24")
	if !(Options{}).Withheld(top, netip.MustParseAddr("255.255.255.255")) {
		t.Error("the last IPv4 address is an endpoint's")
	}
}

func TestDifferences(t *testing.T) {
	a, b := netip.MustParsePrefix("10.77.0.0/28"), netip.MustParsePrefix("10.77.1.0/28")
	o := Options{Reserved: []netip.Prefix{a, b}, Internal: true}
	if d := o.Differences(Options{Reserved: []netip.Prefix{b, a}, Internal: true}); len(d) != 0 {
		t.Errorf("another order differs: %v", d)
	}
	want := []Difference{
		{"gateways", "", "10.77.0.9"}, {"ip_ranges", "", "10.77.0.0/28"}, {"reserve", "10.77.0.0/28,10.77.1.0/28", ""},
		{"internal", "true", "false"}, {"no_broadcast", "false", "true"},
	}
	got := o.Differences(Options{Gateways: []netip.Addr{netip.MustParseAddr("10.77.0.9")}, Ranges: []netip.Prefix{a}, NoBroadcast: true})
	if !slices.Equal(got, want) {
		t.Errorf("differences\n%v\nwant\n%v", got, want)
	}
}
