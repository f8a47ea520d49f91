package membership

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// bulky is a record of about 600 kB, so that two do not fit one page.
func bulky(i int) record.Node {
	n := content(i, 0)
	n.Attached = nil
	for k := range record.MaxAttached {
		a := record.Attached{VNI: 5000, MAC: ids.MAC{2, 1, 0, byte(i), byte(k >> 8), byte(k)}}
		ip := netip.AddrFrom16([16]byte{0xfd, 0, byte(i), byte(k >> 8), byte(k)})
		for range record.MaxAddrs {
			ip = ip.Next()
			a.Addrs = append(a.Addrs, ip)
		}
		n.Attached = append(n.Attached, a)
	}
	return n
}

// TestPages moves sets that need several pages, both ways at once.
func TestPages(t *testing.T) {
	l := newLab(t)
	// Two nodes, each with three large records of members that are not here.
	var nodes []*node
	for side := range 2 {
		cache := &memoryCache{}
		for k := range 3 {
			i := 10 + side + 2*k
			id := l.identity(i)
			n := bulky(i)
			n.ID, n.Seq = id.ID, 1
			raw, err := record.Sign(n, id.Node)
			if err != nil {
				t.Fatal(err)
			}
			cache.entries = append(cache.entries, record.Entry{Credential: id.Credential, Record: raw})
		}
		nodes = append(nodes, l.start(side, func(o *Options) { o.Cache = cache }))
		nodes[side].Publish(content(side, 0))
	}
	for _, n := range nodes {
		n.until("eight records", func(s Snapshot) bool { return len(s.Members) == 8 })
	}
	equal(t, nodes)
}

type memoryCache struct{ entries []record.Entry }

func (c *memoryCache) Load() ([]record.Entry, error) { return c.entries, nil }
func (c *memoryCache) Save(e []record.Entry) error   { c.entries = e; return nil }

func TestPage(t *testing.T) {
	item := func(size int) *record.Item {
		return &record.Item{Entry: record.Entry{Record: make([]byte, size)}}
	}
	for name, c := range map[string]struct {
		items []*record.Item
		want  int
	}{
		"nothing":         {nil, 0},
		"one too large":   {[]*record.Item{item(2 * pageSize), item(1)}, 1},
		"some":            {[]*record.Item{item(1), item(2), item(3)}, 3},
		"second too much": {[]*record.Item{item(pageSize / 2), item(pageSize / 2), item(1)}, 1},
	} {
		if got := page(c.items); len(got) != c.want {
			t.Errorf("%s: page of %d, want %d", name, len(got), c.want)
		}
	}
}

// TestSyncOfManyMembers compares a node that knows 500 members with one that
// knows none, and reports what the exchange costs.
func TestSyncOfManyMembers(t *testing.T) {
	const members = 500
	l := newLab(t)
	cache := &memoryCache{}
	for i := range members {
		id := l.identity(100 + i)
		n := content(i%200, i)
		n.ID, n.Seq = id.ID, 1
		raw, err := record.Sign(n, id.Node)
		if err != nil {
			t.Fatal(err)
		}
		cache.entries = append(cache.entries, record.Entry{Credential: id.Credential, Record: raw})
	}
	full := l.start(0, func(o *Options) { o.Cache = cache })
	full.Publish(content(0, 0))
	full.until("all records", func(s Snapshot) bool { return len(s.Members) == members+1 })
	begin := time.Now()
	empty := l.start(1)
	empty.Publish(content(1, 0))
	empty.until("all records", func(s Snapshot) bool { return len(s.Members) == members+2 })
	t.Logf("%d records verified and merged in %v", members, time.Since(begin))
	full.until("the newcomer", func(s Snapshot) bool { return len(s.Members) == members+2 })
}

// TestExpiredMember: a node that never knew a member whose certificate has run
// out cannot be introduced to it. The two sets differ for good; the nodes
// count as synced and do not go on trying.
func TestExpiredMember(t *testing.T) {
	l := newLab(t)
	auth, err := membertest.New("membership", time.Now().AddDate(0, -6, 0))
	if err != nil {
		t.Fatal(err)
	}
	l.auth = auth
	old, err := auth.Member("old", 900, time.Now().AddDate(0, -3, 0))
	if err != nil {
		t.Fatal(err)
	}
	n := content(9, 0)
	n.ID, n.Seq = old.ID, 1
	raw, err := record.Sign(n, old.Node)
	if err != nil {
		t.Fatal(err)
	}
	cache := &memoryCache{entries: []record.Entry{{Credential: old.Credential, Record: raw}}}
	knows := l.start(0, func(o *Options) { o.Cache = cache })
	knows.Publish(content(0, 0))
	other := l.start(1)
	other.Publish(content(1, 0))
	knows.until("both and the expired member", func(s Snapshot) bool { return len(s.Members) == 3 })
	other.until("both, synced", func(s Snapshot) bool {
		m, ok := s.Member(knows.self)
		return ok && len(s.Members) == 2 && m.Synced
	})
	knows.until("synced", func(s Snapshot) bool {
		m, ok := s.Member(other.self)
		return ok && m.Synced
	})
	if got := l.log.count("sent an invalid record"); got != 0 {
		t.Errorf("%d accusations over an expired certificate", got)
	}
}

// TestServeIsBounded: more requests than maxServing wait for their turn, and
// give up with their stream.
func TestServeIsBounded(t *testing.T) {
	l := newLab(t)
	c, err := New(Options{Identity: l.identity(0), NextSeq: func() (uint64, error) { return 1, nil }})
	if err != nil {
		t.Fatal(err)
	}
	for range maxServing {
		c.serving <- struct{}{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.serve(ctx, noisenet.Peer{}, syncRequest{}.encode()); err != context.Canceled {
		t.Errorf("request beyond the limit gave %v", err)
	}
	<-c.serving
	if _, err := c.serve(context.Background(), noisenet.Peer{}, syncRequest{}.encode()); err != nil {
		t.Errorf("request within the limit: %v", err)
	}
}

func TestStateText(t *testing.T) {
	for s, want := range map[State]string{StateUnknown: "unknown", StateAlive: "alive", StateSuspect: "suspect", StateDead: "dead", StateIndirect: "indirect", 9: "invalid"} {
		if got, err := s.MarshalText(); err != nil || string(got) != want {
			t.Errorf("state %d is %q, want %q", s, got, want)
		}
	}
}

// TestPeerState walks through what is displayed.
func TestPeerState(t *testing.T) {
	now := time.Now()
	const patience = 10 * time.Second
	for name, c := range map[string]struct {
		p     peer
		want  State
		apart bool
	}{
		"never in gossip":    {peer{}, StateUnknown, false},
		"only contacted":     {peer{lastSeen: now}, StateUnknown, false},
		"just joined":        {peer{inGossip: true, since: now}, StateAlive, false},
		"answers":            {peer{inGossip: true, since: now.Add(-time.Hour), lastSeen: now.Add(-time.Second)}, StateAlive, false},
		"silent":             {peer{inGossip: true, since: now.Add(-time.Hour), lastSeen: now.Add(-time.Minute)}, StateSuspect, false},
		"gone":               {peer{since: now.Add(-time.Hour), lastSeen: now}, StateDead, false},
		"just joined, apart": {peer{inGossip: true, since: now}, StateIndirect, true},
		"silent, apart":      {peer{inGossip: true, since: now.Add(-time.Hour), lastSeen: now.Add(-time.Minute)}, StateSuspect, true},
		"answers, apart":     {peer{inGossip: true, since: now.Add(-time.Hour), lastSeen: now}, StateIndirect, true},
		"gone, apart":        {peer{since: now.Add(-time.Hour)}, StateDead, true},
		"unknown, apart":     {peer{}, StateUnknown, true},
	} {
		if c.p.update(now, patience, c.apart); c.p.state != c.want {
			t.Errorf("%s: %s, want %s", name, c.p.state, c.want)
		}
	}
}

func TestBackoff(t *testing.T) {
	p := profiles[ProfileLAN]
	var got []string
	d := time.Duration(0)
	for range 7 {
		d = next(d, p)
		got = append(got, d.String())
	}
	if want := "[1s 2s 4s 8s 10s 10s 10s]"; fmt.Sprint(got) != want {
		t.Errorf("back-off is %v, want %s", got, want)
	}
}
