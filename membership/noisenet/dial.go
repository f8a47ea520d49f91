package noisenet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

const (
	dialTimeout    = 10 * time.Second // all addresses of a peer together
	connectTimeout = 3 * time.Second  // TCP connect to one address
)

func dialTCP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Timeout: connectTimeout, KeepAliveConfig: keepAlive()}
	return d.DialContext(ctx, "tcp", addr.String())
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// sameFamily refuses an address that the UDP socket cannot send to. A stream
// would come up there all the same, and every datagram session that it agrees
// on would then lead nowhere, although the peer may have an address that works.
func (t *Transport) sameFamily(to netip.Addr) error {
	own := t.cfg.Bind.Addr()
	switch {
	case own.Unmap().Is4() == to.Is4(), own.Is6() && own.IsUnspecified():
		return nil
	}
	return fmt.Errorf("dial %s: this node is bound to %s only: %w", to, own, ErrUnreachable)
}

// dialStream connects to one address and runs the handshake. The deadline of
// ctx, or the handshake limit if that is earlier, covers all of it. The
// connection is tracked; untrack ends it.
func (t *Transport) dialStream(ctx context.Context, addr netip.AddrPort, expect ids.NodeID) (*secureConn, error) {
	if err := t.sameFamily(addr.Addr()); err != nil {
		return nil, err
	}
	// A node that has missed a change of the access key, or has heard of it before
	// the peer, hangs up at the first message: then the former keys are tried,
	// and at last none.
	entries := t.party.entries()
	if len(entries) > 1 || t.access.Load() != nil {
		entries = append(slices.Clone(entries), accessEntry{none: true})
	}
	var err error
	for _, access := range entries {
		var conn *secureConn
		if conn, err = t.dialWith(ctx, addr, expect, access); err == nil || !errors.Is(err, errHungUp) {
			return conn, err
		}
	}
	return nil, err
}

func (t *Transport) dialWith(ctx context.Context, addr netip.AddrPort, expect ids.NodeID, access accessEntry) (*secureConn, error) {
	raw, err := dialTCP(ctx, addr)
	if err != nil {
		return nil, err
	}
	if !t.track(raw) {
		return nil, ErrClosed
	}
	conn, err := t.initiate(ctx, raw, addr, expect, access)
	if err != nil {
		t.untrack(raw)
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	return conn, nil
}

// errHungUp: the peer closed the stream instead of answering the first message.
var errHungUp = errors.New("no answer to the first message")

func (t *Transport) initiate(ctx context.Context, raw net.Conn, addr netip.AddrPort, expect ids.NodeID, access accessEntry) (*secureConn, error) {
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	deadline := time.Now().Add(t.cfg.limits.handshake)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := raw.SetDeadline(deadline); err != nil {
		return nil, err
	}
	e, err := initiateWith(raw, t.party, expect, access)
	if err != nil {
		return nil, err
	}
	return t.authenticated(raw, e, addr)
}

// initiateWith runs the initiator's side of a handshake over a connection whose
// deadline is set, with one of the access keys or with none.
func initiateWith(raw io.ReadWriter, p *party, expect ids.NodeID, access accessEntry) (*established, error) {
	h, out, err := newInitiatorWith(p, expect, access)
	if err != nil {
		return nil, err
	}
	defer h.kill()
	for first := true; ; first = false {
		if _, err := raw.Write(out); err != nil {
			return nil, closedByPeer(err)
		}
		least, most := h.want()
		msg, err := readHandshake(raw, least, most)
		if err != nil {
			closed := closedByPeer(err)
			switch {
			case !errors.Is(closed, ErrHandshake):
				return nil, closed
			case first:
				return nil, fmt.Errorf("%w: %w", errHungUp, closed)
			}
			return nil, fmt.Errorf("%w: %w", ErrTurnedAway, closed)
		}
		var done *established
		out, done, err = h.step(time.Now(), msg)
		if err != nil {
			return nil, err
		}
		if done == nil {
			continue
		}
		if len(out) > 0 { // message 3 of version 1
			if _, err := raw.Write(out); err != nil {
				return nil, closedByPeer(err)
			}
		}
		return done, nil
	}
}

// closedByPeer explains a stream that ended during its handshake. A member
// tells a stranger nothing, so the reasons can only be guessed at.
func closedByPeer(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isReset(err) {
		return fmt.Errorf("%w: the node closed the connection: it belongs to another cluster, or it refuses this node", ErrHandshake)
	}
	return err
}

// dialControl opens a control stream to one address. It is in service, and the
// peer has accepted this node, when it returns.
func (t *Transport) dialControl(ctx context.Context, addr netip.AddrPort, expect ids.NodeID) (*control, error) {
	conn, err := t.dialStream(ctx, addr, expect)
	if err != nil {
		return nil, err
	}
	c := newControl(t, conn, true)
	if err := t.greet(ctx, c); err != nil {
		t.untrack(conn.raw)
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	t.addControl(c)
	ready := t.spawn(func() {
		defer t.untrack(conn.raw)
		t.serveControl(c)
	})
	if !ready {
		t.removeControl(c)
		t.untrack(conn.raw)
		return nil, ErrClosed
	}
	return c, nil
}

// greet exchanges HELLOs: the peer's shows that it took message 3, that is,
// that it accepts this node.
func (t *Transport) greet(ctx context.Context, c *control) error {
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	if err := c.hello(); err != nil {
		return closedByPeer(err)
	}
	channel, data, err := c.conn.readFrame()
	if err != nil {
		return closedByPeer(err)
	}
	if err := isHello(channel, data); err != nil {
		return err
	}
	return c.conn.raw.SetDeadline(time.Time{})
}

// dialing is one dial under way that several callers may wait for.
type dialing struct {
	done    chan struct{}
	control *control // after done
	err     error
}

// control returns a control stream to id: the newest one that is alive, or with
// fresh, or if there is none, a new one. There is one dial per peer at a time;
// it goes on when a caller gives up.
func (t *Transport) control(ctx context.Context, id ids.NodeID, fresh bool) (*control, error) {
	t.mu.Lock()
	p := t.peerState(id)
	for _, c := range slices.Backward(p.controls) {
		if !fresh && c.alive() {
			t.mu.Unlock()
			return c, nil
		}
	}
	d, first := p.dial, p.dial == nil
	if first {
		d = &dialing{done: make(chan struct{})}
		p.dial = d
	}
	t.mu.Unlock()
	if first && !t.spawn(func() { t.dialPeer(id, d) }) {
		t.finishDial(id, d, nil, ErrClosed)
	}
	select {
	case <-d.done:
		return d.control, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (t *Transport) dialPeer(id ids.NodeID, d *dialing) {
	ctx, cancel := context.WithTimeout(t.ctx, dialTimeout)
	defer cancel()
	c, err := dialAny(ctx, t.addresses(id), func(ctx context.Context, a netip.AddrPort) (*control, error) {
		return t.dialControl(ctx, a, id)
	})
	t.finishDial(id, d, c, err)
}

func (t *Transport) finishDial(id ids.NodeID, d *dialing, c *control, err error) {
	t.mu.Lock()
	if p := t.peers[id]; p != nil && p.dial == d {
		p.dial = nil
	}
	t.mu.Unlock()
	d.control, d.err = c, err
	close(d.done)
}

// dialAny tries addresses one after the other and returns the first success.
func dialAny[T any](ctx context.Context, addrs []netip.AddrPort, dial func(context.Context, netip.AddrPort) (T, error)) (T, error) {
	var zero T
	if len(addrs) == 0 {
		return zero, fmt.Errorf("dial peer: no address is known: %w", ErrUnreachable)
	}
	var all []error
	for _, a := range addrs {
		got, err := dial(ctx, a)
		if err == nil {
			return got, nil
		}
		all = append(all, err)
		if ctx.Err() != nil {
			break
		}
	}
	return zero, fmt.Errorf("%w: %w", ErrUnreachable, errors.Join(all...))
}

// Contact shakes hands with whichever member answers at addr, remembers the
// address for it, and keeps the stream for later calls. ErrSelf if this node
// answered.
func (t *Transport) Contact(ctx context.Context, addr netip.AddrPort) (Peer, error) {
	if t.party == nil {
		return Peer{}, fmt.Errorf("contact %s: transport is not open", addr)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	c, err := t.dialControl(ctx, addr, ids.NodeID{})
	if err != nil {
		return Peer{}, fmt.Errorf("contact %s: %w", addr, err)
	}
	return c.conn.peer, nil
}

// Call sends req to a member's Handler and returns its response, each at most
// MaxMessage bytes. It dials if no stream is open, and repeats the request once
// on a fresh stream if one breaks, so the Handler may see it twice. At most
// maxInFlight calls per stream run at once; more wait. Give ctx a deadline.
//
// A *RemoteError is the Handler's own error. ErrUnreachable: no address is
// known or none answered.
func (t *Transport) Call(ctx context.Context, id ids.NodeID, req []byte) ([]byte, error) {
	if len(req) > MaxMessage {
		return nil, fmt.Errorf("call %s with %d bytes: %w", id, len(req), ErrTooLarge)
	}
	if t.party == nil || id == t.cfg.Node {
		return nil, fmt.Errorf("call %s: %w", id, ErrSelf)
	}
	resp, err := t.callOnce(ctx, id, req, false)
	if errors.Is(err, errBroken) && ctx.Err() == nil {
		// The peer may have closed an idle stream while the request was under
		// way, or restarted.
		resp, err = t.callOnce(ctx, id, req, true)
	}
	if err != nil {
		return nil, fmt.Errorf("call %s: %w", id, err)
	}
	return resp, nil
}

func (t *Transport) callOnce(ctx context.Context, id ids.NodeID, req []byte, fresh bool) ([]byte, error) {
	c, err := t.control(ctx, id, fresh)
	if err != nil {
		return nil, err
	}
	return c.call(ctx, req)
}
