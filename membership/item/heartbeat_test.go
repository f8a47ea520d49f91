package item

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/keys"
)

// issuerKey is the public key of the issuer called name.
func (b bench) issuerKey(name string) keys.IssuerPublic {
	b.t.Helper()
	d, err := keys.ParseDelegation(b.issuer(name).Delegation())
	if err != nil {
		b.t.Fatal(err)
	}
	return d.Issuer
}

// beat has an issuer sign a heartbeat.
func (b bench) beat(issuer string, at time.Time, after uint64) *Item {
	b.t.Helper()
	it, err := SignHeartbeat(at, b.Trust, b.issuer(issuer), after, [32]byte{7})
	if err != nil {
		b.t.Fatal(err)
	}
	return it
}

func TestHeartbeat(t *testing.T) {
	b := newBench(t)
	at := noon.Add(1500 * time.Millisecond)
	it := b.beat("a", at, 0)
	got, ok := it.Heartbeat()
	want := Heartbeat{Issuer: b.issuerKey("a"), Digest: [32]byte{7}, Created: noon.Add(time.Second)}
	if d := cmp.Diff(want, got); d != "" || !ok {
		t.Errorf("%v\n%s", ok, d)
	}
	if it.Version != uint64(at.Unix()) || len(it.Raw) > 400 {
		t.Errorf("version %d, %d bytes", it.Version, len(it.Raw))
	}
	if _, ok := it.Floor(); ok {
		t.Error("a heartbeat is a floor")
	}
	// What is known of it is ahead of the clock: the clock went back.
	if it := b.beat("a", at, uint64(at.Unix())+3600); it.Version != uint64(at.Unix())+3601 || !it.Created.Equal(noon.Add(time.Second)) {
		t.Errorf("after a higher version: version %d, created %v", it.Version, it.Created)
	}
	if _, err := SignHeartbeat(at, b.Trust, b.issuer("a"), math.MaxUint64, [32]byte{}); !errors.Is(err, ErrMalformed) {
		t.Errorf("after the last version: %v", err)
	}
}

func TestHeartbeatRefuses(t *testing.T) {
	b := newBench(t)
	good := Content{Slot: HeartbeatSlot(b.issuerKey("a")), Version: 9, Created: noon, Body: make([]byte, 32)}
	for name, edit := range map[string]func(*Content){
		"another issuer's": func(c *Content) { c.Slot = HeartbeatSlot(b.issuerKey("b")) },
		"no key":           func(c *Content) { c.Slot.Key = "" },
		"a short body":     func(c *Content) { c.Body = c.Body[1:] },
		"a long body":      func(c *Content) { c.Body = make([]byte, 33) },
	} {
		c := good
		edit(&c)
		if _, err := Sign(noon, b.Trust, b.issuer("a"), c); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := SignRoot(b.Trust.Cluster, mustRoot(t, b), good); !errors.Is(err, ErrMalformed) {
		t.Errorf("the root's: %v", err)
	}
	ended, err := b.Issuer("ended", begin, noon)
	if err != nil {
		t.Fatal(err)
	}
	last, err := SignHeartbeat(noon, b.Trust, ended, 0, [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		raw  []byte
		now  time.Time
		want error
	}{
		"good":                          {last.Raw, noon, nil},
		"at the delegation's end":       {last.Raw, noon.Add(keys.ClockTolerance), nil},
		"after the delegation's end":    {last.Raw, noon.Add(keys.ClockTolerance + time.Second), keys.ErrExpired},
		"from the future":               {last.Raw, noon.Add(-keys.ClockTolerance - time.Second), keys.ErrNotYetValid},
		"an item that is no heartbeat":  {b.sign("a", target(t, 2, DriverAuto)).Raw, noon, ErrMalformed},
		"kept, of an issuer that is on": {b.beat("a", noon, 0).Raw, noon.AddDate(0, 1, 0), nil},
	} {
		if _, err := VerifyHeartbeat(b.Trust, c.now, c.raw); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// TestHeartbeatsStayOutOfSets: they change no digest, take no room and push
// nothing out, although a set is full.
func TestHeartbeatsStayOutOfSets(t *testing.T) {
	b := newBench(t)
	var s Set
	for i := range MaxItems {
		if _, err := s.Insert(fake(200, fmt.Sprintf("%04d", i), 1)); err != nil {
			t.Fatal(err)
		}
	}
	digest := s.Digest()
	for i := range 3 {
		changed, err := s.Insert(b.beat("a", noon.Add(time.Duration(i)*time.Minute), 0))
		if changed || err != nil {
			t.Errorf("changed %v, %v", changed, err)
		}
	}
	if s.Digest() != digest || s.Len() != MaxItems {
		t.Errorf("%d items, another digest: %v", s.Len(), s.Digest() != digest)
	}
}

func TestHeartbeats(t *testing.T) {
	b := newBench(t)
	var h Heartbeats
	first, second := b.beat("a", noon, 0), b.beat("a", noon.Add(time.Minute), 0)
	twin, err := SignHeartbeat(noon.Add(time.Minute), b.Trust, b.issuer("a"), 0, [32]byte{8})
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct {
		it   *Item
		news bool
	}{{first, true}, {first, false}, {second, true}, {first, false}, {twin, false}, {fake(9, "k", 1), false}} {
		if got := h.Insert(c.it); got != c.news {
			t.Errorf("step %d: news %v", i, got)
		}
	}
	if got := h.Get(first.Slot); got != second || !h.Outdated(first) || !h.Outdated(twin) || h.Outdated(b.beat("b", noon, 0)) {
		t.Errorf("kept %+v", got)
	}
	clone := h.Clone()
	// More issuers than a node keeps: whom it heard last stays.
	for i := range MaxHeartbeats {
		if !h.Insert(b.beat(fmt.Sprint("more ", i), noon.Add(time.Duration(i+2)*time.Minute), 0)) {
			t.Errorf("issuer %d is left out", i)
		}
	}
	if len(h.Items()) != MaxHeartbeats || h.Get(first.Slot) != nil {
		t.Errorf("%d kept, the oldest among them: %v", len(h.Items()), h.Get(first.Slot) != nil)
	}
	if h.Insert(second) {
		t.Error("the oldest came back into a full one")
	}
	if len(clone.Items()) != 1 {
		t.Error("a clone changed")
	}
	h.Drop(begin.AddDate(1, 0, 0).Add(keys.ClockTolerance), &Set{})
	if len(h.Items()) != MaxHeartbeats {
		t.Errorf("%d are left at the end of the delegations", len(h.Items()))
	}
	h.Drop(begin.AddDate(1, 0, 0).Add(keys.ClockTolerance+time.Second), &Set{})
	if len(h.Items()) != 0 {
		t.Errorf("%d are left after the end of the delegations", len(h.Items()))
	}
}

// TestHeartbeatOfRevokedIssuer: with its key an issuer's sign of life goes.
func TestHeartbeatOfRevokedIssuer(t *testing.T) {
	b := newBench(t)
	var h Heartbeats
	var s Set
	h.Insert(b.beat("a", noon, 0))
	h.Insert(b.beat("b", noon, 0))
	if _, err := s.Insert(b.revokedIssuer("a")); err != nil {
		t.Fatal(err)
	}
	h.Drop(noon, &s)
	if left := h.Items(); len(left) != 1 || left[0].Slot != HeartbeatSlot(b.issuerKey("b")) {
		t.Errorf("%d are left", len(left))
	}
	if !s.Void(b.beat("a", noon.Add(time.Minute), 0)) || s.Void(b.beat("b", noon, 0)) {
		t.Error("a heartbeat of a revoked issuer is not void, or another one is")
	}
}
