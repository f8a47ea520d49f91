package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/secure-overlay/secure-overlay/agent/ipam"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// promiser keeps promises on the disk; *keystore.Store.
type promiser interface {
	Promises() (keystore.Promises, error)
	SavePromises(keystore.Promises) error
}

// keeper owns this node's promises about address blocks. Requests of other nodes are
// answered here, in their own goroutines: a disk that is slow holds up who asks, and
// not the loop.
type keeper struct {
	disk promiser
	view func() ipam.View

	// writing is held from a decision until it is on the disk, so that each decision
	// sees all that were promised before it.
	writing sync.Mutex
	current atomic.Pointer[ipam.Ledger] // as it is on the disk
}

// open reads what is kept. It comes before everything else.
func (k *keeper) open(self ids.NodeID, view func() ipam.View) error {
	kept, err := k.disk.Promises()
	if err != nil {
		return err
	}
	l := ipam.Open(fromDisk(kept), self)
	k.view = view
	k.current.Store(&l)
	return nil
}

// ledger is what has been promised, as it is on the disk.
func (k *keeper) ledger() ipam.Ledger { return *k.current.Load() }

// change makes a decision, writes it down, and only then lets it count. If the disk
// fails nothing is decided; what it may have kept all the same binds the next agent
// and nobody before.
func (k *keeper) change(decide func(v ipam.View, l ipam.Ledger) ipam.Ledger) error {
	k.writing.Lock()
	defer k.writing.Unlock()
	l := k.ledger()
	next := decide(k.view(), l)
	if next.Equal(l) {
		return nil
	}
	if err := k.disk.SavePromises(onDisk(next.Store())); err != nil {
		return err
	}
	k.current.Store(&next)
	return nil
}

// serve answers a member that asks for blocks; it is membership's handler.
func (k *keeper) serve(_ context.Context, from ids.NodeID, raw []byte) ([]byte, error) {
	ask, err := ipam.ParseAsk(raw)
	if err != nil {
		return nil, err
	}
	var answer ipam.Answer
	if err := k.change(func(v ipam.View, l ipam.Ledger) (next ipam.Ledger) {
		answer, next = l.Serve(v, from, ask)
		return next
	}); err != nil {
		return nil, fmt.Errorf("promise blocks to node %s: %w", from, err)
	}
	return answer.Encode(), nil
}

// clusterView is what a snapshot says about who votes and who has which blocks.
func clusterView(snap membership.Snapshot, at moment, founder bool) ipam.View {
	v := ipam.View{Self: snap.Self, Founder: founder, Gone: map[ids.NodeID]bool{}}
	if !at.trusted.IsZero() {
		v.Ended = at.trusted.Add(-endGrace).Unix()
	}
	for _, r := range snap.Revoked {
		v.Gone[r.Node] = true
	}
	for _, d := range snap.Left {
		v.Gone[d.ID] = true
	}
	for _, m := range snap.Members {
		switch {
		case v.Gone[m.ID]:
		case m.ID != snap.Self && standingOf(m.Cert, at) == ended:
			v.Gone[m.ID] = true // no handshake lets it in any more, and nothing renews it
		default:
			v.Members = append(v.Members, ipam.Member{
				ID: m.ID, Serial: m.Serial, Votes: m.Cert.Roles&keys.RoleObserver == 0, Ends: m.Cert.NotAfter.Unix(),
				Alive: m.State == membership.StateAlive, Record: granted(m),
			})
		}
	}
	return v
}

// clusterView is the cluster as this node sees it now. Any goroutine may ask.
func (l *loop) clusterView() ipam.View {
	return clusterView(l.gossip.Snapshot(), l.moment(), l.identity.Cert.Token.IsZero())
}

func fromDisk(p keystore.Promises) ipam.Stored {
	s := ipam.Stored{Joined: p.Joined, Met: p.Met}
	for _, x := range p.List {
		s.Promises = append(s.Promises, ipam.Promise{Block: ipam.Block{Network: x.Network, Prefix: x.Block}, To: x.To, Seq: x.Seq, Settled: x.Settled})
	}
	for _, x := range p.Voters {
		s.Voters = append(s.Voters, ipam.Voter(x))
	}
	return s
}

func onDisk(s ipam.Stored) keystore.Promises {
	p := keystore.Promises{Joined: s.Joined, Met: s.Met}
	for _, x := range s.Promises {
		p.List = append(p.List, keystore.Promise{Network: x.Network, Block: x.Prefix, To: x.To, Seq: x.Seq, Settled: x.Settled})
	}
	for _, x := range s.Voters {
		p.Voters = append(p.Voters, keystore.Voter(x))
	}
	return p
}

// listedBlocks are the blocks that a record lists.
func listedBlocks(networks []record.Network) map[ipam.Block]bool {
	out := map[ipam.Block]bool{}
	for _, n := range networks {
		for _, p := range n.Blocks {
			out[ipam.Block{Network: n.Name, Prefix: p}] = true
		}
	}
	return out
}

// sorted returns the blocks of a set in the order of messages.
func sorted(set map[ipam.Block]bool) []ipam.Block {
	out := make([]ipam.Block, 0, len(set))
	for b := range set {
		out = append(out, b)
	}
	ipam.SortBlocks(out)
	return slices.Clip(out)
}
