package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/pathmtu"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
)

// watchedPath is what is known of the way through a peer's tunnel.
type watchedPath struct {
	pathmtu.Path
	to netip.Addr // the peer's underlay address that it is about
}

// watchPaths tries what the tunnels in use carry. Links and routes say how wide the
// underlay should be; that something on the way swallows large packets only they
// themselves can tell. What is found narrows every network of the pair, on all nodes,
// by way of the record (Underlay.Limits).
func (l *loop) watchPaths(ctx context.Context) {
	now := l.now()
	l.dropPaths()
	for _, v := range l.out.View.Peers {
		have, ok := l.pathDevice(v)
		if !ok {
			continue
		}
		p := l.paths[v.ID]
		if p == nil || p.to != v.Underlay.Addr() {
			p = &watchedPath{to: v.Underlay.Addr()}
			l.paths[v.ID] = p
		}
		size, due := p.Next(now, pathmtu.Sizes{
			Small: smallProbe, Want: min(v.Frame, have.MTU), Top: max(v.Frame, min(v.Top, have.MTU)), Overhead: tunnel.Overhead(p.to),
		})
		if due {
			l.tryPath(ctx, v.ID, p, have.Name, size)
		}
	}
}

// dropPaths forgets the ways to nodes with which no network is shared any more. After a
// restart not all of those that are may be known yet.
func (l *loop) dropPaths() {
	if !l.holdUntil.IsZero() {
		return
	}
	maps.DeleteFunc(l.paths, func(id ids.NodeID, _ *watchedPath) bool {
		return !slices.ContainsFunc(l.out.View.Peers, func(v PeerView) bool { return v.ID == id && v.Tunnel })
	})
}

// pathDevice returns the device that carries a peer's packets, if large ones can be
// tried on it now (see largeProbe).
func (l *loop) pathDevice(v PeerView) (OwnDevice, bool) {
	have, d, ok := l.peerState(v.ID)
	waits := d.Narrows && have.InUDP && !l.narrowed()
	return d, ok && v.Tunnel && v.Frame > 0 && l.rot.prober != nil && !waits
}

// tryPath sends one size and hands what became of it to the path.
func (l *loop) tryPath(ctx context.Context, id ids.NodeID, p *watchedPath, device string, size int) {
	probe := rotate.Probe{Peer: id}
	l.startEchoes(ctx, probe, device, size, 1, func(l *loop, err error) {
		if l.paths[id] != p {
			return // about another way by now
		}
		before, searched := p.Limit(), p.Searching()
		switch {
		case err == nil || errors.Is(err, secure.ErrNoAnswer) || errors.Is(err, context.DeadlineExceeded):
			p.Result(l.now(), size, err == nil)
		default:
			p.Forget(l.now()) // the device, or its MTU, has changed under it
		}
		l.tellPath(id, p, before, searched)
	})
}

// tellPath logs what has changed about a path.
func (l *loop) tellPath(id ids.NodeID, p *watchedPath, before int, searched bool) {
	now := p.Limit()
	switch {
	case now == before && p.Searching() && !searched:
		l.log.Info("large packets to a peer are lost, small ones are not; looking for what passes", logkey.Node, id)
	case now == before:
	case now == 0:
		l.log.Info("path to a peer carries everything again", logkey.Node, id)
	default:
		l.log.Warn("path to a peer carries less than its links; networks become narrower", logkey.Node, id, logkey.MTU, now+tunnel.Overhead(p.to))
	}
}

// limits are the paths that carry less than links and routes say, in bytes of
// underlay packet, by the peer's address.
func (l *loop) limits() map[netip.Addr]int {
	out := map[netip.Addr]int{}
	for _, p := range l.paths {
		if n := p.Limit(); n > 0 {
			out[p.to] = n + tunnel.Overhead(p.to)
		}
	}
	return out
}

// narrowPaths tells of them: everything works, and more would be possible.
func (l *loop) narrowPaths() []api.Problem {
	var out []api.Problem
	for id, p := range l.paths {
		if p.Limit() == 0 {
			continue
		}
		out = append(out, api.Problem{
			Code: "narrow-path", Subject: id.String(),
			Message: fmt.Sprintf("underlay packets of more than %d bytes do not reach node %s; the networks shared with it are made to fit", p.Limit()+tunnel.Overhead(p.to), l.shown(id)),
			Fix:     fmt.Sprintf("nothing; or raise the MTU on the way, which is noticed within %d minutes", int(pathmtu.Raise.Minutes())),
		})
	}
	slices.SortFunc(out, func(x, y api.Problem) int { return cmp.Compare(x.Subject, y.Subject) })
	return out
}

// keptPaths is what the next agent must know, so that it does not widen networks
// into a black hole.
func (l *loop) keptPaths() []appliedPath {
	var out []appliedPath
	for id, p := range l.paths {
		if n := p.Limit(); n > 0 {
			out = append(out, appliedPath{Peer: id, To: p.to, Limit: n})
		}
	}
	slices.SortFunc(out, func(x, y appliedPath) int { return x.Peer.Compare(y.Peer) })
	return out
}

// restorePaths takes up what the previous agent knew.
func (l *loop) restorePaths(list []appliedPath) {
	for _, p := range list {
		l.paths[p.Peer] = &watchedPath{Path: pathmtu.Restored(p.Limit), to: p.To}
	}
}
