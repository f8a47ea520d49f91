package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// FlowOptions says what a UDP flow sends.
type FlowOptions struct {
	From, To *nl.Namespace  // sender's and receiver's namespace
	Dst      netip.AddrPort // receiver's address inside To; port 0 picks a free one
	Rate     int            // packets per second; default 1000
	Size     int            // UDP payload bytes; default 200, at least 8
	Marker   []byte         // repeated through the payload behind the 8-byte number
	Late     time.Duration  // from when on a packet counts as late; default StallTime/2
}

// FlowResult is what became of the numbered packets.
type FlowResult struct {
	Sent       uint64        // packets handed to the kernel
	SendErrors uint64        // packets the kernel refused (no route, ...): not in Sent
	Received   uint64        // different numbers that arrived intact
	Duplicated uint64        // further copies of a number
	Reordered  uint64        // numbers that came after a higher one
	Corrupt    uint64        // packets of a wrong size or content
	LongestGap time.Duration // longest time between two arrivals
	Stalls     uint64        // times between two arrivals of at least StallTime

	LongestDelay time.Duration // longest time from sending a packet to looking at it
	Late         uint64        // spells in which packets arrived late (FlowOptions.Late)
}

// StallTime is the least retransmission timeout of Linux's TCP (TCP_RTO_MIN):
// a machine that gives nobody a turn for so long makes TCP time out although no
// packet is lost.
const StallTime = 200 * time.Millisecond

// Lost returns how many sent packets have not arrived.
func (r FlowResult) Lost() uint64 { return r.Sent - min(r.Received, r.Sent) }

// Flow is a running UDP flow. Its methods may be called from several goroutines.
type Flow struct {
	o      FlowOptions
	tx, rx *net.UDPConn
	cancel context.CancelFunc
	sent   chan struct{} // the sender has ended
	recved chan struct{} // the receiver has ended
	stop   sync.Once

	mu     sync.Mutex // guards what follows
	result FlowResult
	seen   []uint64 // bitmap by number
	high   uint64   // highest number seen plus one
	last   time.Time
	began  time.Time
	sentAt []uint32  // by number, milliseconds after began
	late   time.Time // the last late arrival
}

// StartUDPFlow starts to send numbered packets at a steady rate and to count
// their arrival, until ctx ends or Stop is called. The caller calls Stop.
func StartUDPFlow(ctx context.Context, o FlowOptions) (*Flow, error) {
	if o.Rate == 0 {
		o.Rate = 1000
	}
	if o.Size == 0 {
		o.Size = 200
	}
	o.Size = max(o.Size, 8)
	if o.Late == 0 {
		o.Late = StallTime / 2
	}
	f := &Flow{o: o, began: time.Now(), sent: make(chan struct{}), recved: make(chan struct{})}
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("start UDP flow to %s: %w", o.Dst, err)
	}
	ctx, f.cancel = context.WithCancel(ctx)
	go f.receive()
	go f.send(ctx)
	return f, nil
}

func (f *Flow) open() error {
	err := f.o.To.Do(func() (err error) {
		f.rx, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(f.o.Dst))
		return err
	})
	if err != nil {
		return err
	}
	if err := growBuffer(f.rx); err != nil {
		_ = f.rx.Close()
		return err
	}
	f.o.Dst = f.rx.LocalAddr().(*net.UDPAddr).AddrPort()
	err = f.o.From.Do(func() (err error) {
		f.tx, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(f.o.Dst))
		return err
	})
	if err != nil {
		_ = f.rx.Close()
	}
	return err
}

// growBuffer makes room for seconds of traffic: loss must be the network's, not
// the receiver's. It passes over the limit net.core.rmem_max, as root may.
func growBuffer(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var opt error
	if err := raw.Control(func(fd uintptr) {
		opt = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
	}); err != nil {
		return err
	}
	if opt != nil {
		return fmt.Errorf("size socket buffer: %w", opt)
	}
	return nil
}

// catchUp is how much of what a flow did not get the time to send it sends at
// once. After a machine that stood still for seconds, all of it would be a burst
// that no device's queue holds, and the loss that of the test.
const catchUp = 250 * time.Millisecond

// send writes what is due at each tick.
func (f *Flow) send(ctx context.Context) {
	defer close(f.sent)
	buf := make([]byte, f.o.Size)
	fill(buf[8:], f.o.Marker)
	each := time.Second / time.Duration(f.o.Rate)
	next := time.Now()
	tick := time.NewTicker(f.turn())
	defer tick.Stop()
	for {
		now := time.Now()
		if earliest := now.Add(-catchUp); next.Before(earliest) {
			next = earliest
		}
		for ; !next.After(now); next = next.Add(each) {
			f.sendOne(buf)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// turn is how often a flow sends what is due, and looks at what has arrived.
// Where turns are dear, as in an emulated machine, a slow flow takes a third of
// the turns and sends three packets in each.
func (f *Flow) turn() time.Duration {
	return min(max(time.Millisecond, 3*time.Second/time.Duration(f.o.Rate)), 20*time.Millisecond)
}

// sendOne sends the next number. The number is counted as sent before it can
// arrive, and a refused one is used again.
func (f *Flow) sendOne(buf []byte) {
	now := uint32(time.Since(f.began).Milliseconds())
	f.mu.Lock()
	binary.BigEndian.PutUint64(buf, f.result.Sent)
	f.sentAt = append(f.sentAt[:f.result.Sent], now)
	f.result.Sent++
	f.mu.Unlock()
	if _, err := f.tx.Write(buf); err != nil {
		f.mu.Lock()
		f.result.Sent--
		f.result.SendErrors++
		f.mu.Unlock()
	}
}

// receive counts arrivals until the socket is closed. It looks at all of them
// once in a turn: to be woken for each costs more than the packet does.
func (f *Flow) receive() {
	defer close(f.recved)
	want := make([]byte, f.o.Size)
	fill(want[8:], f.o.Marker)
	buf := make([]byte, 65536)
	raw, err := f.rx.SyscallConn()
	if err != nil {
		return // closed already
	}
	tick := time.NewTicker(f.turn())
	defer tick.Stop()
	for ; ; <-tick.C {
		empty := false
		err := raw.Read(func(fd uintptr) bool {
			for !empty {
				n, err := unix.Read(int(fd), buf)
				if empty = errors.Is(err, unix.EAGAIN); err == nil {
					f.arrived(buf[:n], want)
				}
			}
			return true
		})
		if err != nil {
			return // closed
		}
	}
}

func (f *Flow) arrived(p, want []byte) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(p) != len(want) || string(p[8:]) != string(want[8:]) {
		f.result.Corrupt++
		return
	}
	num := binary.BigEndian.Uint64(p)
	if num >= f.result.Sent {
		f.result.Corrupt++
		return
	}
	for uint64(len(f.seen)) <= num/64 {
		f.seen = append(f.seen, 0)
	}
	if f.seen[num/64]&(1<<(num%64)) != 0 {
		f.result.Duplicated++
		return
	}
	f.seen[num/64] |= 1 << (num % 64)
	f.result.Received++
	f.delayed(now, num)
	if num+1 < f.high {
		f.result.Reordered++
	}
	f.high = max(f.high, num+1)
	if !f.last.IsZero() {
		gap := now.Sub(f.last)
		f.result.LongestGap = max(f.result.LongestGap, gap)
		if gap >= StallTime {
			f.result.Stalls++
		}
	}
	f.last = now
}

// delayed counts how long a packet was under way. Late packets that arrive one
// soon after the other are one spell: whatever held them up did so once. mu is held.
func (f *Flow) delayed(now time.Time, num uint64) {
	d := now.Sub(f.began.Add(time.Duration(f.sentAt[num]) * time.Millisecond))
	f.result.LongestDelay = max(f.result.LongestDelay, d)
	if d < f.o.Late {
		return
	}
	if f.late.IsZero() || now.Sub(f.late) >= f.o.Late {
		f.result.Late++
	}
	f.late = now
}

// Result returns the counts until now. Packets under way count as lost.
func (f *Flow) Result() FlowResult {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.result
}

// WaitReceived waits until n more packets have arrived, or ctx ends.
func (f *Flow) WaitReceived(ctx context.Context, n uint64) error {
	goal := f.Result().Received + n
	return waitFor(ctx, func() bool { return f.Result().Received >= goal },
		func() string { return fmt.Sprintf("%d of %d packets arrived", f.Result().Received, goal) })
}

// Stop ends the sender, waits up to a second for packets under way, and
// returns the final counts. It may be called more than once.
func (f *Flow) Stop() FlowResult {
	f.stop.Do(func() {
		f.cancel()
		<-f.sent
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = waitFor(ctx, func() bool { return f.Result().Lost() == 0 }, func() string { return "packets are missing" })
		_ = f.tx.Close()
		_ = f.rx.Close()
		<-f.recved
	})
	return f.Result()
}

// UDPFlow runs a flow for a time and returns its counts.
func UDPFlow(ctx context.Context, d time.Duration, o FlowOptions) (FlowResult, error) {
	f, err := StartUDPFlow(ctx, o)
	if err != nil {
		return FlowResult{}, err
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return f.Stop(), fmt.Errorf("UDP flow to %s: %w", o.Dst, ctx.Err())
	case <-timer.C:
		return f.Stop(), nil
	}
}
