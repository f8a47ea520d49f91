package wg

import (
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
