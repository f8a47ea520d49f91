package record

import (
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
)

func mustMerge(t testing.TB, s *Set, a *membertest.Authority, now time.Time, e Entry) {
	t.Helper()
	if changed, err := s.Merge(a.Trust, now, e); err != nil || !changed {
		t.Fatalf("Merge gave %v, %v, want a change", changed, err)
	}
}

func TestMergeOrder(t *testing.T) {
	a := authority(t)
	id := member(t, a, "a")
	first, second := entry(t, id, Node{Seq: 1}), entry(t, id, example(id.ID, 2))
	var s Set
	mustMerge(t, &s, a, noon, second)
	before := s.Digest()
	for name, e := range map[string]Entry{"the same": second, "an older": first} {
		if changed, err := s.Merge(a.Trust, noon, e); changed || err != nil {
			t.Errorf("%s record: %v, %v, want no change", name, changed, err)
		}
	}
	if s.Digest() != before {
		t.Error("digest changed without a change")
	}
	mustMerge(t, &s, a, noon, entry(t, id, Node{Seq: 3}))
	if s.Digest() == before || s.Get(id.ID).Node.Seq != 3 {
		t.Errorf("set holds %+v after record 3", s.Get(id.ID).Head)
	}
}

func TestMergeConflict(t *testing.T) {
	a := authority(t)
	id := member(t, a, "a")
	one, two := entry(t, id, Node{Seq: 5}), entry(t, id, example(id.ID, 5))
	var s, r Set
	mustMerge(t, &s, a, noon, one)
	mustMerge(t, &r, a, noon, two)
	changedS, err := s.Merge(a.Trust, noon, two)
	if !errors.Is(err, ErrConflict) {
		t.Errorf("second record 5: %v, want ErrConflict", err)
	}
	changedR, err := r.Merge(a.Trust, noon, one)
	if !errors.Is(err, ErrConflict) {
		t.Errorf("second record 5, other order: %v, want ErrConflict", err)
	}
	if changedS == changedR || s.Digest() != r.Digest() {
		t.Errorf("the two orders kept different records: %v %v", changedS, changedR)
	}
}

// TestMergeRefuses lists what must have no effect.
func TestMergeRefuses(t *testing.T) {
	a := authority(t)
	other, err := membertest.New("another cluster", begin)
	if err != nil {
		t.Fatal(err)
	}
	alice, mallory := member(t, a, "alice"), member(t, a, "mallory")
	foreign, err := other.Member("alice", 1, begin)
	if err != nil {
		t.Fatal(err)
	}
	good := entry(t, alice, example(alice.ID, 9))
	forged := func(seq uint64) []byte {
		// Everything of alice's but the key.
		n := example(alice.ID, seq)
		body := Encode(n)
		sig := mallory.Node.Sign(Domain, body[len(Domain):])
		return append(body, sig[:]...)
	}
	otherDomain := func() []byte {
		body := Encode(example(alice.ID, 10))
		sig := alice.Node.Sign("so-item-v1", body[len(Domain):])
		return append(body, sig[:]...)
	}
	late := memberFrom(t, a, "late", 1, begin.AddDate(1, 0, 0))
	cases := map[string]struct {
		e    Entry
		want error
	}{
		"no credential":           {Entry{Record: good.Record}, nil},
		"no record":               {Entry{Credential: good.Credential}, ErrMalformed},
		"empty":                   {Entry{}, nil},
		"another cluster":         {entry(t, foreign, example(foreign.ID, 1)), keys.ErrWrongCluster},
		"own certificate":         {Entry{Credential: mallory.Credential, Record: good.Record}, ErrWrongOwner},
		"own key":                 {Entry{Credential: alice.Credential, Record: forged(10)}, ErrBadSignature},
		"own key, own cert":       {Entry{Credential: mallory.Credential, Record: forged(10)}, ErrWrongOwner},
		"another domain":          {Entry{Credential: alice.Credential, Record: otherDomain()}, ErrBadSignature},
		"delegation of another":   {Entry{Credential: keys.Credential{Delegation: other.Delegation, Cert: alice.Credential.Cert}, Record: good.Record}, keys.ErrWrongCluster},
		"certificate is too new":  {entry(t, late, Node{}), keys.ErrNotYetValid},
		"record as a certificate": {Entry{Credential: keys.Credential{Delegation: a.Delegation, Cert: good.Record}, Record: good.Record}, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			var empty, full Set
			mustMerge(t, &full, a, noon, good)
			before := full.Digest()
			for _, s := range []*Set{&empty, &full} {
				n := s.Len()
				changed, err := s.Merge(a.Trust, noon, c.e)
				if changed || err == nil || s.Len() != n {
					t.Errorf("Merge gave %v, %v", changed, err)
				}
				if c.want != nil && !errors.Is(err, c.want) {
					t.Errorf("Merge gave %v, want %v", err, c.want)
				}
			}
			if full.Digest() != before {
				t.Error("a refused entry changed the set")
			}
		})
	}
}

// TestExpiry: a member that is known stays known, one that is not is not let
// in with a certificate that has run out.
func TestExpiry(t *testing.T) {
	a := authority(t)
	id := member(t, a, "a")
	later := begin.AddDate(0, 2, 0)
	first, second := entry(t, id, Node{Seq: 1}), entry(t, id, example(id.ID, 2))
	var known, unknown Set
	mustMerge(t, &known, a, noon, first)
	mustMerge(t, &known, a, later, second)
	if _, err := unknown.Merge(a.Trust, later, second); !errors.Is(err, keys.ErrExpired) {
		t.Errorf("unknown node with expired certificate: %v, want ErrExpired", err)
	}
	// Whatever the clock says now: it may have gone back to 1970.
	if it, err := Reverify(a.Trust, second); err != nil || it.Node.Seq != 2 {
		t.Errorf("stored entry: %v", err)
	}
	bad := second
	bad.Record = slices.Clone(bad.Record)
	bad.Record[len(bad.Record)-1] ^= 1
	if _, err := Reverify(a.Trust, bad); !errors.Is(err, ErrBadSignature) {
		t.Errorf("stored entry that was altered: %v, want ErrBadSignature", err)
	}
}

func TestRenewedCredential(t *testing.T) {
	a := authority(t)
	old := member(t, a, "a")
	renewed := memberFrom(t, a, "a", 2, begin.AddDate(0, 0, 5))
	rec := sign(t, example(old.ID, 4), old.Node)
	var s Set
	mustMerge(t, &s, a, noon, Entry{old.Credential, rec})
	before := s.Digest()
	// A newer certificate with an older record: each part by its own order.
	mustMerge(t, &s, a, noon, entry(t, renewed, Node{Seq: 1}))
	it := s.Get(old.ID)
	if it.Cert.Serial != 2 || it.Node.Seq != 4 {
		t.Errorf("set holds certificate %d with record %d, want 2 with 4", it.Cert.Serial, it.Node.Seq)
	}
	if s.Digest() == before {
		t.Error("digest does not cover the credential")
	}
	if changed, err := s.Merge(a.Trust, noon, Entry{old.Credential, rec}); changed || err != nil {
		t.Errorf("older certificate: %v, %v, want no change", changed, err)
	}
	if !it.Holds(Entry{renewed.Credential, rec}) {
		t.Error("entry in the set is not certificate 2 with record 4")
	}
}

func TestMissing(t *testing.T) {
	id := ids.NodeID{1}
	base := Head{ID: id, Seq: 4, Credential: [32]byte{1}, Record: [32]byte{5}}
	with := func(f func(*Head)) Head { h := base; f(&h); return h }
	for name, c := range map[string]struct {
		mine, theirs Head
		give, take   bool
	}{
		"equal":            {base, base, false, false},
		"mine only":        {base, Head{}, true, false},
		"theirs only":      {Head{}, base, false, true},
		"mine newer":       {with(func(h *Head) { h.Seq++ }), base, true, false},
		"theirs newer":     {base, with(func(h *Head) { h.Seq++ }), false, true},
		"conflict, mine":   {with(func(h *Head) { h.Record[0] = 4 }), base, true, false},
		"conflict, theirs": {with(func(h *Head) { h.Record[0] = 6 }), base, false, true},
		"credentials":      {with(func(h *Head) { h.Credential[0]++ }), base, true, true},
	} {
		if give, take := Missing(c.mine, c.theirs); give != c.give || take != c.take {
			t.Errorf("%s: give %v take %v, want %v %v", name, give, take, c.give, c.take)
		}
	}
}

func TestHeadRoundTrip(t *testing.T) {
	a := authority(t)
	id := member(t, a, "a")
	it, err := Verify(a.Trust, noon, entry(t, id, example(id.ID, 7)), nil)
	if err != nil {
		t.Fatal(err)
	}
	b := AppendHead(nil, it.Head)
	if len(b) != HeadSize || ParseHead(b) != it.Head {
		t.Errorf("head %+v reads back as %+v from %d bytes", it.Head, ParseHead(b), len(b))
	}
}

// TestItemIsIndependent: the buffer that an entry came in may be reused.
func TestItemIsIndependent(t *testing.T) {
	a := authority(t)
	buf := AppendEntry(nil, entry(t, member(t, a, "a"), Node{Seq: 1}))
	e, _, err := CutEntry(buf)
	if err != nil {
		t.Fatal(err)
	}
	var s Set
	mustMerge(t, &s, a, noon, e)
	it := s.Items()[0]
	clear(buf)
	if _, err := Verify(a.Trust, noon, it.Entry, nil); err != nil {
		t.Errorf("entry changed with the buffer it came in: %v", err)
	}
}

func TestCloneIsIndependent(t *testing.T) {
	a := authority(t)
	var s Set
	mustMerge(t, &s, a, noon, entry(t, member(t, a, "a"), Node{Seq: 1}))
	c := s.Clone()
	before := c.Digest()
	mustMerge(t, &s, a, noon, entry(t, member(t, a, "b"), Node{Seq: 1}))
	mustMerge(t, &s, a, noon, entry(t, member(t, a, "a"), Node{Seq: 2}))
	if c.Digest() != before || c.Len() != 1 {
		t.Error("merging into a set changed its clone")
	}
}

// TestConvergence merges the same entries in two orders, with repetitions and
// detours over a third set: the digests must be equal.
func TestConvergence(t *testing.T) {
	a := authority(t)
	var pool []Entry
	for _, name := range []string{"a", "b", "c"} {
		for serial, from := range []time.Time{begin, begin.AddDate(0, 0, 3)} {
			id := memberFrom(t, a, name, uint64(serial+1), from)
			for seq := range uint64(3) {
				pool = append(pool, entry(t, id, Node{Seq: seq}), entry(t, id, example(id.ID, seq)))
			}
		}
	}
	items := make([]*Item, len(pool))
	for i, e := range pool {
		var err error
		if items[i], err = Verify(a.Trust, noon, e, nil); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		chosen := rapid.SliceOfN(rapid.IntRange(0, len(items)-1), 1, 40).Draw(rt, "chosen")
		shuffled := rapid.Permutation(chosen).Draw(rt, "shuffled")
		cut := rapid.IntRange(0, len(shuffled)).Draw(rt, "cut")
		var s, left, right Set
		for _, i := range chosen {
			_, _ = s.Insert(items[i])
		}
		for _, i := range shuffled[:cut] {
			_, _ = left.Insert(items[i])
		}
		for _, i := range shuffled[cut:] {
			_, _ = right.Insert(items[i])
		}
		// What two nodes do: exchange what they hold, not what they heard.
		for _, it := range left.Items() {
			_, _ = right.Insert(it)
		}
		for _, it := range right.Items() {
			_, _ = left.Insert(it)
		}
		if left.Digest() != s.Digest() || right.Digest() != s.Digest() {
			rt.Fatalf("sets differ:\n%v\n%v\n%v", s.Summary(), left.Summary(), right.Summary())
		}
		for _, h := range s.Summary() {
			if give, take := Missing(h, left.Get(h.ID).Head); give || take {
				rt.Fatalf("equal sets have something to exchange about %s", h.ID)
			}
		}
	})
}

func TestFullSet(t *testing.T) {
	a := authority(t)
	var s Set
	s.items = make(map[ids.NodeID]*Item)
	for i := range MaxMembers {
		id := ids.NodeID{byte(i), byte(i >> 8), 1}
		s.items[id] = &Item{Head: Head{ID: id}}
	}
	if changed, err := s.Merge(a.Trust, noon, entry(t, member(t, a, "a"), Node{})); changed || !errors.Is(err, ErrFull) {
		t.Errorf("Merge into a full set: %v, %v, want ErrFull", changed, err)
	}
}
