package secure

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/tunnel"
)

// namePrefix starts the name of every tunnel device (tunnel.DeviceName).
const namePrefix = "so"

// isTunnel reports whether a link is a tunnel device of ours: it carries the
// mark, or it has a tunnel's name and kind, as between a driver's creating it
// and marking it. Hardware cannot have one of these kinds.
func isTunnel(l netlink.Link) bool {
	if !strings.HasPrefix(l.Attrs().Name, namePrefix) {
		return false // the firewall knows tunnel devices by this prefix
	}
	if _, ok := tunnel.ParseMark(l.Attrs().Alias); ok {
		return true
	}
	switch l.Type() {
	case "wireguard", "tun", "tuntap", "xfrm":
		return true
	}
	return false
}

// isFallback reports whether the kernel itself puts such a link into each new
// namespace while a tunnel module is loaded (net.core.fb_tunnels_only_for_init_net).
// It cannot be deleted, and while it is down it carries nothing.
func isFallback(l netlink.Link) bool {
	if l.Attrs().Flags&net.FlagUp != 0 {
		return false
	}
	switch l.Attrs().Name {
	case "sit0", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0",
		"ip6tnl0", "ip6gre0", "ip6gretap0", "ip6erspan0", "ip6_vti0":
		return true
	}
	return false
}

// foreign lists the links that are not lo, no tunnel device of ours and no
// dormant fallback device.
func (n *Namespace) foreign() ([]netlink.Link, error) {
	links, err := n.h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	links = slices.DeleteFunc(links, func(l netlink.Link) bool {
		return l.Attrs().Flags&net.FlagLoopback != 0 || isTunnel(l) || isFallback(l)
	})
	slices.SortFunc(links, func(a, b netlink.Link) int {
		return strings.Compare(a.Attrs().Name, b.Attrs().Name)
	})
	return links, nil
}

// quarantine puts foreign links down. A link that is no tunnel is the one
// thing that could carry cleartext in or out of here, so it is stopped first
// and reported afterwards. It is not deleted: it may be somebody's hardware,
// and putting it down can be undone.
func (n *Namespace) quarantine() error {
	links, err := n.foreign()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if l.Attrs().Flags&net.FlagUp != 0 {
			if err := n.h.LinkSetDown(l); err != nil {
				errs = append(errs, fmt.Errorf("put foreign link %s down: %w", l.Attrs().Name, err))
			}
		}
		errs = append(errs, foreignError(describe(l)))
	}
	return errors.Join(errs...)
}

func describe(l netlink.Link) ForeignLink {
	return ForeignLink{Name: l.Attrs().Name, Kind: l.Type(), Up: l.Attrs().Flags&net.FlagUp != 0}
}

func foreignError(f ForeignLink) error {
	return fmt.Errorf("%w: %s (%s)", ErrForeignLink, f.Name, f.Kind)
}
