package membership

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys/keystore"
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
		lo.forget(step.at)
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

// TestForgetDead: the record of a dead member goes long after the end of its certificate, and of nobody else, unless
// the node that looks may be the one that is cut off.
func TestForgetDead(t *testing.T) {
	l := newLab(t)
	l.auth = authorityOf(t, time.Now().AddDate(-1, 0, 0))
	began := time.Now().AddDate(0, 0, -70)
	ids := make([]keystore.Identity, 4)
	for i, begin := range []time.Time{time.Now(), began, began, time.Now()} {
		var err error
		if ids[i], err = l.auth.Member(fmt.Sprintf("node%d", i), uint64(i+1), begin.Add(-time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	self, dead, old, fresh := ids[0], ids[1], ids[2], ids[3]
	end := dead.Cert.NotAfter.Add(forgetDeadAfter)
	type look struct {
		at    time.Time
		heard []keystore.Identity // whom gossip counts
	}
	everybody := []keystore.Identity{old, fresh}
	for name, c := range map[string]struct {
		looks []look
		gone  bool
	}{
		"once":                    {[]look{{end, everybody}}, false},
		"twice":                   {[]look{{end, everybody}, {end.Add(time.Hour), everybody}}, true},
		"too early":               {[]look{{end.Add(-time.Second), everybody}, {end, everybody}}, false},
		"alive in between":        {[]look{{end, everybody}, {end, []keystore.Identity{dead, old}}, {end, everybody}}, false},
		"nobody is heard":         {[]look{{end, nil}, {end.Add(time.Hour), nil}}, false},
		"heard nobody at first":   {[]look{{end, nil}, {end, everybody}}, false},
		"own certificate is over": {[]look{{self.Cert.NotAfter.Add(time.Second), everybody}, {self.Cert.NotAfter.Add(time.Hour), everybody}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			cluster, err := New(Options{Identity: self, Seeds: []netip.AddrPort{addrOf(1)}, NextSeq: func() (uint64, error) { return 1, nil }})
			if err != nil {
				t.Fatal(err)
			}
			var set record.Set
			for i, id := range ids {
				it, err := record.Reverify(l.auth.Trust, l.signed(id, content(i, 0)))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := set.Insert(it); err != nil {
					t.Fatal(err)
				}
			}
			lo := newLoop(cluster, set, item.Set{})
			lo.seeds[0].met = true
			for _, look := range c.looks {
				for _, p := range lo.peers {
					p.inGossip = false
				}
				for _, id := range look.heard {
					lo.peer(id.ID).inGossip = true
				}
				lo.forget(look.at)
			}
			want := len(ids)
			if c.gone {
				want--
			}
			if got := lo.set.Get(dead.ID) == nil; got != c.gone || lo.set.Len() != want {
				t.Errorf("gone %t, want %t; %d records, want %d", got, c.gone, lo.set.Len(), want)
			}
			// The way to whoever is thought dead leads by the seeds from now on.
			if lo.seeds[0].met == c.gone {
				t.Errorf("the seed counts as met: %t", lo.seeds[0].met)
			}
		})
	}
}

// authorityOf makes an authority whose delegation begins at a time.
func authorityOf(t *testing.T, begin time.Time) *membertest.Authority {
	t.Helper()
	auth, err := membertest.New("membership", begin)
	if err != nil {
		t.Fatal(err)
	}
	return auth
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
		auth := authorityOf(t, time.Now().AddDate(0, -6, 0))
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
			lo.tickForget(time.Now().Add(time.Duration(look) * lo.c.prof.forget))
		}
		if lo.set.Len() != c.want {
			t.Errorf("%s: %d records, want %d", name, lo.set.Len(), c.want)
		}
	}
}

// TestForgottenIsHarmless: a node that has forgotten who left, or is dead, and one that has
// not yet, are at peace.
func TestForgottenIsHarmless(t *testing.T) {
	for name, c := range map[string]struct {
		began int // days ago, the certificate
		final bool
	}{
		"left": {32, true},
		"dead": {61, false},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.auth = authorityOf(t, time.Now().AddDate(0, -6, 0))
			old, err := l.auth.Member("old", 900, time.Now().AddDate(0, 0, -c.began))
			if err != nil {
				t.Fatal(err)
			}
			n := content(9, 0)
			if c.final {
				n = record.Final(old.ID, time.Now().AddDate(0, 0, -20))
			}
			e := l.signed(old, n)
			knows := func(s Snapshot) bool {
				_, member := s.Member(old.ID)
				return member || len(s.Left) == 1
			}
			has := func(o *Options) { o.Cache = &memoryCache{entries: []record.Entry{e}} }
			keeps := l.start(0, has, func(o *Options) { o.Profile = ProfileLAN }) // it looks once an hour
			keeps.Publish(content(0, 0))
			forgets := l.start(1, has)
			forgets.Publish(content(1, 0))
			for _, n := range []*node{keeps, forgets} {
				n.until("both", func(s Snapshot) bool {
					_, first := s.Member(keeps.self)
					_, second := s.Member(forgets.self)
					return first && second
				})
			}
			forgets.until("it is forgotten", func(s Snapshot) bool { return !knows(s) })
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
			if !knows(keeps.Snapshot()) || knows(forgets.Snapshot()) {
				t.Errorf("known: %t and %t, want only at the first", knows(keeps.Snapshot()), knows(forgets.Snapshot()))
			}
			if got := l.log.count("sent an invalid record"); got != 0 {
				t.Errorf("%d accusations", got)
			}
		})
	}
}
