package membership

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
)

// TestSeedNamesAreResolvedAgain: a node whose seeds do not resolve when it
// starts finds the cluster once they do.
func TestSeedNamesAreResolvedAgain(t *testing.T) {
	l := newLab(t)
	first := l.start(0)
	first.Publish(content(0, 0))
	var asked atomic.Int32
	late := l.start(1, func(o *Options) {
		o.Seeds = nil
		o.Resolve = func(context.Context) []netip.AddrPort {
			if asked.Add(1) == 1 {
				return nil
			}
			return []netip.AddrPort{addrOf(0)}
		}
	})
	late.Publish(content(1, 0))
	converge(t, []*node{first, late}, 2)
}

func TestAddSeedsIsBounded(t *testing.T) {
	l := &loop{}
	l.addSeeds([]netip.AddrPort{addrOf(0), addrOf(0)})
	if len(l.seeds) != 1 {
		t.Fatalf("%d seeds, want 1", len(l.seeds))
	}
	l.seeds[0].busy = true
	for i := range 3 * maxSeeds {
		l.addSeeds([]netip.AddrPort{addrOf(i)})
	}
	if len(l.seeds) != maxSeeds || l.seeds[0].addr != addrOf(0) || l.seeds[maxSeeds-1].addr != addrOf(3*maxSeeds-1) {
		t.Errorf("%d seeds, first %v, last %v", len(l.seeds), l.seeds[0].addr, l.seeds[len(l.seeds)-1].addr)
	}
}
