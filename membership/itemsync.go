package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// absorbItems verifies items and merges them.
func (c *Cluster) absorbItems(raws [][]byte) error {
	got, err := c.accept(raws)
	if err != nil {
		return err
	}
	var beats []*item.Item
	got = slices.DeleteFunc(got, func(it *item.Item) bool {
		isBeat := it.Slot.Kind == item.KindHeartbeat
		if isBeat {
			beats = append(beats, it)
		}
		return isBeat
	})
	if len(got) > 0 {
		err = c.items.merge(got, false)
	}
	c.showBeats(beats)
	return err
}

// hearItems does the same with items from gossip: each for itself, because they
// may come from different members, and nobody is blamed, because gossip does
// not tell who made it.
func (c *Cluster) hearItems(raws [][]byte) error {
	var errs []error
	for _, raw := range raws {
		errs = append(errs, c.absorbItems([][]byte{raw}))
	}
	return errors.Join(errs...)
}

// syncItems brings the items of this node and another together, both
// directions. A set is small, so one round trip compares all of it.
func (c *Cluster) syncItems(ctx context.Context, node ids.NodeID, r *result) error {
	v := c.view.Load()
	b, err := c.call(ctx, node, itemsRequest{v.clusterDigest, v.cluster.Heads()}.encode())
	if err != nil {
		return fmt.Errorf("exchange items with node %s: %w", node, err)
	}
	ans, err := parseItemsAnswer(b)
	if err == nil {
		err = c.absorbItems(ans.Items)
	}
	if err != nil {
		return fmt.Errorf("exchange items with node %s: %w", node, err)
	}
	r.itemsTheirs, r.itemsHeard = ans.Digest, true
	v = c.view.Load()
	var give []*item.Item
	for _, slot := range ans.Want {
		if it := v.cluster.Get(slot); it != nil {
			give = append(give, it)
		}
	}
	if len(give) > 0 {
		if err := c.give(ctx, node, give, r); err != nil {
			return err
		}
	}
	r.itemsOurs, r.itemsComplete = c.view.Load().clusterDigest, true
	return nil
}

// give hands items to a node.
func (c *Cluster) give(ctx context.Context, node ids.NodeID, give []*item.Item, r *result) error {
	b, err := c.call(ctx, node, giveRequest(c.view.Load().clusterDigest, raws(give)))
	if err != nil {
		return fmt.Errorf("give items to node %s: %w", node, err)
	}
	if r.itemsTheirs, err = parseGiveAnswer(b); err != nil {
		return fmt.Errorf("give items to node %s: %w", node, err)
	}
	r.itemsHeard = true
	return nil
}

func raws(list []*item.Item) [][]byte {
	out := make([][]byte, len(list))
	for i, it := range list {
		out[i] = it.Raw
	}
	return out
}

func (c *Cluster) serveItems(from noisenet.Peer, req []byte) ([]byte, error) {
	m, err := parseItemsRequest(req)
	if err != nil {
		return nil, err
	}
	c.post(event{kind: eventSeen, node: from.ID, addr: from.Addr, items: m.Digest, hasItems: true})
	v := c.view.Load()
	give, want := v.cluster.Compare(m.Heads)
	return itemsAnswer{v.clusterDigest, want, raws(give)}.encode(), nil
}

func (c *Cluster) serveGive(from noisenet.Peer, req []byte) ([]byte, error) {
	digest, got, err := parseGiveRequest(req)
	if err != nil {
		return nil, err
	}
	var bad *invalidError
	if err := c.absorbItems(got); errors.As(err, &bad) {
		c.post(event{kind: eventInvalid, node: from.ID, bad: bad})
		// The reason stays in this node's log.
		return nil, errors.New("item refused")
	} else if err != nil {
		return nil, err
	}
	c.post(event{kind: eventSeen, node: from.ID, addr: from.Addr, items: digest, hasItems: true})
	return giveAnswer(c.view.Load().clusterDigest), nil
}
