package agent

import (
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
)

// sendTimeout bounds the telling of one state to a peer.
const sendTimeout = 5 * time.Second

// flight is something that a peer has been asked and has not answered yet: a
// message (the zero Wanted and Probe), an agreement or a probe.
type flight struct {
	peer  ids.NodeID
	agree rotate.Wanted
	probe rotate.Probe
}

// flights lets one question of a kind be under way to a peer. The machine asks
// again while there is no answer; if each time were one more exchange, a peer
// that is too busy to answer would get more and more to do, and so would this
// node. (Seen in an emulated machine at its limit: handshakes timed out, several
// exchanges with one peer were open at once, and no rotation ended any more.)
type flights struct {
	under   map[flight]bool
	waiting map[ids.NodeID]rotate.Outgoing // the newest message that could not be sent yet
}

// begin reports whether f may start now.
func (s *flights) begin(f flight) bool {
	if s.under[f] {
		return false
	}
	if s.under == nil {
		s.under = map[flight]bool{}
	}
	s.under[f] = true
	return true
}

// end says that f is over.
func (s *flights) end(f flight) { delete(s.under, f) }

// wait keeps a message until the one under way is answered. A newer one takes
// its place: each says everything.
func (s *flights) wait(m rotate.Outgoing) {
	if s.waiting == nil {
		s.waiting = map[ids.NodeID]rotate.Outgoing{}
	}
	s.waiting[m.To] = m
}

// waited takes the message that has waited for a peer, if there is one.
func (s *flights) waited(peer ids.NodeID) []rotate.Outgoing {
	m, ok := s.waiting[peer]
	if !ok {
		return nil
	}
	delete(s.waiting, peer)
	return []rotate.Outgoing{m}
}
