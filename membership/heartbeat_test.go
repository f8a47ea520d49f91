package membership

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// beatOf makes a heartbeat of an issuer.
func (l *lab) beatOf(by item.Signer, at time.Time, digest [32]byte) *item.Item {
	l.t.Helper()
	it, err := item.SignHeartbeat(at, l.auth.Trust, by, 0, digest)
	if err != nil {
		l.t.Fatal(err)
	}
	return it
}

// equalItems waits until all nodes hold the same cluster items.
func equalItems(t *testing.T, nodes []*node) {
	t.Helper()
	for _, n := range nodes {
		n.until("the items of node 0", func(Snapshot) bool { return n.view.Load().clusterDigest == nodes[0].view.Load().clusterDigest })
	}
}

// virtually runs a test in virtual time, with the timers of profile lan: minutes
// take as long as their work.
func virtually(t *testing.T, fn func(t *testing.T, l *lab)) {
	t.Helper()
	oneAtATime(t)
	synctest.Test(t, func(t *testing.T) {
		<-time.After(48 * time.Hour) // the clock begins in 2000, and so does what can be signed
		// memberlist's probes notice a shutdown within their interval, and time
		// stands still when the test has ended.
		t.Cleanup(func() { <-time.After(time.Minute) })
		l := serialLab(t)
		l.beat, l.stale = profiles[ProfileLAN].beat, profiles[ProfileLAN].stale
		fn(t, l)
	})
}

// oneAtATime lets one goroutine run at a time until the test ends. Timers of a bubble
// share one context of the race detector, which two of its goroutines that look at
// due timers at once would use at once: the detector dies of it (Go 1.26,
// runtime.timer.unlockAndRun).
func oneAtATime(t *testing.T) {
	was := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(was) })
}

func lan(o *Options) { o.Profile = ProfileLAN }

// watch wants a condition to hold for some time.
func watch(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); <-time.After(time.Second) {
		if !ok() {
			t.Fatalf("%s before the end of it: not so: %s", time.Until(end), what)
		}
	}
}

// comes wants a condition to come true between two times from now.
func comes(t *testing.T, after, before time.Duration, what string, ok func() bool) {
	t.Helper()
	start := time.Now()
	for ; !ok(); <-time.After(time.Second) {
		if time.Since(start) > before {
			t.Fatalf("not in %s: %s", before, what)
		}
	}
	if took := time.Since(start); took < after {
		t.Fatalf("after %s already: %s", took, what)
	}
}

// none reports whether no node is stale.
func none(nodes ...*node) func() bool {
	return func() bool {
		for _, n := range nodes {
			if len(n.Snapshot().Stale) != 0 {
				return false
			}
		}
		return true
	}
}

// silence reports whether each node misses all issuers, and nothing else.
func silence(nodes ...*node) func() bool {
	return func() bool {
		for _, n := range nodes {
			if s := n.Snapshot().Stale; len(s) != 1 || !s[0].Issuer.IsZero() || s[0].Since.IsZero() {
				return false
			}
		}
		return true
	}
}

// issuerIn starts nodes of which the first is an issuer.
func (l *lab) issuerIn(n int, s item.Signer, change ...func(*Options)) []*node {
	l.t.Helper()
	var nodes []*node
	for i := range n {
		more := append([]func(*Options){lan}, change...)
		if i == 0 {
			more = append(more, l.signs(s))
		}
		nodes = append(nodes, l.start(i, more...))
		nodes[i].Publish(content(i, 0))
	}
	converge(l.t, nodes, n)
	return nodes
}

// TestNoIssuerIsStale: while an issuer is there, nobody is stale; ten minutes after
// the last one has gone everybody is, and nothing else changes; when one is back
// it is over. A node that restarts meanwhile misses it, too.
func TestNoIssuerIsStale(t *testing.T) {
	virtually(t, func(t *testing.T, l *lab) {
		kept := &memoryItems{}
		nodes := l.issuerIn(3, l.signer("a"))
		away := l.start(3, lan, func(o *Options) { o.ItemCache = kept })
		away.Publish(content(3, 0))
		nodes = append(nodes, away)
		converge(t, nodes, 4)
		nodes[0].mustRotate(1, item.DriverAuto)
		watch(t, 25*time.Minute, "nobody is stale", none(nodes...))
		for _, n := range nodes {
			if age := time.Since(n.Snapshot().Heartbeat); age > 2*time.Minute {
				t.Errorf("node %d: the newest heartbeat is %s old", n.i, age)
			}
		}
		rest := nodes[1:]
		nodes[0].stop()
		away.stop()
		l.run(away)
		away.Publish(content(3, 0))
		for _, n := range rest {
			n.until("its new record", func(s Snapshot) bool { m, _ := s.Member(away.self); return m.Record.Seq == 2 })
		}
		before := rest[0].Snapshot()
		comes(t, 8*time.Minute+50*time.Second, 10*time.Minute+5*time.Second, "all of them are stale", silence(rest...))
		watch(t, 20*time.Minute, "it stays so", silence(rest...))
		if after := rest[0].Snapshot(); after.Digest != before.Digest || after.Target != before.Target || len(after.Members) != 4 || countState(after, StateAlive) != 3 {
			t.Errorf("something else has changed:\n%s", describe(after))
		}
		l.run(nodes[0])
		nodes[0].Publish(content(0, 0))
		comes(t, 0, 90*time.Second, "nobody is stale any more", none(nodes...))
		watch(t, 15*time.Minute, "it stays so", none(nodes...))
	})
}

// TestNoHeartbeatIsExpected: the issuers' program is older and gives none.
func TestNoHeartbeatIsExpected(t *testing.T) {
	virtually(t, func(t *testing.T, l *lab) {
		l.beat = 0
		nodes := l.issuerIn(3, l.signer("a"))
		nodes[0].stop()
		watch(t, time.Hour, "nobody is stale", none(nodes[1:]...))
	})
}

// TestHeartbeatsRememberedOverARestart: a node that was heard of once restarts
// where nobody answers, and knows that there should be heartbeats. Writing that
// down takes one write, not one a minute.
func TestHeartbeatsRememberedOverARestart(t *testing.T) {
	virtually(t, func(t *testing.T, l *lab) {
		disk := &countedItems{}
		nodes := l.issuerIn(2, l.signer("a"))
		n := l.start(2, lan, func(o *Options) { o.ItemCache = disk })
		n.Publish(content(2, 0))
		converge(t, append(nodes, n), 3)
		watch(t, 2*time.Hour, "nobody is stale", none(n))
		if got := disk.saves(); got != 1 {
			t.Errorf("%d writes in two hours, want 1", got)
		}
		n.stop()
		self := n.self // run replaces what n.self is read from
		l.net.setBroken(func(from, to ids.NodeID) bool { return from == self || to == self })
		<-time.After(time.Hour)
		l.run(n)
		watch(t, 9*time.Minute+50*time.Second, "it is not stale yet", none(n))
		comes(t, 0, 30*time.Second, "it is stale", silence(n))
		if got := disk.saves(); got != 1 {
			t.Errorf("%d writes, want 1", got)
		}
		l.net.setBroken(nil)
		comes(t, 0, 3*time.Minute, "it is over", none(n))
	})
}

// countedItems counts its writes.
type countedItems struct {
	memoryItems
	n int
}

func (c *countedItems) Save(raws [][]byte) error {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	return c.memoryItems.Save(raws)
}

func (c *countedItems) saves() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// TestWithheldItem: everybody hands one node everything but an item. It says so
// after ten minutes, about that issuer, nobody else does, and it is over when the
// item comes.
func TestWithheldItem(t *testing.T) {
	virtually(t, func(t *testing.T, l *lab) {
		signer := l.signer("a")
		nodes := l.issuerIn(5, signer)
		victim, others := nodes[4], nodes[:4]
		watch(t, 3*time.Minute, "nobody is stale", none(nodes...))
		d, err := keys.ParseDelegation(signer.Delegation())
		if err != nil {
			t.Fatal(err)
		}
		var held []byte
		l.net.setRefuse(func(from, to ids.NodeID, req []byte) bool {
			return (from == victim.self || to == victim.self) && len(req) > 0 && (req[0] == kindItems || req[0] == kindGive)
		})
		l.net.setDrop(func(_, to ids.NodeID, b []byte) bool {
			return to == victim.self && held != nil && bytes.Contains(b, held)
		})
		gone := l.identity(9).ID
		it, err := item.SignRevocation(time.Now(), l.auth.Trust, signer, item.Revocation{Node: gone, Created: time.Now().Truncate(time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		l.net.mu.Lock()
		held = it.Raw
		l.net.mu.Unlock()
		start := time.Now()
		if _, err := nodes[0].Revoke(context.Background(), item.Revocation{Node: gone}); err != nil {
			t.Fatal(err)
		}
		for _, n := range others {
			n.until("the revocation", expelled(gone))
		}
		withheld := func() bool {
			s := victim.Snapshot().Stale
			return len(s) == 1 && s[0].Issuer == d.Issuer && !s[0].Since.After(start) && start.Sub(s[0].Since) < 2*time.Minute
		}
		comes(t, 8*time.Minute+50*time.Second, 11*time.Minute, "the victim says that something is withheld", withheld)
		watch(t, 10*time.Minute, "it goes on, and nobody else says so", func() bool { return withheld() && none(others...)() })
		if s := victim.Snapshot(); len(s.Revoked) != 0 || time.Since(s.Heartbeat) > 2*time.Minute {
			t.Errorf("%d revoked, heartbeat of %s: nothing was withheld, or all", len(s.Revoked), s.Heartbeat)
		}
		l.net.setRefuse(nil)
		l.net.setDrop(nil)
		comes(t, 0, 90*time.Second, "it is over", none(victim))
		victim.until("the revocation", expelled(gone))
	})
}

// TestHeartbeatsWithoutUDP: where no datagram passes, they come beside SYNC, soon
// enough.
func TestHeartbeatsWithoutUDP(t *testing.T) {
	virtually(t, func(t *testing.T, l *lab) {
		nodes := l.issuerIn(8, l.signer("a"))
		l.net.setDrop(func(_, _ ids.NodeID, _ []byte) bool { return true })
		comes(t, 0, 8*time.Minute, "all have heard the issuer", func() bool {
			return !slices.ContainsFunc(nodes, func(n *node) bool { return n.Snapshot().Heartbeat.IsZero() })
		})
		oldest := time.Duration(0)
		watch(t, 45*time.Minute, "nobody is stale", func() bool {
			for _, n := range nodes {
				oldest = max(oldest, time.Since(n.Snapshot().Heartbeat))
			}
			return none(nodes...)()
		})
		t.Logf("the oldest heartbeat that was the newest on a node of %d was %s old", len(nodes), oldest)
	})
}

// TestHeartbeatReplay: older heartbeats, forged ones, those of issuers that are
// none any more, and those for an issuer by another change nothing, whatever way
// they come.
func TestHeartbeatReplay(t *testing.T) {
	l := newLab(t)
	l.stale = 10 * time.Minute
	n := l.start(0)
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	r, a := l.rogue(8, nil), l.signer("a")
	now := time.Now()
	old, newest := l.beatOf(a, now.Add(-time.Minute), [32]byte{1}), l.beatOf(a, now, [32]byte{2})
	beats := func(raw []byte) error {
		_, err := r.Call(context.Background(), n.self, beatsMessage(kindBeats, [][]byte{raw}))
		return err
	}
	if err := beats(newest.Raw); err != nil {
		t.Fatal(err)
	}
	if s := n.Snapshot(); !s.Heartbeat.Equal(newest.Created) {
		t.Fatalf("the heartbeat is of %s", s.Heartbeat)
	}
	ended, err := l.auth.Issuer("ended", now.Add(-2*time.Hour), now.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Clone(l.beatOf(a, now.Add(time.Minute), [32]byte{3}).Raw)
	forged[len(forged)-1] ^= 1
	before := n.view.Load()
	bad := map[string][]byte{
		"older":                   old.Raw,
		"of an issuer that ended": l.beatOf(ended, now.Add(-90*time.Minute), [32]byte{4}).Raw,
		"from the future":         l.beatOf(a, now.Add(time.Hour), [32]byte{5}).Raw,
		"forged":                  forged,
	}
	for name, raw := range bad {
		if err := beats(raw); (err != nil) != (name == "forged") {
			t.Errorf("%s, in HEARTBEATS: %v", name, err)
		}
		if err := r.give(n.self, raw); (err != nil) != (name == "forged") {
			t.Errorf("%s, in GIVE: %v", name, err)
		}
		delegate{n.Cluster}.NotifyMsg(beatMessage(raw))
		delegate{n.Cluster}.NotifyMsg(itemMessage(raw))
	}
	// What came in gossip has been judged when what came after it has.
	later := l.other("later", 1)
	delegate{n.Cluster}.NotifyMsg(itemMessage(later.Raw))
	n.until("what came last", func(Snapshot) bool { return n.view.Load().cluster.Get(later.Slot) != nil })
	after := n.view.Load()
	if len(after.beats.Items()) != 1 || after.beats.Get(newest.Slot).Hash != newest.Hash || after.cluster.Len() != 1 || !after.snap.Heartbeat.Equal(before.snap.Heartbeat) || len(after.snap.Stale) != 0 {
		t.Errorf("%d heartbeats, %d items, newest of %s", len(after.beats.Items()), after.cluster.Len(), after.snap.Heartbeat)
	}
	l.waitLogs("sent an invalid record or item", 1)
	for _, b := range n.hints.GetBroadcasts(0, 1<<20) {
		if raw, ok := parseBeatMessage(b); ok && !bytes.Equal(raw, newest.Raw) {
			t.Error("another heartbeat than the newest is sent on")
		}
	}
	// A heartbeat by gossip is taken, whatever the form of its message.
	for i, wrap := range []func([]byte) []byte{beatMessage, itemMessage} {
		next := l.beatOf(a, now.Add(time.Duration(i+1)*time.Second), [32]byte{6})
		delegate{n.Cluster}.NotifyMsg(wrap(next.Raw))
		n.until("a newer heartbeat", func(s Snapshot) bool { return s.Heartbeat.Equal(next.Created) })
	}
}

// TestIssuerWithoutMemory: the issuer's clock goes back and its process has
// forgotten what it signed. The others give it back, and it goes on from there.
func TestIssuerWithoutMemory(t *testing.T) {
	l := newLab(t)
	nodes := l.issuing(2)
	signer := l.signer("a")
	ahead, err := item.SignHeartbeat(time.Now(), l.auth.Trust, signer, uint64(time.Now().Unix())+3600, [32]byte{})
	if err != nil {
		t.Fatal(err)
	}
	r := l.rogue(8, nil)
	if _, err := r.Call(context.Background(), nodes[1].self, beatsMessage(kindBeats, [][]byte{ahead.Raw})); err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].syncBeats(context.Background(), nodes[1].self); err != nil {
		t.Fatal(err)
	}
	it, err := nodes[0].beat(time.Now())
	if err != nil || it.Version != ahead.Version+1 {
		t.Errorf("version %d after %d, %v", it.Version, ahead.Version, err)
	}
}

// TestHeartbeatNotSigned: the store fails; it is said once, and goes on when it
// can.
func TestHeartbeatNotSigned(t *testing.T) {
	virtually(t, func(t *testing.T, l *lab) {
		signer := l.signer("a")
		n := l.start(0, lan, l.signs(signer))
		n.Publish(content(0, 0))
		signer.Fail(fmt.Errorf("no space left on device"))
		comes(t, time.Second, 2*time.Minute, "it is said", func() bool { return l.log.count("issuer signs no heartbeat") == 1 })
		watch(t, 10*time.Minute, "once", func() bool { return l.log.count("issuer signs no heartbeat") == 1 && n.Snapshot().Heartbeat.IsZero() })
		signer.Fail(nil)
		comes(t, 0, 65*time.Second, "a heartbeat", func() bool { return !n.Snapshot().Heartbeat.IsZero() })
	})
}

// TestHeartbeatsOfOldNodes: a node that does not know the request is no reason to
// keep records from it, nor is one that answers nonsense.
func TestHeartbeatsOfOldNodes(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	for i, answer := range []func() ([]byte, error){
		func() ([]byte, error) { return nil, fmt.Errorf("message is malformed: kind 10") },
		func() ([]byte, error) { return []byte("nonsense"), nil },
	} {
		r := l.rogue(8+i, func(_ context.Context, _ noisenet.Peer, req []byte) ([]byte, error) {
			switch req[0] {
			case kindSync:
				return syncAnswer{}.encode(), nil
			case kindItems:
				return itemsAnswer{}.encode(), nil
			}
			return answer()
		})
		var res result
		if err := n.sync(context.Background(), r.id.ID, &res); err != nil || !res.complete || !res.itemsComplete {
			t.Errorf("sync: %v, records %v, items %v", err, res.complete, res.itemsComplete)
		}
	}
}

// TestHeartbeatCost measures what heartbeats cost a cluster of 20, with the timers
// of profile lan: no exchange of items, no SYNC, and some kilobytes a minute.
func TestHeartbeatCost(t *testing.T) {
	const size, minutes = 20, 10
	cost := func(beat time.Duration) (calls, callBytes map[byte]uint64, packets, packetBytes uint64) {
		virtually(t, func(t *testing.T, l *lab) {
			l.beat = beat
			nodes := l.issuerIn(size, l.signer("a"))
			equalItems(t, nodes)
			<-time.After(2 * time.Minute)
			count := func() (map[byte]uint64, map[byte]uint64, uint64, uint64) {
				l.net.mu.Lock()
				defer l.net.mu.Unlock()
				a, b := map[byte]uint64{}, map[byte]uint64{}
				for k, v := range l.net.calls {
					a[k], b[k] = v, l.net.callBytes[k]
				}
				return a, b, l.net.packets, l.net.bytes
			}
			c0, b0, p0, q0 := count()
			watch(t, minutes*time.Minute, "nobody is stale", none(nodes...))
			calls, callBytes, packets, packetBytes = count()
			for k := range calls {
				calls[k] -= c0[k]
				callBytes[k] -= b0[k]
			}
			packets, packetBytes = packets-p0, packetBytes-q0
		})
		return calls, callBytes, packets, packetBytes
	}
	off, _, offPackets, offBytes := cost(0)
	on, onBytes, onPackets, onPacketBytes := cost(profiles[ProfileLAN].beat)
	per := func(n uint64) float64 { return float64(n) / size / minutes }
	t.Logf("per node and minute: SYNC %.1f without, %.1f with; ITEMS %.1f, %.1f; HEARTBEATS %.1f, %.1f",
		per(off[kindSync]), per(on[kindSync]), per(off[kindItems]), per(on[kindItems]), per(off[kindBeats]), per(on[kindBeats]))
	t.Logf("per node and minute: %.0f packets of %.0f bytes in all without, %.0f of %.0f with; HEARTBEATS %.0f bytes with, of streams",
		per(offPackets), per(offBytes), per(onPackets), per(onPacketBytes), per(onBytes[kindBeats]))
	// Each SYNC is preceded by one exchange of items; there is no other, with or
	// without heartbeats. How many SYNCs there are is chance, within bounds.
	for name, calls := range map[string]map[byte]uint64{"without": off, "with": on} {
		if calls[kindItems] > calls[kindSync]+size || calls[kindSync] > size*minutes*5 {
			t.Errorf("%s: %d exchanges of items, %d SYNCs", name, calls[kindItems], calls[kindSync])
		}
	}
	if extra := per(onPacketBytes) - per(offBytes); extra > 8000 {
		t.Errorf("heartbeats cost %.0f bytes of packets per node and minute", extra)
	}
}

// TestHeartbeatMessageFits: a heartbeat travels in gossip.
func TestHeartbeatMessageFits(t *testing.T) {
	l := serialLab(t)
	var s *membertest.Issuer = l.signer(strings.Repeat("a", 20))
	if got := len(beatMessage(l.beatOf(s, time.Now(), [32]byte{}).Raw)); got > maxItemGossip {
		t.Errorf("%d bytes", got)
	}
}
