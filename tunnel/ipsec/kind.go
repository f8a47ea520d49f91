package ipsec

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/xfrm"
)

// Name is the driver's name in config files and in status.
const Name = "ipsec"

// linkType is the kernel's name for xfrm interfaces.
const linkType = "xfrm"

// protocol is Mark.Protocol of the driver's links.
const protocol = "esp"

// Options choose how ESP travels.
type Options struct {
	// Encap sends ESP in UDP (RFC 3948), for underlays that pass UDP only. All
	// nodes of a pair must do so: the kernel takes from an association only
	// what comes in the form that it was made for.
	Encap bool
	// Port is the UDP port of all nodes; zero means DefaultPort.
	Port uint16
	// Worker is the command that calls RunHolder with the arguments that
	// follow it, for example ["/proc/self/exe", "esp-holder"]. Only Encap
	// needs it.
	Worker []string
}

// Kind returns the driver's row for the table of drivers. Compatible is "esp", or
// with Encap "esp-udp".
func Kind(o Options) tunnel.Kind {
	k := tunnel.Kind{
		Name:  Name,
		Probe: func(context.Context, tunnel.Env) error { return probe(o) },
		Open: func(_ context.Context, env tunnel.Env) (tunnel.Driver, error) {
			return open(env, o)
		},
		Overhead:   func(underlay netip.Addr) int { return overhead(underlay, o.Encap) },
		Compatible: "esp",
	}
	if o.Encap {
		k.Compatible = "esp-udp"
	}
	return k
}

// ports are the UDP ports of what a node sends.
func (o Options) ports() xfrm.Encap {
	if !o.Encap {
		return xfrm.Encap{}
	}
	port := cmp.Or(o.Port, DefaultPort)
	return xfrm.Encap{Src: port, Dst: port}
}

// overhead is what ESP in tunnel mode adds at most (RFC 4303 section 2, RFC
// 4106 section 3): the outer header, SPI and sequence number, the IV, up to 3
// bytes of padding, its length and the next header, the tag.
func overhead(underlay netip.Addr, encap bool) int {
	const header, iv, padding, trailer, tag = 8, 8, 3, 2, 16
	sum := header + iv + padding + trailer + tag
	if encap {
		sum += 8 // UDP
	}
	if underlay.Unmap().Is4() {
		return 20 + sum
	}
	return 40 + sum
}

// probe makes an xfrm interface and an association and a policy of each family
// in a namespace that goes with the probe. Making them is the only sure
// sign: the kernel loads its modules on these requests, so before them there
// is nothing to see.
func probe(o Options) error {
	return nl.InScratch(func(n *nl.Namespace, h *nl.Handle) error {
		a := netlink.NewLinkAttrs()
		a.Name = "soprobe"
		err := h.LinkAdd(&netlink.Xfrmi{LinkAttrs: a, Ifid: 1})
		if nl.IsNotSupported(err) {
			return missing("xfrm interfaces (CONFIG_XFRM_INTERFACE)", "Linux 4.19", err)
		}
		if err != nil {
			return fmt.Errorf("probe driver %s: make an xfrm interface: %w", Name, err)
		}
		c, err := xfrm.Open(n)
		if nl.IsNotSupported(err) {
			return missing("IPsec (CONFIG_XFRM_USER)", "", err)
		}
		if err != nil {
			return fmt.Errorf("probe driver %s: %w", Name, err)
		}
		defer c.Close()
		if err := probeFamily(c, o, "IPv4 (CONFIG_INET_ESP)", "192.0.2.1", "192.0.2.2"); err != nil {
			return err
		}
		if err := probeFamily(c, o, "IPv6 (CONFIG_INET6_ESP)", "2001:db8::1", "2001:db8::2"); err != nil || !o.Encap {
			return err
		}
		return probeEncap(n)
	})
}

func probeFamily(c *xfrm.Conn, o Options, feature, src, dst string) error {
	s := xfrm.State{
		Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), SPI: ids.MinSPI, IfID: 1, ReqID: 1,
		From: netip.MustParseAddr("fd00::1"), To: netip.MustParseAddr("fd00::2"), Encap: o.ports(),
	}
	// All zero, in a namespace without links: nothing is ever sent with it.
	err := c.AddState(s, make([]byte, keys.ESPKeySize))
	switch {
	case errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOENT):
		return missing("AES-GCM for ESP (CONFIG_CRYPTO_GCM, CONFIG_CRYPTO_AES, CONFIG_CRYPTO_SEQIV)", "", err)
	case nl.IsNotSupported(err):
		return missing("ESP over "+feature, "", err)
	case err != nil:
		return fmt.Errorf("probe driver %s: %w", Name, err)
	}
	if err := c.SetPolicy(s.Policy(xfrm.Out)); err != nil {
		return fmt.Errorf("probe driver %s: %w", Name, err)
	}
	return nil
}

func missing(feature, since string, err error) error {
	return &tunnel.UnsupportedError{Driver: Name, Feature: feature, Since: since, Err: err}
}
