package membership

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// Heartbeats are items, and travel apart from the others: in gossip messages of
// their own, and beside each SYNC. They are no part of a set, so that none of what
// follows from a changed set follows from one: an exchange, a write, a full set.

// kindBeats exchanges heartbeats: all of the asker's, then what it lacks.
const kindBeats = 0x0a

// messageBeat is the first byte of a user message that carries a heartbeat. A
// node that is older ignores it, and so does not spread as an item what changes
// every minute.
const messageBeat = 3

// firstBeat is how long after its start an issuer gives the first heartbeat. The
// version is the second it is made in, and the process before may have used the
// one in which this one began.
const firstBeat = time.Second

// maxPassed is how many digests of its own set a node remembers.
const maxPassed = 64

// beats is what the loop knows of issuers' heartbeats.
type beats struct {
	item.Heartbeats
	sights map[item.Slot]sight
	passed [][32]byte // digests that the set has had, newest last
	nextAt time.Time  // of this node's own
	failed bool       // that none can be signed was logged
}

// sight is what is known of one issuer besides its newest heartbeat.
type sight struct {
	since   time.Time // when this process first knew of it
	reached time.Time // when the newest was made of those whose set this node has had
}

// beatNews brings verified heartbeats to the loop.
type beatNews struct {
	items []*item.Item
	taken chan<- struct{} // closed when the view shows them
}

// restore takes up what the last process has stored.
func (b *beats) restore(now time.Time, stored []*item.Item, set *item.Set) {
	for _, it := range stored {
		b.take(now, it)
	}
	b.Drop(now, set)
}

// take reports whether a heartbeat is news.
func (b *beats) take(now time.Time, it *item.Item) bool {
	if !b.Insert(it) {
		return false
	}
	if _, known := b.sights[it.Slot]; !known {
		if b.sights == nil {
			b.sights = make(map[item.Slot]sight)
		}
		b.sights[it.Slot] = sight{since: now}
	}
	return true
}

// hear updates what is known of each issuer. set is this node's, digest its digest.
//
// A set only grows, but for what the root makes void, so a node that once had the
// set which a heartbeat names has all that the issuer had then, however much has
// come since. So a node that is ahead of an issuer does not suspect that something
// is withheld from itself.
func (b *beats) hear(now time.Time, set *item.Set, digest [32]byte) []heard {
	if n := len(b.passed); n == 0 || b.passed[n-1] != digest {
		b.passed = append(b.passed, digest)
		b.passed = b.passed[max(0, len(b.passed)-maxPassed):]
	}
	b.Drop(now, set)
	sights := make(map[item.Slot]sight)
	var out []heard
	for _, it := range b.Items() {
		h, _ := it.Heartbeat()
		s := b.sights[it.Slot]
		if h.Created.After(s.reached) && slices.Contains(b.passed, h.Digest) {
			s.reached = h.Created
		}
		sights[it.Slot] = s
		out = append(out, heard{issuer: h.Issuer, since: s.since, newest: h.Created, reached: s.reached})
	}
	b.sights = sights // without those of issuers that are gone
	return out
}

// watch adds to a new view what this node hears of issuers, and what it makes of
// it.
func (l *loop) watch(now time.Time, v *view) {
	wall := l.c.now() // heartbeats are dated
	list := l.beats.hear(wall, &l.items, v.clusterDigest)
	for _, h := range list {
		if h.newest.After(v.snap.Heartbeat) {
			v.snap.Heartbeat = h.newest
		}
	}
	v.snap.Stale = judge(wall, l.c.prof.stale, list)
	v.snap.Conflicts = l.conflicts.shown(now, &l.items)
	v.beats = l.beats.Clone()
}

// tickBeat has a heartbeat signed when it is time.
func (l *loop) tickBeat(ctx context.Context, now time.Time) {
	every := l.c.prof.beat
	if l.c.signer() == nil || every == 0 || now.Before(l.beats.nextAt) {
		return
	}
	if l.start(ctx, job{kind: jobBeat}) {
		l.beats.nextAt = now.Add(every)
	}
}

// beat signs a heartbeat of this node's issuer: a job, because the store may be
// busy with its disk, although a heartbeat does not touch it.
func (c *Cluster) beat(now time.Time) (*item.Item, error) {
	v, signer := c.view.Load(), c.signer()
	if signer == nil {
		return nil, ErrIssuerRevoked
	}
	var after uint64
	if have := v.beats.Get(item.HeartbeatSlot(c.issuer)); have != nil {
		after = have.Version
	}
	return item.SignHeartbeat(now, c.opts.Identity.Trust, signer, after, v.clusterDigest)
}

func (l *loop) finishBeat(r result) {
	if r.err != nil {
		if !l.beats.failed {
			l.c.log.Error("issuer signs no heartbeat: the others will take it for silent", logkey.Error, r.err)
		}
		l.beats.failed = true
		return
	}
	l.beats.failed = false
	l.takeBeats([]*item.Item{r.beat})
}

// takeBeats takes up verified heartbeats and sends on what is news.
func (l *loop) takeBeats(list []*item.Item) {
	for _, it := range list {
		if !l.items.Void(it) && l.beats.take(l.c.now(), it) { // it may be since it was verified
			l.dirty = true
			l.c.hints.QueueBroadcast(itemBroadcast{slot: it.Slot, msg: beatMessage(it.Raw)})
		}
	}
}

// showBeats gives the loop verified heartbeats and waits until the view shows
// them. No disk is waited for.
func (c *Cluster) showBeats(list []*item.Item) {
	if len(list) == 0 {
		return
	}
	taken := make(chan struct{})
	select {
	case c.beatNews <- beatNews{list, taken}:
		<-taken
	case <-c.ended:
	}
}

// syncBeats exchanges heartbeats with a node. Gossip brings them sooner, but on
// UDP only.
func (c *Cluster) syncBeats(ctx context.Context, node ids.NodeID) error {
	b, err := c.call(ctx, node, beatsMessage(kindBeats, raws(c.view.Load().beats.Items())))
	if err != nil {
		return fmt.Errorf("exchange heartbeats with node %s: %w", node, err)
	}
	got, err := parseBeats(b, kindBeats|kindAnswer)
	if err == nil {
		err = c.absorbItems(got)
	}
	if err != nil {
		return fmt.Errorf("exchange heartbeats with node %s: %w", node, err)
	}
	return nil
}

func (c *Cluster) serveBeats(from noisenet.Peer, req []byte) ([]byte, error) {
	got, err := parseBeats(req, kindBeats)
	if err != nil {
		return nil, err
	}
	var bad *invalidError
	if err := c.absorbItems(got); errors.As(err, &bad) {
		c.post(event{kind: eventInvalid, node: from.ID, bad: bad})
		return nil, errors.New("item refused") // the reason stays in this node's log
	} else if err != nil {
		return nil, err
	}
	c.post(event{kind: eventSeen, node: from.ID, addr: from.Addr})
	have := slices.DeleteFunc(raws(c.view.Load().beats.Items()), func(raw []byte) bool {
		return slices.ContainsFunc(got, func(b []byte) bool { return bytes.Equal(b, raw) })
	})
	return beatsMessage(kindBeats|kindAnswer, have), nil
}

// beatMessage is the user message that carries a heartbeat.
func beatMessage(raw []byte) []byte { return append([]byte{messageBeat}, raw...) }

// parseBeatMessage returns the item in a user message, which aliases b.
func parseBeatMessage(b []byte) (raw []byte, ok bool) { return parseMessage(b, messageBeat) }

// beatsMessage carries heartbeats in a request or an answer.
func beatsMessage(kind byte, list [][]byte) []byte { return appendItems([]byte{kind, version}, list) }

func parseBeats(b []byte, kind byte) ([][]byte, error) {
	if len(b) < 2 || b[0] != kind || b[1] != version {
		return nil, errMessage
	}
	list, err := parseItems(b[2:])
	if err == nil && len(list) > item.MaxHeartbeats {
		err = fmt.Errorf("%w: %d heartbeats", errMessage, len(list))
	}
	return list, err
}
