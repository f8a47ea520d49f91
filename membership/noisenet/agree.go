package noisenet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
)

// MaxAgree is the largest request and the largest response of an agreement:
// 16 KiB.
const MaxAgree = maxAgree

// agreeID is the number of the one AGREE of a stream.
const agreeID = 1

// Agreed is the result of an agreement on the side that asked for it.
type Agreed struct {
	Response []byte            // the AgreeHandler's, at most MaxAgree bytes
	Secret   keys.TunnelSecret // the caller's; the peer's take got the same
	// Hybrid: the secret holds if either X25519 or ML-KEM-768 does.
	Hybrid bool
}

// AgreeHandler answers a member that wants to share a tunnel secret: it checks
// req (at most MaxAgree bytes) and returns a response of at most MaxAgree bytes
// and take, which gets the secret before the response leaves, so that this node
// has it when the peer does. take may be nil; it must not block.
//
// It runs in its own goroutine; ctx ends with the stream, and after 10 s at the
// latest. The text of an error reaches the peer, and there is no secret then.
// take is no sign that the peer has the secret: the response may be lost, and
// the peer will ask anew.
type AgreeHandler func(ctx context.Context, from Peer, req []byte) (resp []byte, take func(keys.TunnelSecret), err error)

// errAgree marks breaches of the rules of an agreement stream.
var errAgree = errors.New("agreement stream breaks the rules")

// tunnelSecret is what both ends of an agreement share: it follows from S, so
// from a handshake that served nothing else, and from what both of them said.
func tunnelSecret(s *secret, req, resp []byte) (keys.TunnelSecret, error) {
	a, b := sha256.Sum256(req), sha256.Sum256(resp)
	raw := s.derive(labelTunnel, slices.Concat(a[:], b[:])...)
	defer clear(raw[:])
	return keys.TunnelSecretFromRaw32(raw[:])
}

// Agree makes a secret for a tunnel with id: on a stream dialled for this alone
// it sends req, at most MaxAgree bytes, to the peer's AgreeHandler. Both nodes
// derive the secret from that stream's handshake, req and the response; no two
// calls give the same one. Give ctx a deadline.
//
// It tries the addresses that Call does, and is never repeated: after an error
// the peer may have a secret that this node lacks. Errors as of Call.
// ErrNotHybrid if Config.RequireHybrid is set and the peer cannot.
func (t *Transport) Agree(ctx context.Context, id ids.NodeID, req []byte) (Agreed, error) {
	if len(req) > MaxAgree {
		return Agreed{}, fmt.Errorf("agree with %s on %d bytes: %w", id, len(req), ErrTooLarge)
	}
	if t.party == nil || id == t.cfg.Node {
		return Agreed{}, fmt.Errorf("agree with %s: %w", id, ErrSelf)
	}
	a, err := t.agree(ctx, id, req)
	if err != nil {
		return Agreed{}, fmt.Errorf("agree with %s: %w", id, err)
	}
	return a, nil
}

func (t *Transport) agree(ctx context.Context, id ids.NodeID, req []byte) (Agreed, error) {
	dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := dialAny(dialCtx, t.addresses(id), func(ctx context.Context, a netip.AddrPort) (*secureConn, error) {
		return t.dialStream(ctx, a, id)
	})
	if err != nil {
		return Agreed{}, err
	}
	defer t.untrack(conn.raw)
	defer clear(conn.est.secret[:])
	// Half as long again as the peer may take, so that its reason arrives.
	ctx, cancel = context.WithTimeout(ctx, t.cfg.limits.agree+t.cfg.limits.agree/2)
	defer cancel()
	stop := context.AfterFunc(ctx, conn.close)
	defer stop()
	a, err := conn.askAgree(req)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return a, err
}

// askAgree is the exchange as the dialler sees it.
func (c *secureConn) askAgree(req []byte) (Agreed, error) {
	if err := c.raw.SetDeadline(time.Time{}); err != nil {
		return Agreed{}, err
	}
	if err := c.writeAgree(controlAgree, req); err != nil {
		return Agreed{}, fmt.Errorf("send request: %w", brokenOff(err))
	}
	var answer assembler
	for {
		_, data, err := c.readFrame()
		if err != nil {
			return Agreed{}, fmt.Errorf("wait for response: %w", brokenOff(err))
		}
		kind, resp, complete, err := takeAgree(&answer, data, controlAgreed, controlFailure)
		switch {
		case err != nil:
			return Agreed{}, err
		case !complete:
		case kind == controlFailure:
			return Agreed{}, &RemoteError{Text: string(resp)}
		default:
			s, err := tunnelSecret(&c.est.secret, req, resp)
			return Agreed{Response: resp, Secret: s, Hybrid: c.peer.Hybrid}, err
		}
	}
}

// brokenOff explains a stream that ended although its handshake was done.
func brokenOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isReset(err) {
		return errors.New("the node closed the stream: it gave up, was shut down, or refuses this node")
	}
	return err
}

// takeAgree adds a frame to a message, which must be of one of the kinds.
func takeAgree(a *assembler, data []byte, kinds ...uint8) (kind uint8, message []byte, complete bool, err error) {
	f, err := parseControl(data)
	if err != nil {
		return 0, nil, false, err
	}
	if f.id != agreeID || !slices.Contains(kinds, f.kind) {
		return 0, nil, false, fmt.Errorf("read agreement: frame of kind %d, number %d: %w", f.kind, f.id, errAgree)
	}
	message, complete, err = a.add(f)
	return f.kind, message, complete, err
}

func (c *secureConn) writeAgree(kind uint8, data []byte) error {
	for {
		n := min(len(data), maxChunk)
		f := controlFrame{kind: kind, id: agreeID, last: n == len(data), data: data[:n]}
		if err := c.writeFrame(channelAgree, f.encode(nil), true); err != nil {
			return err
		}
		if data = data[n:]; len(data) == 0 {
			return nil
		}
	}
}

// serveAgree answers the one AGREE of an accepted stream, whose first frame has
// been read, and waits until the peer closes.
func (t *Transport) serveAgree(conn *secureConn, first []byte) {
	err := t.exchangeAgree(conn, first)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !isReset(err) {
		t.cfg.Log.Debug("agreement stream ended", logkey.Node, conn.peer.ID, logkey.Error, err)
	}
}

func (t *Transport) exchangeAgree(conn *secureConn, first []byte) error {
	// S is needed for nothing else: a later look into this process's memory
	// must not find it.
	defer clear(conn.est.secret[:])
	ctx, cancel := context.WithTimeout(t.ctx, t.cfg.limits.agree)
	defer cancel()
	stop := context.AfterFunc(ctx, conn.close)
	defer stop()
	req, err := conn.readAgree(first)
	if err != nil {
		return err
	}
	// From now on the peer has nothing to say, so whatever comes ends the
	// stream and the handler: the peer's closing, as it should, or a frame.
	watch, gone := context.WithCancelCause(ctx)
	defer gone(nil)
	ended := make(chan error, 1)
	watching := t.spawn(func() {
		_, _, err := conn.readFrame()
		if err == nil {
			err = fmt.Errorf("frame after AGREE: %w", errAgree)
		}
		conn.close()
		gone(err)
		ended <- err
	})
	if !watching {
		return nil
	}
	if err := t.answerAgree(watch, conn, req); err != nil {
		conn.close()
		<-ended
		return err
	}
	return <-ended
}

// readAgree returns the request that first begins.
func (c *secureConn) readAgree(data []byte) ([]byte, error) {
	var request assembler
	for {
		_, req, complete, err := takeAgree(&request, data, controlAgree)
		if err != nil || complete {
			return req, err
		}
		if _, data, err = c.readFrame(); err != nil {
			return nil, err
		}
	}
}

// answerAgree runs the AgreeHandler and sends its answer.
func (t *Transport) answerAgree(ctx context.Context, conn *secureConn, req []byte) error {
	resp, take, err := t.callAgree(ctx, conn.peer, req)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		text := []byte(err.Error())
		return conn.writeAgree(controlFailure, text[:min(len(text), maxFailure)])
	}
	s, err := tunnelSecret(&conn.est.secret, req, resp)
	if err != nil {
		return err
	}
	if take != nil {
		take(s)
	}
	return conn.writeAgree(controlAgreed, resp)
}

func (t *Transport) callAgree(ctx context.Context, from Peer, req []byte) ([]byte, func(keys.TunnelSecret), error) {
	if t.cfg.Agree == nil {
		return nil, nil, errors.New("node agrees on no tunnel secrets")
	}
	resp, take, err := t.cfg.Agree(ctx, from, req)
	if err == nil && len(resp) > MaxAgree {
		err = fmt.Errorf("response has %d bytes: %w", len(resp), ErrTooLarge)
	}
	return resp, take, err
}
