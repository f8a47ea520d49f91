package item

import (
	"flag"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
)

var update = flag.Bool("update", false, "rewrite the vectors in PROTOCOL.md")

// begin is when the test cluster and its issuers begin; noon is later that day.
var (
	begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	noon  = begin.Add(12 * time.Hour)
)

type bench struct {
	*membertest.Authority
	t testing.TB
}

func newBench(t testing.TB) bench {
	t.Helper()
	a, err := membertest.New("item", begin)
	if err != nil {
		t.Fatal(err)
	}
	return bench{a, t}
}

// issuer makes an issuer that is delegated for a year.
func (b bench) issuer(name string) *membertest.Issuer {
	b.t.Helper()
	i, err := b.Issuer(name, begin, begin.AddDate(1, 0, 0))
	if err != nil {
		b.t.Fatal(err)
	}
	return i
}

// sign makes and verifies an item by a fresh copy of an issuer, which has no
// memory of others.
func (b bench) sign(issuer string, c Content) *Item {
	b.t.Helper()
	it, err := Sign(c.Created, b.Trust, b.issuer(issuer), c)
	if err != nil {
		b.t.Fatal(err)
	}
	return it
}

// root makes and verifies an item of the root.
func (b bench) root(c Content) *Item {
	b.t.Helper()
	key, err := b.Root()
	if err != nil {
		b.t.Fatal(err)
	}
	raw, err := SignRoot(b.Trust.Cluster, key, c)
	if err != nil {
		b.t.Fatal(err)
	}
	it, err := Verify(b.Trust, c.Created, raw)
	if err != nil {
		b.t.Fatal(err)
	}
	return it
}

func target(t testing.TB, epoch ids.Epoch, driver string) Content {
	t.Helper()
	c, err := Target{Epoch: epoch, Driver: driver, Reason: ReasonManual, Created: noon}.Content()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// other is an item of a kind that nobody knows yet.
func other(kind Kind, key string, version uint64) Content {
	return Content{Slot: Slot{kind, key}, Version: version, Created: noon, Body: []byte("body")}
}
