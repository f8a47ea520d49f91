package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

// NetworkSpec is a network as a command gives it. The zero value of a field but
// Name and Subnets stands for its default.
type NetworkSpec struct {
	Name      string
	Subnets   []string
	Plaintext bool
	Driver    string
	VNI       int64
	MTU       int64

	Gateways    []string
	Ranges      []string
	Reserved    []string
	Internal    bool
	NoBroadcast bool
	Labels      []string
}

// Network checks s by the rules of the file. Its error is a *Problems whose keys
// are those of one network in a file: name, subnets[0], vni, mtu, driver.
func (s NetworkSpec) Network() (Network, error) {
	encrypted := !s.Plaintext
	raw := rawNetwork{
		Name: &s.Name, Subnets: s.Subnets, Encrypted: &encrypted,
		Gateways: s.Gateways, Ranges: s.Ranges, Reserved: s.Reserved, Internal: &s.Internal, NoBroadcast: &s.NoBroadcast, Labels: s.Labels,
	}
	if s.Driver != "" {
		raw.Driver = &s.Driver
	}
	if s.VNI != 0 {
		raw.VNI = &s.VNI
	}
	if s.MTU != 0 {
		raw.MTU = &s.MTU
	}
	c := &checker{doc: &document{}}
	nets := c.networks([]rawNetwork{raw})
	if len(c.problems) == 0 {
		return nets[0], nil
	}
	for i := range c.problems {
		c.problems[i].Key = strings.TrimPrefix(c.problems[i].Key, "networks[0].")
	}
	return Network{}, &Problems{c.problems}
}

// Clash says why two networks cannot be on one node, or nil: names that differ by
// letter case only, one VNI, subnets that overlap, or two drivers.
func (n Network) Clash(o Network) error {
	switch {
	case n.Name != o.Name && strings.EqualFold(n.Name, o.Name):
		return fmt.Errorf("network %q differs from %q by letter case only", n.Name, o.Name)
	case n.VNI == o.VNI:
		return fmt.Errorf("VNI %d is that of network %q", n.VNI, o.Name)
	case n.Encrypted && o.Encrypted && n.Driver != o.Driver && n.Driver != DriverAuto && o.Driver != DriverAuto:
		return fmt.Errorf("it asks for driver %s, network %q for %s, and all encrypted networks share one tunnel", n.Driver, o.Name, o.Driver)
	}
	for _, a := range n.Subnets {
		for _, b := range o.Subnets {
			if a.Overlaps(b) {
				return fmt.Errorf("subnet %s overlaps %s of network %q", a, b, o.Name)
			}
		}
	}
	return nil
}

// Differences names what two definitions of one network differ in, for people.
func (n Network) Differences(o Network) []string {
	var out []string
	note := func(what string, differs bool) {
		if differs {
			out = append(out, what)
		}
	}
	note("vni", n.VNI != o.VNI)
	note("encrypted", n.Encrypted != o.Encrypted)
	note("subnets", !slices.Equal(netdef.Prefixes(n.Subnets), netdef.Prefixes(o.Subnets)))
	note("mtu", n.MTU != o.MTU)
	note("driver", n.Driver != o.Driver)
	for _, d := range n.Options.Differences(o.Options) {
		note(d.Field, true)
	}
	return out
}
