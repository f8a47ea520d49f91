package agent

import (
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership"
)

// claims remembers which of this node's address blocks may be used.
//
// A claim is settled, that is addresses may be handed out from it, when every
// other member that gossip sees alive has confirmed, by an equal digest, that
// it holds exactly the records this node holds. These include the own record
// with the claim, and would include a rival's: had another live node claimed
// the block, its record would be here, and the older member's claim would
// have won in Desired. So among nodes that can talk to each other no address
// is given twice.
//
// Where no other member is alive, or one does not confirm (in a cluster that
// changes all the time digests are rarely equal), settleTime must have passed
// since publication. A partition, or a rival that is slower than that, can
// then lead to one address on two nodes: settleAddresses decides it, the same
// way everywhere.
type claims struct {
	since   map[claimKey]time.Time // when the claim was first seen in the own record
	settled map[claimKey]bool
}

type claimKey struct {
	network string
	block   netip.Prefix
}

// update looks at the own record as the others see it.
func (c *claims) update(now time.Time, snap membership.Snapshot, self ids.NodeID) {
	since, settled := map[claimKey]time.Time{}, map[claimKey]bool{}
	confirmed, others := true, 0
	for _, m := range snap.Members {
		if m.ID != self && m.State == membership.StateAlive {
			others++
			confirmed = confirmed && m.Synced
		}
	}
	confirmed = confirmed && others > 0
	own, _ := snap.Member(self)
	for _, n := range own.Record.Networks {
		for _, block := range n.Blocks {
			k := claimKey{n.Name, block}
			since[k] = now
			if t, ok := c.since[k]; ok {
				since[k] = t
			}
			// Once settled it stays so until it is lost, which the record
			// shows.
			settled[k] = c.settled[k] || confirmed || now.Sub(since[k]) >= settleTime
		}
	}
	c.since, c.settled = since, settled
}

// usable returns those of the blocks that are settled.
func (c *claims) usable(network string, blocks []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, b := range blocks {
		if c.settled[claimKey{network, b}] {
			out = append(out, b)
		}
	}
	return out
}
