package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys/clock"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// saveTime is how often the trusted time is written down. A crash costs as much
// of it, which matters only to a node that then starts without a clock.
const saveTime = 5 * time.Minute

// keepTime writes the trusted time down now and then, and once more at the end.
func (a *Agent) keepTime(ctx context.Context) {
	ticker := time.NewTicker(saveTime)
	defer ticker.Stop()
	failed := false
	for {
		err := a.opts.Store.SaveTrustedTime(a.opts.Clock.Trusted())
		if err != nil && !failed {
			a.opts.Log.Warn("trusted time is not kept for the next start", logkey.Error, err)
		}
		failed = err != nil
		if ctx.Err() != nil {
			return
		}
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// stampLead is how far ahead of the clock a tunnel's last handshake may be
// dated. WireGuard's initiator dates each handshake, and the responder takes none
// that is not newer than the last one. So after the clock of the initiator went
// back, handshakes fail until it shows again what it showed before; the session goes
// on for 180 s after its handshake (REJECT_AFTER_TIME), of which 120 may have
// passed when the next one is due. A lead of less than the remaining 60 s mends
// itself in time.
const stampLead = 45 * time.Second

// setBack reports whether WireGuard's next handshake with some peer will fail
// because the system clock of this node went back. Only pairs that this node
// initiates, and that are on the target epoch, count: the others have another
// epoch coming.
func (t TunnelFacts) setBack(now time.Time, self ids.NodeID, target ids.Epoch, routes map[ids.NodeID]ids.Epoch) bool {
	d, ok := t.device(target)
	if !ok || d.Wire != record.WireWireGuard {
		return false
	}
	for peer, e := range routes {
		if e != target || self.Compare(peer) > 0 {
			continue
		}
		// The date is one of the system clock, so that is what it is compared with.
		if p, ok := t.installed(peer, e); ok && p.LastHandshake.After(now.Add(stampLead)) {
			return true
		}
	}
	return false
}

// clockStatus is what status says about the clock.
func (l *loop) clockStatus(snap membership.Snapshot) api.Clock {
	r := l.clock.Read()
	c := api.Clock{Behind: api.Duration(r.Behind), Jumped: api.Duration(r.Jump)}
	if r.Known {
		c.Trusted = r.Trusted
	}
	ahead, others := aheadOf(snap, l.now())
	c.Ahead, c.Others = api.Duration(ahead), others
	return c
}

// freshClock is how old another node's word about its clock may be.
const freshClock = 10 * time.Minute

// aheadOf returns by how much the system clock is ahead of the clocks of other
// nodes: the middle one of the differences, so that a few that lie or err count
// for nothing; and of how many nodes that is.
func aheadOf(snap membership.Snapshot, now time.Time) (time.Duration, int) {
	var ahead []time.Duration
	for _, m := range snap.Members {
		age := now.Sub(m.ClockAt)
		// This node's own clock was set since: what was heard before says nothing.
		set := now.Round(0).Sub(m.ClockAt.Round(0)) - age
		if m.ID == snap.Self || m.Clock.IsZero() || age > freshClock || set.Abs() > time.Second {
			continue
		}
		ahead = append(ahead, now.Round(0).Sub(m.Clock.Add(age)))
	}
	if len(ahead) == 0 {
		return 0, 0
	}
	slices.Sort(ahead)
	return ahead[(len(ahead)-1)/2].Round(time.Second), len(ahead)
}

// clockProblem says what is wrong with the system clock. Its text changes only
// with the fault: it is logged each time that it does.
func clockProblem(r clock.Reading, ahead, tolerance time.Duration) (api.Problem, bool) {
	p := api.Problem{Fix: "set the clock, best with a time service (chrony, systemd-timesyncd); secure-overlay doctor says by how much it is off"}
	switch {
	case r.Behind > 0:
		p.Code = "clock-behind"
		p.Message = "the system clock shows a time that has certainly passed, by what the cluster has signed and this node has run; certificates are judged by the trusted time instead"
	case r.Jump > 0:
		p.Code = "clock-jumped"
		p.Message = fmt.Sprintf("the system clock is %s ahead of where it should be, by what has passed since it was last right; certificates may look expired that are not", r.Jump.Round(time.Minute))
	case r.Jump < 0:
		p.Code = "clock-jumped"
		p.Message = fmt.Sprintf("the system clock is %s behind where it should be, by what has passed since it was last right", (-r.Jump).Round(time.Minute))
	case ahead > tolerance:
		p.Code, p.Message = "clock-differs", "the system clock is ahead of those of most other nodes, by more than crypto.clock_tolerance"
	case ahead < -tolerance:
		p.Code, p.Message = "clock-differs", "the system clock is behind those of most other nodes, by more than crypto.clock_tolerance"
	default:
		return api.Problem{}, false
	}
	return p, true
}

// timeProblems is what clock and certificates add to the status.
func (l *loop) timeProblems() []api.Problem {
	snap := l.gossip.Snapshot()
	out := l.certificateProblems(snap)
	ahead, _ := aheadOf(snap, l.now())
	if p, ok := clockProblem(l.clock.Read(), ahead, l.identity.Trust.Leeway()); ok {
		out = append(out, p)
	}
	return out
}

// noteClock tells when something came to be wrong with the clock, and when it is
// right again.
func (l *loop) noteClock(snap membership.Snapshot) {
	ahead, _ := aheadOf(snap, l.now())
	p, _ := clockProblem(l.clock.Read(), ahead, l.identity.Trust.Leeway())
	if p.Message == l.toldClock {
		return
	}
	text := p.Message
	if text == "" {
		text = "the system clock is right again"
	}
	l.toldClock = p.Message
	l.note(api.Event{Time: l.now(), Kind: api.EventClock, Text: text})
}
