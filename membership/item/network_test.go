package item

import (
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/secure-overlay/secure-overlay/internal/netdef"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

func netOf(name string, encrypted bool, subnets ...string) Network {
	n := Network{Network: record.Network{Name: name, VNI: 5000, Encrypted: encrypted, VTEPPort: 4789}, Driver: DriverAuto}
	for _, s := range subnets {
		n.Subnets = append(n.Subnets, netip.MustParsePrefix(s))
	}
	return n
}

// define has an issuer define a network over what a set holds.
func (b bench) define(s *Set, by string, n Network) *Item {
	b.t.Helper()
	it, err := s.SignNetwork(noon, b.Trust, b.issuer(by), n)
	if err != nil {
		b.t.Fatal(err)
	}
	if changed, err := s.Insert(it); !changed || err != nil {
		b.t.Fatalf("network %q: changed %v, %v", n.Name, changed, err)
	}
	return it
}

// rootNetwork makes the root's word about a network, which begins a generation.
func (b bench) rootNetwork(generation uint32, n Network) *Item {
	b.t.Helper()
	n.Edit = 0
	body, err := n.body()
	if err != nil {
		b.t.Fatal(err)
	}
	return b.root(Content{Slot: NetworkSlot(n.Name), Version: ranked(generation, n.step()), Created: noon, Body: body})
}

func TestNetwork(t *testing.T) {
	b := newBench(t)
	var s Set
	want := netOf("blue", true, "10.77.0.0/16", "fd77::/64")
	want.Driver, want.MTU, want.Labels = DriverIPsec, 1400, []string{"team=web", "x"}
	want.Options = netdef.Options{
		Gateways: []netip.Addr{netip.MustParseAddr("10.77.0.9")}, Ranges: []netip.Prefix{netip.MustParsePrefix("10.77.4.0/22")},
		Reserved: []netip.Prefix{netip.MustParsePrefix("fd77::7/128")}, Internal: true, NoBroadcast: true,
	}
	first := b.define(&s, "a", want)
	want.Edit, want.Created = 1, noon
	got, ok := s.Network("blue")
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})); d != "" || !ok {
		t.Errorf("%v: %s", ok, d)
	}
	if len(s.Networks()) != 1 {
		t.Errorf("%d networks", len(s.Networks()))
	}
	gone := got
	gone.Removed = true
	b.define(&s, "b", gone)
	if n, ok := s.Network("blue"); !ok || !n.Removed || n.Edit != 2 || len(s.Networks()) != 0 {
		t.Errorf("removed: %+v", n)
	}
	if changed, _ := s.Insert(first); changed {
		t.Error("an older item brings it back")
	}
	again := netOf("blue", true, "10.78.0.0/16")
	b.define(&s, "a", again)
	if n, _ := s.Network("blue"); n.Removed || n.Edit != 3 || n.Subnets[0].String() != "10.78.0.0/16" {
		t.Errorf("made again: %+v", n)
	}
	if it := s.Get(NetworkSlot("blue")); len(it.Raw) > MaxSize || it.Slot.Kind.String() != "network" {
		t.Errorf("%d bytes, %s", len(it.Raw), it.Slot.Kind)
	}
}

// TestNetworkIsNotWeakened: no issuer takes encryption away, by whatever way: not
// by a change, not by removing and making anew, and not with an item of its own
// making; the root does.
func TestNetworkIsNotWeakened(t *testing.T) {
	b := newBench(t)
	var s Set
	plain := netOf("blue", false, "10.77.0.0/16")
	b.define(&s, "a", plain)
	b.define(&s, "a", plain)
	encrypted := netOf("blue", true, "10.77.0.0/16")
	b.define(&s, "a", encrypted) // stricter: an issuer may
	if _, err := s.SignNetwork(noon, b.Trust, b.issuer("a"), plain); !errors.Is(err, ErrWeakens) {
		t.Errorf("changed to plaintext: %v", err)
	}
	gone := encrypted
	gone.Removed = true
	b.define(&s, "a", gone)
	if _, err := s.SignNetwork(noon, b.Trust, b.issuer("b"), plain); !errors.Is(err, ErrWeakens) {
		t.Errorf("made anew as plaintext: %v", err)
	}
	// By hand, with every version that could win.
	for _, version := range []uint64{ranked(0, 1000), ranked(1, 1000), ranked(0, encryptedStep|1000), ranked(9, encryptedStep)} {
		n := plain
		n.Edit = 1000
		body, err := n.body()
		if err != nil {
			t.Fatal(err)
		}
		it, err := Sign(noon, b.Trust, b.issuer("c"), Content{Slot: NetworkSlot("blue"), Version: version, Created: noon, Body: body})
		if err != nil {
			continue
		}
		if _, _ = s.Insert(it); !mustNetwork(t, &s).Encrypted {
			t.Errorf("version %x is plaintext", version)
		}
	}
	root := b.rootNetwork(1, plain)
	if changed, err := s.Insert(root); !changed || err != nil || mustNetwork(t, &s).Encrypted {
		t.Fatalf("the root: changed %v, %v", changed, err)
	}
	// From there issuers go on, both ways of what the root allows.
	b.define(&s, "a", plain)
	b.define(&s, "b", encrypted)
	if n := mustNetwork(t, &s); !n.Encrypted || n.Generation != 1 {
		t.Errorf("%+v", n)
	}
	if _, err := s.SignNetwork(noon, b.Trust, b.issuer("a"), plain); !errors.Is(err, ErrWeakens) {
		t.Errorf("once more to plaintext: %v", err)
	}
}

// TestNetworkMoves: an issuer leads a plaintext network to encrypted by way of both,
// and never from encrypted to both; the root leads back.
func TestNetworkMoves(t *testing.T) {
	b := newBench(t)
	var s Set
	plain := netOf("blue", false, "10.77.0.0/16")
	moving := netOf("blue", true, "10.77.0.0/16")
	moving.Moving = true
	strict := netOf("blue", true, "10.77.0.0/16")
	b.define(&s, "a", plain)
	b.define(&s, "b", moving)
	if n := mustNetwork(t, &s); !n.Moving || !n.Encrypted || !n.Clear() {
		t.Errorf("%+v", n)
	}
	b.define(&s, "a", plain) // given up
	b.define(&s, "a", moving)
	b.define(&s, "a", strict)
	for name, n := range map[string]Network{"both": moving, "plaintext": plain} {
		if _, err := s.SignNetwork(noon, b.Trust, b.issuer("a"), n); !errors.Is(err, ErrWeakens) {
			t.Errorf("from encrypted to %s: %v", name, err)
		}
	}
	back := plain
	back.Moving = true
	for _, n := range []Network{back, plain} {
		have := mustNetwork(t, &s)
		content, err := NetworkContent(have, n, noon)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := SignRoot(b.Trust.Cluster, mustRoot(t, b), content)
		if err != nil {
			t.Fatal(err)
		}
		it, err := Verify(b.Trust, noon, raw)
		if err != nil {
			t.Fatal(err)
		}
		if changed, err := s.Insert(it); !changed || err != nil {
			t.Fatalf("the root: changed %v, %v", changed, err)
		}
		if is := mustNetwork(t, &s); is.Encrypted || is.Moving != n.Moving || is.Generation != have.Generation+1 {
			t.Errorf("%+v", is)
		}
	}
	b.define(&s, "a", moving)
	b.define(&s, "a", strict)
	gone := strict
	gone.Removed, gone.Moving = true, true
	if _, err := new(Set).SignNetwork(noon, b.Trust, b.issuer("a"), gone); !errors.Is(err, ErrMalformed) {
		t.Errorf("removed and on its way: %v", err)
	}
}

func mustNetwork(t *testing.T, s *Set) Network {
	t.Helper()
	n, ok := s.Network("blue")
	if !ok {
		t.Fatal("no network")
	}
	return n
}

func TestNetworkRefuses(t *testing.T) {
	b := newBench(t)
	var s Set
	for name, edit := range map[string]func(*Network){
		"no name":            func(n *Network) { n.Name = "" },
		"a name with spaces": func(n *Network) { n.Name = "a b" },
		"no VNI":             func(n *Network) { n.VNI = 0 },
		"no subnet":          func(n *Network) { n.Subnets = nil },
		"host bits":          func(n *Network) { n.Subnets[0] = netip.MustParsePrefix("10.77.0.1/16") },
		"nine subnets":       func(n *Network) { n.Subnets = make([]netip.Prefix, 9) },
		"another driver":     func(n *Network) { n.Driver = "pigeon" },
		"what a node says":   func(n *Network) { n.Both = true },
		"a label of nothing": func(n *Network) { n.Labels = []string{""} },
		"a label twice":      func(n *Network) { n.Labels = []string{"a", "a"} },
		"17 labels":          func(n *Network) { n.Labels = strings.Split("abcdefghijklmnopq", "") },
		"a range outside":    func(n *Network) { n.Ranges = []netip.Prefix{netip.MustParsePrefix("10.78.0.0/24")} },
		"plain with driver":  func(n *Network) { n.Encrypted, n.Driver = false, DriverIPsec },
	} {
		n := netOf("blue", true, "10.77.0.0/16")
		edit(&n)
		if _, err := s.SignNetwork(noon, b.Trust, b.issuer("a"), n); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	long := netOf("blue", true, "10.77.0.0/16")
	for i := range 7 {
		long.Labels = append(long.Labels, strings.Repeat("x", 60)+strconv.Itoa(i))
	}
	if _, err := s.SignNetwork(noon, b.Trust, b.issuer("a"), long); !errors.Is(err, ErrLongNetwork) {
		t.Errorf("a definition of more than %d bytes: %v", maxDefinition, err)
	}
	good := b.define(&s, "a", netOf("blue", true, "10.77.0.0/16"))
	for name, edit := range map[string]func(*Content){
		"another slot":  func(c *Content) { c.Slot.Key = "green" },
		"unknown flags": func(c *Content) { c.Body[0] = 0x80 },
		"half a label":  func(c *Content) { c.Body[len(c.Body)-1] = 1 },
		"cut":           func(c *Content) { c.Body = c.Body[:networkFixed+3] },
		"a base":        func(c *Content) { c.Body = append(c.Body, 1) },
		"no weight":     func(c *Content) { c.Version = 1 },
	} {
		c := Content{Slot: good.Slot, Version: good.Version, Created: noon, Body: append([]byte(nil), good.Body...)}
		edit(&c)
		if _, err := Sign(noon, b.Trust, b.issuer("d"), c); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range good.Raw {
		raw := append([]byte(nil), good.Raw...)
		raw[i] ^= 1
		if _, err := Verify(b.Trust, noon, raw); err == nil {
			t.Errorf("byte %d altered: accepted", i)
		}
	}
}

// TestNetworkConvergence: changes by issuers that do not see each other, and by
// the root, come to one state in every order, and it is encrypted unless the root
// had the last word.
func TestNetworkConvergence(t *testing.T) {
	b := newBench(t)
	var pool []*Item
	for _, by := range []string{"a", "b"} {
		var s Set
		for range 3 {
			pool = append(pool, b.define(&s, by, netOf("blue", false, "10.77.0.0/16")))
		}
		pool = append(pool, b.define(&s, by, netOf("blue", true, "10.77.0.0/16")), b.define(&s, by, netOf("blue", true, "10.79.0.0/16")))
	}
	root := b.rootNetwork(1, netOf("blue", false, "10.80.0.0/16"))
	var after Set
	_, _ = after.Insert(root)
	later := b.define(&after, "b", netOf("blue", true, "10.81.0.0/16"))
	rapid.Check(t, func(rt *rapid.T) {
		items := append([]*Item(nil), pool...)
		want := true
		switch rapid.IntRange(0, 2).Draw(rt, "root") {
		case 1:
			items, want = append(items, root), false
		case 2:
			items = append(items, root, later)
		}
		var x, y Set
		for _, it := range rapid.Permutation(items).Draw(rt, "order") {
			_, _ = x.Insert(it)
		}
		for _, it := range items {
			_, _ = y.Insert(it)
		}
		n, ok := x.Network("blue")
		if x.Digest() != y.Digest() || !ok || n.Encrypted != want {
			rt.Fatalf("%+v, equal %v", n, x.Digest() == y.Digest())
		}
	})
}

// TestNetworksOutliveTheirIssuer: what a revoked issuer had defined stands, and what
// its key defines now does not.
func TestNetworksOutliveTheirIssuer(t *testing.T) {
	b := newBench(t)
	var s Set
	b.define(&s, "a", netOf("blue", true, "10.77.0.0/16"))
	green := netOf("green", true, "10.78.0.0/16")
	green.VNI++
	b.define(&s, "b", green)
	issuer := b.issuer("a").Public()
	stands, err := s.StandsOf(issuer)
	if err != nil || len(stands) != 1 {
		t.Fatalf("%d stand: %v", len(stands), err)
	}
	if _, err := s.Insert(b.revokeIssuer(IssuerRevocation{Issuer: issuer, Stands: stands})); err != nil {
		t.Fatal(err)
	}
	if len(s.Networks()) != 2 {
		t.Errorf("%d networks are left", len(s.Networks()))
	}
	gone := mustNetwork(t, &s)
	gone.Removed = true
	it, err := s.SignNetwork(noon, b.Trust, b.issuer("a"), gone)
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := s.Insert(it); changed || !errors.Is(err, ErrVoid) {
		t.Errorf("the thief removes it: changed %v, %v", changed, err)
	}
	b.define(&s, "b", gone) // another issuer may
}

// TestLongestNetwork: an issuer's change of a network whose definition has the most
// bytes fits into an item together with the root's, on which it rests.
func TestLongestNetwork(t *testing.T) {
	b := newBench(t)
	n := netOf(strings.Repeat("n", 63), false, "10.77.0.0/16")
	for i := 0; ; i++ {
		longer := n
		longer.Labels = append(slices.Clone(n.Labels), strings.Repeat("x", 39)+string(rune('a'+i)))
		if _, err := longer.body(); errors.Is(err, ErrLongNetwork) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		n = longer
	}
	for n.MTU = 1; ; n.Labels[0] += "y" {
		if _, err := n.body(); err != nil {
			n.Labels[0] = n.Labels[0][:len(n.Labels[0])-1]
			break
		}
	}
	var s Set
	encrypted := n
	encrypted.Encrypted = true
	b.define(&s, "a", encrypted)
	if changed, err := s.Insert(b.rootNetwork(1, n)); !changed || err != nil {
		t.Fatalf("the root's word: changed %v, %v", changed, err)
	}
	it := b.define(&s, "a", encrypted)
	if got, _ := s.Network(n.Name); !got.Encrypted || len(it.Raw) > MaxSize {
		t.Errorf("%d bytes, encrypted %v", len(it.Raw), got.Encrypted)
	}
}
