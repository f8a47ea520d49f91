package noisenet

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
)

// issueTimeout is how long the issuer's store may take to write.
const issueTimeout = 10 * time.Second

// First byte of the issuer's answer.
const (
	joinGranted  = 0
	joinUsed     = 1
	joinExpired  = 2
	joinUnknown  = 3
	joinRevoked  = 4
	joinRefused  = 5
	joinHostname = 6
	joinSource   = 7
	joinWaiting  = 8
	joinDenied   = 9
)

// refusals are the reasons that a newcomer is told: it has proved that it holds
// the token, so what the issuer knows of the token is no secret to it. Other
// reasons are.
func refusals() map[byte]error {
	return map[byte]error{
		joinUsed: ErrTokenUsed, joinExpired: ErrTokenExpired, joinUnknown: ErrTokenUnknown, joinRevoked: ErrTokenRevoked,
		joinHostname: ErrTokenHostname, joinSource: ErrTokenSource, joinWaiting: ErrTokenWaiting, joinDenied: ErrTokenDenied,
	}
}

func refusalCode(err error) byte {
	for code, is := range refusals() {
		if errors.Is(err, is) {
			return code
		}
	}
	return joinRefused
}

func refusalError(code byte) error {
	if err, ok := refusals()[code]; ok {
		return err
	}
	return ErrJoinRefused
}

// admitNewcomer takes the request of a newcomer whose handshake is done, checks
// its proof, and answers.
func (t *Transport) admitNewcomer(ctx context.Context, a accepted, conn *secureConn) error {
	channel, data, err := conn.readFrame()
	if err != nil {
		return fmt.Errorf("read join request: %w", err)
	}
	if channel != channelJoin {
		return fmt.Errorf("read join request: frame of channel %d: %w", channel, ErrHandshake)
	}
	req, err := keys.ParseJoinRequest(data)
	if err != nil {
		return err
	}
	// The proof covers this handshake's hash, so a request seen in one
	// handshake is worth nothing in another, and nobody can have a certificate
	// issued for an identity key that is not theirs.
	if err := req.VerifyProof(conn.est.hash); err != nil {
		return err
	}
	granted, err := t.cfg.Admission.Issue(ctx, a.from, conn.est.token, req)
	out := []byte{refusalCode(err)}
	if err == nil {
		body := granted.Encode()
		defer clear(body)
		out = append([]byte{joinGranted}, body...)
		if len(body) == 0 || len(out) > maxFrameData {
			out, err = []byte{joinRefused}, errors.New("join answer is not valid")
		}
	}
	defer clear(out)
	// The store may have taken its time; the answer gets time of its own.
	if werr := conn.writeFrame(channelJoin, out, true); werr != nil {
		return fmt.Errorf("write join answer: %w", errors.Join(err, werr))
	}
	if errors.Is(err, ErrTokenWaiting) {
		// It asks every few seconds, and the list of tokens shows it.
		t.cfg.Log.Debug("join waits for approval", logkey.Node, req.Identity.ID(), logkey.Name, req.Hostname, logkey.Addr, a.from)
		return nil
	}
	if err != nil {
		return fmt.Errorf("refuse join of %s: %w", req.Identity.ID(), err)
	}
	t.cfg.Log.Info("node admitted", logkey.Node, req.Identity.ID(), logkey.Name, req.Hostname,
		logkey.Token, conn.est.token, logkey.Addr, a.from)
	return nil
}

// JoinOptions says where and as what to join.
type JoinOptions struct {
	Addr     netip.AddrPort   // of an issuer
	Token    keys.Token       // from the operator
	Node     keys.NodePrivate // the newcomer's identity
	Noise    keys.NoisePublic // its Noise static key
	Hostname string           // for the certificate
	Log      *slog.Logger     // nil: discarded
}

// Join asks the issuer at o.Addr for a certificate. It returns only what it has
// checked: the credential's chain ends at the token's root key and certifies
// o.Node and o.Noise. Errors wrap ErrTokenWaiting if the operator has to approve
// it first, so that it may ask again; one of the other ErrToken... or
// ErrJoinRefused if the issuer refused; ErrUnreachable if nobody answered;
// ErrHandshake if the connection was closed.
func Join(ctx context.Context, o JoinOptions) (keys.JoinAnswer, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout+issueTimeout)
	defer cancel()
	raw, err := dialTCP(ctx, o.Addr)
	if err != nil {
		return keys.JoinAnswer{}, fmt.Errorf("join at %s: %w: %w", o.Addr, ErrUnreachable, err)
	}
	defer func() { _ = raw.Close() }()
	defer context.AfterFunc(ctx, func() { _ = raw.Close() })()
	answer, err := join(raw, o)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return keys.JoinAnswer{}, fmt.Errorf("join at %s: %w", o.Addr, err)
	}
	o.Log.Info("joined", logkey.Addr, o.Addr, logkey.Node, o.Node.Public().ID())
	return answer, nil
}

func join(raw net.Conn, o JoinOptions) (keys.JoinAnswer, error) {
	j, first, err := newJoiner(o.Token, rand.Reader)
	if err != nil {
		return keys.JoinAnswer{}, err
	}
	if _, err := raw.Write(first); err != nil {
		return keys.JoinAnswer{}, fmt.Errorf("write join handshake: %w", err)
	}
	m2, err := readHandshake(raw, helloSize, maxHandshake)
	if err != nil {
		return keys.JoinAnswer{}, closedByIssuer(err)
	}
	e, err := j.finish(time.Now(), m2)
	if err != nil {
		return keys.JoinAnswer{}, err
	}
	// A token of many uses is known to all that it admitted. None of them may hand out
	// an access key, or learn who is coming, in an issuer's place.
	if e.cert.Roles&keys.RoleIssuer == 0 {
		return keys.JoinAnswer{}, fmt.Errorf("check join: node %s: %w: %w", e.cert.ID(), ErrHandshake, ErrNoIssuer)
	}
	conn, err := newSecureConn(raw, e, Peer{})
	if err != nil {
		return keys.JoinAnswer{}, err
	}
	req := keys.JoinRequest{Noise: o.Noise, Hostname: o.Hostname}
	req.Prove(o.Node, e.hash)
	if err := req.Validate(); err != nil {
		return keys.JoinAnswer{}, err
	}
	if err := conn.writeFrame(channelJoin, req.Encode(), true); err != nil {
		return keys.JoinAnswer{}, fmt.Errorf("write join request: %w", err)
	}
	channel, data, err := conn.readFrame()
	if err != nil {
		return keys.JoinAnswer{}, fmt.Errorf("read join answer: %w", err)
	}
	defer clear(data)
	if channel != channelJoin || len(data) == 0 {
		return keys.JoinAnswer{}, fmt.Errorf("read join answer: %w", ErrHandshake)
	}
	if data[0] != joinGranted {
		return keys.JoinAnswer{}, refusalError(data[0])
	}
	return checkAnswer(data[1:], o)
}

// closedByIssuer explains a connection that ended before the issuer proved
// itself: an issuer says nothing to who does not hold a token's secret.
func closedByIssuer(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isReset(err) {
		return fmt.Errorf("%w: the node closed the connection: it does not know this token (issued by another node, or deleted since), or it admits nobody", ErrHandshake)
	}
	return fmt.Errorf("read join handshake: %w", err)
}

// checkAnswer refuses a certificate that is not for us: an issuer that mixes up
// requests must not make this node run with a key that is not in its
// certificate.
func checkAnswer(raw []byte, o JoinOptions) (keys.JoinAnswer, error) {
	a, err := keys.ParseJoinAnswer(raw)
	if err != nil {
		return keys.JoinAnswer{}, err
	}
	cert, err := o.Token.Trust().VerifyMember(a.Credential, time.Now())
	if err != nil {
		return keys.JoinAnswer{}, fmt.Errorf("check issued certificate: %w", err)
	}
	if cert.Identity != o.Node.Public() || cert.Noise != o.Noise {
		return keys.JoinAnswer{}, fmt.Errorf("check issued certificate: it is for other keys: %w", ErrJoinRefused)
	}
	return a, nil
}
