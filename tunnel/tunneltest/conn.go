package tunneltest

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// queue is how many packets a fake socket holds before it drops more.
const queue = 1024

// fakeConn is a UDP socket in a fabric.
type fakeConn struct {
	host  *FakeHost
	local netip.AddrPort
	in    chan packet

	mu     sync.Mutex // guards what follows
	end    time.Time
	closed chan struct{}
	over   bool
}

type packet struct {
	from netip.AddrPort
	data []byte
}

// Listen implements Net.
func (h *FakeHost) Listen(inner netip.Addr) (net.PacketConn, error) {
	h.fabric.mu.Lock()
	defer h.fabric.mu.Unlock()
	h.lastPort++
	c := &fakeConn{
		host: h, local: netip.AddrPortFrom(inner, 10000+h.lastPort),
		in: make(chan packet, queue), closed: make(chan struct{}),
	}
	h.sockets[c.local] = c
	return c, nil
}

// WriteTo implements net.PacketConn. Like the kernel it takes a packet even if
// no peer will ever get it.
func (c *fakeConn) WriteTo(p []byte, to net.Addr) (int, error) {
	f := c.host.fabric
	f.mu.Lock()
	defer f.mu.Unlock()
	dst := to.(*net.UDPAddr).AddrPort()
	link := c.host.links[c.host.routes[dst.Addr()]]
	if link == nil {
		return 0, unix.ENETUNREACH
	}
	size := len(p) + headers
	if size > link.base().mtu {
		return 0, unix.EMSGSIZE
	}
	if far := link.send(c.local.Addr(), dst.Addr(), size); far != nil {
		far.deliver(dst, packet{from: c.local, data: append([]byte(nil), p...)})
	}
	return len(p), nil
}

// deliver puts a packet into a socket's queue. fabric.mu is held.
func (h *FakeHost) deliver(to netip.AddrPort, p packet) {
	if s := h.sockets[to]; s != nil {
		select {
		case s.in <- p:
		default:
		}
	}
}

// ReadFrom implements net.PacketConn.
func (c *fakeConn) ReadFrom(b []byte) (int, net.Addr, error) {
	c.mu.Lock()
	end := c.end
	c.mu.Unlock()
	var timeout <-chan time.Time
	if !end.IsZero() {
		t := time.NewTimer(time.Until(end))
		defer t.Stop()
		timeout = t.C
	}
	select {
	case p := <-c.in:
		return copy(b, p.data), net.UDPAddrFromAddrPort(p.from), nil
	case <-c.closed:
		return 0, nil, net.ErrClosed
	case <-timeout:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

// Close implements net.PacketConn.
func (c *fakeConn) Close() error {
	c.host.fabric.mu.Lock()
	defer c.host.fabric.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.over = true
		close(c.closed)
		delete(c.host.sockets, c.local)
	}
	return nil
}

// LocalAddr implements net.PacketConn.
func (c *fakeConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }

// SetDeadline implements net.PacketConn; writes never wait.
func (c *fakeConn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline implements net.PacketConn, for reads that start after it.
func (c *fakeConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end = t
	return nil
}

// SetWriteDeadline implements net.PacketConn; writes never wait.
func (c *fakeConn) SetWriteDeadline(time.Time) error { return nil }
