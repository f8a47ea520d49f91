package noisenet

import (
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

const (
	queueLength     = 16              // packets that wait for a session, per peer
	queueAge        = 2 * time.Second // gossip older than that is better lost
	sessionsPerPeer = 3
	supersededFor   = 60 * time.Second // an old session lives on for packets under way
	confirmWithin   = 30 * time.Second // a session the peer never used is forgotten
	simultaneous    = 10 * time.Second // opens this close together count as at once
	backoffFirst    = time.Second
	backoffLast     = 30 * time.Second
)

var errNoSession = errors.New("no datagram session has this index")

// sessions decides which datagram session serves a packet, and when a new one
// must be opened. It does no I/O, starts nothing, and is told the time. Errors
// leave the state untouched. Transport.sessMu serialises all calls.
type sessions struct {
	self      ids.NodeID
	random    io.Reader
	hintQuiet time.Duration
	hintDial  time.Duration
	byLocal   map[uint32]*datagramSession // nil value: reserved by reserve
	byRemote  map[uint32][]*datagramSession
	peers     map[ids.NodeID]*peerSessions
}

type peerSessions struct {
	all     []*datagramSession // oldest first, at most sessionsPerPeer
	queue   []queuedPacket
	boot    uint64
	opening bool
	opened  time.Time     // when the last attempt began
	next    time.Time     // no attempt before this
	backoff time.Duration // of the last failure; 0 after a success
}

type queuedPacket struct {
	at   time.Time
	data []byte
}

// outgoing is a datagram ready for the socket.
type outgoing struct {
	to   netip.AddrPort
	data []byte
}

func newSessions(self ids.NodeID, l limits, random io.Reader) *sessions {
	return &sessions{self: self, random: random, hintQuiet: l.hintQuiet, hintDial: l.hintDial,
		byLocal:  make(map[uint32]*datagramSession),
		byRemote: make(map[uint32][]*datagramSession),
		peers:    make(map[ids.NodeID]*peerSessions)}
}

func (s *sessions) peer(id ids.NodeID) *peerSessions {
	p := s.peers[id]
	if p == nil {
		p = &peerSessions{}
		s.peers[id] = p
	}
	return p
}

// send seals payload for id, or queues it when there is no session. open asks
// the caller to start one attempt to open a session and to call openDone.
func (s *sessions) send(now time.Time, id ids.NodeID, payload []byte) (out []outgoing, open bool, err error) {
	p := s.peer(id)
	d := p.best(now)
	if d == nil {
		p.enqueue(now, payload)
		return nil, s.wantOpen(now, p), nil
	}
	b, err := d.seal(now, payload)
	if err != nil {
		return nil, false, err
	}
	if d.wantsRekey(now, s.self) {
		open = s.wantOpen(now, p)
	}
	return []outgoing{{d.addr, b}}, open, nil
}

func (p *peerSessions) enqueue(now time.Time, payload []byte) {
	if len(p.queue) >= queueLength {
		p.queue = slices.Delete(p.queue, 0, 1)
	}
	p.queue = append(p.queue, queuedPacket{now, slices.Clone(payload)})
}

// best returns the session to send on: the newest that the peer confirmed. Of
// two that both sides opened at once, both take the one whose opener has the
// smaller ID.
func (p *peerSessions) best(now time.Time) *datagramSession {
	var best *datagramSession
	for _, d := range p.all {
		if !d.confirmed || d.spent(now) {
			continue
		}
		if best == nil || d.preferredTo(best) {
			best = d
		}
	}
	return best
}

// preferredTo is asked of a session that is not older than o.
func (d *datagramSession) preferredTo(o *datagramSession) bool {
	if d.opener != o.opener && d.created.Sub(o.created) < simultaneous {
		return d.opener.Compare(o.opener) < 0
	}
	return true
}

// wantOpen allows one attempt per peer at a time, the first at once, later ones
// after the back-off.
func (s *sessions) wantOpen(now time.Time, p *peerSessions) bool {
	if p.opening || now.Before(p.next) {
		return false
	}
	p.opening, p.opened = true, now
	return true
}

// openDone ends an attempt. After a failure the next one waits 1 s, doubling up
// to 30 s, each with a jitter of a quarter, so that a restarted peer is not met
// by everybody at the same moment.
func (s *sessions) openDone(now time.Time, id ids.NodeID, failed bool) {
	p := s.peers[id]
	if p == nil {
		return
	}
	p.opening = false
	if !failed {
		p.backoff, p.next = 0, time.Time{}
		return
	}
	p.backoff = min(max(2*p.backoff, backoffFirst), backoffLast)
	p.next = now.Add(p.backoff + time.Duration((rand.Float64()-0.5)/2*float64(p.backoff)))
}

// reachable is told of each authenticated handshake with a peer: the back-off
// ends, and if the peer is a new process its old sessions end.
func (s *sessions) reachable(id ids.NodeID, boot uint64) {
	p := s.peer(id)
	p.backoff, p.next = 0, time.Time{}
	if p.boot != 0 && p.boot != boot {
		for _, d := range slices.Clone(p.all) {
			s.remove(p, d)
		}
	}
	p.boot = boot
}

// receive opens a data packet that parseDatagram accepted. errNoSession asks
// for a HINT; any other error means the packet is dropped without a word.
func (s *sessions) receive(now time.Time, from netip.AddrPort, h datagramHeader, b []byte) (payload []byte, id ids.NodeID, out []outgoing, err error) {
	d := s.byLocal[h.index]
	if d == nil {
		return nil, ids.NodeID{}, nil, errNoSession
	}
	payload, highest, err := d.open(now, h, b)
	if err != nil {
		return nil, ids.NodeID{}, nil, err
	}
	// Roaming: only a packet that is authentic and newer than all others moves
	// the address, so a replayed or delayed one cannot. The move lasts as long
	// as the session; records alone make an address permanent.
	if highest {
		d.addr = from
	}
	if !d.confirmed {
		out = s.confirmed(now, s.peer(d.peer), d)
	}
	return payload, d.peer, out, nil
}

// hint is told of a HINT, which anybody can forge who saw a packet. It can do
// no more than start one attempt to open a session, and only if the index is
// one this node sends on, nothing valid came on it for hintQuiet, and the last
// attempt is hintDial ago.
func (s *sessions) hint(now time.Time, index uint32) (id ids.NodeID, open bool) {
	for _, d := range s.byRemote[index] {
		p := s.peers[d.peer]
		last := d.created
		if d.lastRecv.After(last) {
			last = d.lastRecv
		}
		if p == nil || p.best(now) != d || now.Sub(last) < s.hintQuiet || now.Sub(p.opened) < s.hintDial {
			continue
		}
		if s.wantOpen(now, p) {
			return d.peer, true
		}
	}
	return ids.NodeID{}, false
}

// expire forgets what is over: sessions past their time and queued packets.
func (s *sessions) expire(now time.Time) {
	for id, p := range s.peers {
		for _, d := range slices.Clone(p.all) {
			if d.over(now) {
				s.remove(p, d)
			}
		}
		p.queue = slices.DeleteFunc(p.queue, func(q queuedPacket) bool { return now.Sub(q.at) > queueAge })
		if len(p.all) == 0 && len(p.queue) == 0 && !p.opening && now.After(p.next) && p.boot == 0 {
			delete(s.peers, id)
		}
	}
}

// over reports that nothing will be lost by forgetting d. A superseded session
// on which the peer still sends stays: the peer may prefer it.
func (d *datagramSession) over(now time.Time) bool {
	switch {
	case now.Sub(d.created) >= refuseAge:
		return true
	case !d.confirmed:
		return now.Sub(d.created) >= confirmWithin
	case d.expires.IsZero():
		return false
	}
	return now.After(d.expires) && now.Sub(d.lastRecv) >= supersededFor
}

// drop forgets a peer entirely.
func (s *sessions) drop(id ids.NodeID) {
	p := s.peers[id]
	if p == nil {
		return
	}
	for _, d := range slices.Clone(p.all) {
		s.remove(p, d)
	}
	p.queue = nil
	p.boot = 0
}

// active returns where packets for id go now.
func (s *sessions) active(now time.Time, id ids.NodeID) (netip.AddrPort, bool) {
	if p := s.peers[id]; p != nil {
		if d := p.best(now); d != nil {
			return d.addr, true
		}
	}
	return netip.AddrPort{}, false
}

func (s *sessions) remove(p *peerSessions, d *datagramSession) {
	p.all = slices.DeleteFunc(p.all, func(o *datagramSession) bool { return o == d })
	delete(s.byLocal, d.local)
	same := slices.DeleteFunc(s.byRemote[d.remote], func(o *datagramSession) bool { return o == d })
	if len(same) == 0 {
		delete(s.byRemote, d.remote)
	} else {
		s.byRemote[d.remote] = same
	}
}
