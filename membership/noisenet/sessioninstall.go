package noisenet

import (
	"crypto/cipher"
	"encoding/binary"
	"io"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// reserve chooses an index for a session that this node is about to open. The
// caller ends the reservation with install or release.
func (s *sessions) reserve() (uint32, error) {
	for {
		var b [4]byte
		if _, err := io.ReadFull(s.random, b[:]); err != nil {
			return 0, err
		}
		// Random, so that a HINT cannot be forged without seeing traffic.
		i := binary.BigEndian.Uint32(b[:])
		if _, taken := s.byLocal[i]; i != 0 && !taken {
			s.byLocal[i] = nil
			return i, nil
		}
	}
}

func (s *sessions) release(index uint32) {
	if d, ok := s.byLocal[index]; ok && d == nil {
		delete(s.byLocal, index)
	}
}

// newSession is what install needs to know.
type newSession struct {
	peer          ids.NodeID
	boot          uint64 // of the peer, from the stream's handshake
	openedByPeer  bool
	local, remote uint32
	send, recv    cipher.AEAD
	addr          netip.AddrPort
}

// install puts a session into service, at an index that reserve gave. One that
// this node opened counts as confirmed, because the peer's OPENED arrived on an
// authenticated stream; one that the peer opened waits for confirm or its first
// packet. It reports false, and does nothing, if the reservation is gone or the
// stream belongs to a process of the peer that is over or was dropped.
func (s *sessions) install(now time.Time, n newSession) ([]outgoing, bool) {
	p := s.peer(n.peer)
	if d, reserved := s.byLocal[n.local]; !reserved || d != nil || p.boot == 0 || p.boot != n.boot {
		return nil, false
	}
	d := &datagramSession{peer: n.peer, opener: s.self, local: n.local, remote: n.remote,
		send: n.send, recv: n.recv, created: now, addr: n.addr}
	if n.openedByPeer {
		d.opener = n.peer
	}
	for len(p.all) >= sessionsPerPeer {
		s.remove(p, p.leastUseful(now))
	}
	p.all = append(p.all, d)
	s.byLocal[d.local] = d
	s.byRemote[d.remote] = append(s.byRemote[d.remote], d)
	if n.openedByPeer {
		return nil, true
	}
	return s.confirmed(now, p, d), true
}

// leastUseful is the oldest session except the one in use.
func (p *peerSessions) leastUseful(now time.Time) *datagramSession {
	best := p.best(now)
	for _, d := range p.all {
		if d != best {
			return d
		}
	}
	return best
}

// confirm is told that the peer's CONFIRM for the session came.
func (s *sessions) confirm(now time.Time, id ids.NodeID, local uint32) []outgoing {
	d := s.byLocal[local]
	if d == nil || d.peer != id {
		return nil
	}
	return s.confirmed(now, s.peer(id), d)
}

// confirmed marks d, lets the others expire, and flushes what waited.
func (s *sessions) confirmed(now time.Time, p *peerSessions, d *datagramSession) []outgoing {
	if !d.confirmed {
		d.confirmed = true
		best := p.best(now)
		for _, o := range p.all {
			if o == best {
				o.expires = time.Time{}
			} else if o.confirmed && o.expires.IsZero() {
				o.expires = now.Add(supersededFor)
			}
		}
	}
	return s.flush(now, p)
}

func (s *sessions) flush(now time.Time, p *peerSessions) []outgoing {
	d := p.best(now)
	if d == nil || len(p.queue) == 0 {
		return nil
	}
	var out []outgoing
	for _, q := range p.queue {
		if now.Sub(q.at) > queueAge {
			continue
		}
		if b, err := d.seal(now, q.data); err == nil {
			out = append(out, outgoing{d.addr, b})
		}
	}
	p.queue = nil
	return out
}
