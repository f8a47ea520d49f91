package agent

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership"
)

// Keys implements api.Keys.
func (a *Agent) Keys(ctx context.Context) (api.KeyStatus, error) {
	var s api.KeyStatus
	err := a.do(ctx, func(ctx context.Context, l *loop) {
		l.show(ctx)
		s = l.keyStatus()
	})
	return s, err
}

func (l *loop) keyStatus() api.KeyStatus {
	s := api.KeyStatus{
		Schema:      api.Schema,
		Target:      l.keyTarget(),
		RotateEvery: api.Duration(l.cfg.Keys.RotateEvery),
		Blocked:     l.facts.Plan.Blocked,
		Counts:      l.rot.counts,
	}
	s.NextRotation, _ = l.nextRotation()
	for _, d := range l.facts.Devices {
		k := api.KeyDevice{
			Epoch: d.Epoch, Driver: d.Driver, Label: label(d.Driver), Created: l.rot.since[d.Epoch], Current: d.Epoch == l.target.Epoch,
			Dropped: d.Dropped,
		}
		if k.Current {
			s.Started = k.Created
		}
		for _, e := range l.rot.routes {
			if e == d.Epoch {
				k.Peers++
			}
		}
		s.Devices = append(s.Devices, k)
	}
	snap := l.gossip.Snapshot()
	for _, g := range l.facts.Plan.Progress {
		s.Peers = append(s.Peers, l.keyPeer(g, snap))
	}
	for _, m := range snap.Members {
		n := api.KeyNode{NodeRef: api.NodeRef{ID: m.ID, Name: m.Hostname}, Self: m.ID == l.identity.ID, State: m.State.String()}
		for _, t := range m.Record.Tunnels {
			if !slices.Contains(n.Epochs, t.Epoch) {
				n.Epochs = append(n.Epochs, t.Epoch)
			}
		}
		encrypted := false
		for _, nw := range m.Record.Networks {
			encrypted = encrypted || nw.Encrypted || nw.Both
		}
		if encrypted {
			s.Nodes = append(s.Nodes, n)
		}
	}
	byName := func(x, y api.NodeRef) int { return cmp.Or(cmp.Compare(x.Name, y.Name), x.ID.Compare(y.ID)) }
	slices.SortFunc(s.Peers, func(x, y api.KeyPeer) int { return byName(x.NodeRef, y.NodeRef) })
	slices.SortFunc(s.Nodes, func(x, y api.KeyNode) int { return byName(x.NodeRef, y.NodeRef) })
	return s
}

// keySummary is what status says about keys.
func (l *loop) keySummary() api.KeySummary {
	s := api.KeySummary{Target: l.target.Epoch, Started: l.rot.since[l.target.Epoch], Blocked: l.facts.Plan.Blocked}
	s.NextRotation, _ = l.nextRotation()
	for _, g := range l.facts.Plan.Progress {
		s.OnTarget.Total++
		if g.Tx == l.target.Epoch {
			s.OnTarget.OK++
		}
	}
	return s
}

func (l *loop) keyTarget() api.KeyTarget {
	t := api.KeyTarget{Epoch: l.target.Epoch, Driver: cmp.Or(l.target.Driver, config.DriverAuto), Created: l.target.Created}
	if l.target.Reason != 0 {
		t.Reason = l.target.Reason.String()
	}
	return t
}

// keyPeer describes a pair.
func (l *loop) keyPeer(g rotate.Progress, snap membership.Snapshot) api.KeyPeer {
	p := api.KeyPeer{
		NodeRef: api.NodeRef{ID: g.Peer}, Epoch: g.Tx, Goal: g.Goal, Step: api.KeyStep(g.Step),
		Since: g.Since, Reason: g.Reason, FullMTU: g.FullMTU,
	}
	if m, ok := snap.Member(g.Peer); ok {
		p.Name = m.Hostname
	}
	if s, d, ok := l.peerState(g.Peer); ok {
		p.Driver, p.InUDP, p.LastHandshake, p.PQ = labelOf(d, s), s.InUDP, l.signs.shown(l.now(), d.Name, s), l.rot.hybrid[s.Key]
		p.UDPOnly = s.InUDP && !l.lastIn.meeting(g.Peer, d.Epoch).choice
	}
	if was := l.rot.switched[g.Peer]; was.to == g.Tx {
		p.Switched = was.at
	}
	return p
}

// nameOf is how a node is shown to people.
func (l *loop) nameOf(id ids.NodeID) api.NodeRef {
	ref := api.NodeRef{ID: id}
	if m, ok := l.gossip.Snapshot().Member(id); ok {
		ref.Name = m.Hostname
	}
	return ref
}

// noteDevices remembers and tells when a device came and when it went.
func (l *loop) noteDevices() {
	now := l.now()
	have := map[ids.Epoch]string{}
	for _, d := range l.facts.Devices {
		have[d.Epoch] = d.Driver
		if _, known := l.rot.since[d.Epoch]; known {
			continue
		}
		l.rot.since[d.Epoch] = now
		if l.round == 1 {
			continue // it was there before this agent
		}
		l.rot.counts.Rotations++
		l.log.Info("key epoch started", logEpoch(d.Epoch, d.Driver)...)
		l.note(api.KeyEvent{Time: now, Kind: api.EventEpochStarted, Epoch: d.Epoch, Driver: d.Driver, Text: "tunnel device made with fresh keys"})
	}
	for e, since := range l.rot.since {
		if _, ok := have[e]; ok {
			continue
		}
		delete(l.rot.since, e)
		l.log.Info("key epoch ended", logEpoch(e, "")...)
		l.note(api.KeyEvent{
			Time: now, Kind: api.EventEpochEnded, Epoch: e, Seconds: now.Sub(since).Seconds(),
			Text: "tunnel device removed, its keys are gone",
		})
	}
}

// noteTarget tells when the cluster wants another epoch, and whether this node
// cannot follow.
func (l *loop) noteTarget() {
	if e := l.target.Epoch; e != l.rot.toldTarget {
		if l.rot.toldTarget != 0 {
			l.rot.targetAt = l.now()
			l.note(api.KeyEvent{
				Time: l.now(), Kind: api.EventRotationRequested, Epoch: e, Driver: l.target.Driver, Text: l.target.Reason.String(),
			})
			l.log.Info("cluster wants another key epoch", logEpoch(e, l.target.Driver)...)
		}
		l.rot.toldTarget = e
	}
	why, kind := l.unable, api.EventRotationRefused
	if why == "" && !l.facts.Plan.Pausing {
		why, kind = l.facts.Plan.Blocked, api.EventBlocked
	}
	// The text may change with each word of a peer; the cause does not.
	told := toldCause{epoch: l.target.Epoch, kind: kind}
	if why != "" && told != l.rot.toldUnable {
		l.rot.counts.Refusals++
		l.note(api.KeyEvent{Time: l.now(), Kind: kind, Epoch: l.target.Epoch, Driver: l.target.Driver, Text: why})
	}
	if why != "" {
		l.rot.toldUnable = told
	}
}

// toldCause is why an epoch was not followed, as far as events tell it apart.
type toldCause struct {
	epoch ids.Epoch
	kind  api.EventKind
}

// nextRotation is when this node asks for the next epoch by itself; false if
// it never does. Only issuers do. The moment is spread over a tenth of the
// interval by the node's ID, so that two issuers seldom ask at once; if they
// do, it is one epoch.
func (l *loop) nextRotation() (time.Time, bool) {
	every := l.cfg.Keys.RotateEvery
	if every == 0 || !l.canIssue {
		return time.Time{}, false
	}
	base := l.target.Created
	if base.IsZero() || base.After(l.now().Add(l.identity.Trust.Leeway())) {
		// A clock that was ahead when the target was signed must not stop
		// rotation until that time comes.
		base = l.started
	}
	spread := every / 10 * time.Duration(l.identity.ID[0]) / 256
	return base.Add(every + spread), true
}

func logEpoch(e ids.Epoch, driver string) []any {
	if driver == "" {
		return []any{logkey.Epoch, e}
	}
	return []any{logkey.Epoch, e, logkey.Driver, driver}
}

func epochText(e ids.Epoch) string { return strconv.FormatUint(uint64(e), 10) }
