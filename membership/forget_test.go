package membership

import (
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// TestForgetLeft: a final record goes a day after the end of its certificate,
// unless the clock was only wrong for a while; nothing else goes.
func TestForgetLeft(t *testing.T) {
	l := newLab(t)
	self, gone, member := l.identity(0), l.identity(1), l.identity(2)
	c, err := New(Options{Identity: self, NextSeq: func() (uint64, error) { return 1, nil }})
	if err != nil {
		t.Fatal(err)
	}
	var set record.Set
	now := time.Now()
	for _, e := range []record.Entry{
		l.signed(self, record.Final(self.ID, now)), l.signed(gone, record.Final(gone.ID, now)), l.signed(member, content(2, 0)),
	} {
		if _, err := set.Merge(l.auth.Trust, now, e); err != nil {
			t.Fatal(err)
		}
	}
	lo := newLoop(c, set, item.Set{})
	end := gone.Cert.NotAfter.Add(forgetAfter)
	for _, step := range []struct {
		what string
		at   time.Time
		left int
	}{
		{"before the end of the certificate", gone.Cert.NotAfter.Add(-time.Hour), 3},
		{"before a day after it", end.Add(-time.Second), 3},
		{"the first look after it", end, 3},
		{"the clock was wrong", end.Add(-time.Hour), 3},
		{"the first look once more", end.Add(time.Hour), 3},
		{"the second look", end.Add(2 * time.Hour), 2},
		{"a later one", end.Add(1000 * time.Hour), 2},
	} {
		lo.forgetLeft(step.at)
		if lo.set.Len() != step.left {
			t.Errorf("%s: %d records, want %d", step.what, lo.set.Len(), step.left)
		}
	}
	if lo.set.Get(gone.ID) != nil || lo.set.Get(self.ID) == nil || lo.set.Get(member.ID) == nil {
		t.Error("another record went")
	}
	for name, p := range profiles {
		if p.forget < time.Hour && name != ProfileLocal {
			t.Errorf("%s: looks are %v apart: a clock that is set forth and back can be seen twice", name, p.forget)
		}
	}
}

// TestForgetNobodyByAWrongClock: a clock that was set drops nobody, however often
// it is looked at.
func TestForgetNobodyByAWrongClock(t *testing.T) {
	l := newLab(t)
	for name, c := range map[string]struct {
		age  time.Duration // since the certificate of who left began
		jump time.Duration // of the clock
		want int
	}{
		"in time":              {40 * 24 * time.Hour, 0, 0},
		"not yet":              {20 * 24 * time.Hour, 0, 1},
		"not yet, by the jump": {20 * 24 * time.Hour, 60 * 24 * time.Hour, 1},
	} {
		auth, err := membertest.New("membership", time.Now().AddDate(0, -6, 0))
		if err != nil {
			t.Fatal(err)
		}
		gone, err := auth.Member("gone", 7, time.Now().Add(-c.age))
		if err != nil {
			t.Fatal(err)
		}
		var h hand
		_, option := h.with(time.Minute)
		o := Options{Identity: l.identity(0), NextSeq: func() (uint64, error) { return 1, nil }}
		option(&o)
		cluster, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		it, err := record.Reverify(auth.Trust, l.signed(gone, record.Final(gone.ID, time.Now().Add(-c.age))))
		if err != nil {
			t.Fatal(err)
		}
		var set record.Set
		if _, err := set.Insert(it); err != nil {
			t.Fatal(err)
		}
		lo := newLoop(cluster, set, item.Set{})
		h.set(c.jump)
		for look := range 4 {
			lo.tickLeft(time.Now().Add(time.Duration(look) * lo.c.prof.forget))
		}
		if lo.set.Len() != c.want {
			t.Errorf("%s: %d records, want %d", name, lo.set.Len(), c.want)
		}
	}
}

// TestForgottenIsHarmless: a node that has forgotten who left, and one that has
// not yet, are at peace.
func TestForgottenIsHarmless(t *testing.T) {
	l := newLab(t)
	auth, err := membertest.New("membership", time.Now().AddDate(0, -6, 0))
	if err != nil {
		t.Fatal(err)
	}
	l.auth = auth
	old, err := auth.Member("old", 900, time.Now().AddDate(0, 0, -32))
	if err != nil {
		t.Fatal(err)
	}
	e := l.signed(old, record.Final(old.ID, time.Now().AddDate(0, 0, -20)))
	has := func(o *Options) { o.Cache = &memoryCache{entries: []record.Entry{e}} }
	keeps := l.start(0, has, func(o *Options) { o.Profile = ProfileLAN }) // it looks once an hour
	keeps.Publish(content(0, 0))
	forgets := l.start(1, has)
	forgets.Publish(content(1, 0))
	for _, n := range []*node{keeps, forgets} {
		n.until("two members", whole(2))
	}
	forgets.until("it is forgotten", func(s Snapshot) bool { return len(s.Left) == 0 })
	forgets.Publish(content(1, 1)) // so that the sets are compared anew
	keeps.until("the newer record", shows(forgets.self, 1, 1))
	inSync := func(other *node) func(Snapshot) bool {
		return func(s Snapshot) bool {
			m, ok := s.Member(other.self)
			return ok && m.Synced
		}
	}
	keeps.until("synced", inSync(forgets))
	forgets.until("synced", inSync(keeps))
	if len(keeps.Snapshot().Left) != 1 || len(forgets.Snapshot().Left) != 0 {
		t.Errorf("left: %d and %d nodes, want 1 and 0", len(keeps.Snapshot().Left), len(forgets.Snapshot().Left))
	}
	if got := l.log.count("sent an invalid record"); got != 0 {
		t.Errorf("%d accusations", got)
	}
}
