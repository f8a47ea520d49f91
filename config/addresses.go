package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// dataPort is the first of DataPorts ports.
func (c *checker) dataPort(val int64) uint16 {
	const path, last = "data.port", 65535 - DataPorts + 1
	if c.usable(path) && val > last && val <= 65535 {
		c.fail(path, fmt.Sprintf("port %d leaves no room: the tunnels use %d ports from it on", val, DataPorts), fmt.Sprintf("1 to %d", last))
		return 0
	}
	return c.port(path, val)
}

func (c *checker) port(path string, val int64) uint16 {
	if !c.usable(path) {
		return 0
	}
	if val < 1 || val > 65535 {
		c.fail(path, fmt.Sprintf("port %d is out of range", val), fmt.Sprintf("1 to 65535, for example %d", clampPort(val)))
		return 0
	}
	return uint16(val)
}

func clampPort(v int64) int64 { return min(max(v, 1), 65535) }

// portsDiffer refuses two sockets of this node on one port of the host
// namespace.
func (c *checker) portsDiffer(cfg Config) {
	type use struct {
		path        string
		first, last int
	}
	one := func(path string, port uint16) use { return use{path, int(port), int(port)} }
	uses := []use{
		one("control.bind", cfg.Control.Bind.Port()),
		{"data.port", int(cfg.Data.Port), int(cfg.Data.Port) + DataPorts - 1},
		one("data.vxlan_port", cfg.Data.VXLANPort),
	}
	for i, a := range uses {
		for _, b := range uses[:i] {
			if a.first == 0 || b.first == 0 || a.last < b.first || b.last < a.first {
				continue
			}
			problem := fmt.Sprintf("UDP port %d is taken by %s", max(a.first, b.first), b.path)
			for _, u := range []use{a, b} {
				if u.first < u.last {
					problem += fmt.Sprintf("; the tunnels use %d to %d", u.first, u.last)
				}
			}
			c.fail(a.path, problem, "choose another port")
		}
	}
	bind, metrics := cfg.Control.Bind, cfg.Metrics.Listen
	if metrics.IsValid() && metrics.Port() == bind.Port() && (bind.Addr().IsUnspecified() || bind.Addr() == metrics.Addr()) {
		c.fail("metrics.listen", fmt.Sprintf("TCP port %d is taken by control.bind", bind.Port()), "choose another port")
	}
}

func (c *checker) bind(val string) netip.AddrPort {
	const path = "control.bind"
	if !c.usable(path) {
		return netip.AddrPort{}
	}
	ap, ok := c.addrPort(path, val, anywhere())
	if ok && ap.Addr().IsMulticast() {
		c.fail(path, val+" is a multicast address", "use an address of this host, or [::]:7946 for all")
	}
	return ap
}

// advertise takes an address, or one of each family with a comma between them.
func (c *checker) advertise(val string) []netip.AddrPort {
	const path = "control.advertise"
	if val == "" || !c.usable(path) {
		return nil
	}
	var out []netip.AddrPort
	for part := range strings.SplitSeq(val, ",") {
		ap, ok := c.addrPort(path, strings.TrimSpace(part), anywhere())
		if !ok {
			continue
		}
		ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		switch a := ap.Addr(); {
		case a.IsUnspecified(), a.IsMulticast():
			c.fail(path, fmt.Sprintf("%s is no address that others can reach", a), "use an address of this host")
		case a.Zone() != "":
			c.fail(path, fmt.Sprintf("%s has a zone, which means nothing on another host", a), "use a global address of this host")
		case slices.ContainsFunc(out, func(o netip.AddrPort) bool { return o.Addr().Is4() == a.Is4() }):
			c.fail(path, fmt.Sprintf("%s is the second address of its family", a), "name one IPv4 and one IPv6 address at most")
		}
		out = append(out, ap)
	}
	return out
}

// metricsListen allows loopback addresses only: whoever can connect can read.
func (c *checker) metricsListen(val string) netip.AddrPort {
	const path = "metrics.listen"
	if val == "" || !c.usable(path) {
		return netip.AddrPort{}
	}
	example := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), defaultMetricsPort)
	ap, ok := c.addrPort(path, val, example)
	if ok && !ap.Addr().IsLoopback() {
		c.fail(path, fmt.Sprintf("%s is not a loopback address, and metrics have no authentication: they would tell others who talks to whom", ap.Addr()),
			fmt.Sprintf("write %q, and let a collector on this host read it", netip.AddrPortFrom(example.Addr(), ap.Port())))
	}
	return ap
}

// defaultMetricsPort stands in hints; there is no default listener.
const defaultMetricsPort = 9947

// anywhere is the example of an address to listen on for other hosts.
func anywhere() netip.AddrPort {
	return netip.AddrPortFrom(netip.IPv6Unspecified(), DefaultControlPort)
}

// addrPort parses address:port. If it cannot, it says what is missing, with
// the parts of the example where the text has none.
func (c *checker) addrPort(path, val string, example netip.AddrPort) (netip.AddrPort, bool) {
	ap, err := netip.ParseAddrPort(val)
	switch {
	case err != nil:
		hint := fmt.Sprintf("write address:port, for example %q", example)
		if a, err := netip.ParseAddr(strings.Trim(val, "[]")); err == nil {
			hint = fmt.Sprintf("write %q", netip.AddrPortFrom(a, example.Port()))
		} else if p, err := strconv.ParseUint(strings.TrimPrefix(val, ":"), 10, 16); err == nil && p > 0 {
			hint = fmt.Sprintf("write %q", netip.AddrPortFrom(example.Addr(), uint16(p)))
		}
		c.fail(path, fmt.Sprintf("%q is not an address with a port", shorten(val)), hint)
		return netip.AddrPort{}, false
	case ap.Port() == 0:
		c.fail(path, fmt.Sprintf("port 0 in %q", shorten(val)), fmt.Sprintf("write %q", netip.AddrPortFrom(ap.Addr(), example.Port())))
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), true
}

func (c *checker) seeds(vals []string) []string {
	const path = "control.seeds"
	first := map[string]int{}
	for i, s := range vals {
		p := fmt.Sprintf("%s[%d]", path, i)
		if !c.usable(p) {
			continue
		}
		if problem, hint := checkHostPort(s); problem != "" {
			c.fail(p, problem, hint)
			continue
		}
		if j, dup := first[strings.ToLower(s)]; dup {
			c.fail(p, fmt.Sprintf("%q stands in the list twice, first as number %d", s, j+1), "keep one of them")
			continue
		}
		first[strings.ToLower(s)] = i
	}
	return slices.Clone(vals)
}

// checkHostPort checks host:port or address:port; the results are empty if
// it is valid.
func checkHostPort(s string) (problem, hint string) {
	i := strings.LastIndexByte(s, ':')
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return fmt.Sprintf("%q has no port", s), fmt.Sprintf("write %q", netip.AddrPortFrom(a, DefaultControlPort))
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		if ap.Port() == 0 || ap.Addr().IsUnspecified() || ap.Addr().IsMulticast() {
			return fmt.Sprintf("%q is nothing that can be contacted", s), "write the address and port of a member"
		}
		return "", ""
	}
	if i < 0 {
		if validHost(s) {
			return fmt.Sprintf("%q has no port", s), fmt.Sprintf("write %q", s+":"+strconv.Itoa(DefaultControlPort))
		}
		return fmt.Sprintf("%q is not host:port", shorten(s)), `for example "10.0.0.11:7946"`
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || port == 0 {
		return fmt.Sprintf("%q has no valid port", shorten(s)), "1 to 65535"
	}
	if !validHost(s[:i]) {
		return fmt.Sprintf("%q is not host:port", shorten(s)), `for example "10.0.0.11:7946"`
	}
	return "", ""
}

// validHost accepts DNS names (RFC 1123 letters, plus the underscore). A name
// of digits and dots only is a mistyped address, not a host.
func validHost(s string) bool {
	if len(s) == 0 || len(s) > 253 || strings.Trim(s, "0123456789.") == "" {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if !nameRune(label[i]) {
				return false
			}
		}
	}
	return true
}
