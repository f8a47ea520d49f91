package agent

import (
	"context"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
)

// rogue is a member whose agent is replaced by single calls.
type rogue struct {
	*fakeGossip
	boot, seq uint64
	heard     rotate.Message // the last answer
}

// rogue kills a node's agent and acts in its place.
func (m *machine) rogue() *rogue {
	m.kill()
	r := &rogue{fakeGossip: &fakeGossip{board: m.w.board}, boot: 99}
	r.self.ID = m.id
	return r
}

// say tells a node what the rogue has, as a process that has taken all that the
// node said.
func (r *rogue) say(t *testing.T, to ids.NodeID, epochs ...rotate.EpochState) {
	t.Helper()
	r.seq++
	msg := rotate.Message{Boot: r.boot, Seq: r.seq, AckBoot: r.heard.Boot, AckSeq: r.heard.Seq, Epochs: epochs}
	raw, err := r.Pair(context.Background(), to, msg.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if r.heard, err = rotate.ParseMessage(raw); err != nil {
		t.Fatal(err)
	}
}

// settle says that nothing is installed until the node takes it as the word of
// a new process: then no key is in use.
func (r *rogue) settle(t *testing.T, to ids.NodeID) {
	t.Helper()
	for range 3 {
		r.say(t, to)
	}
}

// offer describes the first devices of two nodes' records, as the first node
// would.
func (b *board) offer(from, to ids.NodeID) rotate.Offer {
	mine, yours := b.record(from).Tunnels[0], b.record(to).Tunnels[0]
	return rotate.Offer{
		Epoch: mine.Epoch, Wire: uint8(mine.Wire), Mine: mine.Instance, Yours: yours.Instance,
		MyKey: mine.Public, YourKey: yours.Public,
	}
}
