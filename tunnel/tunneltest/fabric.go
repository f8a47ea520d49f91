package tunneltest

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// Names of the fakes' kinds, and the drivers in their marks.
const (
	FakeName        = "fake"
	FakeESPName     = "fake-esp"
	FakeUserESPName = "fake-user-esp"
)

// Fabric is an in-memory network that fake drivers share. Its methods may be
// called from any goroutine.
type Fabric struct {
	mu    sync.Mutex // guards everything below it, of all hosts
	hosts map[ids.NodeID]*FakeHost
	where map[netip.Addr]*FakeHost // by underlay address
	index int                      // the last interface index given out
}

// NewFabric returns a fabric without hosts.
func NewFabric() *Fabric {
	return &Fabric{hosts: map[ids.NodeID]*FakeHost{}, where: map[netip.Addr]*FakeHost{}}
}

// AddHost gives a node its underlay addresses, in place of earlier ones, and
// returns its host. A node that was not added has none: it can reach only
// those who call it.
func (f *Fabric) AddHost(node ids.NodeID, underlay ...netip.Addr) *FakeHost {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.host(node)
	for _, a := range h.underlay {
		delete(f.where, a)
	}
	h.underlay = underlay
	for _, a := range underlay {
		f.where[a] = h
	}
	return h
}

// host returns a node's host and makes it if it is not there. f.mu is held.
func (f *Fabric) host(node ids.NodeID) *FakeHost {
	h := f.hosts[node]
	if h == nil {
		h = &FakeHost{
			fabric: f, node: node, links: map[string]fakeLink{}, routes: map[netip.Addr]string{},
			sockets: map[netip.AddrPort]*fakeConn{},
		}
		f.hosts[node] = h
	}
	return h
}

// Kind returns a driver kind named "fake" that stands for WireGuard. Its
// devices live in the fabric, keyed by Env.Node: they outlive Close and are
// adopted by the next Open. It uses nothing of Env but Node.
func (f *Fabric) Kind() tunnel.Kind {
	k := f.kind(FakeName, "wireguard", func(h *FakeHost) tunnel.Driver { return newFake(h) })
	k.Auto = func() error { return nil }
	return k
}

// ESPKind returns a driver kind named "fake-esp" that stands for the kernel's ESP,
// in the same fabric: a node may have devices of both. All of its devices take ESP
// in UDP at one port; 0: none does.
func (f *Fabric) ESPKind(port uint16) tunnel.Kind {
	return f.kind(FakeESPName, "esp", func(h *FakeHost) tunnel.Driver { return newFakeESP(h, FakeESPName, port) })
}

// UserESPKind returns a driver kind named "fake-user-esp" that stands for ESP in UDP,
// each device with a port of its own.
func (f *Fabric) UserESPKind() tunnel.Kind {
	k := f.kind(FakeUserESPName, "esp-udp", func(h *FakeHost) tunnel.Driver { return newFakeESP(h, FakeUserESPName, 0) })
	k.Auto = func() error { return nil }
	return k
}

func (f *Fabric) kind(name, compatible string, open func(*FakeHost) tunnel.Driver) tunnel.Kind {
	return tunnel.Kind{
		Name:  name,
		Probe: func(context.Context, tunnel.Env) error { return nil },
		Open: func(_ context.Context, env tunnel.Env) (tunnel.Driver, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return open(f.host(env.Node)), nil
		},
		Overhead:   tunnel.WireGuardOverhead,
		Compatible: compatible,
	}
}

// FakeHost is one node's machine in a fabric; it is a Net.
type FakeHost struct {
	fabric   *Fabric
	node     ids.NodeID
	underlay []netip.Addr
	links    map[string]fakeLink   // tunnel devices by name
	routes   map[netip.Addr]string // device by peer
	sockets  map[netip.AddrPort]*fakeConn
	lastPort uint16
}

// fakeLink is a tunnel device in a fabric. The fabric's mutex guards it.
type fakeLink interface {
	base() *linkBase
	// send takes an inner packet of a size and returns the host that gets it,
	// or nil where it is lost.
	send(from, to netip.Addr, size int) *FakeHost
}

// linkBase is what all tunnel devices have.
type linkBase struct {
	host  *FakeHost
	name  string
	index int
	mark  tunnel.Mark
	mtu   int
}

func (l *linkBase) base() *linkBase { return l }

// newLink begins a device of a driver. fabric.mu is held.
func (h *FakeHost) newLink(protocol, driver string, d tunnel.Device) linkBase {
	h.fabric.index++
	return linkBase{
		host: h, name: tunnel.DeviceName(h.node, d.Epoch, d.Lane), index: h.fabric.index, mtu: d.MTU,
		mark: tunnel.Mark{Node: h.node, Protocol: protocol, Driver: driver, Epoch: d.Epoch, Lane: d.Lane},
	}
}

// prune deletes a driver's devices that a spec does not name, and returns
// their names. fabric.mu is held.
func (h *FakeHost) prune(driver string, devices []tunnel.Device) []string {
	var gone []string
	for name, l := range h.links {
		m := l.base().mark
		named := slices.ContainsFunc(devices, func(d tunnel.Device) bool {
			return d.Epoch == m.Epoch && d.Lane == m.Lane
		})
		if m.Driver == driver && !named {
			h.deleteLink(name)
			gone = append(gone, name)
		}
	}
	return gone
}

// Route implements Net.
func (h *FakeHost) Route(peer netip.Addr, device string) error {
	h.fabric.mu.Lock()
	defer h.fabric.mu.Unlock()
	if h.links[device] == nil {
		return unix.ENODEV
	}
	h.routes[peer] = device
	return nil
}

// Links implements Net.
func (h *FakeHost) Links() (host, secure map[string]int, err error) {
	h.fabric.mu.Lock()
	defer h.fabric.mu.Unlock()
	secure = map[string]int{}
	for name, l := range h.links {
		secure[name] = l.base().index
	}
	return nil, secure, nil
}

// DeleteLink implements Net.
func (h *FakeHost) DeleteLink(device string) error {
	h.fabric.mu.Lock()
	defer h.fabric.mu.Unlock()
	if h.links[device] == nil {
		return unix.ENODEV
	}
	h.deleteLink(device)
	return nil
}

// deleteLink also takes the routes into the device, as the kernel does.
// fabric.mu is held.
func (h *FakeHost) deleteLink(name string) {
	delete(h.links, name)
	for peer, dev := range h.routes {
		if dev == name {
			delete(h.routes, peer)
		}
	}
}
