package netlab

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// PingOptions says what Ping sends. Zero values mean the defaults.
type PingOptions struct {
	Count        int           // echo requests; default 1
	Size         int           // payload bytes behind the 8-byte ICMP header; default 56, at least 16
	Interval     time.Duration // between requests; default 100 ms
	Timeout      time.Duration // to wait for answers after the last request; default 1 s
	DontFragment bool          // forbid fragmentation: larger than the path MTU is lost or a send error
	Marker       []byte        // repeated through the payload behind the first 16 bytes
}

// PingResult is what became of the requests.
type PingResult struct {
	Sent     int             // requests handed to the kernel
	Received int             // different requests that were answered, with the payload intact
	RTTs     []time.Duration // of the answers, in order of arrival
	SendErr  error           // last error of a send, such as EMSGSIZE or ENETUNREACH
}

// Ping sends ICMP or ICMPv6 echo requests from ns. Lost requests are no
// error; a socket that cannot be opened is. When ctx ends, Ping returns what it
// has with ctx's error.
func Ping(ctx context.Context, ns *nl.Namespace, dst netip.Addr, o PingOptions) (PingResult, error) {
	o = o.withDefaults()
	p, err := openPinger(ns, dst, o)
	if err != nil {
		return PingResult{}, fmt.Errorf("ping %s: %w", dst, err)
	}
	received := make(chan struct{})
	go func() {
		defer close(received)
		p.receive()
	}()
	err = p.run(ctx, received)
	_ = p.file.Close()
	<-received
	return p.result, err
}

func (o PingOptions) withDefaults() PingOptions {
	if o.Count == 0 {
		o.Count = 1
	}
	if o.Size == 0 {
		o.Size = 56
	}
	o.Size = max(o.Size, 16)
	if o.Interval == 0 {
		o.Interval = 100 * time.Millisecond
	}
	if o.Timeout == 0 {
		o.Timeout = time.Second
	}
	return o
}

// pinger is one run of Ping.
type pinger struct {
	o    PingOptions
	dst  netip.Addr
	id   uint16
	key  [8]byte // tells our answers from another run's with the same id
	file *os.File

	mu     sync.Mutex // guards what follows
	sentAt map[uint16]time.Time
	result PingResult
}

func openPinger(ns *nl.Namespace, dst netip.Addr, o PingOptions) (*pinger, error) {
	p := &pinger{o: o, dst: dst, id: uint16(rand.Uint32()), sentAt: make(map[uint16]time.Time)}
	binary.BigEndian.PutUint64(p.key[:], rand.Uint64())
	err := ns.Do(func() error {
		fd, err := icmpSocket(dst, o.DontFragment)
		if err != nil {
			return err
		}
		p.file = os.NewFile(uintptr(fd), "icmp")
		return nil
	})
	return p, err
}

// icmpSocket opens a raw socket connected to dst, so that it receives only
// what comes from there.
func icmpSocket(dst netip.Addr, df bool) (int, error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if dst.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return -1, fmt.Errorf("open ICMP socket: %w", err)
	}
	if dst.Is6() {
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, discover(df)),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, btoi(df)),
			unix.Connect(fd, &unix.SockaddrInet6{Addr: dst.As16()}))
	} else {
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, discover(df)),
			unix.Connect(fd, &unix.SockaddrInet4{Addr: dst.As4()}))
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("set up ICMP socket: %w", err)
	}
	return fd, nil
}

func discover(df bool) int {
	if df {
		return unix.IP_PMTUDISC_DO // the same number for IPv6
	}
	return unix.IP_PMTUDISC_DONT
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// run sends the requests and waits for the answers.
func (p *pinger) run(ctx context.Context, received <-chan struct{}) error {
	tick := time.NewTicker(p.o.Interval)
	defer tick.Stop()
	for seq := range p.o.Count {
		p.send(uint16(seq))
		if seq == p.o.Count-1 {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("ping %s: %w", p.dst, ctx.Err())
		case <-received:
			return fmt.Errorf("ping %s: the socket failed", p.dst)
		case <-tick.C:
		}
	}
	wait, cancel := context.WithTimeout(ctx, p.o.Timeout)
	defer cancel()
	// Running out of time here only means lost answers.
	_ = waitFor(wait, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.result.Received == p.result.Sent
	}, func() string { return "answers are missing" })
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("ping %s: %w", p.dst, err)
	}
	return nil
}

func (p *pinger) send(seq uint16) {
	msg := p.message(seq)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sentAt[seq] = time.Now()
	if _, err := p.file.Write(msg); err != nil {
		delete(p.sentAt, seq)
		p.result.SendErr = err
		return
	}
	p.result.Sent++
}

// message builds an echo request (RFC 792, RFC 4443): type, code, checksum,
// identifier, sequence, then the key, padding and the marker.
func (p *pinger) message(seq uint16) []byte {
	m := make([]byte, 8+p.o.Size)
	m[0] = 8
	if p.dst.Is6() {
		m[0] = 128
	}
	binary.BigEndian.PutUint16(m[4:], p.id)
	binary.BigEndian.PutUint16(m[6:], seq)
	copy(m[8:], p.key[:])
	fill(m[24:], p.o.Marker)
	if !p.dst.Is6() { // the kernel does it for IPv6 (RFC 3542 3.1)
		binary.BigEndian.PutUint16(m[2:], ^fold(sum16(0, m)))
	}
	return m
}

// receive takes answers until the socket is closed.
func (p *pinger) receive() {
	buf := make([]byte, frameMax)
	for {
		n, err := p.file.Read(buf)
		switch {
		case err == nil:
			p.answer(buf[:n])
		case errors.Is(err, os.ErrClosed):
			return
		default:
			// An ICMP error came for one of the requests (a connected
			// socket reports it once): that request is lost.
		}
	}
}

// answer counts one received message if it answers a request of this run.
func (p *pinger) answer(m []byte) {
	reply := byte(129)
	if !p.dst.Is6() {
		if len(m) < 20 || len(m) < int(m[0]&0x0f)*4 {
			return
		}
		m, reply = m[int(m[0]&0x0f)*4:], 0
	}
	if len(m) < 24 || m[0] != reply || binary.BigEndian.Uint16(m[4:]) != p.id || [8]byte(m[8:16]) != p.key {
		return
	}
	seq := binary.BigEndian.Uint16(m[6:])
	if !bytes.Equal(m[8:], p.message(seq)[8:]) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.sentAt[seq]
	if !ok {
		return // answered before
	}
	delete(p.sentAt, seq)
	p.result.Received++
	p.result.RTTs = append(p.result.RTTs, time.Since(at))
}

// fill repeats pattern through b; without a pattern b stays zero.
func fill(b, pattern []byte) {
	if len(pattern) == 0 {
		return
	}
	for n := copy(b, pattern); n < len(b); n += copy(b[n:], pattern) {
	}
}
