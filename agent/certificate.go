package agent

import (
	"fmt"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
)

// lowLife is the part of a certificate's life below which its end is a
// problem. Renewal begins at half, so by then it has failed for days: nine of
// thirty.
const lowLife = 5 // one in lowLife

// endGrace is how long after a certificate's end the data plane goes on
// (security.md 2.9): a weekend's night, for a renewal that nobody looked after.
const endGrace = 24 * time.Hour

// standing is how a certificate stands, from good to worse.
type standing int

const (
	inForce standing = iota
	ageing           // four fifths of its life are over, and it was not renewed
	expired          // no handshake accepts it any more
	ended            // what was made for it in the kernel goes, too
)

// moment is a time as a node takes it: two answers to two questions.
type moment struct {
	now     time.Time     // who may come in: clock.Clock.Now
	trusted time.Time     // whom to cut off: clock.Clock.Trusted; zero: nobody
	leeway  time.Duration // by which validity periods are widened
}

// moment reads the clock.
func (l *loop) moment() moment {
	return moment{now: l.clock.Now(), trusted: l.clock.Trusted(), leeway: l.identity.Trust.Leeway()}
}

// standingOf says how a certificate stands. The system clock, which anybody can
// set, is enough to keep strangers out and to ring an alarm. To cut off what works
// takes the trusted time: so neither a jump of the clock nor a date of ten years
// ahead takes a tunnel down.
func standingOf(c keys.Cert, at moment) standing {
	life := c.NotAfter.Sub(c.NotBefore)
	switch {
	case life <= 0: // there is no certificate
		return inForce
	case at.trusted.After(c.NotAfter.Add(endGrace)):
		return ended
	case at.now.After(c.NotAfter.Add(at.leeway)):
		return expired
	case at.now.After(c.NotAfter.Add(-life / lowLife)):
		return ageing
	}
	return inForce
}

// adoptInto keeps a renewed credential in the store, beside the access key
// that is there.
func adoptInto(s *keystore.Store) func(keys.Credential) error {
	return func(c keys.Credential) error {
		id, err := s.Identity()
		if err != nil {
			return err
		}
		return s.Adopt(id.Trust, keys.JoinAnswer{Credential: c, Access: id.Access})
	}
}

// ownCert is the certificate that this node shows: the one in its record's
// entry, which is renewed while the agent runs.
func (l *loop) ownCert(snap membership.Snapshot) keys.Cert {
	if m, ok := snap.Member(l.identity.ID); ok && m.Cert.NotAfter.After(l.identity.Cert.NotAfter) {
		return m.Cert
	}
	return l.identity.Cert
}

// certificateProblem reports that this node's certificate is about to run out,
// or has.
func certificateProblem(c keys.Cert, at moment) (api.Problem, bool) {
	p := api.Problem{Code: "certificate-expired", Subject: c.ID().String()}
	end := c.NotAfter.UTC().Format(time.RFC3339)
	switch standingOf(c, at) {
	case inForce:
		return api.Problem{}, false
	case ageing:
		p.Code = "certificate-expiring"
		p.Message = fmt.Sprintf("the certificate of this node expires at %s and could not be renewed since half of its life", end)
		p.Fix = "start the agent on the node where the cluster was initialised, and check that this node reaches its control port"
		return p, true
	case ended:
		p.Code = "certificate-ended"
		p.Message = fmt.Sprintf("the certificate of this node expired at %s: its tunnels are taken down, %s later", end, endGrace)
	case expired:
		p.Message = fmt.Sprintf("the certificate of this node expired at %s: other nodes refuse its connections; its tunnels stay for %s more", end, endGrace)
	}
	p.Fix = "check the clock; if it is right, make a token on the node where the cluster was initialised, and join anew with an empty data directory"
	if c.Roles&keys.RoleIssuer != 0 {
		p.Fix = "look in the agent's log why this node's issuer could not renew it, and check the clock"
	}
	return p, true
}

// maxNamed is how many nodes a problem names.
const maxNamed = 3

// peerCertificates reports the certificates of other nodes that run out, one
// problem for all of one standing: if it is this node's clock that is wrong, all
// of them do. A node whose certificate has ended for good and that is gone, too, is
// nobody's problem.
func peerCertificates(snap membership.Snapshot, at moment) (out []api.Problem) {
	of := map[standing][]membership.Member{}
	for _, m := range snap.Members {
		s := standingOf(m.Cert, at)
		if m.ID != snap.Self && (s != ended || m.State.Live()) {
			of[s] = append(of[s], m)
		}
	}
	for _, k := range []struct {
		standing
		code, what, fix string
	}{
		{ageing, "peer-certificate-expiring", "was not renewed since half of its life", "look at the status of that node: it has to reach a node with an issuer key"},
		{expired, "peer-certificate-expired", "has expired: no new connections; a tunnel that is up stays for " + endGrace.String(), "check this node's clock and the other's; if both are right, join that node anew with an empty data directory"},
		{ended, "peer-certificate-ended", "expired more than " + endGrace.String() + " ago: it has no tunnel with this node any more", "join that node anew with an empty data directory"},
	} {
		if list := of[k.standing]; len(list) > 0 {
			p := api.Problem{Code: k.code, Message: "the certificate of " + named(list) + " " + k.what, Fix: k.fix}
			if len(list) == 1 {
				p.Subject = list[0].ID.String()
			}
			out = append(out, p)
		}
	}
	return out
}

// named names a few nodes, and says how many there are besides.
func named(list []membership.Member) string {
	var names []string
	for _, m := range list[:min(len(list), maxNamed)] {
		names = append(names, m.Hostname+" ("+m.ID.Short()+")")
	}
	text := strings.Join(names, ", ")
	if more := len(list) - maxNamed; more > 0 {
		text += fmt.Sprintf(" and %d more nodes", more)
	}
	return text
}

// certificateProblems is what the certificates of all nodes, this one included,
// add to the status.
func (l *loop) certificateProblems(snap membership.Snapshot) []api.Problem {
	at := l.moment()
	out := peerCertificates(snap, at)
	if p, ok := certificateProblem(l.ownCert(snap), at); ok {
		out = append(out, p)
	}
	return out
}

// known is how the certificate of a node stood in the last turn.
type known struct {
	name string
	standing
}

// noteCertificates tells when a certificate came to stand worse than it did, and which nodes are forgotten
// because theirs ended long ago.
func (l *loop) noteCertificates(snap membership.Snapshot) {
	at := l.moment()
	note := func(id ids.NodeID, c keys.Cert, ref *api.NodeRef) {
		was, is := l.standings[id].standing, standingOf(c, at)
		l.standings[id] = known{c.Hostname, is}
		kind, ok := map[standing]api.EventKind{
			ageing: api.EventCertificateExpiring, expired: api.EventCertificateExpired, ended: api.EventCertificateEnded,
		}[is]
		if ok && is > was && l.round > 0 { // else it was so before this agent
			l.note(api.Event{Time: l.now(), Kind: kind, Node: ref, Text: "expires " + c.NotAfter.UTC().Format(time.RFC3339)})
		}
	}
	note(l.identity.ID, l.ownCert(snap), nil)
	for _, m := range snap.Members {
		if m.ID != l.identity.ID {
			note(m.ID, m.Cert, &api.NodeRef{ID: m.ID, Name: m.Hostname})
		}
	}
	for id, k := range l.standings {
		if _, ok := snap.Member(id); ok || id == l.identity.ID {
			continue
		}
		delete(l.standings, id)
		if !l.gone(id) { // which has an event of its own
			l.note(api.Event{Time: l.now(), Kind: api.EventNodeForgotten, Node: &api.NodeRef{ID: id, Name: k.name}})
		}
	}
}

// inTime leaves out the members whose certificates have ended: nothing in the
// kernel is for them. If this node's own has, that is all of them, as the others
// see it, too.
func (l *loop) inTime(snap membership.Snapshot) []membership.Member {
	at := l.moment()
	if standingOf(l.ownCert(snap), at) == ended {
		return nil
	}
	var out []membership.Member
	for _, m := range snap.Members {
		if m.ID == l.identity.ID || standingOf(m.Cert, at) != ended {
			out = append(out, m)
		}
	}
	return out
}
