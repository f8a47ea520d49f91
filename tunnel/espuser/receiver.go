package espuser

import (
	"encoding/binary"
	"errors"
	"os"
	"sync/atomic"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/block"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/esp"
)

const ipv6Len = 40

// sink takes the packets that were received. It may change them.
type sink interface {
	Write(packets [][]byte, offset int) (int, error)
}

// receiver takes packets from one socket, opens them, and lets them arrive on the link, in one
// goroutine.
type receiver struct {
	in      *reception
	is4     bool
	self    innerAddr
	table   *atomic.Pointer[table]
	out     sink
	dropped *drops

	opened [][]byte
}

func newReceiver(w *device, e *ends, is4 bool) *receiver {
	from := e.v6
	if is4 {
		from = e.v4
	}
	return &receiver{in: newReception(from), is4: is4, self: w.self, table: &w.table, out: w.link, dropped: &w.dropped}
}

// run receives until the socket is closed.
func (r *receiver) run() {
	for turns := (block.Turns{}); ; turns.Next() {
		b, size, mark, err := r.in.next()
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			r.dropped.count(dropUnread) // such as a message about an earlier packet
			continue
		}
		r.take(b, size, mark)
	}
}

// take opens packets of a size, the last may be shorter, that lie one behind the other and came with
// one mark.
func (r *receiver) take(b []byte, size int, mark ecn) {
	t := r.table.Load()
	r.opened = r.opened[:0]
	for len(b) > 0 {
		p := b[:min(size, len(b))]
		b = b[len(p):]
		inner, why := t.open(r.self, r.is4, p)
		if inner == nil {
			r.dropped.count(why)
			continue
		}
		if !mark.copyTo(inner) {
			r.dropped.count(dropCongested)
			continue
		}
		r.opened = append(r.opened, inner)
	}
	if n, _ := r.out.Write(r.opened, 0); n < len(r.opened) {
		r.dropped.add(dropUnwritten, len(r.opened)-n)
	}
}

// open returns the inner packet of a received one, or why it is dropped.
func (t *table) open(self innerAddr, is4 bool, p []byte) ([]byte, reason) {
	a := t.in[esp.SPI(p)]
	if a == nil || a.is4 != is4 {
		return nil, dropUnknown
	}
	inner, err := a.opener.Open(p)
	switch {
	case err == nil:
	case errors.Is(err, esp.ErrReplay):
		return nil, dropReplay
	default:
		return nil, dropForged
	}
	// This is where a peer is held to its own inner address: it can send as nobody else, and to
	// nobody but this node. The secure namespace's firewall believes the source.
	if len(inner) < ipv6Len || inner[0]>>4 != 6 || innerAddr(inner[8:24]) != a.inner || innerAddr(inner[24:40]) != self {
		return nil, dropForeign
	}
	n := ipv6Len + int(binary.BigEndian.Uint16(inner[4:]))
	if n > len(inner) {
		return nil, dropForeign
	}
	a.add(1, n)
	return inner[:n], 0 // what is behind it is padding for traffic flow confidentiality (RFC 4303, 2.7)
}
