package agent

import (
	"cmp"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// withheld are the alarms that mean trouble: an issuer is alive and what it has
// does not come here, or the cluster does not speak this program's protocol.
// Nothing else follows from them.
func withheld(snap membership.Snapshot) []api.Problem {
	var out []api.Problem
	for _, s := range snap.Stale {
		if s.Issuer.IsZero() {
			continue
		}
		since := ""
		if !s.Since.IsZero() {
			since = ", since " + s.Since.UTC().Format(time.RFC3339)
		}
		out = append(out, api.Problem{
			Code: api.CodeStale, Subject: s.Issuer.Fingerprint(),
			Message: issuerName(snap, s.Issuer) + " has cluster items that do not come to this node" + since + ": revocations or key rotations may be withheld from it",
			Fix:     "let this node reach the control port of that issuer's node; secure-overlay members shows who answers",
		})
	}
	if f := snap.Floor.Min; f > noisenet.VersionMax {
		out = append(out, api.Problem{
			Code: "protocol-floor", Subject: fmt.Sprint(f),
			Message: fmt.Sprintf("the cluster speaks protocol version %d or higher, this program up to %d: this node talks to no other, and hears of no revocation; its tunnels stay as they are", f, noisenet.VersionMax),
			Fix:     "install a newer secure-overlay on this node",
		})
	}
	return out
}

// warnings are worth knowing although everything works: that no issuer is heard,
// which is legal, and that two items had one version.
func (l *loop) warnings(snap membership.Snapshot) []api.Problem {
	out := append(l.narrowPaths(), fillingSubnets(l.out.View)...)
	if l.slower != nil {
		fix := "a kernel that has it, or that has WireGuard itself (Linux 5.6, modprobe wireguard)"
		if l.toldDriver == config.DriverUserspace {
			fix += "; on processors with AES instructions, userspace ESP is faster: secure-overlay keys rotate --driver " + config.DriverIPsecUser
		}
		out = append(out, api.Problem{
			Code: "driver-slow", Subject: l.toldDriver, Message: "encryption is slower than it could be: " + l.slower.Error(), Fix: fix,
		})
	}
	for _, s := range snap.Stale {
		if !s.Issuer.IsZero() {
			continue
		}
		out = append(out, api.Problem{
			Code: api.CodeStale,
			Message: "no issuer has given a sign of life since " + s.Since.UTC().Format(time.RFC3339) +
				": nobody is there to admit, renew, revoke or rotate, or its news is withheld from this node",
			Fix: "start the agent on a node with an issuer key: " + cmp.Or(l.issuerNames(), "the one where the cluster was initialised") +
				"; if one runs, let this node reach its control port, and compare the clocks",
		})
	}
	for _, c := range snap.Conflicts {
		out = append(out, conflictWarning(snap, c))
	}
	return out
}

// fillingSubnets tells of subnets before they are full, while there is time to do
// something about them.
func fillingSubnets(v View) []api.Problem {
	var out []api.Problem
	for _, n := range v.Networks {
		for _, f := range n.Filling {
			out = append(out, api.Problem{
				Code: "subnet-filling", Subject: n.Name,
				Message: fmt.Sprintf("network %s: nodes have claimed %d of %d address blocks of subnet %s; a node that needs one and finds none can attach nothing there", n.Name, f.Taken, f.Blocks, f.Subnet),
				Fix:     "take nodes off the network that need it no more (a block is a node's while it has the network); or make a network with a larger subnet",
			})
		}
	}
	return out
}

func conflictWarning(snap membership.Snapshot, c membership.Conflict) api.Problem {
	p := api.Problem{Code: api.CodeConflict, Subject: c.Slot.String(), Fix: "nothing: the next version ends it"}
	if c.Slot.Kind == item.KindTarget {
		p.Fix = "nothing: the next rotation ends it; secure-overlay keys rotate if the driver is not the one you want"
	}
	kept := signerName(snap, c.Kept)
	if c.Kept == c.Lost {
		p.Message = fmt.Sprintf("%s signed two different items as version %d: was its data directory restored, or does a copy of it run? every node keeps the same one", kept, c.Version)
		return p
	}
	p.Message = fmt.Sprintf("version %d was signed by %s and by %s; every node keeps what %s signed", c.Version, kept, signerName(snap, c.Lost), kept)
	return p
}

func signerName(snap membership.Snapshot, s membership.ItemSigner) string {
	if s.Root {
		return s.String()
	}
	return issuerName(snap, s.Key)
}

// issuerName names an issuer key by its node. A node with an issuer shows a
// certificate that its own issuer signed.
func issuerName(snap membership.Snapshot, key keys.IssuerPublic) string {
	name := "issuer " + key.Fingerprint()
	for _, m := range snap.Members {
		if m.Cert.Issuer == key && m.Cert.Roles&keys.RoleIssuer != 0 {
			return name + " (" + m.Hostname + ")"
		}
	}
	return name
}

// noteAlarms writes down which alarms are new and which are over. Problems are
// logged by report, warnings here.
func (l *loop) noteAlarms(snap membership.Snapshot) {
	now := map[alarm]api.Problem{}
	warnings := l.warnings(snap)
	for _, p := range warnings {
		if _, known := l.alarms[alarmOf(p)]; !known {
			l.log.Warn("alarm", logkey.Reason, p.Code, logkey.Error, p.Message, logkey.Subject, p.Subject)
		}
	}
	for _, p := range append(withheld(snap), warnings...) {
		if p.Code != api.CodeStale && p.Code != api.CodeConflict {
			continue
		}
		now[alarmOf(p)] = p
		if _, known := l.alarms[alarmOf(p)]; !known {
			l.note(api.Event{Time: l.now(), Kind: api.EventKind(p.Code), Text: labelled(p.Subject, p.Message)})
		}
	}
	for a, p := range l.alarms {
		if _, on := now[a]; !on && a.code == api.CodeStale {
			l.log.Info("alarm is over", logkey.Reason, p.Code, logkey.Error, p.Message, logkey.Subject, p.Subject)
			l.note(api.Event{Time: l.now(), Kind: api.EventStaleOver, Text: labelled(p.Subject, p.Message)})
		}
	}
	l.alarms = now
}

// alarm is what makes two alarms the same one, whatever times they tell.
type alarm struct{ code, subject, text string }

func alarmOf(p api.Problem) alarm {
	a := alarm{code: p.Code, subject: p.Subject}
	if p.Code == api.CodeConflict {
		a.text = p.Message // another version is another conflict
	}
	return a
}

func labelled(subject, text string) string {
	if subject == "" {
		return text
	}
	return subject + ": " + text
}
