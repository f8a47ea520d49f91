package noisenet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
)

// acceptLoop takes connections and refuses at once what exceeds the limits on
// strangers.
func (t *Transport) acceptLoop() {
	for {
		raw, err := t.listener.AcceptTCP()
		if err != nil {
			if t.ctx.Err() != nil {
				return
			}
			t.pause()
			continue
		}
		from := remoteAddr(raw)
		p := t.gate.enter(sourceOf(from.Addr()), func() { _ = raw.Close() })
		if p == nil {
			_ = raw.Close()
			t.logRefused(from, errors.New("too many connections in a handshake"))
			continue
		}
		if !t.track(raw) {
			p.leave()
			continue
		}
		if !t.spawn(func() { t.serveConn(raw, from, p) }) {
			p.leave()
			t.untrack(raw)
		}
	}
}

// pause waits a moment after an error of a socket that has not been closed,
// such as too many open files, so that its loop does not spin.
func (t *Transport) pause() {
	select {
	case <-time.After(100 * time.Millisecond):
	case <-t.ctx.Done():
	}
}

func remoteAddr(c net.Conn) netip.AddrPort {
	a, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// accepted is a connection in its handshake.
type accepted struct {
	raw      net.Conn
	from     netip.AddrPort
	deadline time.Time
	place    *place // at the gate, until the peer has authenticated
}

func (t *Transport) serveConn(raw net.Conn, from netip.AddrPort, p *place) {
	defer p.leave()
	handed, err := t.serve(accepted{raw: raw, from: from, place: p,
		deadline: time.Now().Add(t.cfg.limits.handshake)})
	if !handed {
		t.untrack(raw)
	}
	// A connection closed before its first byte is a port scan or a health
	// check, not a handshake.
	if err != nil && !errors.Is(err, errNothing) {
		t.logRefused(from, err)
	}
}

var errNothing = errors.New("connection was closed before its first byte")

// serve runs the handshake and then whatever the stream is for. handed says
// that memberlist owns the connection now.
func (t *Transport) serve(a accepted) (handed bool, err error) {
	wait, ok := t.accepts.reserve(time.Now(), sourceOf(a.from.Addr()), t.cfg.limits.bucketWait)
	if !ok {
		return false, errors.New("too many handshakes from this source")
	}
	if wait > 0 {
		select {
		case <-time.After(wait):
		case <-t.ctx.Done():
			return false, nil
		}
	}
	// One deadline for the whole handshake: a slow sender gains nothing by
	// sending a byte now and then.
	if err := a.raw.SetDeadline(a.deadline); err != nil {
		return false, err
	}
	var first [headerSize]byte
	if n, err := io.ReadFull(a.raw, first[:]); err != nil {
		if n == 0 {
			return false, errNothing
		}
		return false, fmt.Errorf("read stream header: %w", err)
	}
	h, err := parseHeader(first[:])
	if err != nil {
		return false, err
	}
	if h.kind == streamJoin {
		return false, t.serveJoin(a, h)
	}
	return t.serveMember(a, h)
}

func (t *Transport) serveMember(a accepted, offered header) (handed bool, err error) {
	e, err := t.respond(a, offered)
	if err != nil {
		return false, err
	}
	addr := netip.AddrPortFrom(a.from.Addr(), e.port)
	conn, err := t.authenticated(a.raw, e, addr)
	if err != nil {
		return false, err
	}
	a.place.leave()
	id := conn.peer.ID
	if !t.admit(id) {
		return false, fmt.Errorf("accept stream of %s: it has too many", id)
	}
	// The first frame confirms that the peer has the session keys, and says
	// what the stream is for.
	channel, data, err := conn.readFrame()
	if err != nil {
		t.release(id)
		return false, fmt.Errorf("read first frame of %s: %w", id, err)
	}
	if err := a.raw.SetDeadline(time.Time{}); err != nil {
		t.release(id)
		return false, err
	}
	switch channel {
	case channelMemberlist:
		return t.handToMemberlist(conn, data)
	case channelAgree:
		defer t.release(id)
		t.serveAgree(conn, data)
		return false, nil
	}
	defer t.release(id)
	if err := isHello(channel, data); err != nil {
		return false, err
	}
	c := newControl(t, conn, false)
	if err := c.hello(); err != nil {
		return false, err
	}
	t.addControl(c)
	t.serveControl(c)
	return false, nil
}

func (t *Transport) respond(a accepted, offered header) (*established, error) {
	h, err := newResponder(t.party, offered)
	if err != nil {
		return nil, err
	}
	defer h.kill()
	for {
		least, most := h.want()
		msg, err := readHandshake(a.raw, least, most)
		if err != nil {
			return nil, fmt.Errorf("read handshake: %w", err)
		}
		out, done, err := h.step(time.Now(), msg)
		if err != nil {
			return nil, err
		}
		if h.keyed() || done != nil {
			a.place.prove() // message 1 opened under the access key
		}
		if len(out) > 0 {
			if _, err := a.raw.Write(out); err != nil {
				return nil, fmt.Errorf("write handshake: %w", err)
			}
		}
		if done != nil {
			return done, nil
		}
	}
}

// handToMemberlist gives a gossip stream, whose first frame was read, to
// memberlist. It does not wait for a memberlist that does not take streams.
func (t *Transport) handToMemberlist(conn *secureConn, first []byte) (handed bool, err error) {
	id := conn.peer.ID
	m := &memberStream{conn: conn, self: t.cfg.Node, onClose: func() {
		t.untrack(conn.raw)
		t.release(id)
	}}
	if err := m.take(first); err != nil {
		t.release(id)
		return false, fmt.Errorf("read gossip stream of %s: %w", id, err)
	}
	select {
	case t.streams <- m:
		return true, nil
	default:
		t.release(id)
		return false, fmt.Errorf("accept gossip stream of %s: backlog is full", id)
	}
}

// serveControl runs a control stream, which addControl made known, to its end.
func (t *Transport) serveControl(c *control) {
	err := c.run()
	t.removeControl(c)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		t.cfg.Log.Debug("control stream ended", logkey.Node, c.conn.peer.ID, logkey.Error, err)
	}
}

// serveJoin is the issuer's side of a join.
func (t *Transport) serveJoin(a accepted, offered header) error {
	if t.cfg.Admission == nil {
		return errors.New("this node admits no newcomers")
	}
	m1, err := readHandshake(a.raw, helloSize, helloSize)
	if err != nil {
		return fmt.Errorf("read join handshake: %w", err)
	}
	m2, e, err := answerJoin(t.party, offered, t.cfg.Admission.JoinKeys(offered.keyID), m1)
	if err != nil {
		return err
	}
	a.place.prove() // message 1 opened under a token's key
	if _, err := a.raw.Write(m2); err != nil {
		return fmt.Errorf("write join handshake: %w", err)
	}
	conn, err := newSecureConn(a.raw, e, Peer{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithDeadline(t.ctx, a.deadline.Add(issueTimeout))
	defer cancel()
	return t.admitNewcomer(ctx, a, conn)
}
