package links

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// Owner says whose links are meant: those of one driver of one node.
type Owner struct {
	Node     ids.NodeID
	Protocol string // Mark.Protocol
	Driver   string // Mark.Driver
	Type     string // netlink.Link.Type of a link that is not marked at once
}

// Link is an existing link of an Owner.
type Link struct {
	netlink.Link
	Mark tunnel.Mark // zero if the link was never marked
}

// Mark returns the mark of the owner's link for a device.
func (o Owner) Mark(d tunnel.Device) tunnel.Mark {
	return tunnel.Mark{Node: o.Node, Protocol: o.Protocol, Driver: o.Driver, Epoch: d.Epoch, Lane: d.Lane}
}

// List returns the owner's links by name. It takes a link for the owner's if
// the alias says so, or if there is no alias but type and name are the owner's:
// then an agent died between making and marking it.
func (o Owner) List(h *nl.Handle) (map[string]Link, error) {
	all, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list tunnel links: %w", err)
	}
	prefix := "so" + o.Node.Short()
	out := map[string]Link{}
	for _, l := range all {
		a := l.Attrs()
		if a.Alias == "" && l.Type() == o.Type && strings.HasPrefix(a.Name, prefix) {
			out[a.Name] = Link{Link: l}
			continue
		}
		m, ok := tunnel.ParseMark(a.Alias)
		if ok && m.Node == o.Node && m.Protocol == o.Protocol && m.Driver == o.Driver {
			out[a.Name] = Link{Link: l, Mark: m}
		}
	}
	return out, nil
}

// Unwanted returns the names of links that spec does not name, in order. A
// device that spec names with values that cannot be used is wanted: a mistake
// in a new value must not cost a working tunnel.
func (o Owner) Unwanted(spec tunnel.Spec, have map[string]Link) []string {
	named := map[tunnel.Mark]bool{}
	for _, d := range spec.Devices {
		named[o.Mark(d)] = true
	}
	var out []string
	for _, name := range Names(have) {
		m := have[name].Mark
		if !named[m] || name != tunnel.DeviceName(m.Node, m.Epoch, m.Lane) {
			out = append(out, name)
		}
	}
	return out
}

// Names returns the keys of have in order.
func Names(have map[string]Link) []string { return slices.Sorted(maps.Keys(have)) }

// Find returns the link called name, whoever made it.
func Find(h *nl.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	return l, nil
}

// SetMark makes a new link ours, and keeps the kernel from giving it a
// link-local address, whose router solicitations and multicast reports no
// peer could take.
func SetMark(h *nl.Handle, name string, m tunnel.Mark) error {
	l, err := Find(h, name)
	if err != nil {
		return err
	}
	const none = 1 // IN6_ADDR_GEN_MODE_NONE, linux/if_link.h
	if err := h.LinkSetIP6AddrGenMode(l, none); err != nil {
		return fmt.Errorf("switch off address generation on %s: %w", name, err)
	}
	if err := h.LinkSetAlias(l, m.String()); err != nil {
		return fmt.Errorf("mark link %s: %w", name, err)
	}
	return nil
}

// Raise sets the MTU and brings the link up, where it is not so already.
func Raise(h *nl.Handle, name string, mtu int) error {
	l, err := Find(h, name)
	if err != nil {
		return err
	}
	if l.Attrs().MTU != mtu {
		if err := h.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set mtu %d on %s: %w", mtu, name, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring up %s: %w", name, err)
		}
	}
	return nil
}

// Delete removes the link called name; a missing one is no error.
func Delete(h *nl.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err == nil {
		err = h.LinkDel(l)
	}
	if err != nil && !nl.IsNotExist(err) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}
