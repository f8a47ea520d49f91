package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// tableHost has given addresses and default routes.
type tableHost struct {
	addrs []nl.Address
	v4    netip.Addr // source of the default route; zero: none
	v6    netip.Addr
}

func (h tableHost) GlobalAddrs() ([]nl.Address, error) { return h.addrs, nil }

func (h tableHost) RouteTo(dst netip.Addr) (nl.Route, error) {
	src := h.v6
	if dst.Is4() {
		src = h.v4
	}
	if !src.IsValid() {
		return nl.Route{}, unix.ENETUNREACH
	}
	return nl.Route{Device: "eth0", Source: src, MTU: 1492}, nil
}

func TestOwnAddrs(t *testing.T) {
	addr := func(ip, dev string, mtu int) nl.Address {
		return nl.Address{Addr: netip.MustParseAddr(ip), Device: dev, MTU: mtu}
	}
	lan, docker := addr("10.0.0.5", "eth0", 1500), addr("172.17.0.1", "docker0", 1500)
	lan6 := addr("2001:db8:1::5", "eth0", 1500)
	bind := config.Control{Bind: netip.MustParseAddrPort("0.0.0.0:7946")}
	with := func(advertise string) config.Control {
		c := bind
		for a := range strings.SplitSeq(advertise, " ") {
			c.Advertise = append(c.Advertise, netip.MustParseAddrPort(a))
		}
		return c
	}
	for name, c := range map[string]struct {
		cfg  config.Control
		host tableHost
		want []string // address and MTU
		err  string
	}{
		"one address":           {bind, tableHost{addrs: []nl.Address{lan}}, []string{"10.0.0.5:7946 1500"}, ""},
		"default route decides": {bind, tableHost{addrs: []nl.Address{lan, docker}, v4: lan.Addr}, []string{"10.0.0.5:7946 1500"}, ""},
		"both families":         {bind, tableHost{addrs: []nl.Address{lan, lan6}}, []string{"10.0.0.5:7946 1500", "[2001:db8:1::5]:7946 1500"}, ""},
		"one family is clear":   {bind, tableHost{addrs: []nl.Address{lan, docker, lan6}}, []string{"[2001:db8:1::5]:7946 1500"}, ""},
		"ambiguous":             {bind, tableHost{addrs: []nl.Address{lan, docker}}, nil, "10.0.0.5 (eth0), 172.17.0.1 (docker0)"},
		"none":                  {bind, tableHost{}, nil, "no link that is up"},
		"configured":            {with("10.0.0.5:8000"), tableHost{addrs: []nl.Address{lan, docker}}, []string{"10.0.0.5:8000 1500"}, ""},
		"configured, both": {with("10.0.0.5:8000 [2001:db8:1::5]:8001"), tableHost{addrs: []nl.Address{lan, docker, lan6}},
			[]string{"10.0.0.5:8000 1500", "[2001:db8:1::5]:8001 1500"}, ""},
		"configured behind NAT":  {with("192.0.2.9:7946"), tableHost{addrs: []nl.Address{lan}, v4: lan.Addr}, []string{"192.0.2.9:7946 1492"}, ""},
		"configured, no default": {with("192.0.2.9:7946"), tableHost{addrs: []nl.Address{lan}}, []string{"192.0.2.9:7946 1500"}, ""},
		"bound to one": {config.Control{Bind: netip.MustParseAddrPort("172.17.0.1:7000")},
			tableHost{addrs: []nl.Address{lan, docker}, v4: lan.Addr}, []string{"172.17.0.1:7000 1500"}, ""},
	} {
		own, err := ownAddrs(c.cfg, c.host)
		var got []string
		for _, o := range own {
			got = append(got, fmt.Sprint(o.Control, " ", o.MTU))
		}
		if diff := cmp.Diff(c.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if (err != nil) != (c.err != "") || err != nil && (!strings.Contains(err.Error(), c.err) || api.CodeOf(err) != api.CodeInvalid) {
			t.Errorf("%s: error %v, want %q", name, err, c.err)
		}
	}
}
