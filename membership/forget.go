package membership

import (
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

const (
	// forgetAfter is how long after the end of its certificate a node that has left
	// is remembered. From the end on the certificate opens no handshake anywhere;
	// the day is for clocks that differ.
	forgetAfter = 24 * time.Hour
	// forgetDeadAfter is how long after that a node that is dead, and has not said that it leaves, is remembered. Its
	// tunnels were taken down a day after the end. The rest is for halves of a cluster that do not reach each
	// other: while they know each other they call each other. And for clocks: one that is ahead by so much
	// is beyond the end of this node's own certificate, too.
	forgetDeadAfter = keystore.CertLifetime
)

// tickForget looks, now and then, for records that nobody needs any more.
func (l *loop) tickForget(now time.Time) {
	if now.Before(l.forgetAt) {
		return
	}
	l.forgetAt = now.Add(l.c.prof.forget)
	// A clock that was set lately says nothing about who left long ago.
	if l.c.opts.Clock.Settled() {
		l.forget(l.c.now())
	} else {
		l.overdue = nil
	}
}

// forget drops the records of nodes that left, or are dead, and whose certificates ended
// long before now, so that machines that come and go do not fill the set. Others
// may still have them and hand them over again: an entry with an expired
// certificate of a node that is not known is passed over (verifyAll), and the two
// sets count as synced.
//
// A clock that is wrong for a while must not open the door to a node whose
// certificate is in truth still good: only who was overdue at the last look, too,
// is dropped, and the looks are an hour apart.
func (l *loop) forget(now time.Time) {
	overdue := make(map[ids.NodeID]bool)
	sure := l.knowsDead(now)
	for _, it := range l.set.Items() {
		id := it.Head.ID
		switch {
		case id == l.c.self, !it.Head.Final() && !sure, !l.outlived(now, it):
		case !l.overdue[id]:
			overdue[id] = true
		default:
			l.drop(it)
		}
	}
	l.overdue = overdue
}

// knowsDead reports whether this node may take for dead for good whom it does not hear: it hears others, so it
// is not cut off from all of them, and its own certificate is in force by the same clock.
func (l *loop) knowsDead(now time.Time) bool {
	own := l.set.Get(l.c.self)
	if own == nil || now.After(own.Cert.NotAfter) {
		return false
	}
	for _, p := range l.peers {
		if p.inGossip {
			return true
		}
	}
	return false
}

// outlived reports whether the certificate of a node that left, or is dead, ended long ago.
func (l *loop) outlived(now time.Time, it *record.Item) bool {
	if it.Head.Final() {
		return !now.Before(it.Cert.NotAfter.Add(forgetAfter))
	}
	p := l.peers[it.Head.ID]
	return (p == nil || !p.inGossip) && !now.Before(it.Cert.NotAfter.Add(forgetDeadAfter))
}

// drop forgets a node.
func (l *loop) drop(it *record.Item) {
	id := it.Head.ID
	l.set.Delete(id)
	l.dirty = true
	if it.Head.Final() {
		l.c.log.Debug("node that has left is forgotten", logkey.Node, id, logkey.Expires, it.Cert.NotAfter)
		return
	}
	delete(l.peers, id)
	delete(l.pulls, id)
	l.c.log.Info("dead member is forgotten: its certificate ended long ago",
		logkey.Node, id, logkey.Name, it.Cert.Hostname, logkey.Expires, it.Cert.NotAfter)
	// Should it live after all, beyond a wall, with others that renew its certificate: nobody calls it by its
	// record any more, but behind one of the seeds there is somebody who leads to it, once there is a way.
	for _, s := range l.seeds {
		s.met = false
	}
}
