package item

import (
	"bytes"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/keys"
)

func TestLine(t *testing.T) {
	one, two := []byte{1, 2, 3}, bytes.Repeat([]byte{9}, MaxSize)
	for _, want := range [][][]byte{{one}, {two, one}} {
		got, err := ParseLine(RootRequestTag, " "+Line(RootRequestTag, want...)+"\n")
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Error(err, d)
		}
	}
	text := func(raw ...byte) string { return RootRequestTag + base64.StdEncoding.EncodeToString(raw) }
	for name, text := range map[string]string{
		"the other tag": Line(RootSignedTag, one), "no tag": "AAMBAgM=", "no base64": RootRequestTag + "A?", "nothing": "", "no item": RootRequestTag,
		"three items": Line(RootRequestTag, one, one, one), "too long an item": Line(RootRequestTag, make([]byte, MaxSize+1)),
		"cut off": text(0, 3, 1, 2), "half a length": text(0, 1, 7, 0), "long": RootRequestTag + strings.Repeat("A", 1<<20),
	} {
		if _, err := ParseLine(RootRequestTag, text); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add(Line(RootRequestTag, []byte{1, 2, 3}, nil))
	f.Add(RootRequestTag)
	f.Fuzz(func(t *testing.T, text string) {
		items, err := ParseLine(RootRequestTag, text)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Error(err)
			}
			return
		}
		if again, err := ParseLine(RootRequestTag, Line(RootRequestTag, items...)); err != nil || !slices.EqualFunc(items, again, bytes.Equal) {
			t.Errorf("%x: %x, %v", items, again, err)
		}
		for _, unsigned := range items {
			// What may be signed is one item, with this spelling and no other.
			trust, it, err := ParseUnsigned(unsigned)
			if err == nil && !bytes.Equal(encode(trust.Cluster, it), unsigned) {
				t.Errorf("%x is read as another item", unsigned)
			}
		}
	})
}

// TestUnsigned: what the root key alone may say comes back as it was drafted; another content, or an issuer's item, is
// not for it to sign.
func TestUnsigned(t *testing.T) {
	b := newBench(t)
	root := mustRoot(t, b)
	network, err := NetworkContent(Network{Generation: 3}, netOf("blue", false, "10.77.0.0/16"), noon)
	if err != nil {
		t.Fatal(err)
	}
	floor, err := FloorContent(FirstFloor(), 1, noon)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Content{"network": network, "floor": floor} {
		unsigned, err := c.Unsigned(b.Trust)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := SignUnsigned(root, unsigned)
		if err != nil {
			t.Fatal(err)
		}
		want, err := SignRoot(b.Trust.Cluster, root, c)
		if err != nil || !bytes.Equal(raw, want) {
			t.Errorf("%s: %v, %x, want %x", name, err, raw, want)
		}
		for i := range unsigned {
			altered := bytes.Clone(unsigned)
			altered[i] ^= 1
			// What differs may be another thing to sign, by this key or another; never the same.
			if other, err := SignUnsigned(root, altered); err == nil && bytes.Equal(other, raw) {
				t.Errorf("%s, byte %d altered: the same is signed", name, i)
			}
		}
	}
	issuers, err := Sign(noon, b.Trust, b.issuer("a"), Content{Slot: FloorSlot(), Version: 2, Created: noon, Body: []byte{2}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := SignUnsigned(root, issuers.Raw[:len(issuers.Raw)-keys.SignatureSize]); !errors.Is(err, ErrMalformed) {
		t.Errorf("an issuer's item: %v", err)
	}
	if _, err := (Content{Slot: FloorSlot(), Version: 7, Created: noon, Body: []byte{2}}).Unsigned(b.Trust); !errors.Is(err, ErrMalformed) {
		t.Errorf("no item: %v", err)
	}
}
