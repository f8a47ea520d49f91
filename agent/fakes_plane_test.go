package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// fakeGuard remembers the specs.
type fakeGuard struct {
	mu      sync.Mutex // guards all below
	spec    secure.Spec
	history []secure.Spec // all of them
	noRoute string        // device that takes no routes to peers
	noProbe string        // device that takes no routes of probes
	verify  error
	stuck   error // it cannot be removed
	removed bool
}

func (g *fakeGuard) Set(_ context.Context, s secure.Spec) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.spec = s
	g.history = append(g.history, s)
	return errors.Join(blame(s.Routes, g.noRoute), blame(s.Probes, g.noProbe))
}

// blame says that a device takes none of routes.
func blame(routes []secure.Route, device string) error {
	var errs []error
	for _, r := range routes {
		if r.Device == device {
			errs = append(errs, &secure.RouteError{Route: r, Err: secure.ErrNoDevice})
		}
	}
	return errors.Join(errs...)
}

// broken says which device takes no routes to peers, and which takes none of
// probes.
func (g *fakeGuard) broken(noRoute, noProbe string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.noRoute, g.noProbe = noRoute, noProbe
}

// routesNow are those to peers.
func (g *fakeGuard) routesNow() []secure.Route {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.spec.Routes)
}

// since returns the specs from the n-th on.
func (g *fakeGuard) since(n int) []secure.Spec {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.history[n:])
}

func (g *fakeGuard) Verify(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.verify
}

func (g *fakeGuard) Remove() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.removed = g.stuck == nil
	return g.stuck
}

func (g *fakeGuard) Close() error { return nil }

// fakeOverlay remembers the last specs. It outlives loops, as the kernel does.
type fakeOverlay struct {
	mu     sync.Mutex // guards all below
	specs  []vxlan.Spec
	broken map[string]error // by interface name of an endpoint
	born   vxlan.Birthplace // overrides where devices were born
	stuck  *vxlan.Error     // its network stays as it is
	// history are the specs of every Sync.
	history [][]vxlan.Spec
}

func (o *fakeOverlay) Sync(_ context.Context, want []vxlan.Spec) ([]vxlan.Op, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.history = append(o.history, want)
	was := o.specs
	o.specs = slices.Clone(want)
	var errs []error
	for i, s := range o.specs {
		if o.stuck != nil && s.Network == o.stuck.Network {
			j := slices.IndexFunc(was, func(w vxlan.Spec) bool { return w.Network == s.Network })
			o.specs[i] = was[j]
			errs = append(errs, o.stuck)
		}
	}
	for _, s := range want {
		for _, e := range s.Endpoints {
			if err := o.broken[e.Ifname]; err != nil {
				errs = append(errs, &vxlan.Error{Network: s.Network, Endpoint: e.ID, Err: err})
			}
		}
	}
	return nil, errors.Join(errs...)
}

// fail makes a network stay as it is; nil: not any more.
func (o *fakeOverlay) fail(err *vxlan.Error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stuck = err
}

// since returns what was synced from the n-th time on.
func (o *fakeOverlay) since(n int) [][]vxlan.Spec {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.history[n:])
}

func (o *fakeOverlay) Observe(context.Context, []vxlan.Spec) (vxlan.Observed, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out vxlan.Observed
	for _, s := range o.specs {
		n := vxlan.Network{Name: s.Network, Exists: true}
		for encrypted, has := range map[bool]bool{s.Encrypted: true, !s.Encrypted: s.Other != nil} {
			d := vxlan.Device{Kind: "vxlan", Birth: vxlan.BornHost, VNI: s.VNI}
			if encrypted {
				d.Birth = vxlan.BornSecure
			}
			if o.born != "" {
				d.Birth = o.born
			}
			if has {
				n.Devices = append(n.Devices, d)
			}
		}
		out.Networks = append(out.Networks, n)
	}
	return out, nil
}

func (o *fakeOverlay) Remove(context.Context) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.specs = nil
	return nil
}

func (o *fakeOverlay) Close() error { return nil }

func (o *fakeOverlay) spec(network string) vxlan.Spec {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, s := range o.specs {
		if s.Network == network {
			return s
		}
	}
	return vxlan.Spec{}
}

// fakeHost has one address and a route to everywhere.
type fakeHost struct {
	addr netip.Addr
	mtu  int
}

func (h fakeHost) RouteTo(dst netip.Addr) (nl.Route, error) {
	if dst.Is4() != h.addr.Is4() {
		return nl.Route{}, unix.ENETUNREACH
	}
	return nl.Route{Device: "eth0", Source: h.addr, MTU: h.mtu}, nil
}

func (h fakeHost) GlobalAddrs() ([]nl.Address, error) {
	return []nl.Address{{Addr: h.addr, Device: "eth0", MTU: h.mtu}}, nil
}

// fakeNS is an endpoint's namespace; its path is its name.
type fakeNS struct{ path string }

func (n fakeNS) ID() nl.ID {
	h := ids.NodeIDOf([32]byte([]byte(n.path + "................................")[:32]))
	return nl.ID{Dev: 4, Ino: uint64(h[0])<<24 | uint64(h[1])<<16 | uint64(h[2])<<8 | uint64(h[3])}
}
func (n fakeNS) Links() ([]string, error) { return []string{"lo", "taken0"}, nil }
func (n fakeNS) Close()                   {}

func openFakeNS(path string) (endpointNS, error) {
	switch path {
	case "/run/netns/missing":
		return nil, os.ErrNotExist
	case "/etc/hosts":
		return nil, nl.ErrNotNamespace
	}
	return fakeNS{path: path}, nil
}
