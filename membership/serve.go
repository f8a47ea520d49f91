package membership

import (
	"context"
	"errors"
	"fmt"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// serve answers one control request; it is noisenet's Handler. The peer has
// proved that it is from.ID and a member. What it says about others is
// verified like anything else. Requests are idempotent.
func (c *Cluster) serve(ctx context.Context, from noisenet.Peer, req []byte) ([]byte, error) {
	if err := c.refuses(from); err != nil {
		return nil, err
	}
	if len(req) < 2 {
		return nil, errMessage
	}
	if req[1] != version {
		return nil, fmt.Errorf("%w: version %d, want %d", errMessage, req[1], version)
	}
	// Pair messages are small and a rotation waits for each, as an attach does for
	// claims: they do not queue behind pages of records, neither the peer's own nor
	// those of others.
	turns, serving := &c.turns, c.serving
	if req[0] == kindPair || req[0] == kindClaim {
		turns, serving = &c.pairs, c.pairing
	}
	give, err := turns.take(ctx, from.ID)
	if err != nil {
		return nil, err
	}
	defer give()
	select {
	case serving <- struct{}{}:
		defer func() { <-serving }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return c.answer(ctx, from, req)
}

func (c *Cluster) answer(ctx context.Context, from noisenet.Peer, req []byte) ([]byte, error) {
	switch req[0] {
	case kindSync:
		return c.serveSync(from, req)
	case kindPush:
		return c.servePush(ctx, from, req)
	case kindGet:
		return c.serveGet(from, req)
	case kindRenew:
		return c.serveRenew(from, req)
	case kindItems:
		return c.serveItems(from, req)
	case kindGive:
		return c.serveGive(from, req)
	case kindRotate:
		return c.serveRotate(from, req)
	case kindPair:
		return c.serveExchange(ctx, from, MaxPair, c.opts.Pair, req)
	case kindClaim:
		return c.serveExchange(ctx, from, MaxClaim, c.opts.Claim, req)
	case kindAccess:
		return c.serveAccess(from, req)
	case kindBeats:
		return c.serveBeats(from, req)
	}
	return nil, fmt.Errorf("%w: kind %d", errMessage, req[0])
}

func (c *Cluster) serveSync(from noisenet.Peer, req []byte) ([]byte, error) {
	m, err := parseSyncRequest(req)
	if err != nil {
		return nil, err
	}
	c.post(event{kind: eventSeen, node: from.ID, addr: from.Addr, digest: m.Digest, hasDigest: true})
	v := c.view.Load()
	give, want := compareHeads(v.items, m.After, m.Heads)
	ans := syncAnswer{Digest: v.snap.Digest, Entries: page(give)}
	if n := len(ans.Entries); n < len(give) {
		// The rest comes in the next round, which starts after the last
		// entry of this one; what is wanted beyond that, too.
		ans.More = true
		want = until(want, give[n-1].Head.ID)
	}
	ans.Want = want
	return ans.encode(), nil
}

func (c *Cluster) servePush(ctx context.Context, from noisenet.Peer, req []byte) ([]byte, error) {
	digest, entries, err := parsePushRequest(req)
	if err != nil {
		return nil, err
	}
	var bad *invalidError
	if err := c.absorb(ctx, entries); errors.As(err, &bad) {
		c.post(event{kind: eventInvalid, node: from.ID, bad: bad})
		// The reason stays in this node's log.
		return nil, errors.New("entry refused")
	} else if err != nil {
		return nil, err
	}
	c.post(event{kind: eventSeen, node: from.ID, addr: from.Addr, digest: digest, hasDigest: true})
	return pushAnswer(c.view.Load().snap.Digest), nil
}

func (c *Cluster) serveGet(from noisenet.Peer, req []byte) ([]byte, error) {
	nodes, rest, err := cutIDs(req[2:], maxGet)
	if err != nil || len(rest) != 0 {
		return nil, errMessage
	}
	c.post(event{kind: eventSeen, node: from.ID, addr: from.Addr})
	v := c.view.Load()
	return getAnswer(v.snap.Digest, page(v.pick(nodes))), nil
}

// compareHeads walks two ascending lists and returns the items above after
// that the other side lacks, and the nodes of which it has something newer.
func compareHeads(items []*record.Item, after ids.NodeID, theirs []record.Head) (give []*record.Item, want []ids.NodeID) {
	for len(items) > 0 && items[0].Head.ID.Compare(after) <= 0 {
		items = items[1:]
	}
	for len(items) > 0 || len(theirs) > 0 {
		var mine, other record.Head
		var it *record.Item
		if len(theirs) == 0 || len(items) > 0 && items[0].Head.ID.Compare(theirs[0].ID) <= 0 {
			it, items = items[0], items[1:]
			mine = it.Head
		}
		if len(theirs) > 0 && (it == nil || theirs[0].ID == mine.ID) {
			other, theirs = theirs[0], theirs[1:]
		}
		g, w := record.Missing(mine, other)
		if g {
			give = append(give, it)
		}
		if w {
			want = append(want, other.ID)
		}
	}
	return give, want
}

// until cuts an ascending list after last.
func until(nodes []ids.NodeID, last ids.NodeID) []ids.NodeID {
	for i, id := range nodes {
		if id.Compare(last) > 0 {
			return nodes[:i]
		}
	}
	return nodes
}
