package membership

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// maxSeeds bounds the seeds: a name that changes its address all the time must
// not make the list grow for ever.
const maxSeeds = 64

// keepResolving asks for the seeds' present addresses while this node is alone,
// until ctx ends. A name may not resolve yet when the machine starts, or lead
// to another address after the others have moved.
func (c *Cluster) keepResolving(ctx context.Context) {
	if c.opts.Resolve == nil {
		return
	}
	ticker := time.NewTicker(c.prof.retryMax)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if c.view.Load().alive > 1 {
			continue
		}
		select {
		case c.resolved <- c.opts.Resolve(ctx):
		case <-ctx.Done():
			return
		}
	}
}

// addSeeds takes up new addresses. When the list is full, the oldest that is
// not being tried makes room.
func (l *loop) addSeeds(addrs []netip.AddrPort) {
	for _, addr := range addrs {
		if slices.ContainsFunc(l.seeds, func(s *seed) bool { return s.addr == addr }) {
			continue
		}
		if len(l.seeds) >= maxSeeds {
			i := slices.IndexFunc(l.seeds, func(s *seed) bool { return !s.busy })
			if i < 0 {
				return
			}
			l.seeds = slices.Delete(l.seeds, i, i+1)
		}
		l.seeds = append(l.seeds, &seed{addr: addr})
	}
}
