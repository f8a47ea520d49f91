package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

func TestFinal(t *testing.T) {
	id := ids.NodeID{1}
	for name, c := range map[string]struct{ at, want time.Time }{
		"a moment":     {noon.Add(123 * time.Millisecond), noon},
		"another zone": {noon.In(time.FixedZone("east", 7200)), noon},
		"before 1970":  {time.Unix(-5, 0), time.Unix(0, 0)},
		"far ahead":    {time.Unix(1<<50, 0), time.Unix(1<<finalBits-1, 0)},
	} {
		n := Final(id, c.at)
		at, ok := n.Left()
		if !ok || !at.Equal(c.want) || at.Location() != time.UTC || n.Validate() != nil || !(Head{Seq: n.Seq}).Final() {
			t.Errorf("%s: %v, %v, left at %v", name, n.Validate(), ok, at)
		}
		// A time beyond the year 9999 has no text in JSON.
		if _, err := at.MarshalJSON(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := Final(id, time.Unix(1<<50, 0)); n.Seq != math.MaxUint64 {
		t.Errorf("the last final number is %d", n.Seq)
	}
	for _, seq := range []uint64{0, 1, 1 << 62, FirstFinal - 1} {
		if _, ok := (Node{ID: id, Seq: seq}).Left(); ok || (Head{Seq: seq}).Final() {
			t.Errorf("%d is a final number", seq)
		}
	}
}

// TestFinalHasNoContent: whoever has left is nowhere, so a final number with
// anything in the record is no record, whoever signed it.
func TestFinalHasNoContent(t *testing.T) {
	id := member(t, authority(t), "a")
	full := example(id.ID, FirstFinal).Canonical()
	for name, n := range map[string]Node{
		"underlay":  {Underlay: full.Underlay},
		"tunnels":   {Tunnels: full.Tunnels},
		"networks":  {Networks: full.Networks},
		"endpoints": {Networks: full.Networks, Attached: full.Attached},
		"all":       full,
	} {
		for _, seq := range []uint64{FirstFinal, FirstFinal + 1, math.MaxUint64} {
			n.ID, n.Seq = id.ID, seq
			if _, err := Sign(n, id.Node); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s, %d: Sign gave %v, want ErrMalformed", name, seq, err)
			}
			body := encode(n)
			sig := id.Node.Sign(Domain, body[len(Domain):])
			if _, err := Parse(append(body, sig[:]...)); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s, %d: Parse gave %v, want ErrMalformed", name, seq, err)
			}
		}
	}
}

// TestFinalWins: in every order of what a node ever signed, its final record is
// what stays, and nothing comes back.
func TestFinalWins(t *testing.T) {
	a := authority(t)
	id := member(t, a, "a")
	renewed := memberFrom(t, a, "a", 2, begin.AddDate(0, 0, 5))
	final := entry(t, id, Final(id.ID, noon))
	others := map[string]Entry{
		"the first":            entry(t, id, example(id.ID, 1)),
		"an empty one":         entry(t, id, Node{Seq: 7}),
		"the highest":          entry(t, id, example(id.ID, FirstFinal-1)),
		"a newer certificate":  entry(t, renewed, example(id.ID, 9)),
		"an earlier departure": entry(t, id, Final(id.ID, noon.Add(-time.Hour))),
	}
	var all []Entry
	for _, e := range others {
		all = append(all, e)
	}
	for range 2 {
		for i := range len(all) + 1 {
			var s Set
			for _, e := range slices.Insert(slices.Clone(all), i, final) {
				if _, err := s.Merge(a.Trust, noon, e); err != nil {
					t.Fatal(err)
				}
			}
			before := s.Digest()
			it := s.Get(id.ID)
			if at, ok := it.Node.Left(); !ok || !at.Equal(noon) || !bytes.Equal(it.Entry.Record, final.Record) {
				t.Errorf("final record at place %d: the set holds %+v", i, it.Node)
			}
			for name, e := range others {
				if changed, err := s.Merge(a.Trust, noon, e); changed || err != nil {
					t.Errorf("%s after the final record: %v, %v", name, changed, err)
				}
			}
			if s.Digest() != before {
				t.Error("the set has changed")
			}
			for _, e := range others {
				other, err := Verify(a.Trust, noon, e, nil)
				if err != nil {
					t.Fatal(err)
				}
				head := other.Head
				head.Credential = it.Head.Credential // of records only
				if give, take := Missing(it.Head, head); !give || take {
					t.Errorf("final against %d: give %v, take %v", head.Seq, give, take)
				}
			}
		}
		slices.Reverse(all)
	}
}

// TestEveryByteOfAFinalRecordMatters: nobody can make a member leave, move the
// time, or give a node that has left a content.
func TestEveryByteOfAFinalRecordMatters(t *testing.T) {
	a := authority(t)
	id := member(t, a, "a")
	good := entry(t, id, Final(id.ID, noon))
	if _, err := Verify(a.Trust, noon, good, nil); err != nil {
		t.Fatal(err)
	}
	for _, field := range []*[]byte{&good.Record, &good.Credential.Cert, &good.Credential.Delegation} {
		orig := *field
		for i := range orig {
			for mask := range 8 {
				*field = bytes.Clone(orig)
				(*field)[i] ^= 1 << mask
				if _, err := Verify(a.Trust, noon, good, nil); err == nil {
					t.Errorf("byte %d, bit %d flipped: accepted", i, mask)
				}
			}
		}
		*field = orig
	}
	// The number of a member's record, made final by another.
	mallory := member(t, a, "mallory")
	live := entry(t, id, Node{Seq: 3})
	raw := bytes.Clone(live.Record)
	binary.BigEndian.PutUint64(raw[len(Domain)+16:], FirstFinal)
	sig := mallory.Node.Sign(Domain, raw[len(Domain):len(raw)-keys.SignatureSize])
	copy(raw[len(raw)-keys.SignatureSize:], sig[:])
	for name, e := range map[string]Entry{
		"the old signature":         {Credential: live.Credential, Record: append(raw[:len(raw)-keys.SignatureSize:len(raw)-keys.SignatureSize], live.Record[len(raw)-keys.SignatureSize:]...)},
		"another's signature":       {Credential: live.Credential, Record: raw},
		"another's certificate too": {Credential: mallory.Credential, Record: raw},
	} {
		if _, err := Verify(a.Trust, noon, e, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
