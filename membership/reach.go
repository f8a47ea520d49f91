package membership

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// seed is an address to begin with. Who answers there is not known before.
type seed struct {
	addr    netip.AddrPort
	busy    bool
	met     bool // somebody answered once
	self    bool // it is this node
	failed  bool // the failure was logged
	retryAt time.Time
	backoff time.Duration
}

// pull is a record that a hint named and that this node has yet to get.
type pull struct {
	hint hint
	due  time.Time
}

const maxPulls = 1024

// tick does what is due. It looks at everything instead of keeping a timer
// for each thing: 10,000 members cost it less than a millisecond.
func (l *loop) tick(ctx context.Context, now time.Time) {
	if !now.Before(l.gossipAt) {
		l.gossipAt = now.Add(time.Second)
		l.readGossip(now)
	}
	l.publish(now)
	if l.outbid() && !now.Before(l.echoAt) {
		l.answerEcho(now)
	}
	l.tickSeeds(ctx, now)
	l.tickPeers(ctx, now)
	l.tickPulls(ctx, now)
	l.tickItems(ctx, now)
	l.tickAccess(ctx, now)
	l.tickBeat(ctx, now)
	l.tickLeft(now)
	l.tickForget(now)
	if !l.strangerAt.IsZero() && !now.Before(l.strangerAt) {
		l.strangerAt = time.Time{}
		l.syncAny(ctx)
	}
	if !l.meetAt.IsZero() && !now.Before(l.meetAt) {
		l.meetAt = time.Time{}
		if id, ok := l.anyMember(); ok {
			l.start(ctx, job{kind: jobMeet, node: id})
		}
	}
	if !now.Before(l.resyncAt) {
		// Whatever digests say or fail to say: acks ride on UDP only.
		l.resyncAt = now.Add(l.c.prof.resync/2 + jitter(l.c.prof.resync))
		l.syncAny(ctx)
	}
	if !now.Before(l.viewAt) {
		l.dirty = true
	}
}

// readGossip takes over whom memberlist counts. It reads only names: they are
// the one field of a memberlist node that never changes under the reader.
func (l *loop) readGossip(now time.Time) {
	counted := make(map[ids.NodeID]bool, len(l.peers))
	for _, n := range l.gossip.Members() {
		// memberlist counts a node that is out until its silence has been noticed.
		if id, err := ids.ParseNodeID(n.Name); err == nil && id != l.c.self && !l.gone(id) {
			counted[id] = true
		}
	}
	for id := range counted {
		if p := l.peer(id); !p.inGossip {
			p.inGossip, p.since, p.backoff, p.hurried = true, now, 0, 0
		}
	}
	patience := time.Duration(2*len(counted)+4) * l.c.prof.probe
	for id, p := range l.peers {
		if p.inGossip && !counted[id] {
			p.inGossip = false
			p.retryAt = now.Add(l.c.prof.retryMin + l.wait(id))
		}
		was := p.state
		p.update(now, patience, l.apart(id))
		if p.state == was {
			continue
		}
		l.dirty = true
		if it := l.set.Get(id); it != nil {
			l.c.log.Info("member state changed", logkey.Node, id, logkey.Name, it.Cert.Hostname, logkey.State, p.state.String())
		}
	}
}

// expect plans how a new member gets into gossip. Its alive message may have
// come before its record and been refused, and is not repeated soon. One push/pull
// with any live member makes good for all such nodes at once; only who is still
// missing later is contacted itself. A hundred nodes that start together would
// otherwise open ten thousand streams.
func (l *loop) expect(now time.Time, id ids.NodeID) {
	prof, p := l.c.prof, l.peer(id)
	if p.inGossip {
		return
	}
	p.retryAt = now.Add(prof.grace + l.wait(id))
	if l.c.view.Load().alive <= 1 {
		return
	}
	p.retryAt = p.retryAt.Add(8 * prof.grace)
	if l.meetAt.IsZero() {
		l.meetAt = now.Add(prof.grace + jitter(prof.grace))
	}
}

// wait spreads first contacts by the size of the cluster, and lets the node
// with the lower ID go first, so that two do not dial each other.
func (l *loop) wait(id ids.NodeID) time.Duration {
	d := jitter(l.c.prof.grace + time.Duration(l.set.Len())*l.c.prof.spread)
	if l.c.self.Compare(id) > 0 {
		d += 4 * l.c.prof.grace
	}
	return d
}

// tickPeers hands out the own record, starts SYNC where it is due, and keeps trying to reach every
// member that gossip does not count. memberlist forgets a dead node; without
// this two halves of a cluster would never meet again.
func (l *loop) tickPeers(ctx context.Context, now time.Time) {
	ours := l.digest()
	for id, p := range l.peers {
		if p.pushDue && !now.Before(p.pushAt) && l.start(ctx, job{kind: jobPush, node: id}) {
			p.pushDue = false
		}
		if p.busy || l.apart(id) {
			continue // what there is to exchange, others bring
		}
		if !p.syncDue.IsZero() && !now.Before(p.syncDue) {
			if p.synced(ours) {
				p.syncDue = time.Time{}
			} else if l.start(ctx, job{kind: jobSync, node: id}) {
				p.syncDue, p.busy = time.Time{}, true
				continue
			}
		}
		if !p.inGossip && !now.Before(p.retryAt) && l.set.Get(id) != nil && !l.gone(id) {
			p.busy = l.start(ctx, job{kind: jobConnect, node: id})
		}
	}
}

// rescheduled plans the next attempt to get a node into gossip. A push/pull
// that worked is not enough where both sides thought the other dead: each
// learns only now that it has to contradict. A second one soon after does it.
func (l *loop) rescheduled(now time.Time, p *peer, err error) {
	const hurry = 3
	prof := l.c.prof
	l.gossipAt = now
	if err == nil && p.hurried < hurry {
		p.hurried++
		p.retryAt = now.Add(2 * prof.gossip)
		return
	}
	p.hurried = 0
	p.backoff = next(p.backoff, prof)
	p.retryAt = now.Add(p.backoff/2 + jitter(p.backoff/2))
}

// next doubles a back-off within the profile's bounds.
func next(d time.Duration, prof profile) time.Duration {
	return min(max(2*d, prof.retryMin), prof.retryMax)
}

// tickSeeds tries seeds: each until somebody answered there once, all of them
// again while this node is alone, or has forgotten a dead member. Later the records of the members are
// reason enough to keep trying.
func (l *loop) tickSeeds(ctx context.Context, now time.Time) {
	alone := l.c.view.Load().alive <= 1
	for _, s := range l.seeds {
		if s.busy || s.self || s.met && !alone || now.Before(s.retryAt) {
			continue
		}
		s.busy = l.start(ctx, job{kind: jobSeed, addr: s.addr})
	}
}

func (l *loop) finishSeed(now time.Time, r result) {
	for _, s := range l.seeds {
		if s.addr != r.addr {
			continue
		}
		s.busy = false
		s.self = errors.Is(r.err, noisenet.ErrSelf) || r.peer.ID == l.c.self
		s.met = s.met || r.err == nil
		s.backoff = next(s.backoff, l.c.prof)
		if r.err == nil {
			s.backoff, s.failed = 0, false
		}
		s.retryAt = now.Add(max(s.backoff, l.c.prof.retryMin)/2 + jitter(max(s.backoff, l.c.prof.retryMin)))
		if r.err != nil && !s.self && !s.failed {
			s.failed = true
			l.c.log.Info("seed is not reachable yet", logkey.Addr, s.addr, logkey.Error, r.err)
		}
	}
}

// hinted plans to get a record from the node that says it has it. The pause
// spreads the load: by then others hold the record, too.
func (l *loop) hinted(now time.Time, h hint) {
	have := l.set.Get(h.Node)
	if h.Holder == l.c.self || l.items.Revoked(h.Node) || l.gone(h.Holder) || have != nil && (have.Head.Seq > h.Seq || have.Head.Record == h.Record) {
		return
	}
	// A forged hint costs one request to a member of the forger's choice per
	// node that receives it; only verified records are hinted at further.
	if l.set.Get(h.Holder) == nil {
		l.handle(now, event{kind: eventStranger})
		return
	}
	if old, ok := l.pulls[h.Node]; ok && old.hint.Seq >= h.Seq || !ok && len(l.pulls) >= maxPulls {
		return
	}
	l.pulls[h.Node] = pull{hint: h, due: now.Add(jitter(l.c.prof.grace / 2))}
}

// tickPulls asks each holder for all that is due from it.
func (l *loop) tickPulls(ctx context.Context, now time.Time) {
	due := make(map[ids.NodeID][]ids.NodeID)
	for id, p := range l.pulls {
		if now.Before(p.due) {
			continue
		}
		if have := l.set.Get(id); have != nil && have.Head.Seq >= p.hint.Seq {
			delete(l.pulls, id)
			continue
		}
		if len(due[p.hint.Holder]) < maxGet {
			due[p.hint.Holder] = append(due[p.hint.Holder], id)
		}
	}
	for holder, nodes := range due {
		if !l.start(ctx, job{kind: jobPull, node: holder, nodes: nodes}) {
			return
		}
		for _, id := range nodes {
			delete(l.pulls, id)
		}
	}
}

// syncAny starts a SYNC with a random member that gossip counts.
func (l *loop) syncAny(ctx context.Context) {
	if id, ok := l.anyMember(); ok {
		l.peers[id].busy = l.start(ctx, job{kind: jobSync, node: id})
	}
}

// apart reports whether neither of this node and another can call the other, as their
// records say.
func (l *loop) apart(id ids.NodeID) bool { return l.c.view.Load().ways.apart[id] }

// anyMember picks a random member that gossip counts, that can be called and that is not busy.
func (l *loop) anyMember() (ids.NodeID, bool) {
	var idle []ids.NodeID
	for id, p := range l.peers {
		if p.inGossip && !p.busy && !l.apart(id) {
			idle = append(idle, id)
		}
	}
	if len(idle) == 0 {
		return ids.NodeID{}, false
	}
	return idle[rand.N(len(idle))], true
}
