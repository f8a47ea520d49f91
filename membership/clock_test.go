package membership

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/clock"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// hand is a system clock that a test sets.
type hand struct{ off atomic.Int64 }

func (h *hand) set(d time.Duration) { h.off.Store(int64(d)) }
func (h *hand) now() time.Time      { return time.Now().Add(time.Duration(h.off.Load())) }

// with gives a node a clock of its own, which had a trusted time of so long ago.
func (h *hand) with(kept time.Duration) (*clock.Clock, func(*Options)) {
	c := clock.New(clock.Options{
		Trusted: time.Now().Add(-kept), Reach: time.Now().AddDate(0, 0, 20), System: h.now,
	})
	return c, func(o *Options) { o.Clock = c }
}

// since1970 is how far back a machine without a battery begins.
func since1970() time.Duration { return -time.Since(time.Unix(0, 0)) }

// TestStartIn1970: a node whose clock begins in 1970, with what it knew three hours
// ago on its disk, knows its peers, takes what they have signed since, and what it
// signs itself is taken by them.
func TestStartIn1970(t *testing.T) {
	l := newLab(t)
	issuer := l.start(0, l.signs(l.signer("a")))
	issuer.Publish(content(0, 0))
	var clk hand
	clk.set(since1970())
	_, use := clk.with(3 * time.Hour)
	cache, items := FileCache{Path: t.TempDir() + "/records"}, &memoryItems{}
	lost := l.start(1, use, func(o *Options) { o.Cache, o.ItemCache = cache, items })
	lost.Publish(content(1, 0))
	nodes := []*node{issuer, lost}
	converge(t, nodes, 2)
	issuer.mustRotate(1, item.DriverAuto)
	lost.until("an epoch that was made now", func(s Snapshot) bool { return s.Target.Epoch == 2 })
	// What it asks for is dated by the issuer, and accepted here.
	if _, err := lost.Rotate(context.Background(), 2, item.DriverAuto, item.ReasonManual); err != nil {
		t.Errorf("rotation asked for in 1970: %v", err)
	}
	lost.Publish(content(1, 1))
	issuer.until("a record signed in 1970", shows(lost.self, 1, 1))

	// Another start, still in 1970, and alone.
	issuer.stop()
	lost.stop()
	_, use = clk.with(3 * time.Hour)
	use(&lost.opts)
	l.run(lost)
	lost.until("both records and the epoch, from the disk", func(s Snapshot) bool {
		return len(s.Members) == 2 && s.Target.Epoch == 3
	})
	if n := l.log.count("left out"); n != 0 {
		t.Errorf("%d stored entries or items were left out", n)
	}
}

// TestIssuerIn1970: what an issuer without a clock signs is dated by the trusted
// time, which is never in the others' future.
func TestIssuerIn1970(t *testing.T) {
	l := newLab(t)
	var clk hand
	clk.set(since1970())
	_, use := clk.with(10 * time.Minute)
	issuer := l.start(0, l.signs(l.signer("a")), use)
	issuer.Publish(content(0, 0))
	other := l.start(1)
	other.Publish(content(1, 0))
	converge(t, []*node{issuer, other}, 2)
	if _, err := issuer.Rotate(context.Background(), 1, item.DriverAuto, item.ReasonManual); err != nil {
		t.Fatal(err)
	}
	other.until("the epoch", func(s Snapshot) bool { return s.Target.Epoch == 2 })
	if age := time.Since(other.Snapshot().Target.Created); age < 9*time.Minute || age > time.Hour {
		t.Errorf("it is dated %v ago, want ten minutes", age)
	}
}

// TestTrustedTimeFollowsWhatIsSigned: a node takes the date of what others have
// signed for a time that has come; what its own issuer signs says nothing new.
func TestTrustedTimeFollowsWhatIsSigned(t *testing.T) {
	l := agedLab(t)
	day := 24 * time.Hour
	var clk hand
	own, useOwn := clk.with(5 * day)
	member, useMember := clk.with(5 * day)
	issuer := l.start(0, l.signs(l.signer("a")), l.aged(2, keys.RoleIssuer), useOwn)
	issuer.Publish(content(0, 0))
	other := l.start(1, l.aged(3, 0), useMember)
	other.Publish(content(1, 0))
	converge(t, []*node{issuer, other}, 2)
	late := func(c *clock.Clock) time.Duration { return time.Since(c.Trusted()) }
	eventually(t, "the date of the newer certificate", func() bool {
		return late(member) < 2*day+time.Minute && late(own) < 2*day+time.Minute
	})
	issuer.mustRotate(1, item.DriverAuto)
	other.until("the epoch", func(s Snapshot) bool { return s.Target.Epoch == 2 })
	eventually(t, "the date of the item", func() bool { return late(member) < day })
	if late(own) < 2*day-time.Hour {
		t.Errorf("the issuer's own signature moved its trusted time to %v ago", late(own))
	}
}

// TestJumpMovesNothing: a jump that all nodes share, the issuer included, does not
// stay with them when the clock is right again.
func TestJumpMovesNothing(t *testing.T) {
	l := newLab(t)
	var clk hand
	a, useA := clk.with(time.Minute)
	b, useB := clk.with(time.Minute)
	issuer := l.start(0, l.signs(l.signer("a")), useA)
	issuer.Publish(content(0, 0))
	other := l.start(1, useB)
	other.Publish(content(1, 0))
	nodes := []*node{issuer, other}
	converge(t, nodes, 2)
	day := 24 * time.Hour
	for _, off := range []time.Duration{day, 0, -day, 0, 20 * day, 0} {
		clk.set(off)
		epoch := issuer.Snapshot().Target.Epoch
		// The trusted time is a moment behind: after the system clock went back, the
		// last target is dated later than now, until that moment has gone by.
		eventually(t, "the issuer makes a target", func() bool {
			_, err := issuer.rotate(epoch, item.DriverAuto)
			if err != nil && !errors.Is(err, ErrTooSoon) {
				t.Fatal(err)
			}
			return err == nil
		})
		other.until("the next epoch", func(s Snapshot) bool { return s.Target.Epoch == epoch+1 })
		converge(t, nodes, 2)
	}
	for i, c := range []*clock.Clock{a, b} {
		if r := c.Read(); r.Jump != 0 || r.Behind != 0 || r.Trusted.After(time.Now()) {
			t.Errorf("node %d, afterwards: %+v", i, r)
		}
	}
}

// TestRenewalWaitsForTheClock: a certificate that is dated ahead would lock its
// node out when the clock is right again, so a clock that has just jumped renews
// nothing, not even where the issuer has jumped along.
func TestRenewalWaitsForTheClock(t *testing.T) {
	l := agedLab(t)
	var clk hand
	_, use := clk.with(time.Minute)
	r, kept := &stubRenewer{lab: l}, &adopted{}
	n := l.start(0, l.aged(1, keys.RoleIssuer), use, func(o *Options) { o.Renewal, o.Adopt = r, kept.adopt })
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	clk.set(20 * 24 * time.Hour)
	l.waitLog("the system clock has jumped")
	if kept.get().Cert != nil {
		t.Fatal("renewed by a clock that had just jumped")
	}
	clk.set(0)
	before := n.Snapshot().Members[0].Cert
	eventually(t, "a settled clock", func() bool { return n.opts.Clock.Settled() })
	if c := n.Snapshot().Members[0].Cert; c != before {
		t.Errorf("the certificate is another one: %+v", c)
	}
}

// TestClocksAreShown: each node hears what the clocks of the others show.
func TestClocksAreShown(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(3)
	converge(t, nodes, 3)
	for _, n := range nodes {
		n.until("the clocks of both others", func(s Snapshot) bool {
			heard := 0
			for _, m := range s.Members {
				if m.ID != s.Self && !m.Clock.IsZero() {
					heard++
				}
				if d := m.Clock.Sub(m.ClockAt.Round(0)); !m.Clock.IsZero() && d.Abs() > 30*time.Second {
					t.Errorf("node %d: the clock of %s is off by %v", n.i, m.Hostname, d)
				}
			}
			return heard == 2
		})
	}
}

// entriesOf is what a node with that identity would publish.
func entriesOf(t *testing.T, id keystore.Identity) []record.Entry {
	t.Helper()
	raw, err := record.Sign(record.Node{ID: id.ID, Seq: 1}, id.Node)
	if err != nil {
		t.Fatal(err)
	}
	return []record.Entry{{Credential: id.Credential, Record: raw}}
}

// TestStrangerFromTheFuture: a right clock still refuses to introduce a node whose
// certificate has not begun.
func TestStrangerFromTheFuture(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	id, err := l.auth.Member("early", 9, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	v := n.view.Load()
	items, err := verifyAll(l.auth.Trust, n.Cluster.opts.Clock, v, entriesOf(t, id))
	if err != nil || len(items) != 0 {
		t.Errorf("%d items, %v", len(items), err)
	}
	var clk hand
	clk.set(since1970())
	behind, _ := clk.with(time.Hour)
	if items, err = verifyAll(l.auth.Trust, behind, v, entriesOf(t, id)); err != nil || len(items) != 1 {
		t.Errorf("by a clock that is behind: %d items, %v", len(items), err)
	}
	id.Credential.Cert[20] ^= 1
	var bad *invalidError
	if _, err = verifyAll(l.auth.Trust, behind, v, entriesOf(t, id)); !errors.As(err, &bad) {
		t.Errorf("altered: %v", err)
	}
}
