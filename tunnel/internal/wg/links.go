package wg

import (
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/links"
)

// protocol is Mark.Protocol of both drivers' links.
const protocol = "wg"

// owner says which links are this driver's.
func (d *Driver) owner() links.Owner {
	return links.Owner{Node: d.o.Env.Node, Protocol: protocol, Driver: d.o.Driver, Type: d.o.LinkType}
}

func (d *Driver) links() (map[string]links.Link, error) { return d.owner().List(d.secure) }

func (d *Driver) mark(name string, m tunnel.Mark) error { return links.SetMark(d.secure, name, m) }

func (d *Driver) raise(name string, mtu int) error { return links.Raise(d.secure, name, mtu) }

// DeleteLink removes the link called name; a missing one is no error.
func DeleteLink(h *nl.Handle, name string) error { return links.Delete(h, name) }

// InScratchNamespace runs fn on a thread in a new network namespace that goes
// with the thread: whatever a probe makes there is gone when it returns, and
// cannot collide with anything.
func InScratchNamespace(fn func(h *nl.Handle) error) error {
	return nl.InScratch(func(_ *nl.Namespace, h *nl.Handle) error { return fn(h) })
}
