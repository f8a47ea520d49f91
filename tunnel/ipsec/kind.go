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
	"github.com/secure-overlay/secure-overlay/tunnel/internal/esp"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/xfrm"
)

// Name is the driver's name in config files and in status.
const Name = "ipsec"

// linkType is the kernel's name for xfrm interfaces.
const linkType = "xfrm"

// protocol is Mark.Protocol of the driver's links.
const protocol = "esp"

// Encap says in which forms ESP may travel.
type Encap uint8

// The choices. Both nodes of a pair use one form: the kernel takes from an
// association only what comes in the form that it was made for.
const (
	EncapNone Encap = iota // as it is, IP protocol 50
	EncapUDP               // all pairs in UDP (RFC 3948), for underlays that pass UDP only
	EncapAuto              // each pair as its associations say (tunnel.ESP.InUDP)
)

// Options choose how ESP travels.
type Options struct {
	Encap Encap
	// Port is this node's UDP port; zero means DefaultPort. Peers whose
	// associations name no other (tunnel.ESP.Port) have the same.
	Port uint16
	// Worker is the command that calls RunHolder with the arguments that
	// follow it, for example ["/proc/self/exe", "esp-holder"]. EncapNone
	// needs none.
	Worker []string
}

// Kind returns the driver's row for the table of drivers. Compatible is "esp", or
// with EncapUDP "esp-udp".
func Kind(o Options) tunnel.Kind {
	k := tunnel.Kind{
		Name:  Name,
		Probe: func(context.Context, tunnel.Env) error { return probe(o) },
		Open: func(_ context.Context, env tunnel.Env) (tunnel.Driver, error) {
			return open(env, o)
		},
		Overhead:   esp.Overhead,
		Compatible: "esp",
	}
	switch o.Encap {
	case EncapNone:
	case EncapUDP:
		k.Compatible, k.Overhead = "esp-udp", esp.OverheadInUDP
	case EncapAuto:
		k.InUDP = esp.LongestInUDP
	}
	return k
}

// port is this node's UDP port, 0 if it has none.
func (o Options) port() uint16 {
	if o.Encap == EncapNone {
		return 0
	}
	return cmp.Or(o.Port, DefaultPort)
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
		if err := probeFamily(c, o, "IPv6 (CONFIG_INET6_ESP)", "2001:db8::1", "2001:db8::2"); err != nil || o.Encap != EncapUDP {
			return err // a pair needs the sockets only where ESP as it is does not pass
		}
		return probeEncap(n)
	})
}

func probeFamily(c *xfrm.Conn, o Options, feature, src, dst string) error {
	s := xfrm.State{
		Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), SPI: ids.MinSPI, IfID: 1, ReqID: 1,
		From: netip.MustParseAddr("fd00::1"), To: netip.MustParseAddr("fd00::2"),
	}
	if o.Encap == EncapUDP {
		s.Encap = xfrm.Encap{Src: o.port(), Dst: o.port()}
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
