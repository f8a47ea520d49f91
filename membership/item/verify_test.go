package item

import (
	"bytes"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
)

func TestVerifyRefuses(t *testing.T) {
	b := newBench(t)
	foreign, err := membertest.New("another", begin)
	if err != nil {
		t.Fatal(err)
	}
	good := b.sign("a", target(t, 7, DriverAuto))
	issuer := b.issuer("a")
	forge := func(signer *membertest.Issuer, edit func(*Item)) []byte {
		it := *good
		it.Signer = good.Signer
		edit(&it)
		raw, err := signer.SignItem(noon, "slot", 1, encode(b.Trust.Cluster, &it))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	early, err := b.Issuer("early", begin.AddDate(-2, 0, 0), begin.AddDate(-1, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	root, err := b.Root()
	if err != nil {
		t.Fatal(err)
	}
	rootByOther := target(t, 7, DriverAuto).item()
	rootByOther.Root, rootByOther.Signer = true, good.Signer
	body := encode(b.Trust.Cluster, rootByOther)
	sig := root.Sign(keys.DomainItem, body[len(keys.DomainItem):])
	for name, c := range map[string]struct {
		raw  []byte
		now  time.Time
		want error
	}{
		"another cluster's trust": {good.Raw, noon, keys.ErrWrongCluster},
		"from the future":         {good.Raw, noon.Add(-keys.ClockTolerance - time.Second), keys.ErrNotYetValid},
		"signed by another key":   {forge(b.issuer("b"), func(*Item) {}), noon, keys.ErrBadSignature},
		"names another key":       {forge(issuer, func(it *Item) { it.Signer = b.sign("b", target(t, 7, DriverAuto)).Signer }), noon, ErrOtherSigner},
		"another's delegation":    {forge(b.issuer("a"), func(it *Item) { it.Delegation = b.issuer("b").Delegation() }), noon, ErrOtherSigner},
		"root item, other key":    {append(body, sig[:]...), noon, ErrOtherSigner},
		"created after the delegation": {forge(early, func(it *Item) {
			d, err := keys.ParseDelegation(early.Delegation())
			if err != nil {
				t.Fatal(err)
			}
			it.Delegation, it.Signer = early.Delegation(), d.Issuer
		}), noon, keys.ErrExpired},
		"issuer poses as root": {forge(b.issuer("a"), func(it *Item) {
			it.Root, it.Delegation, it.Signer = true, nil, b.Trust.Root
		}), noon, keys.ErrBadSignature},
	} {
		trust := b.Trust
		if c.want == keys.ErrWrongCluster {
			trust = foreign.Trust
		}
		if _, err := Verify(trust, c.now, c.raw); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := Verify(b.Trust, noon.Add(-keys.ClockTolerance), good.Raw); err != nil {
		t.Errorf("within the tolerance: %v", err)
	}
}

// TestExpiryDoesNotEndAnItem: the delegation runs out, its items stay; a clock
// that went back takes nothing from what was accepted before.
func TestExpiryDoesNotEndAnItem(t *testing.T) {
	b := newBench(t)
	good := b.sign("a", target(t, 7, DriverAuto))
	if _, err := Verify(b.Trust, noon.AddDate(50, 0, 0), good.Raw); err != nil {
		t.Errorf("after the delegation's end: %v", err)
	}
	if _, err := Verify(b.Trust, time.Unix(0, 0), good.Raw); !errors.Is(err, keys.ErrNotYetValid) {
		t.Errorf("in 1970: %v, want ErrNotYetValid", err)
	}
	if it, err := Reverify(b.Trust, good.Raw); err != nil || it.Hash != good.Hash {
		t.Errorf("kept item, in 1970: %v", err)
	}
	bad := bytes.Clone(good.Raw)
	bad[len(bad)-1] ^= 1
	if _, err := Reverify(b.Trust, bad); !errors.Is(err, keys.ErrBadSignature) {
		t.Errorf("kept item, damaged: %v, want ErrBadSignature", err)
	}
}

// TestRevocationFromTheFuture: an issuer whose clock is months ahead throws a node
// out, and the others do not wait for so long. It could not be said again: a slot's
// version is signed once.
func TestRevocationFromTheFuture(t *testing.T) {
	b := newBench(t)
	r := Revocation{Node: ids.NodeID{7}, Reason: "stolen", Created: noon.AddDate(0, 8, 0)}
	it, err := SignRevocation(r.Created, b.Trust, b.issuer("a"), r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(b.Trust, noon, it.Raw); err != nil {
		t.Errorf("by a right clock: %v", err)
	}
	// The issuer's delegation has to hold when it was made, as for every item.
	late := Revocation{Node: ids.NodeID{7}, Created: noon.AddDate(40, 0, 0)}
	if _, err := SignRevocation(late.Created, b.Trust, b.issuer("b"), late); !errors.Is(err, keys.ErrExpired) {
		t.Errorf("after the delegation's end: %v, want ErrExpired", err)
	}
}

// TestSigners runs the store's issuer and the tests' one through the same
// checks.
func TestSigners(t *testing.T) {
	b := newBench(t)
	store, err := keystore.Init(filepath.Join(t.TempDir(), "data"), keystore.InitOptions{Hostname: "a", Now: begin})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	id, err := store.Identity()
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := store.Issuer()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		signer Signer
		trust  keys.Trust
	}{"keystore": {issuer, id.Trust}, "membertest": {b.issuer("a"), b.Trust}} {
		t.Run(name, func(t *testing.T) { checkSigner(t, c.signer, c.trust) })
	}
}

func checkSigner(t *testing.T, s Signer, trust keys.Trust) {
	at := func(epoch ids.Epoch, driver string) *Item {
		t.Helper()
		it, err := Sign(noon, trust, s, target(t, epoch, driver))
		if err != nil {
			t.Fatal(err)
		}
		return it
	}
	first := at(2, DriverAuto)
	if again := at(2, DriverIPsec); again.Hash != first.Hash {
		t.Error("one version was signed twice")
	}
	third := at(3, DriverIPsec)
	if old := at(2, DriverUserspace); old.Hash != third.Hash {
		t.Error("a lower version did not give the newest item")
	}
	// Another slot is another count.
	if it, err := Sign(noon, trust, s, other(9, "k", 1)); err != nil || it.Version != 1 {
		t.Errorf("another slot: %v", err)
	}
	// Many at once make one.
	var wg sync.WaitGroup
	items := make([]*Item, 20)
	for i := range items {
		wg.Go(func() {
			c := target(t, 4, DriverAuto)
			c.Created = c.Created.Add(time.Duration(i) * time.Second)
			it, err := Sign(noon, trust, s, c)
			if err != nil {
				t.Error(err)
				return
			}
			items[i] = it
		})
	}
	wg.Wait()
	for _, it := range items {
		if it == nil || it.Hash != items[0].Hash {
			t.Fatal("many at once made more than one item")
		}
	}
}
