package netlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// StreamOptions says what a TCP stream sends.
type StreamOptions struct {
	From, To *nl.Namespace
	Dst      netip.AddrPort // port 0 picks a free one
	Rate     int            // payload bytes per second; default 256 KiB
	Marker   []byte         // appears once per 4 KiB of content
	// Patience is the least time after which the sender takes silence for loss
	// (TCP_RTO_MIN); 0: StallTime. On a machine that is ten times slower than
	// others every answer is late, and none is lost.
	Patience time.Duration
}

// Stream is a running TCP stream that checks every byte on arrival.
type Stream struct {
	cancel context.CancelFunc
	done   chan struct{}
	once   sync.Once
	end    chan struct{}

	result TransferResult // set before done closes
	err    error
}

// StartTCPStream opens a connection and sends until ctx ends or Stop is called.
// The caller calls Stop.
func StartTCPStream(ctx context.Context, o StreamOptions) *Stream {
	if o.Rate == 0 {
		o.Rate = 256 << 10
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &Stream{cancel: cancel, done: make(chan struct{}), end: make(chan struct{})}
	go func() {
		defer close(s.done)
		if s.err = patient(o); s.err != nil {
			return
		}
		s.result, s.err = transfer(ctx, o.From, o.To, o.Dst, TransferOptions{Marker: o.Marker, rate: o.Rate, until: s.end})
	}()
	return s
}

// patient gives the sender a route of its own to the receiver, with the least
// timeout as a metric: Linux 6.1 has no other way. Neighbours only.
func patient(o StreamOptions) error {
	if o.Patience == 0 {
		return nil
	}
	h, err := o.From.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	to := net.IP(o.Dst.Addr().AsSlice())
	found, err := h.RouteGet(to)
	if err != nil || len(found) == 0 {
		return fmt.Errorf("find the way to %s: %w", o.Dst.Addr(), err)
	}
	err = h.RouteReplace(&netlink.Route{
		LinkIndex: found[0].LinkIndex, Scope: netlink.SCOPE_LINK,
		Dst:    &net.IPNet{IP: to, Mask: net.CIDRMask(o.Dst.Addr().BitLen(), o.Dst.Addr().BitLen())},
		RtoMin: int(o.Patience.Milliseconds()), RtoMinLock: true,
	})
	if err != nil {
		return fmt.Errorf("be patient on the way to %s: %w", o.Dst.Addr(), err)
	}
	return nil
}

// Stop ends the sender, waits until everything that was sent has arrived, and
// returns what was achieved. An error says that the stream broke, lost or
// changed data, or that ctx ended. It may be called more than once.
func (s *Stream) Stop(ctx context.Context) (TransferResult, error) {
	s.once.Do(func() { close(s.end) })
	select {
	case <-s.done:
	case <-ctx.Done():
		s.cancel()
		<-s.done
		return s.result, fmt.Errorf("end TCP stream: %w", ctx.Err())
	}
	s.cancel()
	if s.err != nil {
		return s.result, fmt.Errorf("TCP stream: %w", s.err)
	}
	return s.result, nil
}
