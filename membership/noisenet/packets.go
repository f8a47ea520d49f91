package noisenet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
)

// FinalAdvertiseAddr implements memberlist.Transport: the virtual address,
// whatever memberlist was configured with.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	a := virtualAddr(t.cfg.Node)
	return a.IP, a.Port, nil
}

// PacketCh implements memberlist.Transport.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// WriteTo implements memberlist.Transport.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress implements memberlist.NodeAwareTransport. It does not wait for
// the peer: without a session the packet is queued for at most 2 s while one is
// opened. A packet for a node of which no address is known is dropped as the
// network would drop it.
func (t *Transport) WriteToAddress(b []byte, addr memberlist.Address) (time.Time, error) {
	if len(b) > maxPacket {
		return time.Time{}, fmt.Errorf("write packet of %d bytes: %w", len(b), ErrTooLarge)
	}
	id, err := t.resolve(addr)
	if err != nil {
		return time.Time{}, err
	}
	now := time.Now()
	if id.IsZero() || id == t.cfg.Node || !t.known(now, id) {
		return now, nil
	}
	t.sessMu.Lock()
	out, open, err := t.sess.send(now, id, b)
	t.sessMu.Unlock()
	if err != nil {
		return time.Time{}, fmt.Errorf("write packet to %s: %w", id, err)
	}
	if open {
		t.startOpen(id, false)
	}
	if err := t.sendAll(out); err != nil {
		return time.Time{}, fmt.Errorf("write packet to %s: %w", id, err)
	}
	return time.Now(), nil
}

// resolve maps a virtual address to a node. Gossip messages carry addresses
// that any member can make up (the source of a ping, the target of an indirect
// ping); only one that belongs to the name it came with, or to a peer that has
// authenticated, leads anywhere, so a member cannot aim our packets at a third
// party. Zero: nobody we know.
func (t *Transport) resolve(addr memberlist.Address) (ids.NodeID, error) {
	ap, err := netip.ParseAddrPort(addr.Addr)
	if err != nil || ap.Port() != VirtualPort {
		return ids.NodeID{}, fmt.Errorf("resolve %q: %w", addr.Addr, ErrNotVirtual)
	}
	if addr.Name == "" {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.inner[ap.Addr()], nil
	}
	id, err := ids.ParseNodeID(addr.Name)
	if err != nil {
		return ids.NodeID{}, fmt.Errorf("resolve %q: %w: %w", addr.Addr, ErrNotVirtual, err)
	}
	if id.InnerAddr() != ap.Addr() {
		return ids.NodeID{}, fmt.Errorf("resolve %q of node %s: %w", addr.Addr, id, ErrNotVirtual)
	}
	return id, nil
}

// known keeps made-up nodes out of the tables.
func (t *Transport) known(now time.Time, id ids.NodeID) bool {
	t.sessMu.Lock()
	_, active := t.sess.active(now, id)
	t.sessMu.Unlock()
	return active || len(t.addresses(id)) > 0
}

func (t *Transport) activeAddr(id ids.NodeID) (netip.AddrPort, bool) {
	t.sessMu.Lock()
	defer t.sessMu.Unlock()
	return t.sess.active(time.Now(), id)
}

func (t *Transport) sendAll(out []outgoing) error {
	var first error
	for _, o := range out {
		if _, err := t.socket.WriteToUDPAddrPort(o.data, o.to); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// DialTimeout implements memberlist.Transport.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport: a gossip stream
// with a handshake of its own.
func (t *Transport) DialAddressTimeout(addr memberlist.Address, timeout time.Duration) (net.Conn, error) {
	id, err := t.resolve(addr)
	if err != nil {
		return nil, err
	}
	if id.IsZero() || id == t.cfg.Node {
		return nil, fmt.Errorf("dial %s: %w", addr.Addr, ErrUnreachable)
	}
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	conn, err := dialAny(ctx, t.addresses(id), func(ctx context.Context, a netip.AddrPort) (*secureConn, error) {
		return t.dialStream(ctx, a, id)
	})
	if err != nil {
		return nil, fmt.Errorf("dial gossip stream to %s: %w", id, err)
	}
	if err := conn.raw.SetDeadline(time.Time{}); err != nil {
		t.untrack(conn.raw)
		return nil, err
	}
	return &memberStream{conn: conn, self: t.cfg.Node, onClose: func() { t.untrack(conn.raw) }}, nil
}

// packetLoop reads the UDP socket.
func (t *Transport) packetLoop() {
	buf := make([]byte, maxDatagram+1) // one more, to notice longer ones
	for {
		n, from, err := t.socket.ReadFromUDPAddrPort(buf)
		now := time.Now()
		if err != nil {
			if t.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			t.pause()
			continue
		}
		h, err := parseDatagram(buf[:n])
		if err != nil {
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if h.kind == datagramHint {
			t.handleHint(now, h.index)
			continue
		}
		t.handleData(now, from, h, buf[:n])
	}
}

func (t *Transport) handleData(now time.Time, from netip.AddrPort, h datagramHeader, b []byte) {
	t.sessMu.Lock()
	payload, id, out, err := t.sess.receive(now, from, h, b)
	t.sessMu.Unlock()
	if errors.Is(err, errNoSession) {
		t.sendHint(now, from, h.index)
		return
	}
	if err != nil {
		return
	}
	_ = t.sendAll(out)
	if len(payload) == 0 {
		return
	}
	if err := checkPacket(payload); err != nil {
		t.cfg.Log.Debug("gossip packet refused", logkey.Node, id, logkey.Error, err)
		return
	}
	select {
	case t.packets <- &memberlist.Packet{Buf: payload, From: virtualAddr(id), Timestamp: now}:
	default: // memberlist is busy; gossip survives loss
	}
}

// Deliver gives memberlist a packet to this node that another member has carried on. It
// is checked like those that come at first hand, and has no user message that begins
// with refused: of the kind that has packets carried on. Else a packet in a packet in a
// packet would be sent to and fro as often as fits, for the price of one.
func (t *Transport) Deliver(packet []byte, refused byte) error {
	if err := eachMessage(packet, func(m []byte) error {
		if len(m) > 1 && m[0] == mlUser && m[1] == refused {
			return errFiltered
		}
		return checkSimple(m)
	}); err != nil {
		return err
	}
	select {
	case t.packets <- &memberlist.Packet{Buf: slices.Clone(packet), From: virtualAddr(t.cfg.Node), Timestamp: time.Now()}:
	default: // memberlist is busy; gossip survives loss
	}
	return nil
}

// sendHint tells a sender that its session is gone here, as after a restart.
// 16 bytes answer at least 32, at most once per second and source, so a spoofed
// source is sent less than the attacker sends.
func (t *Transport) sendHint(now time.Time, to netip.AddrPort, index uint32) {
	if !t.hints.allow(now, sourceOf(to.Addr())) {
		return
	}
	h := datagramHeader{kind: datagramHint, index: index}.encode()
	_, _ = t.socket.WriteToUDPAddrPort(h[:], to)
}

func (t *Transport) handleHint(now time.Time, index uint32) {
	t.sessMu.Lock()
	id, open := t.sess.hint(now, index)
	t.sessMu.Unlock()
	if open {
		// The peer may have lost its streams with its sessions.
		t.startOpen(id, true)
	}
}

// startOpen runs one attempt to open a datagram session; sessions has granted
// it. With fresh it dials even if a control stream is open, and it does so too
// if that stream turns out to be broken.
func (t *Transport) startOpen(id ids.NodeID, fresh bool) {
	attempt := func(fresh bool) error {
		ctx, cancel := context.WithTimeout(t.ctx, dialTimeout+openTimeout)
		defer cancel()
		c, err := t.control(ctx, id, fresh)
		if err != nil {
			return err
		}
		return c.openDatagrams(ctx)
	}
	done := func(err error) {
		if err != nil {
			t.cfg.Log.Debug("datagram session not opened", logkey.Node, id, logkey.Error, err)
		}
		t.sessMu.Lock()
		defer t.sessMu.Unlock()
		t.sess.openDone(time.Now(), id, err != nil)
	}
	started := t.spawn(func() {
		err := attempt(fresh)
		if !fresh && errors.Is(err, errBroken) {
			err = attempt(true)
		}
		done(err)
	})
	if !started {
		done(ErrClosed)
	}
}

func (t *Transport) reserveIndex() (uint32, error) {
	t.sessMu.Lock()
	defer t.sessMu.Unlock()
	return t.sess.reserve()
}

func (t *Transport) releaseIndex(index uint32) {
	t.sessMu.Lock()
	defer t.sessMu.Unlock()
	t.sess.release(index)
}

// answerOpen installs the session that a peer's OPEN asks for and returns this
// node's index.
func (t *Transport) answerOpen(conn *secureConn, f controlFrame) (uint32, error) {
	local, err := t.reserveIndex()
	if err != nil {
		return 0, err
	}
	// The peer opened: if it also began the stream, the opener is the
	// stream's initiator, otherwise its responder.
	ctx := openContext{byResponder: conn.est.initiator, number: f.id, opener: f.index, answerer: local}
	recv, send, err := ctx.keys(&conn.est.secret)
	if err != nil {
		t.releaseIndex(local)
		return 0, err
	}
	_, ok := t.install(newSession{peer: conn.peer.ID, boot: conn.est.boot, openedByPeer: true,
		local: local, remote: f.index, send: send, recv: recv, addr: conn.peer.Addr})
	if !ok {
		t.releaseIndex(local)
		return 0, fmt.Errorf("answer OPEN of %s: %w", conn.peer.ID, ErrRefused)
	}
	return local, nil
}

// finishOpen installs the session that this node opened at index local and
// sends what waited for it.
func (t *Transport) finishOpen(conn *secureConn, local uint32, f controlFrame) (installed bool, err error) {
	ctx := openContext{byResponder: !conn.est.initiator, number: f.id, opener: local, answerer: f.index}
	send, recv, err := ctx.keys(&conn.est.secret)
	if err != nil {
		return false, err
	}
	out, ok := t.install(newSession{peer: conn.peer.ID, boot: conn.est.boot,
		local: local, remote: f.index, send: send, recv: recv, addr: conn.peer.Addr})
	_ = t.sendAll(out)
	return ok, nil
}

func (t *Transport) install(n newSession) ([]outgoing, bool) {
	t.sessMu.Lock()
	defer t.sessMu.Unlock()
	return t.sess.install(time.Now(), n)
}

// confirmOpen sends what waited for a session that the peer opened.
func (t *Transport) confirmOpen(id ids.NodeID, local uint32) {
	t.sessMu.Lock()
	out := t.sess.confirm(time.Now(), id, local)
	t.sessMu.Unlock()
	_ = t.sendAll(out)
}
