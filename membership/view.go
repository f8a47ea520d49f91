package membership

import (
	"net/netip"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// view is what the loop shows to every other goroutine: a snapshot for users,
// and the set behind it for answering requests. It is immutable.
type view struct {
	snap  Snapshot
	set   record.Set
	items []*record.Item // of set, ascending by ID
	aside []*record.Item // of revoked nodes; for the cache only
	ack   ack            // payload for answers to pings, but for the time

	cluster       item.Set // cluster items; never written to
	clusterDigest [32]byte
	beats         item.Heartbeats // never written to

	alive int // nodes that gossip counts, this one included
	ways  ways
}

// newView builds a view. peers is only read, and only here.
func newView(self ids.NodeID, set record.Set, cluster item.Set, peers map[ids.NodeID]*peer) *view {
	v := &view{set: set.Clone(), alive: 1, cluster: cluster, clusterDigest: cluster.Digest()}
	v.items = v.set.Items()
	digest, target := v.set.Digest(), cluster.Target()
	v.ack = ack{Digest: digest, Epoch: target.Epoch, Items: v.clusterDigest}
	for _, p := range peers {
		if p.inGossip {
			v.alive++
		}
	}
	v.ways = newWays(self, &v.set, v.items, peers)
	v.snap = Snapshot{
		Self: self, Digest: digest, Target: target, Revoked: cluster.Revocations(), Members: make([]Member, 0, len(v.items)),
		RevokedIssuers: cluster.RevokedIssuers(), Networks: cluster.Networks(), Floor: cluster.Floor(),
	}
	for _, it := range v.items {
		if at, left := it.Node.Left(); left {
			v.snap.Left = append(v.snap.Left, Departed{ID: it.Head.ID, Hostname: it.Cert.Hostname, Cert: it.Cert, At: at})
			if it.Head.ID != self {
				continue
			}
		}
		m := Member{
			ID: it.Head.ID, Hostname: it.Cert.Hostname, Serial: it.Cert.Serial, Cert: it.Cert, Record: it.Node, Apart: v.ways.apart[it.Head.ID],
		}
		switch p := peers[it.Head.ID]; {
		case it.Head.ID == self:
			m.State, m.Synced, m.SameItems = StateAlive, true, true
		case p != nil:
			m.State, m.Synced, m.LastSeen, m.Addr, m.Hybrid, m.Version = p.state, p.synced(digest), p.lastSeen, p.addr, p.hybrid, p.version
			m.Clock, m.ClockAt = p.clock, p.clockAt
			m.SameItems, m.Told = p.sameItems(v.clusterDigest), p.told
		}
		v.snap.Members = append(v.snap.Members, m)
	}
	return v
}

// left reports whether a node has left the cluster.
func (v *view) left(id ids.NodeID) bool {
	it := v.set.Get(id)
	return it != nil && it.Head.Final()
}

// stated returns the latest date of what others than this node's own issuer,
// whose key is own, have signed: it was so late by then. Zero if there is nothing.
func (v *view) stated(own keys.IssuerPublic) (last time.Time) {
	note := func(signer [32]byte, t time.Time) {
		if signer != [32]byte(own) && t.After(last) {
			last = t
		}
	}
	for _, it := range v.items {
		note(it.Cert.Issuer, it.Cert.NotBefore)
	}
	for _, it := range append(v.cluster.Items(), v.beats.Items()...) {
		note(it.Signer, it.Created)
	}
	return last
}

// pick returns those of the items of nodes that exist.
func (v *view) pick(nodes []ids.NodeID) []*record.Item {
	var items []*record.Item
	for _, id := range nodes {
		if it := v.set.Get(id); it != nil {
			items = append(items, it)
		}
	}
	return items
}

// differs reports whether v shows a reader anything but newer LastSeen and
// Addr, or a newer Heartbeat, than old does.
func (v *view) differs(old *view) bool {
	if v.snap.Digest != old.snap.Digest || v.snap.Target != old.snap.Target ||
		len(v.snap.Members) != len(old.snap.Members) || len(v.snap.Revoked) != len(old.snap.Revoked) ||
		!slices.EqualFunc(v.snap.RevokedIssuers, old.snap.RevokedIssuers, sameRevocation) ||
		!slices.EqualFunc(v.snap.Networks, old.snap.Networks, sameNetwork) {
		return true
	}
	if v.snap.Floor != old.snap.Floor || !slices.Equal(v.snap.Stale, old.snap.Stale) || !slices.Equal(v.snap.Conflicts, old.snap.Conflicts) {
		return true
	}
	for i, m := range v.snap.Members {
		// Equal digests: the same records in the same order.
		if o := old.snap.Members[i]; m.State != o.State || m.Synced != o.Synced || m.Hybrid != o.Hybrid || m.Told != o.Told {
			return true
		}
	}
	return false
}

// sameNetwork compares states of networks; one has one only.
func sameNetwork(a, b item.Network) bool {
	return a.Name == b.Name && a.Generation == b.Generation && a.Edit == b.Edit && a.Encrypted == b.Encrypted && a.Moving == b.Moving && a.VNI == b.VNI
}

func sameRevocation(a, b item.IssuerRevocation) bool {
	return a.Issuer == b.Issuer && a.Undo == b.Undo && a.Reason == b.Reason
}

// peer is what the loop knows about another node besides its record. Peers
// exist only for nodes that have proved an identity or have a record, so
// their number is bounded by the certificates that issuers have signed.
type peer struct {
	state    State
	lastSeen time.Time
	addr     netip.AddrPort
	hybrid   bool  // the last handshake with it was
	version  uint8 // of the protocol, in that handshake

	clock, clockAt time.Time // what its system clock showed, and this node's then

	inGossip bool      // memberlist counts the node
	since    time.Time // since when

	digest    [32]byte // of its set, as it said last
	hasDigest bool
	settled   [2][32]byte // digests, ours and its, after a SYNC that left nothing to exchange

	items        [32]byte // digest of its cluster items, as it said last
	hasItems     bool
	itemsSettled [2][32]byte  // as settled, of items
	itemsDue     time.Time    // zero: no exchange is planned
	itemsBusy    bool         // an exchange is running
	give         []*item.Item // it has yet to be handed these; at most maxGive

	pushDue bool      // it has yet to be told this node's newest record
	pushAt  time.Time // not before
	told    bool      // it knows that this node has left
	syncDue time.Time // zero: no SYNC is planned
	retryAt time.Time // next attempt to get it into gossip
	backoff time.Duration
	hurried int  // quick attempts since the last failure
	busy    bool // a job with this node is running

	accused  bool // its invalid entry was logged
	conflict bool // its double use of a sequence number was logged
}

// synced reports whether p and this node, whose digest is ours, have nothing
// to give each other: equal digests, or different ones that a SYNC could not
// bring together (a member whose certificate ran out cannot be introduced to
// a node that never knew it) and that have not changed since.
func (p *peer) synced(ours [32]byte) bool {
	return p.hasDigest && (p.digest == ours || p.settled == [2][32]byte{ours, p.digest})
}

// update derives the state to show. memberlist does not tell whom it
// suspects; silence for longer than two rounds of its probing is what this
// node can see itself.
func (p *peer) update(now time.Time, patience time.Duration, apart bool) {
	last := p.lastSeen
	if p.since.After(last) {
		last = p.since
	}
	switch {
	case p.inGossip && now.Sub(last) <= patience && apart:
		p.state = StateIndirect
	case p.inGossip && now.Sub(last) <= patience:
		p.state = StateAlive
	case p.inGossip:
		p.state = StateSuspect
	case p.since.IsZero():
		p.state = StateUnknown
	default:
		p.state = StateDead
	}
}
