package agent

import (
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// ESP has two forms: as it is, and in UDP. Where a node's driver lets each pair
// choose (ipsec.encap: auto), the lower node of a pair offers a form with each
// key. In either form it is the same ESP under keys of the same kind, which
// both nodes must prove before they send: UDP around it changes who lets the
// packets pass, not who can read or forge them. So falling back to UDP gives up
// nothing, and still it never happens without being said.

// nativeAgain is after which time in UDP a pair tries ESP as it is once more, at
// its next rotation. If it is still blocked, that costs the rotation
// rotate.Timing.Unproved, and no packet.
const nativeAgain = 24 * time.Hour

// form is how the keys of a pair that this node offers travel.
type form struct {
	inUDP bool
	since time.Time // when this node came to it
}

// forms is what the loop knows about the forms of ESP.
type forms struct {
	offered map[ids.NodeID]form // by the peer that they were offered to last
	// silent are the forms that got no answer in the epoch that a pair is
	// moving to.
	silent map[ids.NodeID]silence
	// refused is why a peer did not agree on ESP in UDP.
	refused map[ids.NodeID]string
	// passed are keys under which a small echo came back.
	passed map[keys.KeyID]bool
}

func newForms() forms {
	return forms{
		offered: map[ids.NodeID]form{}, silent: map[ids.NodeID]silence{}, refused: map[ids.NodeID]string{}, passed: map[keys.KeyID]bool{},
	}
}

// silence says which forms got no answer in an epoch.
type silence struct {
	epoch         ids.Epoch
	native, inUDP bool
}

// nextForm returns in which form to offer a key, if the pair can choose. What is
// installed and gets no answer is followed by the other form. Else it is the
// form that carries the pair's packets now, if it is ESP that does (tx is the
// epoch that this node sends to the peer on), then the one that was offered
// last, and after a restart that of the newest installed key. Where there was no
// choice, the form says nothing.
func (in Input) nextForm(w rotate.Wanted, last form, known bool, tx ids.Epoch, now time.Time) form {
	have, ok := in.Tunnels.installed(w.Peer, w.Epoch)
	if ok && in.Tunnels.unproved(w.Peer, w.Epoch, have.Key) {
		return form{inUDP: !have.InUDP, since: now}
	}
	is := last.inUDP
	if used, ok := in.Tunnels.installed(w.Peer, tx); ok && used.In != 0 && in.meeting(w.Peer, tx).choice {
		is = used.InUDP
	} else if !known {
		for _, d := range in.Tunnels.Devices { // the newest decides
			if have, ok := in.Tunnels.installed(w.Peer, d.Epoch); ok && have.In != 0 && in.meeting(w.Peer, d.Epoch).choice {
				is = have.InUDP
			}
		}
	}
	if !known || is != last.inUDP {
		last = form{inUDP: is, since: now}
	}
	if last.inUDP && now.Sub(last.since) >= nativeAgain && tx != 0 && tx != w.Epoch {
		return form{since: now}
	}
	return last
}

// unproved reports whether the machine gives a key up that is installed.
func (t TunnelFacts) unproved(peer ids.NodeID, epoch ids.Epoch, key keys.KeyID) bool {
	for _, p := range t.Plan.Pairs {
		if p.Peer == peer && p.Epoch == epoch && p.Key == key {
			return p.Unproved
		}
	}
	return false
}

// chooseForm writes into an offer in which form its key is to travel.
func (l *loop) chooseForm(in Input, w rotate.Wanted, offer *rotate.Offer) {
	if !in.meeting(w.Peer, w.Epoch).choice {
		return
	}
	last, known := l.rot.forms.offered[w.Peer]
	f := in.nextForm(w, last, known, l.rot.routes[w.Peer], l.now())
	l.rot.forms.offered[w.Peer] = f
	if f.inUDP {
		offer.Wire = uint8(record.WireESPUDP)
	}
}

// wireFor returns the wire that an offer of a peer must name: that of the pair, or
// ESP in UDP if it names that and the pair may choose.
func (l *loop) wireFor(w rotate.Wanted, o rotate.Offer) (record.Wire, error) {
	if d, ok := l.facts.device(w.Epoch); ok && inUDP(o) && d.Wire == record.WireESP && !d.Forms {
		return d.Wire, fmt.Errorf("agree with node %s on epoch %d: it offers ESP in UDP, and ipsec.encap of this node is none", w.Peer, w.Epoch)
	}
	m := l.lastIn.meeting(w.Peer, w.Epoch)
	if m.choice && inUDP(o) {
		return record.WireESPUDP, nil
	}
	return m.wire, nil
}

// inUDP reports whether an offer is for ESP in UDP.
func inUDP(o rotate.Offer) bool { return record.Wire(o.Wire) == record.WireESPUDP }

// refuse notes why an offer of ESP in UDP came to nothing.
func (f *forms) refuse(peer ids.NodeID, o rotate.Offer, err error) {
	if inUDP(o) {
		f.refused[peer] = err.Error()
	}
}

// noteForms remembers and tells which forms get no answer.
func (l *loop) noteForms() {
	f := &l.rot.forms
	goals := map[ids.NodeID]rotate.Progress{}
	for _, g := range l.facts.Plan.Progress {
		goals[g.Peer] = g
		if s := f.silent[g.Peer]; g.Goal != s.epoch || g.Tx == g.Goal {
			delete(f.silent, g.Peer)
			delete(f.refused, g.Peer)
		}
	}
	for _, p := range l.facts.Plan.Pairs {
		have, ok := l.facts.installed(p.Peer, p.Epoch)
		if !p.Unproved || !ok || have.Key != p.Key || goals[p.Peer].Goal != p.Epoch {
			continue
		}
		l.noteSilent(p.Peer, p.Epoch, have.InUDP)
	}
	for id := range f.offered {
		if _, ok := goals[id]; !ok {
			delete(f.offered, id)
			delete(f.silent, id)
			delete(f.refused, id)
		}
	}
}

// noteSilent remembers and tells that a form of ESP gets no answer from a peer.
func (l *loop) noteSilent(peer ids.NodeID, epoch ids.Epoch, inUDP bool) {
	was := l.rot.forms.silent[peer]
	s := silence{epoch: epoch, native: !inUDP, inUDP: inUDP}
	if was.epoch == epoch {
		s.native, s.inUDP = s.native || was.native, s.inUDP || was.inUDP
	}
	if s == was {
		return
	}
	l.rot.forms.silent[peer] = s
	what, next := "ESP", "ESP in UDP"
	if inUDP {
		what, next = next, what
	}
	text := fmt.Sprintf("probes over %s get no answer; the pair tries %s", what, next)
	l.log.Warn("form of ESP gets no answer", logkey.Node, peer, logkey.Epoch, epoch, logkey.Reason, text)
	ref := l.nameOf(peer)
	l.note(api.KeyEvent{Time: l.now(), Kind: api.EventESPBlocked, Epoch: epoch, Node: &ref, Text: text})
}

// narrowed reports whether packets of this node travel in ESP in UDP where that
// leaves less room than networks reckon with. A form
// counts once it has passed small packets, so that one that is only tried does
// not change the MTU of every network back and forth.
func (l *loop) narrowed() bool {
	narrow := func(e ids.Epoch, p tunnel.PeerState) bool {
		d, ok := l.facts.device(e)
		return ok && d.Narrows && p.InUDP
	}
	for id, e := range l.rot.routes {
		if have, ok := l.facts.installed(id, e); ok && narrow(e, have) {
			return true
		}
	}
	for _, d := range l.facts.Devices {
		for _, p := range d.Peers {
			if l.rot.forms.passed[p.Key] && narrow(d.Epoch, p) {
				return true
			}
		}
	}
	return false
}

// labelOf names for people what carries a peer's packets.
func labelOf(d OwnDevice, p tunnel.PeerState) string {
	if p.InUDP && d.Driver == config.DriverIPsec {
		return "ipsec (kernel, in UDP)" // by its driver alone it may be in either form
	}
	return label(d.Driver)
}
