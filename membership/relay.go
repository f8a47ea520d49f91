package membership

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// Gossip wants every node to reach every other: memberlist takes who does not answer for
// dead, and asks three random others first, of whom in a cluster of both families
// perhaps none has a way. So packets of gossip to a node that is apart go by way of
// a member that has a way to both. Streams do not: records and items come by SYNC
// with others.
//
// Nothing is trusted that was not before. Who carries a packet on can drop or forge it, as any
// member can lie about who is alive (membership/DESIGN.md), and packets say nothing
// else; hints, items and heartbeats in them are verified by their signatures.

// messageRelay is the first byte of a user message that carries a packet of memberlist
// to another node: its ID (16 bytes), the packet.
const messageRelay = 4

// userMessage is memberlist's type of a user message, which the message follows.
const userMessage = 8

// relayHead is by how much a packet gets longer on its way: two types and the ID.
// The CRC that memberlist puts around each comes on top.
const relayHead = 2 + len(ids.NodeID{}) + crcSize

const crcSize = 5

// relayed is a packet to a node, as user message.
func relayed(to ids.NodeID, packet []byte) []byte {
	b := append(make([]byte, 0, 2+len(to)+len(packet)), userMessage, messageRelay)
	return append(append(b, to[:]...), packet...)
}

// parseRelay returns the packet in a user message, which aliases b, and whom it is for.
func parseRelay(b []byte) (to ids.NodeID, packet []byte, ok bool) {
	if len(b) <= 1+len(to) || b[0] != messageRelay {
		return to, nil, false
	}
	copy(to[:], b[1:])
	return to, b[1+len(to):], true
}

// relaying is the transport as memberlist sees it.
type relaying struct {
	transport
	c *Cluster
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (r relaying) WriteToAddress(b []byte, addr memberlist.Address) (time.Time, error) {
	if id, err := ids.ParseNodeID(addr.Name); err == nil {
		if w := r.c.view.Load().ways; w.apart[id] {
			via, ok := w.via(id)
			if !ok {
				return time.Now(), nil // as lost on the way
			}
			return r.transport.WriteToAddress(relayed(id, b), gossipAddr(via))
		}
	}
	return r.transport.WriteToAddress(b, addr)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (r relaying) DialAddressTimeout(addr memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if id, err := ids.ParseNodeID(addr.Name); err == nil && r.c.view.Load().ways.apart[id] {
		return nil, fmt.Errorf("dial gossip stream to %s: %w", id, noisenet.ErrUnreachable)
	}
	return r.transport.DialAddressTimeout(addr, timeout)
}

func gossipAddr(id ids.NodeID) memberlist.Address {
	return memberlist.Address{Addr: virtualAddr(id).String(), Name: id.String()}
}

// relay takes a packet that another node has given on: it is for this node, or goes to
// the one that it is for, if that is a member to which there is a way. It goes no
// further from there, also not what it may hold of the kind, so no two nodes can send a packet to and fro.
func (c *Cluster) relay(to ids.NodeID, packet []byte) {
	v := c.view.Load()
	switch {
	case to == c.self:
		if err := c.transport.Deliver(packet, messageRelay); err != nil {
			c.log.Debug("gossip packet by way of another member is refused", logkey.Error, err)
		}
	case v.set.Get(to) != nil && !c.refuse(to) && !v.ways.apart[to]:
		// Lost if it does not go: gossip survives loss.
		_, _ = c.transport.WriteToAddress(relayed(to, packet), gossipAddr(to))
	}
}

// ways says which members this node cannot call, and by way of whom gossip reaches them.
type ways struct {
	apart   map[ids.NodeID]bool
	of      map[ids.NodeID]record.Node // of those
	bridges map[bool][]ids.NodeID      // that this node hears, by whether they have IPv4
}

// newWays looks at the records of all members. A node is apart if its record and this
// node's have no family in common.
func newWays(self ids.NodeID, set *record.Set, items []*record.Item, peers map[ids.NodeID]*peer) ways {
	var w ways
	own := set.Get(self)
	if own == nil || len(own.Node.Underlay) == 0 {
		return w
	}
	for _, it := range items {
		id, u := it.Head.ID, it.Node.Underlay
		if id == self || len(u) == 0 {
			continue
		}
		if !slices.ContainsFunc(u, func(u record.Underlay) bool { return hasFamily(own.Node, u) }) {
			if w.apart == nil {
				w.apart, w.of = make(map[ids.NodeID]bool), make(map[ids.NodeID]record.Node)
			}
			w.apart[id], w.of[id] = true, it.Node
			continue
		}
		if p := peers[id]; p == nil || p.state != StateAlive {
			continue
		}
		for _, is4 := range []bool{true, false} {
			if slices.ContainsFunc(u, func(u record.Underlay) bool { return u.Control.Addr().Is4() == is4 }) {
				if w.bridges == nil {
					w.bridges = make(map[bool][]ids.NodeID)
				}
				w.bridges[is4] = append(w.bridges[is4], id)
			}
		}
	}
	return w
}

// keepWays is for a node that has left: its final record names no address, and whom it
// can tell is as before.
func (v *view) keepWays(w ways) {
	v.ways = w
	for i, m := range v.snap.Members {
		v.snap.Members[i].Apart = w.apart[m.ID]
	}
}

// via picks a member that has a way to one that is apart, another one each time.
func (w ways) via(to ids.NodeID) (ids.NodeID, bool) {
	for _, u := range w.of[to].Underlay {
		if list := w.bridges[u.Control.Addr().Is4()]; len(list) > 0 {
			return list[rand.N(len(list))], true
		}
	}
	return ids.NodeID{}, false
}

// hasFamily reports whether a node has an address of the family of another's.
func hasFamily(n record.Node, of record.Underlay) bool {
	return slices.ContainsFunc(n.Underlay, func(u record.Underlay) bool { return u.Control.Addr().Is4() == of.Control.Addr().Is4() })
}
