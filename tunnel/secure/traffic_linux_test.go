package secure

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// send sends one VXLAN packet with some frame bytes from src to dst, from
// inside a namespace.
func (p *place) send(t *testing.T, from *nl.Namespace, src, dst netip.Addr, vni ids.VNI, extra int) error {
	t.Helper()
	c := udp(t, from, src, 0)
	defer func() { _ = c.Close() }()
	return write(c, dst, vni, extra)
}

func write(c *net.UDPConn, dst netip.Addr, vni ids.VNI, extra int) error {
	packet := make([]byte, 8+64+extra)
	packet[0] = 0x08 // VNI present (RFC 7348 section 5)
	binary.BigEndian.PutUint32(packet[4:], uint32(vni)<<8)
	_, err := c.WriteToUDPAddrPort(packet, netip.AddrPortFrom(dst, port))
	return err
}

// udp opens a socket inside a namespace; the port 0 is any.
func udp(t *testing.T, ns *nl.Namespace, addr netip.Addr, port uint16) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	ok(t, ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port)))
		return err
	}))
	return c
}

// arrived adds up the VNIs that reached the secure namespace's VXLAN port up
// to the fence, a packet of (friend, 42) sent last over the same path.
func (p *place) arrived(t *testing.T, at, from *net.UDPConn, got map[ids.VNI]int) {
	t.Helper()
	const fence = 1
	ok(t, write(from, self, 42, fence))
	buf := make([]byte, 65536)
	ok(t, at.SetReadDeadline(time.Now().Add(10*time.Second)))
	for {
		n, _, err := at.ReadFromUDPAddrPort(buf)
		ok(t, err)
		if n == 8+64+fence {
			return
		}
		got[ids.VNI(binary.BigEndian.Uint32(buf[4:])>>8)]++
	}
}

func TestNonMemberCannotHopIntoANetwork(t *testing.T) {
	p := newPlace(t)
	ctx := context.Background()
	ok(t, p.n.Set(ctx, spec()))
	at := udp(t, p.n.ns, netip.IPv6Unspecified(), port)
	defer func() { _ = at.Close() }()
	ok(t, at.SetReadBuffer(8<<20))
	good, bad := udp(t, p.peers, friend, 0), udp(t, p.peers, rogue, 0)
	defer func() { _ = good.Close(); _ = bad.Close() }()

	const count = 1000
	got := map[ids.VNI]int{}
	for i := range count {
		ok(t, write(good, self, 42, 0))
		ok(t, write(good, self, 0xABCDEF, 0))
		ok(t, write(bad, self, 42, 0))              // member of 43 only
		ok(t, write(bad, self, ids.VNI(i+4096), 0)) // of nobody's network
		ok(t, write(good, self, 43, 0))             // the rogue's network
		// The VNI of another network in the reserved last byte's place must
		// not confuse the comparison.
		ok(t, write(bad, self, 42<<8&0xFFFFFF, 0))
		if i%20 == 19 {
			// A busy machine drops what waits for its softirq, beyond 1000
			// packets: so few are under way at a time.
			p.arrived(t, at, good, got)
		}
	}
	if got[42] != count || got[0xABCDEF] != count {
		t.Errorf("members' packets: %d and %d of %d arrived", got[42], got[0xABCDEF], count)
	}
	delete(got, 42)
	delete(got, 0xABCDEF)
	if len(got) != 0 {
		t.Errorf("packets of non-members arrived: %v", got)
	}
	s := must(p.n.Observe(ctx))(t)
	if s.Accepted < 2*count || s.Dropped < 4*count {
		t.Errorf("counters: %d accepted, %d dropped", s.Accepted, s.Dropped)
	}
	t.Logf("member 42: %d/%d, member 0xABCDEF: %d/%d, non-members: 0/%d", count, count, count, count, 4*count)

	// Positive control: it is the table that stops them.
	s2 := spec()
	s2.Members = append(s2.Members, Member{Inner: rogue, VNI: 42})
	ok(t, p.n.Set(ctx, s2))
	clear(got)
	for range 100 {
		ok(t, write(bad, self, 42, 0))
	}
	p.arrived(t, at, good, got)
	if got[42] != 100 {
		t.Errorf("after it became a member, %d of 100 arrived", got[42])
	}
}

func TestOtherTrafficIsDropped(t *testing.T) {
	p := newPlace(t)
	ctx := context.Background()
	ok(t, p.n.Set(ctx, spec()))
	at := udp(t, p.n.ns, netip.IPv6Unspecified(), port)
	defer func() { _ = at.Close() }()
	other := udp(t, p.n.ns, netip.IPv6Unspecified(), 7000)
	defer func() { _ = other.Close() }()
	good := udp(t, p.peers, friend, 0)
	defer func() { _ = good.Close() }()

	// Another port, although the payload looks like a member's.
	_, err := good.WriteToUDPAddrPort([]byte{8, 0, 0, 0, 0, 0, 42, 0}, netip.AddrPortFrom(self, 7000))
	ok(t, err)
	// A packet in fragments: the VNI is in the first one only.
	ok(t, write(good, self, 42, 4000))
	got := map[ids.VNI]int{}
	p.arrived(t, at, good, got)
	if len(got) != 0 {
		t.Errorf("a fragmented packet arrived: %v", got)
	}
	ok(t, other.SetReadDeadline(time.Now()))
	if n, _, err := other.ReadFromUDPAddrPort(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes arrived at another port", n)
	}

	// Echo works, for probes.
	echo(t, p)
}

// echo sends an ICMPv6 echo request from the friend and waits for the reply.
func echo(t *testing.T, p *place) {
	t.Helper()
	var fd int
	ok(t, p.peers.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		return err
	}))
	defer func() { _ = unix.Close(fd) }()
	ok(t, unix.Bind(fd, &unix.SockaddrInet6{Addr: friend.As16()}))
	ok(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	ok(t, unix.Sendto(fd, []byte{128, 0, 0, 0, 0x53, 0x4f, 0, 1}, 0, &unix.SockaddrInet6{Addr: self.As16()}))
	buf := make([]byte, 100)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			t.Fatalf("echo reply: %v", err)
		}
		if n >= 8 && buf[0] == 129 {
			return
		}
	}
}

// watch counts what the kernel announces about a namespace: links, addresses,
// routes and nftables. Announcements are queued before a change returns.
type watch struct{ fds []int }

func newWatch(t *testing.T, ns *nl.Namespace) *watch {
	t.Helper()
	w := &watch{}
	groups := map[int][]int{
		unix.NETLINK_ROUTE: {unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR,
			unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE},
		unix.NETLINK_NETFILTER: {unix.NFNLGRP_NFTABLES},
	}
	ok(t, ns.Do(func() error {
		for proto, list := range groups {
			fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
			if err != nil {
				return err
			}
			w.fds = append(w.fds, fd)
			if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
				return err
			}
			for _, g := range list {
				if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
					return err
				}
			}
		}
		return nil
	}))
	t.Cleanup(func() {
		for _, fd := range w.fds {
			_ = unix.Close(fd)
		}
	})
	return w
}

// count drains the queues and returns how many messages were in them.
func (w *watch) count(t *testing.T) int {
	t.Helper()
	total := 0
	buf := make([]byte, 65536)
	for _, fd := range w.fds {
		for {
			_, _, err := unix.Recvfrom(fd, buf, 0)
			if err == unix.EAGAIN {
				break
			}
			ok(t, err)
			total++
		}
	}
	return total
}

// TestFlipsLoseNothing moves a peer's route between two devices under load, as
// a key rotation does: there is a probe route to the device that comes next, and
// for a while one to the device that was left.
func TestFlipsLoseNothing(t *testing.T) {
	p := newPlace(t)
	ctx := t.Context()
	s := spec()
	ok(t, p.n.Set(ctx, s))
	flow, err := netlab.StartUDPFlow(ctx, netlab.FlowOptions{From: p.n.ns, To: p.peers,
		// A rate that an emulated machine can take, too: what it drops for want
		// of time is no loss of a flip's.
		Dst: netip.AddrPortFrom(friend, 0), Rate: 1000})
	ok(t, err)
	const flips = 200
	var each time.Duration
	for i := range flips {
		devices := []string{"soxxxxxxa2", "soxxxxxxa1"}
		s.Routes = []Route{{Peer: friend, Device: devices[i%2]}}
		switch i % 3 {
		case 0:
			s.Probes = nil
		case 1:
			s.Probes = []Route{{Peer: friend, Device: devices[1-i%2]}}
		case 2:
			s.Probes = []Route{{Peer: friend, Device: devices[0]}, {Peer: friend, Device: devices[1]}}
		}
		start := time.Now()
		ok(t, p.n.Set(ctx, s))
		each += time.Since(start)
	}
	ok(t, flow.WaitReceived(ctx, 100)) // it did run meanwhile
	r := flow.Stop()
	if r.Lost() != 0 || r.SendErrors != 0 {
		t.Errorf("%d flips: %d of %d packets lost, %d refused", flips, r.Lost(), r.Sent, r.SendErrors)
	}
	t.Logf("%d flips, %d packets, %d lost; one Set took %v", flips, r.Sent, r.Lost(), each/flips)
}

// TestForgedPacketTooBig lets a peer pretend that the way to another peer is
// narrow. Believed, the packets to that peer would be fragmented, and fragments
// are dropped: one member could cut off two others.
func TestForgedPacketTooBig(t *testing.T) {
	p := newPlace(t)
	s := spec()
	s.Routes = append(s.Routes, Route{Peer: rogue, Device: "soxxxxxxa1"})
	ok(t, p.n.Set(context.Background(), s))
	c := udp(t, p.n.ns, self, port)
	defer func() { _ = c.Close() }()
	ok(t, write(c, friend, 42, 0)) // so that the socket is known to the kernel

	var fd int
	ok(t, p.peers.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		return err
	}))
	defer func() { _ = unix.Close(fd) }()
	ok(t, unix.Bind(fd, &unix.SockaddrInet6{Addr: rogue.As16()}))
	// Type 2, MTU 1280, then the packet complained about: IPv6 and UDP from
	// self to friend (RFC 4443 section 3.2).
	forged := []byte{2, 0, 0, 0, 0, 0, 0x05, 0x00, 0x60, 0, 0, 0, 0, 72, unix.IPPROTO_UDP, 64}
	from, to := self.As16(), friend.As16()
	forged = append(append(forged, from[:]...), to[:]...)
	forged = binary.BigEndian.AppendUint16(forged, port)
	forged = binary.BigEndian.AppendUint16(forged, port)
	forged = append(forged, make([]byte, 68)...)
	ok(t, unix.Sendto(fd, forged, 0, &unix.SockaddrInet6{Addr: self.As16()}))
	echo(t, p) // over the same path, so the forged packet has been dealt with
	for _, r := range must(p.n.h.RouteGet(friend.AsSlice()))(t) {
		if r.MTU != 0 {
			t.Errorf("the route to a peer has MTU %d after another peer's word", r.MTU)
		}
	}
}
