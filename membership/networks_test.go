package membership

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

func netOf(name string, vni ids.VNI, encrypted bool) item.Network {
	return item.Network{
		Network: record.Network{Name: name, VNI: vni, Encrypted: encrypted, VTEPPort: 4789, Subnets: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}},
		Driver:  item.DriverAuto,
	}
}

// defined reports whether a snapshot shows exactly these networks.
func defined(names ...string) func(Snapshot) bool {
	return func(s Snapshot) bool {
		if len(s.Networks) != len(names) {
			return false
		}
		for i, n := range s.Networks {
			if n.Name != names[i] {
				return false
			}
		}
		return true
	}
}

// TestNetworks: what an issuer creates is on every node, over a restart, too, and
// gone everywhere when it is removed.
func TestNetworks(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	nodes := l.issuing(3)
	stored := &memoryItems{}
	keep := l.start(3, func(o *Options) { o.ItemCache = stored })
	keep.Publish(content(3, 0))
	all := append(nodes, keep)
	converge(t, all, 4)
	n, err := nodes[0].CreateNetwork(ctx, netOf("green", 7, true))
	if err != nil || n.Name != "green" || n.Edit != 1 || !defined("green")(nodes[0].Snapshot()) {
		t.Fatalf("%+v, %v", n, err)
	}
	for _, n := range all {
		n.until("the network", defined("green"))
	}
	if _, err := nodes[1].CreateNetwork(ctx, netOf("red", 8, true)); !errors.Is(err, ErrNotIssuer) {
		t.Errorf("without issuer key: %v", err)
	}
	if _, err := nodes[0].CreateNetwork(ctx, netOf("green", 9, true)); !errors.Is(err, item.ErrNameTaken) {
		t.Errorf("twice: %v", err)
	}
	if _, err := nodes[0].RemoveNetwork(ctx, "red"); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("one that is not there: %v", err)
	}
	keep.stop()
	if _, err := nodes[0].RemoveNetwork(ctx, "green"); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes[0].CreateNetwork(ctx, netOf("green", 7, false)); !errors.Is(err, item.ErrWeakens) {
		t.Errorf("as plaintext: %v", err)
	}
	if _, err := nodes[0].CreateNetwork(ctx, netOf("amber", 9, false)); err != nil {
		t.Error(err)
	}
	l.run(keep)
	if !defined("green")(keep.Snapshot()) {
		keep.until("what it knew before", func(s Snapshot) bool { return defined("green")(s) || defined("amber")(s) })
	}
	keep.Publish(content(3, 0))
	for _, n := range all {
		n.until("one is gone and another there", defined("amber"))
	}
	nodes[0].stop()
	if _, err := nodes[0].CreateNetwork(ctx, netOf("late", 11, true)); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// TestNetworksAtOnce: of many commands that create one network, one does.
func TestNetworksAtOnce(t *testing.T) {
	l := newLab(t)
	nodes := l.issuing(2)
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { _, errs[i] = nodes[0].CreateNetwork(context.Background(), netOf("green", ids.VNI(i+1), true)) })
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		switch {
		case err == nil:
			made++
		case !errors.Is(err, item.ErrNameTaken):
			t.Error(err)
		}
	}
	if made != 1 {
		t.Errorf("%d commands created it", made)
	}
	nodes[1].until("the network", defined("green"))
}

// rootNetwork has the lab's root change a network.
func (l *lab) rootNetwork(have, n item.Network) []byte {
	l.t.Helper()
	key, err := l.auth.Root()
	if err != nil {
		l.t.Fatal(err)
	}
	content, err := item.NetworkContent(have, n, time.Now())
	if err != nil {
		l.t.Fatal(err)
	}
	raw, err := item.SignRoot(l.auth.Trust.Cluster, key, content)
	if err != nil {
		l.t.Fatal(err)
	}
	return raw
}

// TestChangeNetwork: an issuer changes a network for all nodes, the root on any node,
// and what is not newer, or not the root's, changes nothing.
func TestChangeNetwork(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	nodes := l.issuing(2)
	converge(t, nodes, 2)
	first, err := nodes[0].CreateNetwork(ctx, netOf("green", 7, false))
	if err != nil {
		t.Fatal(err)
	}
	is := func(encrypted, moving bool) func(Snapshot) bool {
		return func(s Snapshot) bool {
			return len(s.Networks) == 1 && s.Networks[0].Encrypted == encrypted && s.Networks[0].Moving == moving
		}
	}
	form := func(encrypted, moving bool) func(item.Network) (item.Network, error) {
		return func(n item.Network) (item.Network, error) {
			n.Encrypted, n.Moving = encrypted, moving
			return n, nil
		}
	}
	for _, moving := range []bool{true, false} {
		if n, err := nodes[0].ChangeNetwork(ctx, "green", form(true, moving)); err != nil || !n.Encrypted || n.Moving != moving {
			t.Fatalf("%+v, %v", n, err)
		}
		for _, n := range nodes {
			n.until("the change", is(true, moving))
		}
	}
	if _, err := nodes[0].ChangeNetwork(ctx, "green", form(true, true)); !errors.Is(err, item.ErrWeakens) {
		t.Errorf("an issuer makes it readable: %v", err)
	}
	if _, err := nodes[1].ChangeNetwork(ctx, "green", form(true, false)); !errors.Is(err, ErrNotIssuer) {
		t.Errorf("without an issuer key: %v", err)
	}
	if _, err := nodes[0].ChangeNetwork(ctx, "red", form(true, false)); !errors.Is(err, ErrNoNetwork) {
		t.Errorf("one that is not there: %v", err)
	}
	mine := errors.New("no change")
	if _, err := nodes[0].ChangeNetwork(ctx, "green", func(n item.Network) (item.Network, error) { return n, mine }); !errors.Is(err, mine) {
		t.Errorf("the caller's own error: %v", err)
	}
	have := nodes[1].Snapshot().Networks[0]
	plain := have
	plain.Encrypted = false
	raw := l.rootNetwork(have, plain)
	if n, err := nodes[1].SetNetwork(raw); err != nil || n.Encrypted || n.Generation != 1 {
		t.Fatalf("%+v, %v", n, err)
	}
	for _, n := range nodes {
		n.until("plaintext again", is(false, false))
	}
	if _, err := nodes[0].ChangeNetwork(ctx, "green", form(true, false)); err != nil {
		t.Fatal(err)
	}
	if _, err := nodes[0].SetNetwork(raw); !errors.Is(err, ErrNetworkOld) {
		t.Errorf("the root's former word once more: %v", err)
	}
	if _, err := nodes[0].SetNetwork(l.rootFloor(item.FirstFloor(), 1)); !errors.Is(err, item.ErrMalformed) {
		t.Errorf("the root's word about something else: %v", err)
	}
	if _, err := nodes[0].SetNetwork(l.rootNetwork(first, plain)[1:]); err == nil {
		t.Error("a cut item")
	}
	if !is(true, false)(nodes[0].Snapshot()) {
		t.Errorf("%+v", nodes[0].Snapshot().Networks)
	}
}
