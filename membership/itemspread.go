package membership

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// takeItems is the loop's side of merge.
func (l *loop) takeItems(n itemNews) {
	was := l.items.Floor()
	l.items, l.dirty = n.set, true
	l.conflicts.add(n.double)
	l.dropBelow(was)
	for _, it := range n.changed {
		if r, ok := it.Revocation(); ok {
			l.expel(r)
		}
		if n, ok := it.Network(); ok {
			l.noteNetwork(n)
		}
		if r, ok := it.IssuerRevocation(); ok {
			l.dropIssuer(r)
			l.takeBack()
		}
		t, ok := it.Target()
		if !ok {
			continue
		}
		l.c.log.Info("cluster has a new target epoch", logkey.Epoch, t.Epoch, logkey.Driver, t.Driver, logkey.Reason, t.Reason.String())
	}
	if len(n.changed) <= maxNews {
		for _, it := range n.changed {
			l.gossipItem(it)
		}
	}
	if n.own {
		l.giveItems(n.changed)
	}
}

// maxItemGossip is the largest item that is gossiped: with the headers of
// memberlist it must fit a packet. A larger one travels over streams only.
const maxItemGossip = 1024

// gossipItem sends an item on, whole: it proves itself, so who receives it needs
// to ask nobody. Only what was verified here is sent on.
func (l *loop) gossipItem(it *item.Item) {
	if len(it.Raw) > maxItemGossip {
		return
	}
	l.c.hints.QueueBroadcast(itemBroadcast{slot: it.Slot, msg: itemMessage(it.Raw)})
}

// giveItems plans to hand items to live members directly, as pushOwn does with
// the own record.
func (l *loop) giveItems(list []*item.Item) {
	left := maxPush
	for id, p := range l.peers { // in random order
		if left == 0 {
			return
		}
		if p.inGossip && !l.apart(id) {
			left--
			p.give = append(p.give, list...)
			p.give = p.give[max(0, len(p.give)-maxGive):]
		}
	}
}

// gossiped notes an item that came as a user message. Verifying takes time, so
// a job does it after the next tick, for a bounded number of them, because any
// member can send what only looks like an item. What is left out comes by
// digest.
func (l *loop) gossiped(raw []byte) {
	it, err := item.Parse(raw)
	if err != nil || outdated(&l.items, it) || l.beats.Outdated(it) || len(l.heard) >= maxHeard ||
		slices.ContainsFunc(l.heard, func(b []byte) bool { return bytes.Equal(b, raw) }) {
		return
	}
	l.heard = append(l.heard, raw)
}

// maxGive bounds the items that wait to be handed to one peer.
const maxGive = 64

// maxHeard bounds the gossiped items that are verified per tick.
const maxHeard = 16

// tickItems hands over new items, verifies those that gossip brought, and
// starts an exchange where it is due.
func (l *loop) tickItems(ctx context.Context, now time.Time) {
	if len(l.heard) > 0 && l.start(ctx, job{kind: jobHeard, raws: l.heard}) {
		l.heard = nil
	}
	ours := l.c.view.Load().clusterDigest
	for id, p := range l.peers {
		if l.apart(id) {
			continue // what there is to exchange, others bring
		}
		if len(p.give) > 0 && l.start(ctx, job{kind: jobGive, node: id, items: p.give}) {
			p.give = nil
		}
		if p.itemsDue.IsZero() || now.Before(p.itemsDue) || p.itemsBusy {
			continue
		}
		if p.sameItems(ours) {
			p.itemsDue = time.Time{}
		} else if l.start(ctx, job{kind: jobItems, node: id}) {
			p.itemsDue, p.itemsBusy = time.Time{}, true
		}
	}
}

// compareItems notes the digest that a peer's items have. If it differs from
// ours an exchange is planned, a little later because the change may be on its
// way.
func (l *loop) compareItems(now time.Time, p *peer, digest [32]byte) {
	p.items, p.hasItems = digest, true
	switch {
	case p.sameItems(l.c.view.Load().clusterDigest):
		p.itemsDue = time.Time{}
	case p.itemsDue.IsZero():
		p.itemsDue = now.Add(l.c.prof.grace + jitter(l.c.prof.grace))
	}
}

// finishItems takes up what a job learned about a peer's items.
func (l *loop) finishItems(now time.Time, p *peer, r result) {
	if r.kind == jobItems {
		p.itemsBusy = false
		if r.err != nil && p.inGossip {
			p.itemsDue = now.Add(l.c.prof.retryMin + jitter(l.c.prof.retryMin))
		}
	}
	if r.itemsComplete {
		p.itemsSettled = [2][32]byte{r.itemsOurs, r.itemsTheirs}
		p.itemsDue = time.Time{}
	}
	if r.itemsHeard {
		l.compareItems(now, p, r.itemsTheirs)
	}
}

// sameItems reports whether p and this node, whose digest is ours, have no
// items to give each other; as synced does for records.
func (p *peer) sameItems(ours [32]byte) bool {
	return p.hasItems && (p.items == ours || p.itemsSettled == [2][32]byte{ours, p.items})
}

// itemBroadcast queues an item; a newer one of its slot replaces it.
type itemBroadcast struct {
	slot item.Slot
	msg  []byte
}

// Name implements memberlist.NamedBroadcast.
func (b itemBroadcast) Name() string { return "item " + string([]byte{byte(b.slot.Kind)}) + b.slot.Key }

// Invalidates implements memberlist.Broadcast.
func (b itemBroadcast) Invalidates(o memberlist.Broadcast) bool {
	other, ok := o.(itemBroadcast)
	return ok && other.slot == b.slot
}

// Message implements memberlist.Broadcast.
func (b itemBroadcast) Message() []byte { return b.msg }

// Finished implements memberlist.Broadcast.
func (b itemBroadcast) Finished() {}
