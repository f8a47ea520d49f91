package config

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

func TestNetworkSpec(t *testing.T) {
	got, err := NetworkSpec{Name: "blue", Subnets: []string{"10.77.0.0/16", "fd77::/64"}, Driver: "ipsec", MTU: 1400}.Network()
	want := Network{
		Name: "blue", VNI: ids.DeriveVNI("blue"), Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")},
		Encrypted: true, MTU: 1400, Driver: DriverIPsec,
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); d != "" || err != nil {
		t.Errorf("%v\n%s", err, d)
	}
	if n, err := (NetworkSpec{Name: "lab", Subnets: []string{"10.1.0.0/24"}, Plaintext: true, VNI: 9}).Network(); err != nil || n.Encrypted || n.VNI != 9 {
		t.Errorf("%+v, %v", n, err)
	}
	opts, err := NetworkSpec{
		Name: "green", Subnets: []string{"10.77.0.0/16", "fd77::/64"}, Gateways: []string{"fd77::ff"}, Ranges: []string{"10.77.128.0/17"},
		Reserved: []string{"10.77.200.0/24", "10.77.128.9"}, Internal: true, NoBroadcast: true, Labels: []string{"b", "a=1"},
	}.Network()
	wantOpts := netdef.Options{
		Gateways: []netip.Addr{netip.MustParseAddr("fd77::ff")}, Ranges: []netip.Prefix{netip.MustParsePrefix("10.77.128.0/17")},
		Reserved: []netip.Prefix{netip.MustParsePrefix("10.77.128.9/32"), netip.MustParsePrefix("10.77.200.0/24")}, Internal: true, NoBroadcast: true,
	}
	if d := cmp.Diff(wantOpts, opts.Options, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); d != "" || err != nil || strings.Join(opts.Labels, " ") != "a=1 b" {
		t.Errorf("%v, labels %q\n%s", err, opts.Labels, d)
	}
	// The rules are those of the file; here is that they apply, and what the
	// errors name.
	for name, c := range map[string]struct {
		spec NetworkSpec
		key  string
	}{
		"name":              {NetworkSpec{Name: "a b", Subnets: []string{"10.1.0.0/24"}}, "name"},
		"no name":           {NetworkSpec{Subnets: []string{"10.1.0.0/24"}}, "name"},
		"subnets":           {NetworkSpec{Name: "a"}, "subnets"},
		"subnet":            {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24", "10.1.0.1/24"}}, "subnets[1]"},
		"overlap":           {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/16", "10.1.2.0/24"}}, "subnets[1]"},
		"VNI":               {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, VNI: 1 << 24}, "vni"},
		"MTU":               {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, MTU: 12}, "mtu"},
		"driver":            {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Driver: "pigeon"}, "driver"},
		"gateway":           {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Gateways: []string{"10.1.0.255"}}, "gateways[0]"},
		"gateway, a prefix": {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Gateways: []string{"10.1.0.0/30"}}, "gateways[0]"},
		"gateway outside":   {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Gateways: []string{"10.2.0.1"}}, "gateways[0]"},
		"two gateways":      {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Gateways: []string{"10.1.0.1", "10.1.0.2"}}, "gateways[1]"},
		"range":             {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Ranges: []string{"10.1.0.0/16"}}, "ip_ranges[0]"},
		"range, host bits":  {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Ranges: []string{"10.1.0.1/26"}}, "ip_ranges[0]"},
		"range of nothing":  {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Ranges: []string{"10.1.0.64/26"}, Reserved: []string{"10.1.0.64/26"}}, "ip_ranges[0]"},
		"range of gateway":  {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Ranges: []string{"10.1.0.0/31"}}, "ip_ranges[0]"},
		"reserve":           {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Reserved: []string{"ten"}}, "reserve[0]"},
		"reserve twice":     {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Reserved: []string{"10.1.0.9", "10.1.0.9/32"}}, "reserve[1]"},
		"label":             {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Labels: []string{"a b"}}, "labels[0]"},
		"no sense":          {NetworkSpec{Name: "a", Subnets: []string{"10.1.0.0/24"}, Plaintext: true, Driver: "ipsec"}, "driver"},
	} {
		_, err := c.spec.Network()
		var p *Problems
		if !errors.As(err, &p) || len(p.List) == 0 || p.List[0].Key != c.key {
			t.Errorf("%s: %v, want a problem with %s", name, err, c.key)
		}
	}
}

func TestClashAndDifferences(t *testing.T) {
	base := Network{Name: "blue", VNI: 5, Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")}, Encrypted: true, Driver: DriverIPsec}
	for name, c := range map[string]struct {
		edit  func(*Network)
		clash string // part of the reason; empty: none
		diff  string
	}{
		"the same name": {func(*Network) {}, "VNI 5", ""},
		"another":       {func(n *Network) { n.Name, n.VNI, n.Subnets = "red", 6, nil }, "", "vni subnets"},
		"letter case":   {func(n *Network) { n.Name, n.VNI, n.Subnets = "Blue", 6, nil }, "letter case", "vni subnets"},
		"overlap": {func(n *Network) {
			n.Name, n.VNI, n.Subnets = "red", 6, []netip.Prefix{netip.MustParsePrefix("10.77.9.0/24")}
		}, "overlaps", "vni subnets"},
		"two drivers":    {func(n *Network) { n.Name, n.VNI, n.Subnets, n.Driver = "red", 6, nil, DriverWireGuard }, "driver", "vni subnets driver"},
		"order":          {func(n *Network) { n.Name, n.VNI, n.Subnets = "blue", 5, []netip.Prefix{n.Subnets[1], n.Subnets[0]} }, "VNI 5", ""},
		"plain, and MTU": {func(n *Network) { n.Name, n.VNI, n.Subnets, n.Encrypted, n.MTU = "red", 6, nil, false, 1300 }, "", "vni encrypted subnets mtu"},
	} {
		o := base
		c.edit(&o)
		err := base.Clash(o)
		if (err == nil) != (c.clash == "") || err != nil && !strings.Contains(err.Error(), c.clash) {
			t.Errorf("%s: clash %v, want %q", name, err, c.clash)
		}
		if got := strings.Join(base.Differences(o), " "); got != c.diff {
			t.Errorf("%s: differs in %q, want %q", name, got, c.diff)
		}
	}
}
