package nl

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// settleEvery is how often WaitLocal looks again.
const settleEvery = time.Millisecond

// WaitLocal waits until the namespace takes packets to addr for its own, or
// ctx ends. The kernel finishes an IPv6 address some time after it has
// acknowledged it, also without duplicate address detection; until then
// nobody can bind to it and packets to it are lost.
func (h *Handle) WaitLocal(ctx context.Context, addr netip.Addr) error {
	tick := time.NewTicker(settleEvery)
	defer tick.Stop()
	for {
		routes, err := h.RouteGet(net.IP(addr.AsSlice()))
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for address %s: %w", addr, ctx.Err())
		case <-tick.C:
		}
	}
}
