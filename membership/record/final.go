package record

import (
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// finalBits is how many bits of a final record's number are the time: seconds
// from 1970 until the year 4147, which every form of a time can hold.
const finalBits = 36

// FirstFinal is the lowest sequence number of a final record, 2^64 - 2^36. All
// below it belong to members, all from it on to nodes that have left.
const FirstFinal uint64 = 1<<64 - 1<<finalBits

// Final returns the last record of a node: it has left the cluster, at a time
// that is kept to the second. The record has no content, and its number is
// above every number of a member. So nothing else that the node has signed, or
// will sign, replaces it, in whatever order things come, and an old copy of the
// node's state cannot take it back.
//
// The format is that of any record: a build that knows no final records takes
// it for the newest one of a node that is on no network.
func Final(id ids.NodeID, at time.Time) Node {
	return Node{ID: id, Seq: FirstFinal + uint64(min(max(at.Unix(), 0), 1<<finalBits-1))}
}

// Left returns when the node left, as it said itself; false for a member.
func (n Node) Left() (at time.Time, ok bool) {
	if n.Seq < FirstFinal {
		return time.Time{}, false
	}
	return time.Unix(int64(n.Seq-FirstFinal), 0).UTC(), true
}

// Final reports whether this is the head of a final record.
func (h Head) Final() bool { return h.Seq >= FirstFinal }

// validFinal keeps final records free of content: a node that has left is
// nowhere.
func (n Node) validFinal() error {
	if _, left := n.Left(); left && len(n.Underlay)+len(n.Tunnels)+len(n.Networks)+len(n.Attached) > 0 {
		return malformed("number %d is for a node that has left, but the record has content", n.Seq)
	}
	return nil
}
