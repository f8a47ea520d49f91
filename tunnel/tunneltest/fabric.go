package tunneltest

import (
	"context"
	"errors"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// Fabric is an in-memory network that fake drivers share. Its methods may be
// called from any goroutine.
type Fabric struct{}

// NewFabric returns a fabric without hosts.
func NewFabric() *Fabric { return &Fabric{} }

// AddHost gives a node its underlay addresses. A driver opened for a node
// that was not added has none, so it can reach nobody.
func (f *Fabric) AddHost(node ids.NodeID, underlay ...netip.Addr) {}

// Kind returns a driver kind named "fake" whose devices live in the fabric,
// keyed by Env.Node: they outlive Close and are adopted by the next Open.
func (f *Fabric) Kind() tunnel.Kind {
	return tunnel.Kind{
		Name:       "fake",
		Probe:      func(context.Context, tunnel.Env) error { return nil },
		Open:       func(context.Context, tunnel.Env) (tunnel.Driver, error) { return nil, errors.ErrUnsupported },
		Overhead:   tunnel.WireGuardOverhead,
		Compatible: "wireguard",
	}
}
