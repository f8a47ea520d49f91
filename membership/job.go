package membership

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// Jobs are what the loop has done elsewhere because it takes network round
// trips. A job gets values and returns a result; it shares no state.
type jobKind uint8

const (
	jobSync    jobKind = iota // SYNC with a member
	jobConnect                // SYNC with a member, then make it known to gossip
	jobSeed                   // the same with whoever is at an address
	jobPull                   // get the records that hints named
	jobPush                   // hand over this node's own record
	jobItems                  // exchange cluster items with a member
	jobGive                   // hand over new ones
	jobHeard                  // verify those that gossip brought
	jobMeet                   // learn from a live member whom else gossip counts
	jobAccess                 // get the access key in force
	jobBeat                   // sign a heartbeat
	jobKinds
)

// limits of jobs running at once, by kind.
var jobLimit = [jobKinds]int{jobSync: 4, jobConnect: 8, jobSeed: 8, jobPull: 8, jobPush: 8, jobItems: 4, jobGive: 8, jobHeard: 1, jobMeet: 1, jobAccess: 1, jobBeat: 1}

const maxJobs = 4 + 8 + 8 + 8 + 8 + 4 + 8 + 1 + 1 + 1 + 1

type job struct {
	kind  jobKind
	node  ids.NodeID     // all but jobSeed, jobHeard and jobBeat; of jobAccess it may be zero
	addr  netip.AddrPort // jobSeed
	nodes []ids.NodeID   // jobPull
	items []*item.Item   // jobGive
	raws  [][]byte       // jobHeard
	left  bool           // this node had left when the job began
}

type result struct {
	job
	err    error
	peer   noisenet.Peer // jobSeed, if somebody answered
	theirs [32]byte      // the node's digest at the end, if heard
	heard  bool
	ours   [32]byte // this node's digest at the end, if complete
	// complete: a SYNC ran to its end, so the two nodes have nothing left to
	// give each other.
	complete bool

	// The same of cluster items.
	itemsTheirs, itemsOurs    [32]byte
	itemsHeard, itemsComplete bool

	beat *item.Item // jobBeat
}

// start runs a job unless its kind has no room left.
func (l *loop) start(ctx context.Context, j job) bool {
	if l.running[j.kind] >= jobLimit[j.kind] {
		return false
	}
	l.running[j.kind]++
	j.left = l.departed()
	l.workers.Go(func() { l.done <- l.c.do(ctx, j, l.gossip) })
	return true
}

// joiner is the part of memberlist that a job uses.
type joiner interface {
	Join(existing []string) (int, error)
}

// do runs in a goroutine of its own.
func (c *Cluster) do(ctx context.Context, j job, gossip joiner) (r result) {
	r.job = j
	ctx, cancel := context.WithTimeout(ctx, 2*c.prof.call)
	defer cancel()
	switch j.kind {
	case jobPull:
		r.err = c.pull(ctx, j.node, j.nodes, &r)
	case jobSync:
		r.err = c.sync(ctx, j.node, &r)
	case jobSeed:
		if r.peer, r.err = c.transport.Contact(ctx, j.addr); r.err != nil {
			return r
		}
		r.node = r.peer.ID
		r.err = c.connect(ctx, r.node, gossip, &r)
	case jobConnect:
		r.err = c.connect(ctx, j.node, gossip, &r)
	case jobPush:
		r.err = c.push(ctx, j.node, []ids.NodeID{c.self}, &r)
	case jobItems:
		r.err = c.syncItems(ctx, j.node, &r)
	case jobGive:
		r.err = c.give(ctx, j.node, j.items, &r)
	case jobHeard:
		r.err = c.hearItems(j.raws)
	case jobAccess:
		r.err = c.fetchAccess(ctx, j.node)
	case jobBeat:
		r.beat, r.err = c.beat(c.now())
	case jobMeet:
		_, r.err = gossip.Join([]string{gossipName(j.node)})
	}
	return r
}

// connect exchanges records with a node and then lets memberlist join it. The
// order matters: each side's NotifyAlive lets the other in only with a record.
func (c *Cluster) connect(ctx context.Context, node ids.NodeID, gossip joiner, r *result) error {
	if err := c.sync(ctx, node, r); err != nil {
		return err
	}
	if c.view.Load().set.Get(node) == nil {
		return fmt.Errorf("connect to node %s: it has published no record", node)
	}
	if _, err := gossip.Join([]string{gossipName(node)}); err != nil {
		return fmt.Errorf("connect to node %s: %w", node, err)
	}
	return nil
}

// finish takes up the result of a job.
func (l *loop) finish(now time.Time, r result) {
	if r.kind == jobSeed {
		l.finishSeed(now, r)
	}
	if r.kind == jobBeat {
		l.finishBeat(r)
	}
	if r.node.IsZero() || r.node == l.c.self || l.gone(r.node) {
		return
	}
	p := l.peer(r.node)
	if r.kind == jobSync || r.kind == jobConnect || r.kind == jobSeed {
		p.busy = false
	}
	var bad *invalidError
	if errors.As(r.err, &bad) {
		l.accuse(p, r.node, bad)
	}
	if r.complete {
		p.settled = [2][32]byte{r.ours, r.theirs}
		p.syncDue = time.Time{}
	}
	l.finishItems(now, p, r)
	l.noteTold(now, p, r)
	if r.heard {
		l.seen(now, r.node, r.peer.Addr)
		l.compare(now, p, r.theirs)
	}
	switch {
	case r.kind == jobMeet:
		l.gossipAt = now
	case r.kind == jobPull && r.err != nil:
		// Whoever has the record now, the next digest that differs tells.
		l.handle(now, event{kind: eventStranger})
	case r.kind == jobConnect || r.kind == jobSeed && r.err == nil:
		l.rescheduled(now, p, r.err)
	case r.kind == jobSync && r.err != nil && p.inGossip:
		p.syncDue = now.Add(l.c.prof.retryMin + jitter(l.c.prof.retryMin))
	}
}
