package espuser

import (
	"sync/atomic"

	"github.com/secure-overlay/secure-overlay/tunnel"
)

// reason is why a packet was dropped.
type reason uint8

// The reasons. Their order is part of the protocol with the driver: new ones go to the end.
const (
	dropNoPeer    reason = iota // to an inner address that no peer has
	dropForeign                 // an inner address that is not the peer's or this node's, or no IPv6 packet
	dropUnsent                  // the kernel did not take it
	dropUnknown                 // no association with its SPI
	dropReplay                  // was there before, or is older than the window
	dropForged                  // wrong tag, or a trailer that makes no sense
	dropUnread                  // an error in place of a packet
	dropUnwritten               // the link did not take it
	dropExhausted               // the association has no sequence number left
	dropCongested               // marked on the way, for a sender that does not know of marks
	dropOverflow                // sent faster than the worker could take it
	reasons
)

// String says it for people.
func (r reason) String() string {
	return [reasons]string{
		"no peer", "foreign address", "not sent", "unknown SPI", "replay", "forged", "not read", "not delivered", "exhausted", "congestion", tunnel.Overflow,
	}[r]
}

// counts are numbers of dropped packets.
type counts [reasons]uint64

// byReason is the same for people, without what has not happened; not nil, since it was counted.
func (c counts) byReason() map[string]uint64 {
	out := map[string]uint64{}
	for r, n := range c {
		if n > 0 {
			out[reason(r).String()] = n
		}
	}
	return out
}

// drops counts dropped packets. Several goroutines add.
type drops [reasons]atomic.Uint64

func (d *drops) count(r reason) { d.add(r, 1) }

func (d *drops) add(r reason, n int) { d[r].Add(uint64(n)) }

func (d *drops) read() (out counts) {
	for i := range d {
		out[i] = d[i].Load()
	}
	return out
}
