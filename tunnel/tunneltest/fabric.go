package tunneltest

import (
	"context"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// FakeName is the name of the fake's kind and the driver in its marks.
const FakeName = "fake"

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
			fabric: f, node: node, devices: map[string]*fakeDevice{}, routes: map[netip.Addr]string{},
			sockets: map[netip.AddrPort]*fakeConn{},
		}
		f.hosts[node] = h
	}
	return h
}

// Kind returns a driver kind named "fake" whose devices live in the fabric,
// keyed by Env.Node: they outlive Close and are adopted by the next Open. It
// uses nothing of Env but Node.
func (f *Fabric) Kind() tunnel.Kind {
	return tunnel.Kind{
		Name:  FakeName,
		Probe: func(context.Context, tunnel.Env) error { return nil },
		Open: func(_ context.Context, env tunnel.Env) (tunnel.Driver, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return newFake(f.host(env.Node)), nil
		},
		Overhead:   tunnel.WireGuardOverhead,
		Compatible: "wireguard",
	}
}

// FakeHost is one node's machine in a fabric; it is a Net.
type FakeHost struct {
	fabric   *Fabric
	node     ids.NodeID
	underlay []netip.Addr
	devices  map[string]*fakeDevice
	routes   map[netip.Addr]string // device by peer
	sockets  map[netip.AddrPort]*fakeConn
	lastPort uint16
}

// Route implements Net.
func (h *FakeHost) Route(peer netip.Addr, device string) error {
	h.fabric.mu.Lock()
	defer h.fabric.mu.Unlock()
	if h.devices[device] == nil {
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
	for name, d := range h.devices {
		secure[name] = d.index
	}
	return nil, secure, nil
}

// DeleteLink implements Net.
func (h *FakeHost) DeleteLink(device string) error {
	h.fabric.mu.Lock()
	defer h.fabric.mu.Unlock()
	if h.devices[device] == nil {
		return unix.ENODEV
	}
	h.deleteDevice(device)
	return nil
}

// deleteDevice also takes the routes into the device, as the kernel does.
// fabric.mu is held.
func (h *FakeHost) deleteDevice(name string) {
	delete(h.devices, name)
	for peer, dev := range h.routes {
		if dev == name {
			delete(h.routes, peer)
		}
	}
}
