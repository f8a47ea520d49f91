package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// host is what the agent asks the host namespace about its underlay.
// *nl.Handle implements it.
type host interface {
	RouteTo(dst netip.Addr) (nl.Route, error)
	GlobalAddrs() ([]nl.Address, error)
}

// Addresses of documentation networks (RFC 5737, RFC 3849): nobody has a
// route of its own to them, so asking for one finds the default route.
// Nothing is sent.
var (
	farV4 = netip.AddrFrom4([4]byte{192, 0, 2, 1})
	farV6 = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 1})
)

// ownAddrs returns the addresses to publish. The configuration decides; else
// it is the address that the default route uses as its source, of each
// family; else the only address there is. Where several could be meant the
// operator must say which: a wrong guess would be signed and spread.
func ownAddrs(cfg config.Control, h host) ([]OwnAddr, error) {
	port := cfg.Bind.Port()
	addrs, err := h.GlobalAddrs()
	if err != nil {
		return nil, fmt.Errorf("find own underlay address: %w", err)
	}
	fixed := cfg.Advertise
	if len(fixed) == 0 && cfg.Bind.IsValid() && !cfg.Bind.Addr().IsUnspecified() {
		fixed = []netip.AddrPort{cfg.Bind}
	}
	var out []OwnAddr
	for _, f := range fixed {
		a := f.Addr().Unmap()
		out = append(out, OwnAddr{Control: netip.AddrPortFrom(a, cmp.Or(f.Port(), port)), MTU: linkMTU(h, addrs, a)})
	}
	if len(out) > 0 {
		return out, nil
	}
	var ambiguous []string
	for _, far := range []netip.Addr{farV4, farV6} {
		candidates := slices.DeleteFunc(slices.Clone(addrs), func(a nl.Address) bool { return a.Addr.Is4() != far.Is4() })
		if r, err := h.RouteTo(far); err == nil {
			i := slices.IndexFunc(candidates, func(a nl.Address) bool { return a.Addr == r.Source })
			if i >= 0 {
				candidates = candidates[i : i+1]
			}
		}
		switch len(candidates) {
		case 0:
		case 1:
			out = append(out, OwnAddr{Control: netip.AddrPortFrom(candidates[0].Addr, port), MTU: candidates[0].MTU})
		default:
			for _, c := range candidates {
				ambiguous = append(ambiguous, c.Addr.String()+" ("+c.Device+")")
			}
		}
	}
	switch {
	case len(out) > 0:
		// One family is clear; the other is not needed to be reachable.
		return out, nil
	case len(ambiguous) > 0:
		return nil, api.NewError(api.CodeInvalid,
			"this host has several addresses and no default route, so it is not clear at which one other nodes reach it: "+strings.Join(ambiguous, ", "),
			"set control.advertise in the configuration to one of them, or to one of each family")
	default:
		return nil, api.NewError(api.CodeInvalid,
			"this host has no address at which other nodes could reach it: no link that is up has a global unicast address",
			"bring a link up, or set control.advertise in the configuration")
	}
}

// linkMTU is the MTU of the link that has address a. If none has it, as
// behind NAT, the default route's counts.
func linkMTU(h host, addrs []nl.Address, a netip.Addr) int {
	for _, c := range addrs {
		if c.Addr == a {
			return c.MTU
		}
	}
	far := farV6
	if a.Is4() {
		far = farV4
	}
	if r, err := h.RouteTo(far); err == nil {
		return r.MTU
	}
	return noUnderlayMTU
}
