package membership

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// publish takes up the newest content that Publish left, at most once per
// tick: starting a hundred containers is a few records, not a hundred.
func (l *loop) publish(now time.Time) {
	if now.Before(l.publishAt) {
		return // the tick comes back to it
	}
	n := l.c.pending.Swap(nil)
	if n == nil || l.departed() {
		return
	}
	n.ID, n.Seq = l.c.self, 0
	if len(n.Underlay) == 0 {
		for _, a := range l.c.opts.Advertise {
			n.Underlay = append(n.Underlay, record.Underlay{Control: a})
		}
	}
	if err := n.Validate(); err != nil {
		l.unpublished(err)
		return
	}
	was := l.content
	l.content = n
	if have := l.set.Get(l.c.self); have != nil && sameContent(have.Node, *n) {
		l.published = have.Head
		return
	}
	if err := l.sign(now); err != nil {
		l.unpublished(err)
		// The disk may have room again, the clock may be put right, or the
		// certificate renewed: newer content, if there is any, or this.
		l.c.pending.CompareAndSwap(nil, n)
		l.publishAt = now.Add(l.c.prof.retryMin)
		return
	}
	if gone := lostAddrs(was, n); len(gone) > 0 {
		l.c.log.Info("own underlay address has changed", logkey.Addr, n.Underlay[0].Control)
		l.c.transport.Moved(gone)
	}
}

// lostAddrs lists the underlay addresses that a node has no more.
func lostAddrs(was, is *record.Node) []netip.Addr {
	if was == nil || len(is.Underlay) == 0 {
		return nil
	}
	var out []netip.Addr
	for _, u := range was.Underlay {
		a := u.Control.Addr()
		if !slices.ContainsFunc(is.Underlay, func(n record.Underlay) bool { return n.Control.Addr() == a }) {
			out = append(out, a)
		}
	}
	return out
}

// unpublished logs why the own record is not published, once for each reason.
func (l *loop) unpublished(err error) {
	if text := err.Error(); text != l.unsaid {
		l.unsaid = text
		l.c.log.Error("own record is not published", logkey.Error, err)
	}
}

// sameContent compares everything but the sequence number.
func sameContent(a, b record.Node) bool {
	a.Seq, b.Seq = 0, 0
	return bytes.Equal(record.Encode(a), record.Encode(b))
}

// sign publishes l.content above every own record known so far.
func (l *loop) sign(now time.Time) error {
	seq, err := l.c.opts.NextSeq()
	if err != nil {
		// Without a number that survives a crash a later record could be
		// taken for an older one: better late than never heard again.
		return fmt.Errorf("no sequence number: %w", err)
	}
	if have := l.set.Get(l.c.self); have != nil && seq <= have.Head.Seq {
		seq = have.Head.Seq + 1
	}
	// The numbers from here on say that the node has left; after the highest of
	// them comes 0.
	if seq >= record.FirstFinal || seq == 0 {
		return errors.New("sequence numbers are used up, the node needs a new identity")
	}
	n := *l.content
	n.Seq = seq
	raw, err := record.Sign(n, l.c.opts.Identity.Node)
	if err != nil {
		return err
	}
	return l.insertOwn(now, record.Entry{Credential: l.credential, Record: raw})
}

// insertOwn puts an entry of this node into the set, by the same checks that
// every other node will make.
func (l *loop) insertOwn(now time.Time, e record.Entry) error {
	it, err := record.Verify(l.c.opts.Identity.Trust, l.c.opts.Clock.For(e.Credential.Begins()), e, l.set.Get(l.c.self))
	if err != nil {
		return err
	}
	if _, err := l.set.Insert(it); err != nil {
		return err
	}
	l.published = l.set.Get(l.c.self).Head
	l.publishAt = now.Add(l.c.prof.tick)
	l.unsaid = ""
	l.dirty = true
	l.hint(l.published)
	l.pushOwn()
	l.c.log.Debug("own record is published", logkey.Seq, l.published.Seq)
	return nil
}

// maxPush is how many members a node tells of its new record itself.
const maxPush = 32

// pushOwn plans to hand the own record to live members directly. In a small
// cluster that is everybody: one round trip, and the answers tell who has it.
// In a large one hints carry on from the first few. A node that leaves hands its
// final record to everybody, because it waits until they have it.
func (l *loop) pushOwn() {
	left := maxPush
	if l.departed() {
		left = len(l.peers)
	}
	for id, p := range l.peers { // in random order
		p.pushDue = p.inGossip && !l.apart(id) && left > 0
		if p.pushDue {
			left--
		}
	}
}

// renewOwn brings a renewed certificate into the own entry. The record stays
// as it is until the agent publishes.
func (l *loop) renewOwn(now time.Time) {
	have := l.set.Get(l.c.self)
	if have == nil {
		return
	}
	e := record.Entry{Credential: l.credential, Record: have.Entry.Record}
	if have.Holds(e) {
		return
	}
	if err := l.insertOwn(now, e); err != nil {
		l.unpublished(err)
	}
}

// echo answers an own record that came back from others and is newer than
// what this process has signed: the state directory was restored from a copy,
// or two processes use one identity. The others have heard the higher number,
// so the true content must go above it. The second case would make the two
// outbid each other without end; the pause between answers doubles to 64 s.
func (l *loop) echo(now time.Time, head record.Head) {
	if head.Final() {
		if head.Record != l.published.Record {
			l.published = head
			l.c.log.Error("this node has left the cluster and is refused by it: was its state restored, or does a copy run?")
		}
		return
	}
	if !l.outbid() {
		return
	}
	if l.echoes == 0 || now.After(l.echoAt.Add(time.Minute)) {
		l.echoes = 0
		l.c.log.Warn("cluster knows a newer record of this node than it does: was its state restored, or does a copy run?",
			logkey.Seq, head.Seq)
	}
	if l.echoAt.IsZero() || !now.Before(l.echoAt) {
		l.answerEcho(now)
	}
	// Otherwise the tick answers at echoAt.
}

// outbid reports whether the set holds an own record that this process did
// not sign and whose content is not what it has to say.
func (l *loop) outbid() bool {
	have := l.set.Get(l.c.self)
	if have == nil || l.content == nil || have.Head.Record == l.published.Record || have.Head.Final() {
		return false
	}
	if sameContent(have.Node, *l.content) {
		l.published = have.Head
		return false
	}
	return true
}

func (l *loop) answerEcho(now time.Time) {
	if err := l.sign(now); err != nil {
		l.unpublished(err)
	}
	l.echoAt = now.Add(time.Second << min(l.echoes, 6))
	l.echoes++
}
