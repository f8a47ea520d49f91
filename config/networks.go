package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Limits that a node's signed record has (package membership/record).
const (
	MaxNetworks = 256
	MaxSubnets  = 8
)

// The shortest and longest prefixes of a subnet. Longer ones have no room for
// an endpoint on each of two nodes; shorter ones are a slip of the pen that
// would route most of the address space into the overlay.
const (
	minBits4, maxBits4 = 8, 30
	minBits6, maxBits6 = 16, 126
)

func (c *checker) networks(raws []rawNetwork) []Network {
	if len(raws) > MaxNetworks {
		c.fail("networks", fmt.Sprintf("%d networks, at most %d fit into a node's record", len(raws), MaxNetworks), "remove some")
		raws = raws[:MaxNetworks]
	}
	nets := make([]Network, len(raws))
	for i, raw := range raws {
		nets[i] = c.network(fmt.Sprintf("networks[%d]", i), raw)
	}
	c.namesDiffer(nets)
	c.vnisDiffer(nets, raws)
	c.subnetsDisjoint(nets)
	c.driversAgree(nets)
	return nets
}

// network applies the rules that concern one network alone.
func (c *checker) network(path string, raw rawNetwork) Network {
	// Absent means encrypted. A value that the file has but that could not
	// be used has been reported, so the result of this is never returned.
	n := Network{Encrypted: true, Driver: DriverAuto}
	if raw.Encrypted != nil {
		n.Encrypted = *raw.Encrypted
	}
	if !c.usable(path) {
		return n
	}
	n.Name = c.networkName(path, raw.Name)
	n.VNI = c.vni(path+".vni", n.Name, raw.VNI)
	n.Subnets = c.subnets(path, n.Name, raw.Subnets)
	n.MTU = c.mtu(path+".mtu", raw.MTU, n.Subnets)
	n.Options = c.options(path, raw, n.Subnets)
	n.Labels = c.labels(path+".labels", raw.Labels)
	if raw.Driver != nil {
		n.Driver = c.choice(path+".driver", *raw.Driver, drivers()...)
		if !n.Encrypted && n.Driver != DriverAuto && c.usable(path+".driver") && slices.Contains(drivers(), n.Driver) {
			c.fail(path+".driver", fmt.Sprintf("network %q has encrypted: false and driver: %s, which contradict each other", n.Name, shorten(n.Driver)),
				"remove encrypted: false to encrypt the network, or remove the driver")
		}
	}
	return n
}

func drivers() []string {
	return []string{DriverAuto, DriverWireGuard, DriverUserspace, DriverIPsec, DriverIPsecUser}
}

func (c *checker) networkName(path string, name *string) string {
	p := path + ".name"
	switch {
	case !c.usable(p):
		return ""
	case name == nil:
		c.fail(p, "the network has no name", "add name: blue")
		return ""
	case !validName(*name):
		c.fail(p, fmt.Sprintf("%q is not a valid name", shorten(*name)), nameHint(*name))
		return ""
	}
	return *name
}

func (c *checker) vni(path, name string, raw *int64) ids.VNI {
	switch {
	case !c.usable(path):
		return 0
	case raw == nil && name == "":
		return 0
	case raw == nil:
		return ids.DeriveVNI(name)
	case *raw < 1 || *raw > int64(ids.MaxVNI):
		c.fail(path, fmt.Sprintf("VNI %d is out of range", *raw),
			fmt.Sprintf("1 to %d, for example %d; or remove the line to derive it from the name", ids.MaxVNI, min(max(*raw, 1), int64(ids.MaxVNI))))
		return 0
	}
	return ids.VNI(*raw)
}

func (c *checker) subnets(path, name string, raw []string) []netip.Prefix {
	p := path + ".subnets"
	if !c.usable(p) {
		return nil
	}
	if len(raw) == 0 {
		c.fail(p, fmt.Sprintf("network %q has no subnets", name), `add subnets: ["10.77.0.0/16"]`)
		return nil
	}
	if len(raw) > MaxSubnets {
		c.fail(p, fmt.Sprintf("network %q has %d subnets, at most %d fit into a node's record", name, len(raw), MaxSubnets), "remove some")
		raw = raw[:MaxSubnets]
	}
	var out []netip.Prefix
	for i, s := range raw {
		ip := fmt.Sprintf("%s[%d]", p, i)
		var pfx netip.Prefix // the zero value keeps the indices of the others
		if c.usable(ip) {
			if good, ok := c.subnet(ip, s); ok {
				pfx = good
			}
		}
		out = append(out, pfx)
	}
	return out
}

func (c *checker) subnet(path, s string) (netip.Prefix, bool) {
	pfx, err := netip.ParsePrefix(s)
	if err != nil {
		hint := `for example "10.77.0.0/16" or "fd77::/64"`
		if a, err := netip.ParseAddr(s); err == nil {
			bits := 64
			if a.Is4() {
				bits = 24
			}
			hint = fmt.Sprintf("add a prefix length: %q", netip.PrefixFrom(a.WithZone(""), bits).Masked())
		}
		c.fail(path, fmt.Sprintf("%q is not a subnet", shorten(s)), hint)
		return pfx, false
	}
	lo, hi := minBits4, maxBits4
	if pfx.Addr().Is6() {
		lo, hi = minBits6, maxBits6
	}
	a := pfx.Addr()
	switch {
	case a.Is4In6():
		c.fail(path, s+" is an IPv4-mapped subnet", "write it as IPv4")
	case pfx.Bits() > hi:
		c.fail(path, s+" is too small for endpoints on two nodes", fmt.Sprintf("use /%d or shorter", hi))
	case pfx.Bits() < lo:
		c.fail(path, s+" is too large", fmt.Sprintf("use /%d or longer", lo))
	case pfx != pfx.Masked():
		c.fail(path, s+" has bits set behind the prefix", fmt.Sprintf("write %q", pfx.Masked()))
	case a.IsMulticast(), a.IsLoopback(), a.IsUnspecified(), a.IsLinkLocalUnicast(), a.Is4() && a.As4()[0] >= 240, a.Is4() && a.As4()[0] == 0:
		c.fail(path, s+" is reserved and cannot number endpoints", `use a private subnet such as "10.77.0.0/16" or "fd77::/64"`)
	default:
		return pfx, true
	}
	return pfx, false
}

func (c *checker) mtu(path string, raw *int64, subnets []netip.Prefix) int {
	if raw == nil || !c.usable(path) {
		return 0
	}
	if *raw < MinMTU || *raw > MaxMTU {
		c.fail(path, fmt.Sprintf("MTU %d is out of range", *raw), fmt.Sprintf("%d to %d, or remove the line to derive it", MinMTU, MaxMTU))
		return 0
	}
	for _, s := range subnets {
		if s.IsValid() && s.Addr().Is6() && *raw < MinMTU6 {
			c.fail(path, fmt.Sprintf("MTU %d is too small for the IPv6 subnet %s", *raw, s), fmt.Sprintf("IPv6 needs at least %d (RFC 8200)", MinMTU6))
			break
		}
	}
	return int(*raw)
}

// where names the line of a network's key, for messages about another one.
func (c *checker) where(i int, key string) string {
	p := fmt.Sprintf("networks[%d]%s", i, key)
	return fmt.Sprintf("line %d", c.at(p).line)
}

// namesDiffer compares without regard to case: file systems, DNS and people
// do not tell Blue from blue.
func (c *checker) namesDiffer(nets []Network) {
	first := map[string]int{}
	for i, n := range nets {
		if n.Name == "" {
			continue
		}
		key := strings.ToLower(n.Name)
		j, dup := first[key]
		if !dup {
			first[key] = i
			continue
		}
		problem := fmt.Sprintf("network %q is already defined in %s", n.Name, c.where(j, ".name"))
		if nets[j].Name != n.Name {
			problem = fmt.Sprintf("network %q differs from %q in %s only by letter case", n.Name, nets[j].Name, c.where(j, ".name"))
		}
		c.fail(fmt.Sprintf("networks[%d].name", i), problem, "choose another name")
	}
}

func (c *checker) vnisDiffer(nets []Network, raws []rawNetwork) {
	used := map[ids.VNI]int{}
	for i, n := range nets {
		if n.VNI == 0 {
			continue
		}
		j, dup := used[n.VNI]
		if !dup {
			used[n.VNI] = i
			continue
		}
		if strings.EqualFold(nets[j].Name, n.Name) && raws[i].VNI == nil && raws[j].VNI == nil {
			continue // one name twice has been reported
		}
		how := "VNI"
		if raws[i].VNI == nil {
			how = "derived VNI"
		}
		c.fail(fmt.Sprintf("networks[%d].vni", i), fmt.Sprintf("%s %d is taken by network %q (%s)", how, n.VNI, nets[j].Name, c.where(j, ".vni")),
			fmt.Sprintf("set vni: %d", freeVNI(n.VNI, nets)))
	}
}

// freeVNI is the next number that no network uses.
func freeVNI(v ids.VNI, nets []Network) ids.VNI {
	for {
		v = v%ids.MaxVNI + 1
		taken := false
		for _, n := range nets {
			taken = taken || n.VNI == v
		}
		if !taken {
			return v
		}
	}
}

func (c *checker) subnetsDisjoint(nets []Network) {
	type seen struct {
		net, sub int
		pfx      netip.Prefix
	}
	var all []seen
	for i, n := range nets {
		for k, p := range n.Subnets {
			if !p.IsValid() {
				continue
			}
			for _, o := range all {
				if !p.Overlaps(o.pfx) {
					continue
				}
				whose := "of the same network"
				if o.net != i {
					whose = fmt.Sprintf("of network %q", nets[o.net].Name)
				}
				c.fail(fmt.Sprintf("networks[%d].subnets[%d]", i, k),
					fmt.Sprintf("%s overlaps %s %s (%s)", p, o.pfx, whose, c.where(o.net, fmt.Sprintf(".subnets[%d]", o.sub))), "choose subnets that do not overlap")
				break
			}
			all = append(all, seen{i, k, p})
		}
	}
}

// driversAgree refuses two explicit drivers: all encrypted networks of a pair
// of nodes share one tunnel.
func (c *checker) driversAgree(nets []Network) {
	first := -1
	for i, n := range nets {
		if !n.Encrypted || n.Driver == DriverAuto {
			continue
		}
		if first < 0 {
			first = i
			continue
		}
		if f := nets[first]; f.Driver != n.Driver {
			c.fail(fmt.Sprintf("networks[%d].driver", i),
				fmt.Sprintf("network %q asks for driver %s, network %q (%s) for %s; all encrypted networks share one tunnel",
					n.Name, shorten(n.Driver), f.Name, c.where(first, ".driver"), shorten(f.Driver)),
				fmt.Sprintf("set driver: %s here, or remove one of the two", shorten(f.Driver)))
		}
	}
}
