package item

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/keys"
)

func TestRoundTrip(t *testing.T) {
	b := newBench(t)
	for name, it := range map[string]*Item{
		"target of an issuer": b.sign("a", target(t, 7, DriverIPsec)),
		"target of the root":  b.root(target(t, 1<<32-1, DriverAuto)),
		"unknown kind":        b.sign("a", other(250, strings.Repeat("\xff", MaxKey), 1<<64-1)),
		"largest": b.sign("a", Content{Slot: Slot{200, strings.Repeat("k", MaxKey)}, Version: 1, Created: noon,
			Body: make([]byte, MaxBody)}),
	} {
		got, err := Parse(it.Raw)
		if diff := cmp.Diff(it, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
		if len(it.Raw) > MaxSize {
			t.Errorf("%s: %d bytes", name, len(it.Raw))
		}
	}
	if got, ok := b.sign("a", target(t, 7, DriverIPsec)).Target(); !ok || got != (Target{7, DriverIPsec, ReasonManual, noon}) {
		t.Errorf("target reads back as %+v, %v", got, ok)
	}
	if _, ok := b.sign("a", other(9, "", 7)).Target(); ok {
		t.Error("an item of another kind is a target")
	}
}

// TestEveryByteMatters alters every byte of an item, its lowest bit, its
// highest and all of them: none of the results may be accepted.
func TestEveryByteMatters(t *testing.T) {
	b := newBench(t)
	var s Set
	floor := b.rootFloor(Floor{}, 2)
	if _, err := s.Insert(floor); err != nil {
		t.Fatal(err)
	}
	for name, it := range map[string]*Item{
		"issuer": b.sign("a", target(t, 7, DriverAuto)), "root": b.root(other(9, "key", 3)),
		"floor": floor, "floor on a base": b.raise(&s, "a", 3), "heartbeat": b.beat("a", noon, 0),
	} {
		for i := range it.Raw {
			for _, mask := range []byte{0x01, 0x80, 0xff} {
				raw := bytes.Clone(it.Raw)
				raw[i] ^= mask
				if _, err := Verify(b.Trust, noon, raw); err == nil {
					t.Errorf("%s: byte %d altered by %#x: accepted", name, i, mask)
				}
			}
		}
		for i := range it.Raw {
			if _, err := Parse(it.Raw[:i]); !errors.Is(err, ErrMalformed) {
				t.Fatalf("%s: first %d bytes: %v, want ErrMalformed", name, i, err)
			}
		}
		if _, err := Parse(append(bytes.Clone(it.Raw), 0)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: one byte more: %v, want ErrMalformed", name, err)
		}
	}
}

// TestParseRefusesContent signs what no item may say: it is refused although
// the signature is good.
func TestParseRefusesContent(t *testing.T) {
	b := newBench(t)
	good := target(t, 7, DriverAuto)
	for name, edit := range map[string]func(*Item){
		"kind 0":              func(it *Item) { it.Slot.Kind = 0 },
		"long key":            func(it *Item) { it.Slot = Slot{9, strings.Repeat("k", MaxKey+1)} },
		"version 0":           func(it *Item) { it.Slot.Kind, it.Version = 9, 0 },
		"created in 1999":     func(it *Item) { it.Created = time.Unix(minTime-1, 0) },
		"created in 10000":    func(it *Item) { it.Created = time.Unix(maxTime+1, 0) },
		"created before 1970": func(it *Item) { it.Created = time.Unix(-1, 0) },
		"long body":           func(it *Item) { it.Slot.Kind, it.Body = 9, make([]byte, MaxBody+1) },
		"target with a key":   func(it *Item) { it.Slot.Key = "k" },
		"epoch is not version": func(it *Item) {
			it.Version++
		},
		"epoch 0":      func(it *Item) { it.Version, it.Body = 0, make([]byte, targetSize) },
		"short target": func(it *Item) { it.Body = it.Body[:targetSize-1] },
		"long target":  func(it *Item) { it.Body = append(bytes.Clone(it.Body), 0) },
	} {
		it := good.item()
		it.Delegation = b.Delegation
		edit(it)
		raw := append(encode(b.Trust.Cluster, it), make([]byte, keys.SignatureSize)...)
		if _, err := Parse(raw); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: Parse gave %v, want ErrMalformed", name, err)
		}
		if strings.Contains(name, "created") || strings.Contains(name, "long key") {
			continue // SignItem would see other bytes than these
		}
		c := Content{Slot: it.Slot, Version: it.Version, Created: it.Created, Body: it.Body}
		if _, err := Sign(noon, b.Trust, b.issuer("a"), c); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: Sign gave %v, want ErrMalformed", name, err)
		}
	}
	if _, err := (Target{Epoch: 2, Driver: "carrier pigeon", Created: noon}).Content(); !errors.Is(err, ErrMalformed) {
		t.Errorf("unknown driver: %v, want ErrMalformed", err)
	}
}

// TestDriverNumbers: the numbers stand for these drivers for ever.
func TestDriverNumbers(t *testing.T) {
	for n, want := range []string{DriverAuto, DriverWireGuard, DriverUserspace, DriverIPsec, DriverIPsecUser, DriverAutoESP} {
		if got, err := DriverNumber(want); err != nil || int(got) != n || DriverName(got) != want {
			t.Errorf("%s is %d, %v", want, got, err)
		}
	}
}

// TestUnknownNumbersAreKept: a newer node's driver and reason are read, shown
// and passed on.
func TestUnknownNumbersAreKept(t *testing.T) {
	b := newBench(t)
	c := target(t, 7, DriverAuto)
	c.Body[4], c.Body[5] = 200, 201
	got, ok := b.sign("a", c).Target()
	if !ok || got.Driver != "driver 200" || got.Reason.String() != "reason 201" {
		t.Errorf("read as %+v, %v", got, ok)
	}
	if KnownDriver(got.Driver) || !KnownDriver(DriverUserspace) {
		t.Error("KnownDriver is wrong")
	}
}

func FuzzParse(f *testing.F) {
	b := newBench(f)
	f.Add(b.sign("a", target(f, 7, DriverAuto)).Raw)
	f.Add(b.root(other(9, "key", 3)).Raw)
	var s Set
	floor := b.rootFloor(Floor{}, 2)
	_, _ = s.Insert(floor)
	f.Add(floor.Raw)
	f.Add(b.raise(&s, "a", 3).Raw)
	f.Add(b.beat("a", noon, 0).Raw)
	f.Add([]byte(keys.DomainItem))
	f.Fuzz(func(t *testing.T, raw []byte) {
		cluster, it, err := parse(raw)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error is not ErrMalformed: %v", err)
			}
			return
		}
		if !bytes.Equal(encode(cluster, it), raw[:len(raw)-keys.SignatureSize]) {
			t.Fatal("accepted item re-encodes to other bytes")
		}
		if err := it.validate(); err != nil {
			t.Fatalf("accepted item is not valid: %v", err)
		}
	})
}

func FuzzCutHead(f *testing.F) {
	f.Add(AppendHead(nil, Head{Slot: Slot{9, "key"}, Version: 3}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if h, rest, err := CutHead(raw); err == nil && !bytes.Equal(append(AppendHead(nil, h), rest...), raw) {
			t.Fatal("head re-encodes to other bytes")
		}
		if s, rest, err := CutSlot(raw); err == nil && !bytes.Equal(append(AppendSlot(nil, s), rest...), raw) {
			t.Fatal("slot re-encodes to other bytes")
		}
	})
}
