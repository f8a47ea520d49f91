package membership

import (
	"context"
	"errors"
	"fmt"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// invalidError says that a peer handed over an entry that no honest node can
// hold.
type invalidError struct{ err error }

func (e *invalidError) Error() string { return "peer sent an invalid entry: " + e.err.Error() }
func (e *invalidError) Unwrap() error { return e.err }

// accuse logs, once per peer, that it handed over what cannot be true. That
// is all that happens to it: nothing it sent took effect, and whether to
// revoke it is the operator's decision.
func (l *loop) accuse(p *peer, from ids.NodeID, bad *invalidError) {
	if p.accused {
		return
	}
	p.accused = true
	l.c.log.Warn("member sent an invalid record or item: it is faulty or hostile", logkey.Node, from, logkey.Error, bad.err)
}

// call is one control request, bounded in time.
func (c *Cluster) call(ctx context.Context, node ids.NodeID, req []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.prof.call)
	defer cancel()
	return c.transport.Call(ctx, node, req)
}

// sync brings the sets of this node and another together, both directions,
// page by page in ascending order of IDs, and notes the digests at the end. The
// cluster items come first, so that a newcomer knows the target epoch before it
// is one of the others.
func (c *Cluster) sync(ctx context.Context, node ids.NodeID, r *result) error {
	if err := c.syncItems(ctx, node, r); err != nil && !olderPeer(err) {
		return err
	}
	if err := c.syncBeats(ctx, node); err != nil && !olderPeer(err) {
		return err
	}
	var after ids.NodeID
	for {
		v := c.view.Load()
		req := syncRequest{After: after, Digest: v.snap.Digest, Heads: headsAfter(v.items, after)}
		b, err := c.call(ctx, node, req.encode())
		if err != nil {
			return fmt.Errorf("sync with node %s: %w", node, err)
		}
		ans, err := parseSyncAnswer(b)
		if err != nil {
			return fmt.Errorf("sync with node %s: %w", node, err)
		}
		if err := c.absorb(ctx, ans.Entries); err != nil {
			return fmt.Errorf("sync with node %s: %w", node, err)
		}
		r.theirs, r.heard = ans.Digest, true
		if err := c.push(ctx, node, ans.Want, r); err != nil {
			return fmt.Errorf("sync with node %s: %w", node, err)
		}
		if !ans.More {
			break
		}
		// Each round must get further, so a peer cannot keep this one busy.
		last := after
		if n := len(ans.Entries); n > 0 {
			last = ans.Entries[n-1].ClaimedID()
		}
		if last.Compare(after) <= 0 {
			return fmt.Errorf("sync with node %s: %w: no progress", node, errMessage)
		}
		after = last
	}
	r.ours, r.complete = c.view.Load().snap.Digest, true
	return nil
}

// olderPeer reports whether a node refused a request, or does not make sense, as
// one does that is older than cluster items or heartbeats: nothing that should
// keep the records from it.
func olderPeer(err error) bool {
	var remote *noisenet.RemoteError
	return errors.As(err, &remote) || errors.Is(err, errMessage)
}

// push hands over the records of some nodes, in pages.
func (c *Cluster) push(ctx context.Context, node ids.NodeID, nodes []ids.NodeID, r *result) error {
	v := c.view.Load()
	items := v.pick(nodes)
	for len(items) > 0 {
		entries := page(items)
		items = items[len(entries):]
		b, err := c.call(ctx, node, pushRequest(v.snap.Digest, entries))
		if err != nil {
			return fmt.Errorf("push records to node %s: %w", node, err)
		}
		if r.theirs, err = parsePushAnswer(b); err != nil {
			return fmt.Errorf("push records to node %s: %w", node, err)
		}
		r.heard = true
	}
	return nil
}

// pull gets the entries of some nodes from one that said it holds them.
func (c *Cluster) pull(ctx context.Context, holder ids.NodeID, nodes []ids.NodeID, r *result) error {
	b, err := c.call(ctx, holder, getRequest(nodes))
	if err != nil {
		return fmt.Errorf("get records from node %s: %w", holder, err)
	}
	digest, entries, err := parseGetAnswer(b)
	if err != nil {
		return fmt.Errorf("get records from node %s: %w", holder, err)
	}
	if err := c.absorb(ctx, entries); err != nil {
		return fmt.Errorf("get records from node %s: %w", holder, err)
	}
	r.theirs, r.heard = digest, true
	return nil
}

// absorb verifies entries, whoever sent them, and has the loop merge them.
// One that cannot be true spoils them all. It runs in the goroutine of a job
// or a request, because signatures take time.
func (c *Cluster) absorb(ctx context.Context, entries []record.Entry) error {
	items, err := verifyAll(c.opts.Identity.Trust, c.opts.Clock, c.view.Load(), entries)
	if err != nil || len(items) == 0 {
		return err
	}
	reply := make(chan [32]byte, 1)
	select {
	case c.merges <- mergeRequest{items: items, reply: reply}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-reply:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// verifyAll returns the items that are new to v.
func verifyAll(trust keys.Trust, clock Clock, v *view, entries []record.Entry) ([]*record.Item, error) {
	var items []*record.Item
	for _, e := range entries {
		// The claimed ID will do: an entry that lies about it fails Verify.
		// Who sends it may not know yet that its node is out.
		if v.cluster.Revoked(e.ClaimedID()) {
			continue
		}
		known := v.set.Claimed(e)
		if known != nil && known.Holds(e) {
			continue
		}
		it, err := record.Verify(trust, clock.For(e.Credential.Begins()), e, known)
		switch {
		case errors.Is(err, keys.ErrExpired), errors.Is(err, keys.ErrNotYetValid):
			// The peer may have known this member in time, or one of the
			// clocks is wrong: no reason to distrust it.
			continue
		case err != nil:
			return nil, &invalidError{err}
		case !v.vouched(it.Cert, it.Entry.Credential):
			continue // the peer may have known it in time, or not know yet
		}
		items = append(items, it)
	}
	return items, nil
}

func headsAfter(items []*record.Item, after ids.NodeID) []record.Head {
	var out []record.Head
	for _, it := range items {
		if it.Head.ID.Compare(after) > 0 {
			out = append(out, it.Head)
		}
	}
	return out
}

// page takes entries off the front of items until pageSize is reached: at
// least one, if there is one.
func page(items []*record.Item) []record.Entry {
	var out []record.Entry
	size := 0
	for _, it := range items {
		n := record.EntrySize(it.Entry)
		if len(out) > 0 && (size+n > pageSize || len(out) == maxEntries) {
			break
		}
		out, size = append(out, it.Entry), size+n
	}
	return out
}
