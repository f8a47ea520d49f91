package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Spec is the complete desired state of the gateway namespace besides the links of
// networks.
type Spec struct {
	Out []Network // networks with a way out, by link; none: there is no uplink
	// Closed are subnets of overlay networks, on this node or not: no packet to
	// them leaves by the uplink.
	Closed []netip.Prefix
}

// Network is a network that has a way out.
type Network struct {
	Link    string         // of the network in the gateway namespace: LinkName
	Subnets []netip.Prefix // source addresses that may leave
}

const linkPrefix = "g"

// LinkName is what the link of a network is called in the gateway namespace.
func LinkName(vni ids.VNI) string { return linkPrefix + vni.String() }

// Uplink is the host's end of the link to the gateway namespace.
const Uplink = "overlay-gw"

const inside = "up0" // the other end

// Errors that the agent decides on with errors.Is.
var (
	// ErrNoForwarding: the host does not forward packets of a family, so that there
	// is no way out by it.
	ErrNoForwarding = errors.New("this host does not forward packets")
	// ErrForeign: a link or an address that is not ours stands in the way.
	ErrForeign = errors.New("is not ours")
)

// check refuses a Spec that would not mean what it says.
func (s Spec) check() error {
	for _, n := range s.Out {
		if !strings.HasPrefix(n.Link, linkPrefix) || len(n.Subnets) == 0 {
			return fmt.Errorf("set gateway: network of link %q with %d subnets", n.Link, len(n.Subnets))
		}
	}
	return nil
}

// The addresses of the uplink: link-local on IPv4 (RFC 3927), so that they are no part
// of anybody's plan, and unique local on IPv6 (RFC 4193), since the kernel takes no
// link-local address for the source of a masqueraded packet.
func hostEnd(v6 bool) netip.Prefix {
	if v6 {
		return netip.MustParsePrefix("fdf7:736f:6777::1/126")
	}
	return netip.MustParsePrefix("169.254.119.1/30")
}

func innerEnd(v6 bool) netip.Prefix {
	p := hostEnd(v6)
	return netip.PrefixFrom(p.Addr().Next(), p.Bits())
}
