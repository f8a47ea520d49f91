package secure

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// MinProbe is the smallest probe in bytes of the whole IPv6 packet: IPv6
// header, echo header, and random bytes enough that nobody guesses them.
const MinProbe = 40 + echoHeader + 16

const echoHeader = 8

// ICMPv6 types (RFC 4443 sections 4.1 and 4.2).
const (
	echoRequest = 128
	echoReply   = 129
)

// Errors of Probe that callers tell apart with errors.Is.
var (
	// ErrTooLarge: the packet is larger than the device's MTU.
	ErrTooLarge = errors.New("packet is too large for the device")
	// ErrNoRoute: the device does not exist, is down, or has no route to the
	// peer.
	ErrNoRoute = errors.New("no route to the peer through the device")
	// ErrNoAnswer: nothing came back in time.
	ErrNoAnswer = errors.New("no answer through the device")
)

// ProbeError says which probe failed.
type ProbeError struct {
	Device string
	To     netip.Addr
	Size   int
	Err    error
}

// Error implements error.
func (e *ProbeError) Error() string {
	return fmt.Sprintf("probe %s through %s with %d bytes: %v", e.To, e.Device, e.Size, e.Err)
}

// Unwrap returns the cause.
func (e *ProbeError) Unwrap() error { return e.Err }

// Prober asks peers for echoes through devices of the secure namespace. Its
// methods may be called from any goroutine.
type Prober struct {
	mu sync.RWMutex // guards ns against Close
	ns *nl.Namespace
}

// Prober returns a Prober with a reference to the namespace of its own, which
// outlives n. The caller closes it.
func (n *Namespace) Prober() (*Prober, error) {
	ns, err := nl.OpenNamespace(fmt.Sprintf("/proc/self/fd/%d", n.ns.FD()))
	if err != nil {
		return nil, fmt.Errorf("open prober: %w", err)
	}
	return &Prober{ns: ns}, nil
}

// Close releases the reference. Probes under way end by themselves.
func (p *Prober) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ns.Close()
}

// Probe sends one ICMPv6 echo request from a local address to a peer through a
// device, in one packet of size bytes, IPv6 header included, and waits until
// ctx ends for the reply through the same device. It returns nil if the reply
// came, or a *ProbeError, which matches ErrTooLarge, ErrNoRoute or ErrNoAnswer
// where it is one of these. The peer must answer, so its route back through
// the device must be there: as its main route or as one of its Spec.Probes.
func (p *Prober) Probe(ctx context.Context, device string, from, to netip.Addr, size int) error {
	if err := p.probe(ctx, device, from, to, size); err != nil {
		return &ProbeError{Device: device, To: to, Size: size, Err: err}
	}
	return nil
}

func (p *Prober) probe(ctx context.Context, device string, from, to netip.Addr, size int) error {
	if size < MinProbe || size > 65535 {
		return fmt.Errorf("size is not in %d..65535", MinProbe)
	}
	// The identifier and all else that comes back is random: what equals it is
	// the answer to this request and to no other.
	echo := make([]byte, size-40)
	_, _ = rand.Read(echo[4:]) // cannot fail
	echo[0] = echoRequest      // code 0; the kernel fills in the checksum
	s, err := p.open(device, from, binary.BigEndian.Uint32(echo[4:]))
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if err := s.send(to, echo); err != nil {
		return err
	}
	return s.await(ctx, to, echo)
}

// echoSocket is a raw ICMPv6 socket that is bound to a device.
type echoSocket struct{ *os.File }

// open makes a socket that sends through device and hears only what comes in
// through it with a given identifier and sequence number.
func (p *Prober) open(device string, from netip.Addr, id uint32) (*echoSocket, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var s *echoSocket
	err := p.ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_ICMPV6)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		if err := prepare(fd, device, from, id); err != nil {
			return errors.Join(err, unix.Close(fd))
		}
		s = &echoSocket{os.NewFile(uintptr(fd), "echo")}
		return nil
	})
	return s, err
}

func prepare(fd int, device string, from netip.Addr, id uint32) error {
	// A set bit blocks a type (RFC 3542 section 3.2).
	var only unix.ICMPv6Filter
	for i := range only.Data {
		only.Data[i] = ^uint32(0)
	}
	only.Data[echoReply/32] &^= 1 << (echoReply % 32)
	// A raw socket gets a copy of every answer that comes in, also of those to
	// others. The kernel leaves them out, or they would fill the buffer of one
	// who waits for its turn.
	own := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: id, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: ^uint32(0)},
		{Code: unix.BPF_RET | unix.BPF_K},
	}
	err := unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device)
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("%w: %w", ErrNoRoute, err)
	}
	err = errors.Join(err,
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(own)), Filter: &own[0]}),
		unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &only),
		// Whole or not at all, and by the device's MTU: a smaller one that
		// somebody made the kernel believe in must not count.
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
	)
	if err != nil {
		return fmt.Errorf("set socket up: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet6{Addr: from.As16()}); err != nil {
		return fmt.Errorf("bind to %s: %w", from, err)
	}
	// What came before there was a filter may have filled the buffer already.
	for {
		_, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("empty socket: %w", err)
		}
	}
}

func (s *echoSocket) send(to netip.Addr, echo []byte) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), echo, 0, &unix.SockaddrInet6{Addr: to.As16()})
		return !errors.Is(sent, unix.EAGAIN)
	})
	switch err = errors.Join(err, sent); {
	case err == nil:
		return nil
	case errors.Is(err, unix.EMSGSIZE):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("%w: %w", ErrNoRoute, err)
	case errors.Is(err, unix.ENOKEY), errors.Is(err, unix.EDESTADDRREQ):
		// WireGuard: no peer has the address, or it has no endpoint yet.
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	return fmt.Errorf("send: %w", err)
}

// await waits for the answer to echo.
func (s *echoSocket) await(ctx context.Context, from netip.Addr, echo []byte) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = s.SetReadDeadline(time.Unix(1, 0)) })()
	buf := make([]byte, len(echo)+1)
	for {
		var n int
		var source unix.Sockaddr
		var got error
		err := raw.Read(func(fd uintptr) bool {
			n, source, got = unix.Recvfrom(int(fd), buf, unix.MSG_TRUNC)
			return !errors.Is(got, unix.EAGAIN)
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("%w: %w", ErrNoAnswer, ctx.Err())
		case err != nil || got != nil:
			return fmt.Errorf("receive: %w", errors.Join(err, got))
		}
		a, ok := source.(*unix.SockaddrInet6)
		if ok && netip.AddrFrom16(a.Addr) == from && n == len(echo) && answers(echo, buf[:n]) {
			return nil
		}
	}
}

// answers says whether got is the reply to a request: the same bytes, but for
// type, code and checksum.
func answers(request, got []byte) bool {
	return got[0] == echoReply && got[1] == 0 && bytes.Equal(got[4:], request[4:])
}
