package wg

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// protocol is Mark.Protocol of both drivers' links.
const protocol = "wg"

// link is one existing link of this driver in the secure namespace.
type link struct {
	netlink.Link
	mark tunnel.Mark // zero if the link was never marked
}

// links lists this driver's links by name. It takes a link for its own if the
// alias says so, or if there is no alias but type and name are ours: then an
// agent died between making and marking it.
func (d *Driver) links() (map[string]link, error) {
	all, err := d.secure.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links in %s: %w", d.o.Env.Secure.Path(), err)
	}
	prefix := "so" + d.o.Env.Node.Short()
	out := map[string]link{}
	for _, l := range all {
		a := l.Attrs()
		if l.Type() != d.o.LinkType {
			continue
		}
		if a.Alias == "" && strings.HasPrefix(a.Name, prefix) {
			out[a.Name] = link{Link: l}
			continue
		}
		m, ok := tunnel.ParseMark(a.Alias)
		if ok && m.Node == d.o.Env.Node && m.Protocol == protocol && m.Driver == d.o.Driver {
			out[a.Name] = link{Link: l, mark: m}
		}
	}
	return out, nil
}

// link returns the link called name, whoever made it.
func (d *Driver) link(name string) (netlink.Link, error) {
	l, err := d.secure.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return l, nil
}

// mark makes a new link ours, and keeps the kernel from giving it a
// link-local address, whose router solicitations and multicast reports no
// peer could take.
func (d *Driver) mark(name string, m tunnel.Mark) error {
	l, err := d.link(name)
	if err != nil {
		return err
	}
	const none = 1 // IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
	if err := d.secure.LinkSetIP6AddrGenMode(l, none); err != nil {
		return fmt.Errorf("switch off address generation on %s: %w", name, err)
	}
	if err := d.secure.LinkSetAlias(l, m.String()); err != nil {
		return fmt.Errorf("mark link %s: %w", name, err)
	}
	return nil
}

// raise sets the MTU and brings the link up, where it is not so already.
func (d *Driver) raise(name string, mtu int) error {
	l, err := d.link(name)
	if err != nil {
		return err
	}
	if l.Attrs().MTU != mtu {
		if err := d.secure.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set mtu %d on %s: %w", mtu, name, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := d.secure.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring up %s: %w", name, err)
		}
	}
	return nil
}

// DeleteLink removes the link called name; a missing one is no error.
func DeleteLink(h *nl.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkDel(l)
	}
	if err != nil && !nl.IsNotExist(err) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// InScratchNamespace runs fn on a thread in a new network namespace that goes
// with the thread: whatever a probe makes there is gone when it returns, and
// cannot collide with anything.
func InScratchNamespace(fn func(h *nl.Handle) error) error {
	here, err := nl.CurrentNamespace()
	if err != nil {
		return err
	}
	defer func() { _ = here.Close() }()
	return here.Do(func() error {
		if err := unshareNet(); err != nil {
			return fmt.Errorf("make scratch namespace: %w", err)
		}
		scratch, err := nl.CurrentNamespace()
		if err != nil {
			return err
		}
		h, err := scratch.Handle()
		if err != nil {
			return errors.Join(err, scratch.Close())
		}
		err = fn(h)
		h.Close()
		return errors.Join(err, scratch.Close())
	})
}
