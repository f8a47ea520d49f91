package resolver

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
)

// network is one network's server while it runs.
type network struct {
	name  string
	table atomic.Pointer[table]
	// Each place that is taken is a value in the channel: what cannot put one in at
	// once is refused, and waits nowhere.
	forwards chan struct{}
	streams  chan struct{}

	sockets map[netip.Addr]*socket // owned by Server.Set and Server.Close
}

// socket is the pair of sockets at one address. It lives until its context ends,
// and serves both protocols or none.
type socket struct {
	addr    netip.Addr
	packets net.PacketConn
	streams net.Listener
	queue   chan datagram // of answers over UDP
	ctx     context.Context
	stop    context.CancelFunc
	once    sync.Once // closes
}

type datagram struct {
	answer []byte
	to     net.Addr
}

// close ends the socket and what is asked over it, without waiting for that. Whoever
// calls it, the address is free when it returns.
func (k *socket) close() {
	k.once.Do(func() {
		k.stop()
		k.packets.Close()
		k.streams.Close()
	})
}

func (k *socket) dead() bool { return k.ctx.Err() != nil }

// failed is called by the socket's goroutines when they cannot go on. Set opens
// it anew.
func (s *Server) failed(n *network, k *socket, err error) {
	if !k.dead() {
		s.options.Log.Warn("names of a network are not answered at an address until its sockets are open again",
			logkey.Network, n.name, logkey.Addr, k.addr.String(), logkey.Error, err)
	}
	k.close()
}

// serve starts the goroutines of a socket.
func (s *Server) serve(n *network, k *socket) {
	s.running.Go(func() { s.failed(n, k, s.servePackets(n, k)) })
	s.running.Go(func() { s.sendPackets(k) })
	s.running.Go(func() { s.failed(n, k, s.serveStreams(n, k)) })
}

// servePackets answers what it can by itself, so a flood of questions starts no goroutines
// beyond those that forward.
func (s *Server) servePackets(n *network, k *socket) error {
	buf := make([]byte, maxQuestion)
	for {
		size, from, err := k.packets.ReadFrom(buf)
		if err != nil {
			return err
		}
		t := n.table.Load()
		if !t.client(addrOf(from)) {
			continue
		}
		answer, q := t.respond(buf[:size], false)
		if q == nil {
			k.send(answer, from)
			continue
		}
		select {
		case n.forwards <- struct{}{}:
			s.running.Go(func() {
				defer func() { <-n.forwards }()
				k.send(q.pack(s.forward(k.ctx, t, q, false)), from)
			})
		default:
			k.send(q.pack(q.failure()), from)
		}
	}
}

// send puts an answer into the queue, or drops it if that is full: the reader
// must not wait. Packets to an endpoint that does not exist keep their room in the
// socket until its neighbour entry fails, so whoever asks in such names stops
// the sender for seconds.
func (k *socket) send(answer []byte, to net.Addr) {
	if answer == nil {
		return
	}
	select {
	case k.queue <- datagram{answer, to}:
	default:
	}
}

// sendPackets empties the queue. An answer that cannot be sent is lost, as any packet
// may be.
func (s *Server) sendPackets(k *socket) {
	for {
		select {
		case d := <-k.queue:
			if _, err := k.packets.WriteTo(d.answer, d.to); err != nil && !k.dead() {
				s.options.Log.Debug("answer not sent", logkey.Addr, d.to.String(), logkey.Error, err)
			}
		case <-k.ctx.Done():
			return
		}
	}
}

func (s *Server) serveStreams(n *network, k *socket) error {
	for {
		conn, err := k.streams.Accept()
		if err != nil {
			return err
		}
		if !n.table.Load().client(addrOf(conn.RemoteAddr())) {
			conn.Close()
			continue
		}
		select {
		case n.streams <- struct{}{}:
			s.running.Go(func() {
				defer func() { <-n.streams }()
				s.converse(n, k, conn)
			})
		default:
			conn.Close()
		}
	}
}

// converse answers the questions of one TCP connection, one after the other.
func (s *Server) converse(n *network, k *socket, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(k.ctx, func() { conn.Close() })()
	for range maxAsked {
		conn.SetReadDeadline(time.Now().Add(idleTimeout))
		packet, err := readStream(conn)
		t := n.table.Load()
		if err != nil || !t.client(addrOf(conn.RemoteAddr())) {
			return
		}
		answer, q := t.respond(packet, true)
		if q != nil {
			select {
			case n.forwards <- struct{}{}:
				answer = q.pack(s.forward(k.ctx, t, q, true))
				<-n.forwards
			default:
				answer = q.pack(q.failure())
			}
		}
		if answer == nil {
			return
		}
		conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		// In one write, so in one segment if it fits (RFC 7766, 8).
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

var errTooLong = errors.New("longer than a question can be")

// readStream reads one message of a TCP connection (RFC 1035, 4.2.2).
func readStream(conn io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(size[:])
	if n > maxQuestion {
		return nil, errTooLong
	}
	packet := make([]byte, n)
	_, err := io.ReadFull(conn, packet)
	return packet, err
}

// addrOf is the address of a client. It is invalid, and so nobody's, for one that is
// not of TCP or UDP.
func addrOf(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr()
	case *net.TCPAddr:
		return a.AddrPort().Addr()
	}
	return netip.Addr{}
}
