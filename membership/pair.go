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
	b, err := c.pair(ctx, to, msg)
	if err != nil {
		return nil, fmt.Errorf("send pair message to node %s: %w", to, err)
	}
	return b, nil
}

func (c *Cluster) pair(ctx context.Context, to ids.NodeID, msg []byte) ([]byte, error) {
	if len(msg) > MaxPair {
		return nil, noisenet.ErrTooLarge
	}
	if !c.running.Load() {
		return nil, ErrNotRunning
	}
	b, err := c.call(ctx, to, append([]byte{kindPair, version}, msg...))
	if err != nil {
		return nil, err
	}
	if len(b) < 2 || len(b) > 2+MaxPair || b[0] != kindPair|kindAnswer || b[1] != version {
		return nil, errMessage
	}
	return b[2:], nil
}

func (c *Cluster) servePair(ctx context.Context, from noisenet.Peer, req []byte) ([]byte, error) {
	msg := req[2:]
	switch {
	case len(msg) > MaxPair:
		return nil, fmt.Errorf("%w: pair message of %d bytes", errMessage, len(msg))
	case c.opts.Pair == nil:
		return nil, errors.New("this node takes no pair messages")
	}
	// Who asked does not wait longer.
	ctx, cancel := context.WithTimeout(ctx, c.prof.call)
	defer cancel()
	ans, err := c.opts.Pair(ctx, from.ID, msg)
	if err == nil && len(ans) > MaxPair {
		err = fmt.Errorf("answer of %d bytes: %w", len(ans), noisenet.ErrTooLarge)
	}
	if err != nil {
		c.log.Debug("pair message of a member is refused", logkey.Node, from.ID, logkey.Error, err)
		// The reason stays in this node's log.
		return nil, errors.New("pair message refused")
	}
	return append([]byte{kindPair | kindAnswer, version}, ans...), nil
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
