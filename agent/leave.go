package agent

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership"
)

// stateLeft is the state of a member that has left; all other words are gossip's.
const stateLeft = "left"

// departer tells the cluster that this node leaves; *membership.Cluster.
type departer interface {
	Depart(ctx context.Context, at time.Time) error
}

// departing is the disk of a node that leaves; *keystore.Store.
type departing interface {
	Departed() time.Time
	Depart(at time.Time) (time.Time, error)
	EndDeparture() error
	Wipe(others ...string) error
}

// CacheFiles are the agent's own files in the data directory that are of the
// cluster: they go with the node's keys when it leaves. The event log is the
// machine's, and stays.
func CacheFiles() []string { return []string{cacheFile, itemsFile} }

// noteLeft takes notice of nodes that have left since the last turn. As with
// revoked nodes, that their records are gone takes them out of tunnels, filters
// and forwarding, in this very turn.
func (l *loop) noteLeft(snap membership.Snapshot) {
	for _, d := range snap.Left {
		if l.left[d.ID] {
			continue
		}
		l.left[d.ID] = true
		l.release(d.ID)
		if l.round > 0 { // else it was so before this agent
			ref := api.NodeRef{ID: d.ID, Name: d.Hostname}
			l.note(api.Event{Time: l.now(), Kind: api.EventNodeLeft, Node: &ref})
		}
	}
}

// release lets go of what a restarted agent would hold on to of a node.
func (l *loop) release(id ids.NodeID) {
	l.restored = l.restored.without(id, underlayOf(l.lastIn.Members, id))
	delete(l.facts.Former, id.InnerAddr())
	if id == l.identity.ID {
		l.holdUntil = time.Time{} // nothing of what was is kept
	}
}

// gone reports whether a node has left or was thrown out.
func (l *loop) gone(id ids.NodeID) bool { return l.left[id] || l.revoked[id] }

// expelled lists such nodes.
func (l *loop) expelled() []ids.NodeID {
	return slices.AppendSeq(slices.Collect(maps.Keys(l.revoked)), maps.Keys(l.left))
}

// leftProblem says that this node itself has left.
func (l *loop) leftProblem() []api.Problem {
	if !l.left[l.identity.ID] {
		return nil
	}
	return []api.Problem{{
		Code: "node-left", Subject: l.identity.ID.String(),
		Message: "this node has left the cluster: the other nodes refuse it, and it has no tunnels",
		Fix:     "secure-overlay leave, which ends the agent and removes the keys; then the node can join again with a new token",
	}}
}

// Leave implements api.Leaver.
func (a *Agent) Leave(ctx context.Context, req api.LeaveRequest) (api.Departure, error) {
	var to departer
	var err error
	if doErr := a.do(ctx, func(_ context.Context, l *loop) { to, err = l.departs, l.mayLeave(req.Force) }); doErr != nil {
		return api.Departure{}, doErr
	}
	if err != nil {
		return api.Departure{}, err
	}
	// On disk before anybody hears of it: a crash in between leaves a node that
	// has left and says so when it starts, not a member that nobody accepts.
	at, err := a.disk.Depart(a.opts.Clock.Now())
	if err != nil {
		return api.Departure{}, err
	}
	if err := to.Depart(ctx, at); err != nil {
		return api.Departure{}, typed(api.CodeOf(err), err, "the node leaves, but cannot tell the others: "+err.Error(), "secure-overlay leave, once more; or secure-overlay down, then leave --force")
	}
	return a.Departure(ctx)
}

// mayLeave refuses to take the cluster's last issuer key along: without one
// nobody joins and certificates run out.
func (l *loop) mayLeave(force bool) error {
	if force || !l.canIssue || l.left[l.identity.ID] {
		return nil
	}
	snap := l.gossip.Snapshot()
	for _, m := range snap.Members {
		// A node with an issuer shows a certificate that its own issuer signed.
		if m.ID != l.identity.ID && m.Cert.Roles&keys.RoleIssuer != 0 && !snap.IssuerRevoked(m.Cert.Issuer) {
			return nil
		}
	}
	return api.NewError(api.CodeRefused, "this node holds the only issuer key of the cluster: without it nobody joins, and no certificate is renewed",
		"install another issuer first: secure-overlay issuer request, on another node; or secure-overlay leave --force")
}

// Departure implements api.Leaver.
func (a *Agent) Departure(ctx context.Context) (api.Departure, error) {
	var out api.Departure
	var err error
	if doErr := a.do(ctx, func(_ context.Context, l *loop) { out, err = l.departure() }); doErr != nil {
		return out, doErr
	}
	return out, err
}

// departure shows who knows that this node has left.
func (l *loop) departure() (api.Departure, error) {
	snap := l.gossip.Snapshot()
	i := slices.IndexFunc(snap.Left, func(d membership.Departed) bool { return d.ID == l.identity.ID })
	if i < 0 {
		return api.Departure{}, api.NewError(api.CodeRefused, "this node has not left: it is a member of the cluster", "secure-overlay leave")
	}
	out := api.Departure{Node: l.self(), Left: snap.Left[i].At}
	for _, m := range snap.Members {
		if m.ID == l.identity.ID || m.Apart {
			continue // it hears of it from others, and has no way to say so here
		}
		out.Told.Total++
		if m.Told {
			out.Told.OK++
			continue
		}
		out.Waiting = append(out.Waiting, api.RevocationWait{NodeRef: api.NodeRef{ID: m.ID, Name: m.Hostname}, State: m.State.String()})
	}
	return out, nil
}

// FinishLeave implements api.Leaver. Run removes the keys when nothing uses them
// any more. A crash at any point leaves what the command finishes without an
// agent.
func (a *Agent) FinishLeave(ctx context.Context) (api.LeaveResult, error) {
	var out api.LeaveResult
	var err error
	if out.Departure, err = a.Departure(ctx); err != nil {
		return out, err
	}
	if err := a.disk.EndDeparture(); err != nil {
		return out, err
	}
	if out.DataDir, err = filepath.Abs(a.opts.Config.DataDir); err != nil {
		return out, fmt.Errorf("find data directory: %w", err)
	}
	if doErr := a.do(ctx, func(ctx context.Context, l *loop) {
		out.Removed, err = l.takeDown(ctx, func() {
			if err := l.gossip.Leave(ctx); err != nil {
				l.log.Debug("leave", logkey.Error, err)
			}
		})
		l.wipes = err == nil
	}); doErr != nil {
		return out, doErr
	}
	if err != nil {
		err = typed(api.CodeFailed, err, "the node has left, but not everything of it could be removed: "+err.Error(), "secure-overlay leave, once more")
	}
	return out, err
}

// taken ends an agent whose loop was taken down: if the node has left, what made
// it a member goes from the disk. Nothing of this process uses it any more.
func (a *Agent) taken(l *loop) error {
	if !l.wipes {
		return l.downError
	}
	if err := a.disk.Wipe(CacheFiles()...); err != nil {
		return fmt.Errorf("remove the keys of a node that has left: %w", err)
	}
	return nil
}
