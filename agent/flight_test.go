package agent

import (
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
)

func TestFlightsAreOneAtATime(t *testing.T) {
	var s flights
	a, b := ids.NodeID{1}, ids.NodeID{2}
	if !s.begin(flight{peer: a}) || s.begin(flight{peer: a}) {
		t.Error("a second message to a peer may start while the first is under way")
	}
	if !s.begin(flight{peer: b}) || !s.begin(flight{peer: a, agree: rotate.Wanted{Peer: a, Epoch: 2}}) {
		t.Error("one peer's message holds up another's, or another kind")
	}
	if len(s.waited(a)) != 0 {
		t.Error("something waits that nobody left")
	}
	s.wait(rotate.Outgoing{To: a, Message: rotate.Message{Seq: 1}})
	s.wait(rotate.Outgoing{To: a, Message: rotate.Message{Seq: 2}})
	if got := s.waited(a); len(got) != 1 || got[0].Message.Seq != 2 || len(s.waited(a)) != 0 {
		t.Errorf("the newest message waits, once: %+v", got)
	}
	s.end(flight{peer: a})
	if !s.begin(flight{peer: a}) {
		t.Error("no message may start although none is under way")
	}
}
