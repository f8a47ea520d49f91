package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// TransferOptions says how much a TCP transfer sends: the bytes, or whatever
// goes through in the duration. Exactly one of the two is set.
type TransferOptions struct {
	Bytes    int64
	Duration time.Duration
	Marker   []byte // appears once per 4 KiB of content

	until <-chan struct{} // with neither Bytes nor Duration: the end
	rate  int             // bytes per second until then
}

// TransferResult is what a TCP transfer achieved.
type TransferResult struct {
	Bytes     int64         // received and found intact
	Elapsed   time.Duration // from the first byte to the last acknowledgement by the receiver
	MbitPerS  float64       // payload
	BlockSize int           // length of the content that is sent again and again
}

// TCPTransfer sends content over one TCP connection from one namespace to
// an address inside another and checks every byte on arrival. Port 0 picks a
// free one.
func TCPTransfer(ctx context.Context, from, to *nl.Namespace, dst netip.AddrPort, o TransferOptions) (TransferResult, error) {
	if (o.Bytes > 0) == (o.Duration > 0) {
		return TransferResult{}, errors.New("transfer over TCP: want either bytes or a duration")
	}
	res, err := transfer(ctx, from, to, dst, o)
	if err != nil {
		return res, fmt.Errorf("transfer over TCP to %s: %w", dst, err)
	}
	return res, nil
}

func transfer(ctx context.Context, from, to *nl.Namespace, dst netip.AddrPort, o TransferOptions) (TransferResult, error) {
	var ln net.Listener
	err := to.Do(func() (err error) {
		ln, err = (&net.ListenConfig{}).Listen(ctx, "tcp", dst.String())
		return err
	})
	if err != nil {
		return TransferResult{}, err
	}
	block := content(o.Marker)
	type arrival struct {
		n   int64
		err error
	}
	arrived := make(chan arrival, 1)
	go func() {
		n, err := receiveAll(ctx, ln, block)
		arrived <- arrival{n, err}
	}()
	start := time.Now()
	sendErr := sendAll(ctx, from, ln.Addr().String(), block, o)
	if sendErr != nil {
		_ = ln.Close() // the receiver may still wait for the connection
	}
	a := <-arrived
	_ = ln.Close()
	elapsed := time.Since(start)
	res := TransferResult{Bytes: a.n, Elapsed: elapsed, BlockSize: len(block)}
	res.MbitPerS = float64(a.n) * 8 / 1e6 / elapsed.Seconds()
	if sendErr != nil {
		return res, sendErr
	}
	if a.err == nil && o.Bytes > 0 && a.n != o.Bytes {
		a.err = fmt.Errorf("%d of %d bytes arrived", a.n, o.Bytes)
	}
	return res, a.err
}

// content makes the block that is sent again and again. Its length has no
// factor in common with any segment size, and its bytes do not repeat inside,
// so that lost, doubled or shifted data is found.
func content(marker []byte) []byte {
	b := make([]byte, 131071)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	for at := 0; at+len(marker) <= len(b); at += 4096 {
		copy(b[at:], marker)
	}
	return b
}

// sendAll dials and sends, and waits until the receiver has everything.
func sendAll(ctx context.Context, from *nl.Namespace, addr string, block []byte, o TransferOptions) error {
	var conn net.Conn
	err := from.Do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	write := writeAll
	if o.until != nil {
		write = writePaced
	}
	if err := write(ctx, conn, block, o); err != nil {
		return withCause(ctx, err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		return withCause(ctx, err)
	}
	// The receiver closes after the last byte.
	if _, err := io.Copy(io.Discard, conn); err != nil {
		return withCause(ctx, err)
	}
	return nil
}

// writeAll writes the bytes, or for the duration.
func writeAll(_ context.Context, conn net.Conn, block []byte, o TransferOptions) error {
	deadline := time.Now().Add(o.Duration)
	for left := o.Bytes; ; {
		chunk := block
		if o.Bytes > 0 {
			chunk = block[:min(left, int64(len(block)))]
			left -= int64(len(chunk))
		}
		if len(chunk) == 0 || (o.Duration > 0 && time.Now().After(deadline)) {
			return nil
		}
		if _, err := conn.Write(chunk); err != nil {
			return err
		}
	}
}

// writePaced writes at a rate until told to end.
func writePaced(ctx context.Context, conn net.Conn, block []byte, o TransferOptions) error {
	start := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for done := int64(0); ; {
		for due := int64(time.Since(start).Seconds() * float64(o.rate)); done < due; {
			rest := block[done%int64(len(block)):]
			n, err := conn.Write(rest[:min(int64(len(rest)), due-done)])
			if done += int64(n); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-o.until:
			return nil
		case <-tick.C:
		}
	}
}

// receiveAll takes one connection and compares what comes with block, over and over.
func receiveAll(ctx context.Context, ln net.Listener, block []byte) (int64, error) {
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	conn, err := ln.Accept()
	if err != nil {
		return 0, withCause(ctx, err)
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	buf := make([]byte, 256<<10)
	var total int64
	for {
		n, err := conn.Read(buf)
		for got := buf[:n]; len(got) > 0; {
			want := block[total%int64(len(block)):]
			k := min(len(got), len(want))
			if !bytes.Equal(got[:k], want[:k]) {
				return total, fmt.Errorf("content differs near byte %d", total)
			}
			got, total = got[k:], total+int64(k)
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, withCause(ctx, err)
		}
	}
}

// withCause names the end of ctx instead of the closed socket that it caused.
func withCause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
