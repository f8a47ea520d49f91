package doctor

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// ports tries to bind what the agent would bind.
func ports(o Options) []Finding {
	var out []Finding
	if o.Control.IsValid() {
		out = append(out, portFinding(o, "control", "tcp", o.Control), portFinding(o, "control", "udp", o.Control))
	}
	udp := func(what string, port uint16) Finding {
		return portFinding(o, what, "udp", netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	}
	for i, port := range o.DataPorts {
		f := udp("data", port)
		if i > 0 && f.Level == Fail {
			// The agent works until the keys change.
			f.Level, f.Detail = Warn, f.Detail+"; keys cannot rotate"
		}
		out = append(out, f)
	}
	if o.VXLANPort != 0 {
		out = append(out, udp("vxlan", o.VXLANPort))
	}
	return out
}

func portFinding(o Options, what, proto string, at netip.AddrPort) Finding {
	f := Finding{Name: "port " + proto + "/" + strconv.Itoa(int(at.Port())), Level: OK, Detail: what + ": free"}
	err := tryBind(proto, at)
	switch {
	case err == nil:
	case errors.Is(err, unix.EADDRINUSE) && o.AgentRunning:
		f.Detail = what + ": in use, by the running agent"
	case errors.Is(err, unix.EADDRINUSE):
		f.Level, f.Detail = Fail, what+": another program uses it"
		f.Fix = fmt.Sprintf("find it with ss -lnp 'sport = %d', or choose another port", at.Port())
	case errors.Is(err, unix.EADDRNOTAVAIL):
		f.Level, f.Detail, f.Fix = Fail, fmt.Sprintf("%s: this host has no address %s", what, at.Addr()), "set control.bind to an address of this host, or to \"[::]:7946\""
	default:
		f.Level, f.Detail, f.Fix = Fail, what+": "+err.Error(), "choose another port"
	}
	return f
}

func tryBind(proto string, at netip.AddrPort) error {
	if proto == "tcp" {
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			return err
		}
		return l.Close()
	}
	c, err := net.ListenPacket("udp", at.String())
	if err != nil {
		return err
	}
	return c.Close()
}

// minIPv6 is the smallest MTU of a network with an IPv6 subnet (RFC 8200).
const minIPv6 = 1280

// mtus looks at the routes over which tunnels would go.
func mtus(o Options) []Finding {
	here, err := nl.CurrentNamespace()
	if err != nil {
		return []Finding{{Name: "mtu", Level: Warn, Detail: err.Error(), Fix: "run the command with sudo"}}
	}
	defer func() { _ = here.Close() }()
	h, err := here.Handle()
	if err != nil {
		return []Finding{{Name: "mtu", Level: Warn, Detail: err.Error(), Fix: "run the command with sudo"}}
	}
	defer h.Close()
	// Documentation addresses (RFC 5737, RFC 3849) take the default routes.
	dsts := slices.Concat([]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, o.Peers)
	var out []Finding
	for i, dst := range dsts {
		route, err := h.RouteTo(dst)
		name := "mtu to " + dst.String()
		if i < 2 {
			name = map[bool]string{true: "mtu ipv4", false: "mtu ipv6"}[dst.Is4()]
			if err != nil {
				continue // a host without that family, or without a default route, is fine
			}
		}
		if err != nil {
			out = append(out, Finding{Name: name, Level: Fail, Detail: err.Error(), Fix: "add a route to it"})
			continue
		}
		out = append(out, mtuFinding(name, route, dst, o))
	}
	if len(out) == 0 {
		out = append(out, Finding{Name: "mtu", Level: Warn, Detail: "there is no default route; only hosts on the same link can be reached", Fix: "add routes to the other nodes"})
	}
	return out
}

func mtuFinding(name string, r nl.Route, dst netip.Addr, o Options) Finding {
	f := Finding{Name: name, Level: OK, Detail: fmt.Sprintf("%s, %d bytes", r.Device, r.MTU)}
	if o.InnerMTU == nil {
		return f
	}
	inner := o.InnerMTU(r.MTU, dst)
	f.Detail += fmt.Sprintf(", leaves %d for encrypted networks", inner)
	for _, network := range slices.Sorted(maps.Keys(o.MTUs)) {
		if mtu := o.MTUs[network]; mtu > inner {
			f.Level = Warn
			f.Detail += fmt.Sprintf("; network %s is set to %d", network, mtu)
			f.Fix = fmt.Sprintf("remove mtu: from network %s, or set it to at most %d", network, inner)
		}
	}
	if inner < minIPv6 && f.Level == OK {
		f.Level, f.Fix = Warn, fmt.Sprintf("raise the MTU of %s to at least %d; networks with IPv6 subnets need %d", r.Device, r.MTU+minIPv6-inner, minIPv6)
	}
	return f
}
