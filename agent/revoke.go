package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nearest"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// noteRevoked takes notice of nodes that were thrown out since the last turn.
// That their records are gone is what takes them out of tunnels, filters and
// forwarding, in this order and in this very turn; here goes what would hold
// on to them after a restart.
func (l *loop) noteRevoked(snap membership.Snapshot) {
	// The root can void what a stolen issuer key has revoked.
	maps.DeleteFunc(l.revoked, func(id ids.NodeID, _ bool) bool {
		return !slices.ContainsFunc(snap.Revoked, func(r item.Revocation) bool { return r.Node == id })
	})
	for _, r := range snap.Revoked {
		if l.revoked[r.Node] {
			continue
		}
		l.revoked[r.Node] = true
		l.release(r.Node)
		if l.round > 0 { // else it was so before this agent
			ref := api.NodeRef{ID: r.Node, Name: r.Name}
			l.note(api.Event{Time: l.now(), Kind: api.EventNodeRevoked, Node: &ref, Text: r.Reason})
		}
	}
}

// underlayOf lists the addresses at which a node's plaintext VTEP may be.
func underlayOf(members []Member, id ids.NodeID) []netip.Addr {
	var out []netip.Addr
	for _, m := range members {
		if m.ID != id {
			continue
		}
		for _, u := range m.Record.Underlay {
			out = append(out, u.Control.Addr())
		}
	}
	return out
}

// without returns what a former agent had set, but for a node.
func (a applied) without(id ids.NodeID, underlay []netip.Addr) applied {
	inner := id.InnerAddr()
	gone := func(v netip.Addr) bool { return v == inner || slices.Contains(underlay, v) }
	a.Secure.Routes = slices.DeleteFunc(slices.Clone(a.Secure.Routes), func(r secure.Route) bool { return r.Peer == inner })
	a.Secure.Members = slices.DeleteFunc(slices.Clone(a.Secure.Members), func(m secure.Member) bool { return m.Inner == inner })
	a.Pairs = slices.DeleteFunc(slices.Clone(a.Pairs), func(p appliedPair) bool { return p.Peer == id })
	a.Networks = slices.Clone(a.Networks)
	for i, n := range a.Networks {
		a.Networks[i].Flood = slices.DeleteFunc(slices.Clone(n.Flood), gone)
		a.Networks[i].Remotes = slices.DeleteFunc(slices.Clone(n.Remotes), func(r vxlan.Remote) bool { return gone(r.VTEP) })
	}
	return a
}

// revokedProblem says that this node itself was thrown out.
func (l *loop) revokedProblem() []api.Problem {
	if !l.revoked[l.identity.ID] {
		return nil
	}
	p := api.Problem{
		Code: "node-revoked", Subject: l.identity.ID.String(),
		Message: "this node was revoked: the other nodes refuse it, and it has no tunnels",
		Fix:     "to join again as a new node: secure-overlay down, empty the data directory, and join with a new token",
	}
	for _, r := range l.gossip.Snapshot().Revoked {
		if r.Node == l.identity.ID {
			p.Message += fmt.Sprintf(" (at %s%s)", r.Created.UTC().Format(time.RFC3339), reasonText(r.Reason))
		}
	}
	return []api.Problem{p}
}

func reasonText(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// Revoke implements api.Revoker.
func (a *Agent) Revoke(ctx context.Context, req api.RevokeRequest) (api.Revocation, error) {
	var target item.Revocation
	var p pairs
	var err error
	if doErr := a.do(ctx, func(_ context.Context, l *loop) {
		target, err = l.revocationOf(req)
		p = l.rot.pairs
	}); doErr != nil {
		return api.Revocation{}, doErr
	}
	if err != nil {
		return api.Revocation{}, err
	}
	done, err := p.Revoke(ctx, target)
	if err != nil {
		return api.Revocation{}, a.revokeError(ctx, target, err)
	}
	var out api.Revocation
	err = a.do(ctx, func(_ context.Context, l *loop) { out = l.revocation(done, l.gossip.Snapshot()) })
	return out, err
}

func (a *Agent) revokeError(ctx context.Context, r item.Revocation, err error) error {
	name := cmp.Or(r.Name, r.Node.Short())
	switch {
	case errors.Is(err, membership.ErrIssuerRevoked):
		return typed(api.CodeRefused, err, "the issuer key of this node is revoked, so it cannot revoke "+name,
			"run the command on a node with another issuer: secure-overlay issuer ls")
	case errors.Is(err, membership.ErrNotIssuer):
		issuers := ""
		_ = a.do(ctx, func(_ context.Context, l *loop) { issuers = l.issuerNames() })
		return typed(api.CodeRefused, err, "this node holds no issuer key, so it cannot revoke "+name,
			"run the command on a node that has one: "+cmp.Or(issuers, "the one where the cluster was initialised"))
	case errors.Is(err, membership.ErrRevokeSelf):
		return typed(api.CodeRefused, err, "this is "+name+": a node does not revoke itself",
			"run the command on another node that has an issuer key")
	case errors.Is(err, item.ErrMalformed):
		return typed(api.CodeInvalid, err, fmt.Sprintf("the reason is not one line of at most %d bytes of printable text", item.MaxReason), "")
	}
	return err
}

// issuerNames lists the members that say that they have an issuer key, without
// those whose key is revoked.
func (l *loop) issuerNames() string {
	var out []string
	snap := l.gossip.Snapshot()
	for _, m := range snap.Members {
		if m.Cert.Roles&keys.RoleIssuer != 0 && !snap.IssuerRevoked(m.Cert.Issuer) {
			out = append(out, m.Hostname)
		}
	}
	return strings.Join(out, ", ")
}

// revocationOf finds the node that a request means: by its name, by its ID, or
// by the beginning of its ID. A node that nobody knows, or that is revoked
// already, has to be named by its whole ID.
func (l *loop) revocationOf(req api.RevokeRequest) (item.Revocation, error) {
	r := item.Revocation{Reason: req.Reason}
	if _, err := (item.Revocation{Node: l.identity.ID, Reason: req.Reason}).Content([32]byte{}); err != nil {
		return r, typed(api.CodeInvalid, err, fmt.Sprintf("the reason is not one line of at most %d bytes of printable text", item.MaxReason), "")
	}
	var found []membership.Member
	var known []string
	for _, m := range l.gossip.Snapshot().Members {
		known = append(known, m.Hostname)
		if m.Hostname == req.Node || req.Node != "" && strings.HasPrefix(m.ID.String(), req.Node) {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 1:
		r.Node, r.Name = found[0].ID, found[0].Hostname
		return r, nil
	case 0:
		id, err := ids.ParseNodeID(req.Node)
		if err != nil {
			return r, typed(api.CodeNotFound, nil, fmt.Sprintf("there is no node %q", req.Node), nearestNode(req.Node, known))
		}
		r.Node = id
		return r, nil
	}
	var which []string
	for _, m := range found {
		which = append(which, m.ID.String())
	}
	return r, typed(api.CodeInvalid, nil, fmt.Sprintf("%q means %d nodes: %s", req.Node, len(found), strings.Join(which, ", ")), "give the ID")
}

// Revocations implements api.Revoker.
func (a *Agent) Revocations(ctx context.Context) ([]api.Revocation, error) {
	var out []api.Revocation
	err := a.do(ctx, func(_ context.Context, l *loop) {
		snap := l.gossip.Snapshot()
		for _, r := range snap.Revoked {
			out = append(out, l.revocation(r, snap))
		}
	})
	slices.SortFunc(out, func(x, y api.Revocation) int { return x.Created.Compare(y.Created) })
	return out, err
}

// revocation shows a revocation and who is known to have it. Nodes that gossip
// does not see cannot be asked; they apply it before anything else when they
// are back.
func (l *loop) revocation(r item.Revocation, snap membership.Snapshot) api.Revocation {
	out := api.Revocation{
		Node: api.NodeRef{ID: r.Node, Name: r.Name}, Reason: r.Reason, Created: r.Created,
	}
	out.Applied, out.Waiting = appliedBy(snap, r.Node)
	return out
}

// appliedBy counts the members but one that are known to have the same cluster
// items as this node, and lists the others.
func appliedBy(snap membership.Snapshot, but ids.NodeID) (n api.Count, waiting []api.RevocationWait) {
	for _, m := range snap.Members {
		if m.ID == but {
			continue
		}
		n.Total++
		switch {
		case m.SameItems:
			n.OK++
		default:
			waiting = append(waiting, api.RevocationWait{NodeRef: api.NodeRef{ID: m.ID, Name: m.Hostname}, State: m.State.String()})
		}
	}
	return n, waiting
}

// nearestNode says which node may have been meant.
func nearestNode(name string, known []string) string {
	if near, ok := nearest.Of(name, known); ok {
		return "did you mean " + near + "?"
	}
	return "secure-overlay members; a node that is not listed has to be named by its whole ID"
}
