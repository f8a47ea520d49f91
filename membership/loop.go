package membership

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// event is something that a callback saw. Events are hints: each may be
// dropped, and what it would have caused happens later by another way.
type event struct {
	kind      eventKind
	node      ids.NodeID
	addr      netip.AddrPort
	digest    [32]byte
	hasDigest bool
	items     [32]byte // digest of its cluster items
	hasItems  bool
	clock     time.Time // of its system clock; zero: not said
	hint      hint
	item      []byte // not verified
	bad       *invalidError
}

type eventKind uint8

const (
	eventGossip   eventKind = iota // memberlist's list changed
	eventStranger                  // gossip names a node without a record
	eventHint                      // somebody has a new record
	eventSeen                      // a node gave a direct sign of life
	eventInvalid                   // a node handed over an invalid entry or item
	eventItem                      // gossip brought what may be a cluster item
)

// post enqueues without waiting.
func (c *Cluster) post(e event) {
	select {
	case c.events <- e:
	default:
	}
}

// mergeRequest asks the loop to merge verified items.
type mergeRequest struct {
	items []*record.Item
	reply chan<- [32]byte // capacity 1: the digest after the merge
}

// loop is the state of a running cluster. The goroutine in run owns it.
type loop struct {
	c      *Cluster
	gossip *memberlist.Memberlist
	set    record.Set
	items  item.Set // cluster items, as items.merge gave them; never written to
	heard  [][]byte // items from gossip, to be verified
	beats  beats    // heartbeats of issuers
	peers  map[ids.NodeID]*peer
	dirty  bool // the view may be stale

	conflicts conflicts
	expelled  []ids.NodeID                // revoked, and their streams still open
	aside     map[ids.NodeID]*record.Item // of revoked nodes
	leavers   []leaver                    // have left, and their streams still open
	overdue   map[ids.NodeID]bool         // left or ended long ago, at the last look
	forgetAt  time.Time                   // next look at them
	accessAt  time.Time                   // next look at the access key
	formerAt  time.Time                   // next look at the former ones

	credential keys.Credential // of this node, the newest

	content   *record.Node // what Publish said last; nil before
	published record.Head  // what this node signed last
	publishAt time.Time    // earliest next publication
	unsaid    string       // why the own record was not published, as logged
	echoAt    time.Time    // earliest answer to another echo
	echoes    int

	seeds      []*seed
	pulls      map[ids.NodeID]pull
	strangerAt time.Time // SYNC with anybody then, because of a stranger; zero: not needed
	strangers  time.Duration
	meetAt     time.Time // push/pull with anybody then, because of new members; zero: not needed
	resyncAt   time.Time
	gossipAt   time.Time // next look at memberlist's list without an event
	viewAt     time.Time // next view without a change, for LastSeen

	running [jobKinds]int
	done    chan result
	workers sync.WaitGroup
	full    bool // the full set was logged
}

func newLoop(c *Cluster, set record.Set, items item.Set) *loop {
	l := &loop{
		c:          c,
		credential: c.opts.Identity.Credential,
		set:        set,
		items:      items,
		peers:      make(map[ids.NodeID]*peer),
		pulls:      make(map[ids.NodeID]pull),
		aside:      make(map[ids.NodeID]*record.Item),
		done:       make(chan result, maxJobs),
		dirty:      true,
	}
	for _, addr := range c.opts.Seeds {
		l.seeds = append(l.seeds, &seed{addr: addr})
	}
	for _, r := range items.Revocations() {
		if r.Node != c.self {
			// The record cache may be older than the items, and holds what was
			// put aside, too.
			l.putAside(r.Node)
		}
	}
	if it := set.Get(c.self); it != nil {
		l.published = it.Head
	}
	return l
}

// run is the loop. It returns when ctx ends; the jobs it started may still
// run, l.workers counts them.
func (l *loop) run(ctx context.Context, gossip *memberlist.Memberlist) {
	l.gossip = gossip
	now := time.Now()
	l.resyncAt = now.Add(jitter(l.c.prof.resync))
	l.beats.nextAt = now.Add(firstBeat)
	l.renewOwn(now)
	if at := l.c.opts.Departed; !at.IsZero() {
		// Decided, but perhaps not told to anybody, before the last process ended.
		if err := l.depart(now, at); err != nil {
			l.unpublished(err)
		}
	}
	l.flush(now)
	ticker := time.NewTicker(l.c.prof.tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.c.published:
			l.publish(time.Now())
		case e := <-l.c.events:
			l.handle(time.Now(), e)
			l.drain(time.Now())
		case m := <-l.c.merges:
			l.merge(time.Now(), m.items)
			l.flush(time.Now()) // before the reply: the asker reads the view next
			m.reply <- l.c.view.Load().snap.Digest
		case n := <-l.c.itemNews:
			l.takeItems(n)
			l.flush(time.Now()) // before the reply: the asker reads the view next
			l.dropExpelled()
			wake(l.c.reissue)
			close(n.taken)
		case n := <-l.c.beatNews:
			l.takeBeats(n.items)
			l.flush(time.Now()) // before the reply: the asker reads the view next
			close(n.taken)
		case d := <-l.c.departs:
			err := l.depart(time.Now(), d.at)
			l.flush(time.Now()) // before the reply: the asker reads the view next
			d.done <- err
		case cred := <-l.c.renewed:
			l.credential = cred
			l.renewOwn(time.Now())
		case addrs := <-l.c.resolved:
			l.addSeeds(addrs)
		case r := <-l.done:
			l.running[r.kind]--
			l.finish(time.Now(), r)
		case now := <-ticker.C:
			l.tick(ctx, now)
		}
		l.flush(time.Now())
	}
}

// drain handles what waits, so that a burst of events costs one view.
func (l *loop) drain(now time.Time) {
	for range maxEvents {
		select {
		case e := <-l.c.events:
			l.handle(now, e)
		default:
			return
		}
	}
}

func (l *loop) handle(now time.Time, e event) {
	if l.gone(e.node) {
		return // from before it was
	}
	switch e.kind {
	case eventGossip:
		l.gossipAt = now
	case eventStranger:
		if l.strangerAt.IsZero() {
			l.strangers = min(max(2*l.strangers, l.c.prof.grace), l.c.prof.retryMax)
			l.strangerAt = now.Add(jitter(l.strangers))
		}
	case eventHint:
		l.hinted(now, e.hint)
	case eventItem:
		l.gossiped(e.item)
	case eventInvalid:
		l.accuse(l.peer(e.node), e.node, e.bad)
	case eventSeen:
		l.seen(now, e.node, e.addr)
		if e.hasDigest {
			l.compare(now, l.peer(e.node), e.digest)
		}
		if e.hasItems {
			l.compareItems(now, l.peer(e.node), e.items)
		}
		if !e.clock.IsZero() {
			p := l.peer(e.node)
			p.clock, p.clockAt = e.clock, now
		}
	}
}

// peer returns the state of a node that has proved its identity.
func (l *loop) peer(id ids.NodeID) *peer {
	p := l.peers[id]
	if p == nil {
		p = &peer{}
		l.peers[id] = p
	}
	return p
}

func (l *loop) seen(now time.Time, id ids.NodeID, addr netip.AddrPort) {
	if id == l.c.self {
		return
	}
	p := l.peer(id)
	p.lastSeen = now
	if addr.IsValid() {
		p.addr = addr
	}
	was := p.hybrid
	if h, ok := l.c.transport.Peer(id); ok {
		p.hybrid, p.version = h.Hybrid, h.Version
	}
	if p.state == StateSuspect || p.hybrid != was {
		l.dirty = true
	}
}

// compare notes the digest that a peer's set has. If it differs from ours a
// SYNC is planned, a little later because the change may be on its way.
func (l *loop) compare(now time.Time, p *peer, digest [32]byte) {
	ours := l.digest()
	was := p.synced(ours)
	p.digest, p.hasDigest = digest, true
	switch is := p.synced(ours); {
	case is:
		p.syncDue = time.Time{}
		l.dirty = l.dirty || !was
	case p.syncDue.IsZero():
		p.syncDue = now.Add(l.c.prof.grace + jitter(l.c.prof.grace))
		l.dirty = l.dirty || was
	}
}

// digest is that of the view, which is fresh except within one turn of the
// loop; a comparison made with an older one is repeated when its SYNC is due.
func (l *loop) digest() [32]byte { return l.c.view.Load().snap.Digest }

// maxNews is how many changes of a merge are news and are gossiped; more are
// the catching-up of a newcomer.
const maxNews = 16

// merge takes verified entries into the set and hints at what is news.
func (l *loop) merge(now time.Time, items []*record.Item) {
	var changed []record.Head
	for _, it := range items {
		was := l.set.Get(it.Head.ID)
		if l.items.Revoked(it.Head.ID) || !vouched(&l.items, was, it.Cert.Issuer, it.Entry.Credential) {
			continue // since it was verified
		}
		ok, err := l.set.Insert(it)
		if err != nil {
			l.refused(it, err)
		}
		if !ok {
			continue
		}
		head := l.set.Get(it.Head.ID).Head
		changed = append(changed, head)
		l.dirty = true
		switch {
		case head.ID == l.c.self:
			l.echo(now, head)
		case head.Final():
			if was == nil || !was.Head.Final() {
				l.letGo(now, it)
			}
		case was == nil:
			l.c.log.Info("member is known", logkey.Node, head.ID, logkey.Name, it.Cert.Hostname)
			l.expect(now, head.ID)
		}
	}
	if len(changed) <= maxNews {
		for _, h := range changed {
			l.hint(h)
		}
	}
	if len(changed) > 0 {
		l.strangers = 0
	}
}

// refused logs why a verified item did not simply enter the set.
func (l *loop) refused(it *record.Item, err error) {
	switch p := l.peer(it.Head.ID); {
	case errors.Is(err, record.ErrConflict) && !p.conflict:
		p.conflict = true
		l.c.log.Warn("node signed two records with one sequence number: a restored copy of it may be running",
			logkey.Node, it.Head.ID, logkey.Seq, it.Head.Seq)
	case errors.Is(err, record.ErrFull) && !l.full:
		l.full = true
		l.c.log.Error("record set is full: further members are ignored", logkey.Count, l.set.Len())
	}
}

// hint tells others that this node holds a record.
func (l *loop) hint(h record.Head) {
	m := hint{Node: h.ID, Seq: h.Seq, Record: h.Record, Holder: l.c.self}
	l.c.hints.QueueBroadcast(hintBroadcast{node: h.ID, msg: m.encode()})
}

// flush shows a changed state to the other goroutines and wakes the reader.
func (l *loop) flush(now time.Time) {
	if !l.dirty {
		return
	}
	l.dirty = false
	old := l.c.view.Load()
	v := newView(l.c.self, l.set, l.items, l.peers)
	if l.departed() {
		v.keepWays(old.ways)
	}
	v.aside = slices.Collect(maps.Values(l.aside))
	l.watch(now, v)
	l.c.view.Store(v)
	l.viewAt = now.Add(time.Second)
	if t := v.stated(l.c.issuer); !t.IsZero() {
		l.c.opts.Clock.Saw(t)
	}
	if v.differs(old) {
		wake(l.c.changes)
	}
}

// jitter returns a random part of d, so that many nodes do not act at once.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}
