package membership

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// rootFloor has the lab's root set the floor after have.
func (l *lab) rootFloor(have item.Floor, least uint8) []byte {
	l.t.Helper()
	key, err := l.auth.Root()
	if err != nil {
		l.t.Fatal(err)
	}
	content, err := item.FloorContent(have, least, time.Now())
	if err != nil {
		l.t.Fatal(err)
	}
	raw, err := item.SignRoot(l.auth.Trust.Cluster, key, content)
	if err != nil {
		l.t.Fatal(err)
	}
	return raw
}

func onFloor(least uint8) func(Snapshot) bool {
	return func(s Snapshot) bool { return s.Floor.Min == least }
}

// TestRaiseFloor: an issuer raises the floor for all nodes, the root lowers it, and
// the transport of each asks for it.
func TestRaiseFloor(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	nodes := l.issuing(3)
	for _, n := range nodes {
		if f := n.Snapshot().Floor; f != item.FirstFloor() || n.transportConfig().Floor() != 1 {
			t.Errorf("node %d begins with %+v", n.i, f)
		}
	}
	for _, n := range nodes {
		if _, err := n.RaiseFloor(ctx, noisenet.VersionMax+1); !errors.Is(err, ErrFloorAhead) {
			t.Errorf("node %d raises it above what it speaks: %v", n.i, err)
		}
	}
	if _, err := nodes[1].RaiseFloor(ctx, 2); !errors.Is(err, ErrNotIssuer) {
		t.Errorf("without issuer key: %v", err)
	}
	// One that was met with the lower version has its streams closed everywhere.
	old := l.identity(2).ID
	l.net.mu.Lock()
	l.net.versions[old] = 1
	l.net.mu.Unlock()
	f, err := nodes[0].RaiseFloor(ctx, 2)
	if err != nil || f.Min != 2 || f.Generation != 0 {
		t.Fatalf("%+v, %v", f, err)
	}
	for _, n := range nodes {
		n.until("floor 2", onFloor(2))
		if got := n.transportConfig().Floor(); got != 2 {
			t.Errorf("node %d: the transport hears %d", n.i, got)
		}
	}
	eventually(t, "the older node is dropped by both others, and nobody else", func() bool {
		l.net.mu.Lock()
		defer l.net.mu.Unlock()
		return l.net.dropped[old] == 2 && len(l.net.dropped) == 1
	})
	// Again, lower, or by somebody else: there is nothing to do.
	for _, least := range []uint8{1, 2} {
		if again, err := nodes[1].RaiseFloor(ctx, least); err != nil || again != f {
			t.Errorf("raised to %d again: %+v, %v", least, again, err)
		}
	}

	// Nobody but the root lowers it.
	byIssuer, err := item.Sign(time.Now(), l.auth.Trust, l.signer("of others"), item.Content{
		Slot: item.FloorSlot(), Version: 1, Created: time.Now().Truncate(time.Second), Body: []byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	r := l.rogue(8, nil)
	if err := r.give(nodes[1].self, byIssuer.Raw); err != nil {
		t.Fatal(err) // it is valid, and older
	}
	if _, err := nodes[1].SetFloor(byIssuer.Raw); !errors.Is(err, item.ErrMalformed) {
		t.Errorf("an issuer's item in place of the root's: %v", err)
	}
	lowered := l.rootFloor(f, 1)
	forged := append([]byte(nil), lowered...)
	forged[len(forged)-1] ^= 1
	if _, err := nodes[1].SetFloor(forged); !errors.Is(err, keys.ErrBadSignature) {
		t.Errorf("a forged item: %v", err)
	}
	if got := nodes[1].Snapshot().Floor; got != f {
		t.Errorf("the floor is %+v", got)
	}
	low, err := nodes[2].SetFloor(lowered)
	if err != nil || low.Min != 1 || low.Generation != 1 {
		t.Errorf("%+v, %v", low, err)
	}
	for _, n := range nodes {
		n.until("floor 1", onFloor(1))
	}
	if _, err := nodes[2].SetFloor(l.rootFloor(item.Floor{}, 1)[:0]); !errors.Is(err, item.ErrMalformed) {
		t.Errorf("nothing: %v", err)
	}
	// On top of what the root has said an issuer raises it again.
	if f, err = nodes[0].RaiseFloor(ctx, 2); err != nil || f.Min != 2 || f.Generation != 1 {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := nodes[2].SetFloor(lowered); !errors.Is(err, ErrFloorOld) {
		// Its view may not have the newest yet.
		nodes[2].until("floor 2", onFloor(2))
		if _, err := nodes[2].SetFloor(lowered); !errors.Is(err, ErrFloorOld) {
			t.Errorf("the root's former item again: %v", err)
		}
	}
	for _, n := range nodes {
		n.until("floor 2", onFloor(2))
	}
}

// TestFloorOutlivesTheProcess: a node that restarts alone does not speak below it.
func TestFloorOutlivesTheProcess(t *testing.T) {
	l := newLab(t)
	store := &memoryItems{}
	n := l.start(0, l.signs(l.signer("a")), func(o *Options) { o.ItemCache = store })
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	if _, err := n.RaiseFloor(context.Background(), 2); err != nil {
		t.Fatal(err)
	}
	n.stop()
	first := make(chan uint8, 1)
	l.transport = func(cfg noisenet.Config) transport {
		first <- cfg.Floor()
		return l.net.transport(cfg)
	}
	l.run(n)
	select {
	case got := <-first:
		if got != 2 {
			t.Errorf("the transport begins with floor %d", got)
		}
	case <-time.After(deadline):
		t.Fatal("the transport was not made")
	}
}
