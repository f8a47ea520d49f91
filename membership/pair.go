package membership

import (
	"context"
	"errors"
	"fmt"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// kindPair carries a message between the rotation machines of two nodes.
const kindPair = 0x06

// MaxPair is the largest message, and the largest answer, of Pair: 4 KiB.
const MaxPair = 4 << 10

// Pair sends a message of at most MaxPair bytes to a member and returns what
// its Options.Pair answered. Give ctx a deadline. The message may arrive twice,
// and after an error it may have arrived or not. Errors: as of
// noisenet.Transport.Call; noisenet.ErrTooLarge; ErrNotRunning.
func (c *Cluster) Pair(ctx context.Context, to ids.NodeID, msg []byte) ([]byte, error) {
	b, err := c.exchange(ctx, to, kindPair, MaxPair, msg)
	if err != nil {
		return nil, fmt.Errorf("send pair message to node %s: %w", to, err)
	}
	return b, nil
}

// exchange sends a message whose content membership does not know.
func (c *Cluster) exchange(ctx context.Context, to ids.NodeID, kind byte, limit int, msg []byte) ([]byte, error) {
	if len(msg) > limit {
		return nil, noisenet.ErrTooLarge
	}
	if !c.running.Load() {
		return nil, ErrNotRunning
	}
	b, err := c.call(ctx, to, append([]byte{kind, version}, msg...))
	if err != nil {
		return nil, err
	}
	if len(b) < 2 || len(b) > 2+limit || b[0] != kind|kindAnswer || b[1] != version {
		return nil, errMessage
	}
	return b[2:], nil
}

// serveExchange answers a message by a handler of the agent's.
func (c *Cluster) serveExchange(ctx context.Context, from noisenet.Peer, limit int, handle func(context.Context, ids.NodeID, []byte) ([]byte, error), req []byte) ([]byte, error) {
	msg := req[2:]
	switch {
	case len(msg) > limit:
		return nil, fmt.Errorf("%w: %d bytes of content", errMessage, len(msg))
	case handle == nil:
		return nil, errors.New("this node takes no such messages")
	}
	// Who asked does not wait longer.
	ctx, cancel := context.WithTimeout(ctx, c.prof.call)
	defer cancel()
	ans, err := handle(ctx, from.ID, msg)
	if err == nil && len(ans) > limit {
		err = fmt.Errorf("answer of %d bytes: %w", len(ans), noisenet.ErrTooLarge)
	}
	if err != nil {
		c.log.Debug("message of a member is refused", logkey.Node, from.ID, logkey.Error, err)
		// The reason stays in this node's log.
		return nil, errors.New("message refused")
	}
	return append([]byte{req[0] | kindAnswer, version}, ans...), nil
}

// kindClaim carries a request for address blocks between two nodes.
const kindClaim = 0x0b

// MaxClaim is the largest message, and the largest answer, of Claim: 24 KiB.
const MaxClaim = 24 << 10

// Claim is Pair for another purpose: the message, of at most MaxClaim bytes, is for
// the other's Options.Claim. Errors: as of Pair.
func (c *Cluster) Claim(ctx context.Context, to ids.NodeID, msg []byte) ([]byte, error) {
	b, err := c.exchange(ctx, to, kindClaim, MaxClaim, msg)
	if err != nil {
		return nil, fmt.Errorf("ask node %s for address blocks: %w", to, err)
	}
	return b, nil
}

// Agree makes a tunnel secret with a member, on a stream dialled for this
// alone; its Options.Agree gets req (at most noisenet.MaxAgree bytes), answers
// resp, and takes the same secret. The secret is the caller's; hybrid tells
// whether it holds if X25519 falls. It is not repeated: after an error the peer
// may have taken a secret that this node lacks. Give ctx a deadline. Errors: as
// of noisenet.Transport.Agree; ErrNotRunning.
func (c *Cluster) Agree(ctx context.Context, to ids.NodeID, req []byte) (resp []byte, secret keys.TunnelSecret, hybrid bool, err error) {
	if !c.running.Load() {
		return nil, keys.TunnelSecret{}, false, fmt.Errorf("agree with node %s: %w", to, ErrNotRunning)
	}
	a, err := c.transport.Agree(ctx, to, req)
	if err != nil {
		return nil, keys.TunnelSecret{}, false, fmt.Errorf("agree with node %s: %w", to, err)
	}
	return a.Response, a.Secret, a.Hybrid, nil
}

// agreeHandler adapts Options.Agree to the transport.
func (c *Cluster) agreeHandler() noisenet.AgreeHandler {
	if c.opts.Agree == nil {
		return nil
	}
	return func(ctx context.Context, from noisenet.Peer, req []byte) ([]byte, func(keys.TunnelSecret), error) {
		return c.opts.Agree(ctx, from.ID, from.Hybrid, req)
	}
}
