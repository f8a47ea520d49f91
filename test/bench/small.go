package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// smallPacket is how many bytes of UDP payload a small packet has.
const smallPacket = 64

// streams runs TCP transfers beside each other and returns the sum of what they achieve.
func streams(ctx context.Context, v *variant, n int, d time.Duration) (mbit float64, err error) {
	type outcome struct {
		mbit float64
		err  error
	}
	done := make(chan outcome)
	for range n {
		go func() {
			r, err := netlab.TCPTransfer(ctx, v.from, v.to, netip.AddrPortFrom(v.dst, 0), netlab.TransferOptions{Duration: d})
			done <- outcome{r.MbitPerS, err}
		}()
	}
	for range n {
		o := <-done
		mbit, err = mbit+o.mbit, errors.Join(err, o.err)
	}
	return mbit, err
}

// flood sends small packets as fast as one sender can, a system call for each, and returns how
// many left it and how many arrived.
func flood(ctx context.Context, from, to *nl.Namespace, dst netip.Addr, d time.Duration) (sent, received int, err error) {
	var in *net.UDPConn
	err = to.Do(func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 0)))
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = in.Close() }()
	var out net.Conn
	err = from.Do(func() (err error) {
		out, err = (&net.Dialer{}).DialContext(ctx, "udp", in.LocalAddr().String())
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = out.Close() }()
	end := time.Now().Add(d)
	const settle = 300 * time.Millisecond // for what is in queues
	if err := in.SetReadDeadline(end.Add(settle)); err != nil {
		return 0, 0, err
	}
	arrived := make(chan int)
	go func() {
		n, b := 0, make([]byte, 2*smallPacket)
		for {
			size, err := in.Read(b)
			if err != nil {
				arrived <- n
				return
			}
			if size == smallPacket {
				n++
			}
		}
	}()
	b := make([]byte, smallPacket)
	for i := 0; ; i++ {
		if i%64 == 0 && (time.Now().After(end) || ctx.Err() != nil) {
			break
		}
		if _, err := out.Write(b); err == nil { // a full queue refuses some
			sent++
		}
	}
	received = <-arrived
	if received == 0 {
		return sent, 0, fmt.Errorf("none of %d small packets arrived: %w", sent, os.ErrDeadlineExceeded)
	}
	return sent, received, ctx.Err()
}
