package agent

import (
	"fmt"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// blockedESP names the peers that ESP does not reach. Nothing else than a peer
// shows that an underlay, or a firewall on the way, drops IP protocol 50.
func (l *loop) blockedESP() []api.Problem {
	var out []api.Problem
	for _, g := range l.facts.Plan.Progress {
		d, ok := l.facts.device(g.Goal)
		if !ok || !d.Wire.ESP() || g.Tx == g.Goal {
			continue
		}
		what, fix := l.blockedForms(g)
		if l.lastIn.meeting(g.Peer, g.Goal).wire == record.WireESPUDP {
			what, fix = l.blockedUDP(g, d)
		}
		if what != "" {
			out = append(out, api.Problem{Code: "esp-blocked", Subject: g.Peer.String(), Message: what, Fix: fix})
		}
	}
	return out
}

// unanswered reports whether a pair that has no other form to try has been waiting for
// answers to its probes for too long.
func (l *loop) unanswered(g rotate.Progress) bool {
	return g.Step == rotate.StepProve && l.now().Sub(g.Since) >= l.unproved
}

// blockedForms says what keeps up a pair that begins with ESP as it is; empty: nothing.
func (l *loop) blockedForms(g rotate.Progress) (message, fix string) {
	choice := l.lastIn.meeting(g.Peer, g.Goal).choice
	s := l.rot.forms.silent[g.Peer]
	what := "ESP does not reach node %s, or does not come back: something on the way may block IP protocol 50"
	rest := "the pair stays on its present keys"
	switch {
	case !choice && l.unanswered(g):
		if d, _ := l.facts.device(g.Goal); d.Forms {
			rest += ", since ipsec.encap of that node is none"
		}
	case !choice:
		return "", ""
	case s.native && s.inUDP:
		what = "neither ESP nor ESP in UDP reaches node %s, or comes back: something on the way may block IP protocol 50 and UDP port 4500"
		rest += ", and tries both in turn"
	case s.native && l.identity.ID.Compare(g.Peer) > 0:
		rest += " until that node offers ESP in UDP"
	case s.native:
		rest += " while it tries ESP in UDP"
		if why := l.rot.forms.refused[g.Peer]; why != "" {
			rest += ", which failed: " + why
		}
	default:
		return "", ""
	}
	return fmt.Sprintf(what, l.shown(g.Peer)) + "; " + rest,
		"let ESP through; or set ipsec.encap: auto on both nodes, let UDP port 4500 through, and start their agents again; or secure-overlay keys rotate --driver auto"
}

// blockedUDP says what keeps up a pair that has nothing but ESP in UDP; empty:
// nothing.
func (l *loop) blockedUDP(g rotate.Progress, own OwnDevice) (message, fix string) {
	if !l.unanswered(g) {
		return "", ""
	}
	their, _ := l.lastIn.theirs(g.Peer, g.Goal)
	return fmt.Sprintf("ESP in UDP does not reach node %s, or does not come back: something on the way may block UDP port %d of that node or port %d of this one; the pair stays on its present keys",
			l.shown(g.Peer), their.Port, own.Port),
		"let both ports through; or secure-overlay keys rotate --driver auto"
}
