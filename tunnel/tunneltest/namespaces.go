package tunneltest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// Namespaces makes hosts out of network namespaces, for Harness.Hosts of real
// drivers: a host namespace on a common switch and a secure namespace each,
// which has the node's inner address on lo. It needs root.
func Namespaces(t *testing.T, n int) []*Host {
	t.Helper()
	lab, err := netlab.New("tunnel")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	var hosts []*Host
	for i, node := range Nodes(n) {
		host, err := lab.Host(fmt.Sprintf("host%d", i))
		if err != nil {
			t.Fatal(err)
		}
		secure, err := lab.Container(fmt.Sprintf("secure%d", i))
		if err != nil {
			t.Fatal(err)
		}
		h := &Host{
			Env: tunnel.Env{
				Node: node, Host: host.NS(), Secure: secure.NS(), RuntimeDir: t.TempDir(),
				Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
			},
			Underlay: []netip.Addr{host.V4(), host.V6()},
		}
		net := &namespaceNet{env: h.Env, given: map[netip.Addr]bool{}}
		if net.made, err = linkNames(h.Env.Host); err != nil {
			t.Fatal(err)
		}
		h.Net = net
		hosts = append(hosts, h)
	}
	return hosts
}

// Nodes makes n random node IDs in ascending order.
func Nodes(n int) []ids.NodeID {
	out := make([]ids.NodeID, n)
	for i := range out {
		// Cannot fail: crypto/rand.Read never returns an error.
		_, _ = rand.Read(out[i][:])
	}
	slices.SortFunc(out, ids.NodeID.Compare)
	return out
}

// namespaceNet is a Net made of namespaces.
type namespaceNet struct {
	env   tunnel.Env
	made  map[string]int      // links of the host namespace that are the world's
	given map[netip.Addr]bool // inner addresses on lo
}

func linkNames(ns *nl.Namespace) (map[string]int, error) {
	h, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := map[string]int{}
	for _, l := range links {
		if l.Attrs().Name != "lo" {
			out[l.Attrs().Name] = l.Attrs().Index
		}
	}
	return out, nil
}

// Links implements Net.
func (n *namespaceNet) Links() (host, secure map[string]int, err error) {
	if host, err = linkNames(n.env.Host); err != nil {
		return nil, nil, err
	}
	for name := range n.made {
		delete(host, name)
	}
	secure, err = linkNames(n.env.Secure)
	return host, secure, err
}

// Route implements Net.
func (n *namespaceNet) Route(peer netip.Addr, device string) error {
	return n.withLink(device, func(h *nl.Handle, l netlink.Link) error {
		return h.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: hostNet(peer)})
	})
}

// DeleteLink implements Net.
func (n *namespaceNet) DeleteLink(device string) error {
	return n.withLink(device, func(h *nl.Handle, l netlink.Link) error { return h.LinkDel(l) })
}

func (n *namespaceNet) withLink(name string, fn func(*nl.Handle, netlink.Link) error) error {
	h, err := n.env.Secure.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	return fn(h, l)
}

// Listen implements Net.
func (n *namespaceNet) Listen(inner netip.Addr) (net.PacketConn, error) {
	if !n.given[inner] {
		err := n.withLink("lo", func(h *nl.Handle, l netlink.Link) error {
			return h.AddrAdd(l, &netlink.Addr{IPNet: hostNet(inner), Flags: unix.IFA_F_NODAD})
		})
		if err != nil {
			return nil, fmt.Errorf("add %s: %w", inner, err)
		}
		n.given[inner] = true
	}
	var c net.PacketConn
	err := n.env.Secure.Do(func() (err error) {
		lc := net.ListenConfig{Control: neverFragment}
		c, err = lc.ListenPacket(context.Background(), "udp6", netip.AddrPortFrom(inner, 0).String())
		return err
	})
	return c, err
}

// neverFragment makes a packet that does not fit an error at its sender.
func neverFragment(_, _ string, c syscall.RawConn) error {
	var err error
	ctl := c.Control(func(fd uintptr) {
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20),
		)
	})
	return errors.Join(ctl, err)
}

func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
