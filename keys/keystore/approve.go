package keystore

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// maxWaiting bounds the nodes that a token lists as waiting for approval: its
// holder must not fill the disk.
const maxWaiting = 64

// askOperator returns nil if the operator has approved exactly this request,
// else ErrTokenWaiting or ErrTokenDenied. A new request is on disk when it
// returns, so that it can be approved after a restart, too.
func (i *Issuer) askOperator(n int, now time.Time, from netip.Addr, req keys.JoinRequest) error {
	have := i.ledger.Tokens[n].Waiting
	w := slices.IndexFunc(have, func(w waiting) bool {
		return w.Identity == req.Identity && w.Noise == req.Noise && w.Hostname == req.Hostname
	})
	if w >= 0 {
		switch have[w].Decided {
		case approved:
			return nil
		case denied:
			return ErrTokenDenied
		}
		if !i.unsaved {
			return ErrTokenWaiting
		}
	}
	l := i.ledger.clone()
	t := &l.Tokens[n]
	if w < 0 {
		// A node that comes under another name waits anew.
		t.Waiting = slices.DeleteFunc(t.Waiting, func(w waiting) bool { return w.Identity == req.Identity && w.Decided != denied })
		if len(t.Waiting) >= maxWaiting {
			return fmt.Errorf("%d nodes wait already: %w", len(t.Waiting), ErrTokenWaiting)
		}
		t.Waiting = append(t.Waiting, waiting{
			Identity: req.Identity, Noise: req.Noise, Hostname: req.Hostname, From: from, Since: now.UTC().Truncate(time.Second),
		})
	}
	if err := i.put(l); err != nil {
		return err
	}
	return ErrTokenWaiting
}

// DecideJoin approves or denies the join of a node that waits. A node that is
// approved is admitted when it asks again. ErrTokenUnknown; ErrNotWaiting if no
// such node waits.
func (i *Issuer) DecideJoin(id keys.TokenID, node ids.NodeID, allow bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.decideJoin(id, node, allow); err != nil {
		return fmt.Errorf("decide about node %v and token %v: %w", node, id, err)
	}
	return nil
}

func (i *Issuer) decideJoin(id keys.TokenID, node ids.NodeID, allow bool) error {
	if err := i.open(); err != nil {
		return err
	}
	l := i.ledger.clone()
	n, ok := l.find(id)
	if !ok {
		return ErrTokenUnknown
	}
	w := slices.IndexFunc(l.Tokens[n].Waiting, func(w waiting) bool { return w.Identity.ID() == node && w.Decided == "" })
	if w < 0 {
		return ErrNotWaiting
	}
	l.Tokens[n].Waiting[w].Decided = denied
	if allow {
		l.Tokens[n].Waiting[w].Decided = approved
	}
	return i.put(l)
}
