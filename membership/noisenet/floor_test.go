package noisenet

import (
	"errors"
	"sync/atomic"
	"testing"
)

// floorOf gives a party a floor.
func floorOf(n uint8) func() uint8 { return func() uint8 { return n } }

// TestFloorVersions: what is offered and taken, by the floors of both sides and
// the versions that they speak.
func TestFloorVersions(t *testing.T) {
	c := newTestCluster(1)
	for name, tc := range map[string]struct {
		max, floor [2]uint8 // of the initiator, of the responder
		version    uint8    // 0: no handshake
		want       error    // of whoever finds out
	}{
		"no floor":                         {[2]uint8{2, 2}, [2]uint8{1, 1}, 2, nil},
		"floor met":                        {[2]uint8{2, 2}, [2]uint8{2, 2}, 2, nil},
		"floor not heard of by one":        {[2]uint8{2, 2}, [2]uint8{1, 2}, 2, nil},
		"older responder, no floor":        {[2]uint8{2, 1}, [2]uint8{1, 1}, 1, nil},
		"older responder":                  {[2]uint8{2, 1}, [2]uint8{2, 1}, 0, ErrVersion},
		"older initiator":                  {[2]uint8{1, 2}, [2]uint8{1, 2}, 0, ErrFloor},
		"initiator below its own floor":    {[2]uint8{1, 2}, [2]uint8{2, 1}, 0, ErrFloor},
		"responder below its own floor":    {[2]uint8{2, 1}, [2]uint8{1, 2}, 0, ErrFloor},
		"a floor that neither speaks":      {[2]uint8{2, 2}, [2]uint8{3, 3}, 0, ErrFloor},
		"a floor that neither speaks, one": {[2]uint8{2, 2}, [2]uint8{1, 3}, 0, ErrFloor},
	} {
		a, b := c.node(10).party(), c.node(20).party()
		a.versionMax, b.versionMax = tc.max[0], tc.max[1]
		a.floor, b.floor = floorOf(tc.floor[0]), floorOf(tc.floor[1])
		ea, eb, err := shake(a, b, b.node, nil)
		if tc.version == 0 {
			if !errors.Is(err, tc.want) || ea != nil || eb != nil {
				t.Errorf("%s: %v, want %v", name, err, tc.want)
			}
			continue
		}
		if err != nil || ea.version != tc.version || eb.version != tc.version {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := c.node(10).party()
	p.floor = floorOf(2)
	h, first, err := newInitiator(p, c.node(20).id)
	if err != nil {
		t.Fatal(err)
	}
	if h.offered.min != 2 || first[2] != 2 {
		t.Errorf("it offers %d, and %d on the wire", h.offered.min, first[2])
	}
}

// TestFloorIsRaised: while two nodes are connected by an older version the floor
// rises. Nobody opens another stream, dropped ones stay closed, and when the floor
// is lowered they meet again.
func TestFloorIsRaised(t *testing.T) {
	c := newTestCluster(1)
	var floor atomic.Uint32
	floor.Store(1)
	n := 0
	edit := func(cfg *Config) {
		cfg.versionMax, cfg.Handler = []uint8{2, 1, 2}[n], echo
		if n == 0 {
			cfg.Floor = func() uint8 { return uint8(floor.Load()) }
		}
		n++
	}
	a, old, modern := start(t, c.node(10), edit), start(t, c.node(20), edit), start(t, c.node(30), edit)
	for _, p := range []*running{old, modern} {
		a.dir.set(p.node.id, p.addr())
		p.dir.set(a.node.id, a.addr())
		if _, err := a.Call(testContext(t), p.node.id, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if p, _ := a.Peer(old.node.id); p.Version != 1 || p.Hybrid {
		t.Errorf("the older node is known with version %d", p.Version)
	}
	if p, _ := a.Peer(modern.node.id); p.Version != 2 || !p.Hybrid {
		t.Errorf("the other is known with version %d", p.Version)
	}
	floor.Store(2)
	a.Drop(old.node.id)
	if _, err := a.Contact(testContext(t), old.addr()); !errors.Is(err, ErrHandshake) {
		t.Errorf("towards the older node: %v, want ErrHandshake", err)
	}
	if _, err := old.Contact(testContext(t), a.addr()); !errors.Is(err, ErrHandshake) {
		t.Errorf("by the older node: %v, want ErrHandshake", err)
	}
	eventually(t, "the refusal is logged with the floor", func() bool { return a.log.count("below the cluster's floor") > 0 })
	if _, ok := a.Peer(old.node.id); ok {
		t.Error("the older node is a peer")
	}
	if _, err := a.Call(testContext(t), modern.node.id, []byte("x")); err != nil {
		t.Errorf("to the other: %v", err)
	}
	floor.Store(3)
	if _, err := a.Contact(testContext(t), modern.addr()); !errors.Is(err, ErrFloor) {
		t.Errorf("above what this node speaks: %v, want ErrFloor", err)
	}
	if _, err := modern.Contact(testContext(t), a.addr()); !errors.Is(err, ErrHandshake) {
		t.Errorf("towards a node that is too old: %v, want ErrHandshake", err)
	}
	floor.Store(1)
	if p, err := a.Contact(testContext(t), old.addr()); err != nil || p.Version != 1 {
		t.Errorf("after the floor was lowered: version %d, %v", p.Version, err)
	}
}

// TestJoinBelowTheFloor: a join has a version of its own, whatever members speak
// with each other.
func TestJoinBelowTheFloor(t *testing.T) {
	c := newTestCluster(1)
	f := newFakeAdmission(c)
	issuer := start(t, c.issuerNode(10), func(cfg *Config) { cfg.Admission, cfg.Floor = f, floorOf(2) })
	n := c.node(20)
	a, err := Join(testContext(t), joinOptions(issuer.addr(), f.token(50), n))
	if err != nil {
		t.Fatal(err)
	}
	n.credential = a.Credential
	m := start(t, n, func(cfg *Config) { cfg.Floor = floorOf(2) })
	if p, err := m.Contact(testContext(t), issuer.addr()); err != nil || p.Version != 2 {
		t.Errorf("as a member: version %d, %v", p.Version, err)
	}
}

// TestFloorDuringAHandshake: the floor rises after the version was chosen, and
// before the stream is in service.
func TestFloorDuringAHandshake(t *testing.T) {
	c := newTestCluster(1)
	var asked atomic.Uint32
	a := start(t, c.node(10), func(cfg *Config) {
		cfg.Floor = func() uint8 { return uint8(min(asked.Add(1), 2)) }
	})
	old := start(t, c.node(20), func(cfg *Config) { cfg.versionMax = 1 })
	if _, err := a.Contact(testContext(t), old.addr()); !errors.Is(err, ErrFloor) {
		t.Errorf("%v, want ErrFloor", err)
	}
	if _, ok := a.Peer(old.node.id); ok {
		t.Error("the older node is a peer")
	}
}
