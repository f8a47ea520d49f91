package agent

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/tunnel"
)

// countingDriver counts its Sets.
type countingDriver struct {
	tunnel.Driver
	sets *atomic.Int64
}

func (d countingDriver) Set(ctx context.Context, s tunnel.Spec) error {
	d.sets.Add(1)
	return d.Driver.Set(ctx, s)
}

// TestTurnsThatChangeNothing: whatever makes turns, the kernel is looked at
// whole once in a resync; but a turn that finds a device gone makes it anew at
// once, and sets the routes that went with it.
func TestTurnsThatChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()), w.machine(2, blue())
		var sets atomic.Int64
		a.driver = func(d tunnel.Driver) tunnel.Driver { return countingDriver{d, &sets} }
		a.start()
		b.start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		<-time.After(5 * time.Second)

		turn := func() { a.look(func(l *loop) { l.soon = true }) }
		beforeSets, beforeGuard := sets.Load(), len(a.guard.since(0))
		const long = 10 * resync
		turns := 0
		for end := time.Now().Add(long); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
			turn()
			turns++
		}
		most := int64(long/resync) + 1
		if n := sets.Load() - beforeSets; n > most || n < most/2 {
			t.Errorf("%d turns set the driver %d times, want about %d", turns, n, most)
		}
		if n := len(a.guard.since(beforeGuard)); n > int(most) || n < int(most/2) {
			t.Errorf("%d turns set the secure namespace %d times, want about %d", turns, n, most)
		}

		_, links, err := a.host.Links()
		if err != nil || len(links) != 1 {
			t.Fatalf("links %v, %v", links, err)
		}
		for name := range links {
			turn()
			<-time.After(10 * time.Millisecond)
			sets.Store(0)
			guarded := len(a.guard.since(0))
			if err := a.host.DeleteLink(name); err != nil {
				t.Fatal(err)
			}
			turn()
			<-time.After(10 * time.Millisecond)
			if sets.Load() == 0 || len(a.guard.since(guarded)) == 0 {
				t.Errorf("device %s is gone: driver set %d times, secure namespace %d times", name, sets.Load(), len(a.guard.since(guarded)))
			}
		}
		w.until("the device back", func() bool { return a.on(1, 1) && b.on(1, 1) })
	})
}
