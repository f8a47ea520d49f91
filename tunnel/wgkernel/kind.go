package wgkernel

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/links"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
)

// Name is the driver's name in config files and in status.
const Name = "wireguard"

// linkType is the kernel's name for WireGuard links.
const linkType = "wireguard"

// Kind returns the driver's row for the table of drivers.
func Kind() tunnel.Kind {
	return tunnel.Kind{
		Name:       Name,
		Probe:      probe,
		Auto:       func() error { return nil },
		Open:       open,
		Overhead:   tunnel.WireGuardOverhead,
		Compatible: "wireguard",
	}
}

// probe makes a WireGuard link in a namespace that goes with the probe. Making
// one is the only sure sign: the kernel loads the module on that request, so
// before it there is nothing to see.
func probe(context.Context, tunnel.Env) error {
	return nl.InScratch(func(_ *nl.Namespace, h *nl.Handle) error {
		err := h.LinkAdd(newLink("soprobe"))
		if nl.IsNotSupported(err) {
			return &tunnel.UnsupportedError{
				Driver: Name, Feature: "kernel WireGuard (CONFIG_WIREGUARD)", Since: "Linux 5.6", Err: err,
			}
		}
		if err != nil {
			return fmt.Errorf("probe driver %s: %w", Name, err)
		}
		return nil
	})
}

func open(_ context.Context, env tunnel.Env) (tunnel.Driver, error) {
	host, err := env.Host.Handle()
	if err != nil {
		return nil, fmt.Errorf("open driver %s: %w", Name, err)
	}
	secure, err := env.Secure.Handle()
	if err != nil {
		host.Close()
		return nil, fmt.Errorf("open driver %s: %w", Name, err)
	}
	m := &maker{env: env, host: host, secure: secure}
	d, err := wg.Open(wg.Options{Env: env, Driver: Name, LinkType: linkType, Maker: m})
	if err != nil {
		m.close()
		return nil, err
	}
	return &driver{Driver: d, maker: m}, nil
}

// driver adds the maker's handles to what Close releases.
type driver struct {
	*wg.Driver
	maker *maker
}

// Close implements tunnel.Driver.
func (d *driver) Close() error {
	d.maker.close()
	return d.Driver.Close()
}

// maker makes kernel devices.
type maker struct {
	env    tunnel.Env
	host   *nl.Handle
	secure *nl.Handle
}

func (m *maker) close() {
	m.host.Close()
	m.secure.Close()
}

// Create asks from the host namespace for a link in the secure namespace. A
// WireGuard device keeps the namespace its creation was asked from for its UDP
// socket (creating_net in drivers/net/wireguard/device.c), as it does when it
// is made there and moved. Asked for in one step it never shows in the host
// namespace: nothing there can rename it, configure it, or be left with it if
// the agent dies in between.
func (m *maker) Create(_ context.Context, name string, _ tunnel.Mark, _ tunnel.Device) error {
	l := newLink(name)
	l.Namespace = netlink.NsFd(m.env.Secure.FD())
	err := m.host.LinkAdd(l)
	if nl.IsNotSupported(err) {
		return &tunnel.UnsupportedError{
			Driver: Name, Feature: "kernel WireGuard (CONFIG_WIREGUARD)", Since: "Linux 5.6", Err: err,
		}
	}
	return err
}

// Check implements wg.Maker: a kernel device that exists works.
func (m *maker) Check(context.Context, string) error { return nil }

// Delete implements wg.Maker. The kernel wipes the device's keys.
func (m *maker) Delete(_ context.Context, name string) error { return links.Delete(m.secure, name) }

func newLink(name string) *netlink.Wireguard {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return &netlink.Wireguard{LinkAttrs: a}
}
