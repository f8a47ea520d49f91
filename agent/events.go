package agent

import (
	"context"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/events"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
)

// note writes an event down. Nothing depends on it.
func (l *loop) note(e api.Event) {
	if l.events == nil {
		return
	}
	out := events.Event{Time: e.Time, Kind: string(e.Kind), Epoch: e.Epoch, Driver: e.Driver, Text: e.Text, Seconds: e.Seconds}
	if e.Node != nil {
		out.Node, out.Name = e.Node.ID, e.Node.Name
	}
	if err := l.events.Add(out); err != nil {
		l.log.Debug("event not written", logkey.Error, err)
	}
}

// switchEvent tells that a pair's route moved, and how long after the cluster
// asked for it.
func switchEvent(l *loop, g rotate.Progress, was switched) api.KeyEvent {
	ref := l.nameOf(g.Peer)
	e := api.KeyEvent{Time: l.now(), Kind: api.EventSwitched, Epoch: g.Tx, Driver: l.driverTo(g.Peer), Node: &ref}
	switch {
	case g.Tx == 0:
		e.Kind, e.Epoch, e.Text = api.EventPairRefused, was.to, "no tunnel any more: "+g.Reason
	case was.to == 0:
		e.Text = "first tunnel of the pair"
	default:
		if g.Tx == l.target.Epoch && !l.rot.targetAt.IsZero() {
			e.Seconds = l.now().Sub(l.rot.targetAt).Seconds()
		}
		e.Text = "from epoch " + epochText(was.to)
	}
	if s, _, ok := l.peerState(g.Peer); ok && s.InUDP {
		e.Text += "; ESP in UDP"
	}
	return e
}

// KeyHistory implements api.Keys.
func (a *Agent) KeyHistory(ctx context.Context) ([]api.KeyEvent, error) {
	return api.KeyEvents(ctx, api.LogEvents(a.opts.Events))
}
