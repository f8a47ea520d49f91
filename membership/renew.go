package membership

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/internal/wire"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// kindRenew asks an issuer for a new certificate: the asker's own, for the
// same keys. There is nothing to say beyond that; the handshake says who asks.
const kindRenew = 0x04

// Renewer signs new certificates for members; *keystore.Issuer. The caller has
// verified member. It answers a repeated request alike. early: also in the
// first half of the certificate's life.
type Renewer interface {
	Renew(now time.Time, member keys.Cert, early bool) (keys.Credential, error)
}

var (
	errNoIssuer   = errors.New("no issuer is known")
	errNotRenewed = errors.New("answer is no renewed certificate of this node")
	errUnsettled  = errors.New("the system clock has jumped: waiting until it is right again, or has run steadily for an hour")
)

// keepRenewed renews the certificate of this node from half of its life on,
// until ctx ends, and at once if the root has revoked its issuer. Without Options.Adopt it does nothing: a certificate that a
// restart forgets would hide that the one on disk runs out.
//
// What is due is read off Options.Clock at each tick, so that neither a
// suspended machine nor a corrected clock makes it miss its time.
func (c *Cluster) keepRenewed(ctx context.Context) {
	if c.opts.Adopt == nil {
		return
	}
	r := renewal{c: c, cert: c.opts.Identity.Cert}
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
		case <-c.reissue:
		}
		r.step(ctx, time.Now())
		next.Reset(r.pause(time.Now()))
	}
}

// pause is how long the next look can wait.
func (r *renewal) pause(now time.Time) time.Duration {
	if r.c.issuerRevoked(r.cert.Issuer) && r.retryAt.After(now) {
		return min(r.retryAt.Sub(now), r.c.prof.renew)
	}
	return r.c.prof.renew
}

// renewal is owned by the goroutine in keepRenewed.
type renewal struct {
	c       *Cluster
	cert    keys.Cert // in force
	retryAt time.Time
	backoff time.Duration
	failed  string // the failure, as logged
}

// halfLife is when a certificate is due for renewal.
func halfLife(cert keys.Cert) time.Time {
	return cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2)
}

func (r *renewal) step(ctx context.Context, now time.Time) {
	if r.c.now().Before(halfLife(r.cert)) && !r.c.issuerRevoked(r.cert.Issuer) || now.Before(r.retryAt) {
		return
	}
	err := r.renew(ctx)
	if err == nil {
		r.backoff, r.retryAt, r.failed = 0, time.Time{}, ""
		r.c.log.Info("own certificate is renewed", logkey.Expires, r.cert.NotAfter)
		return
	}
	first, most := r.c.prof.renew, r.c.prof.renewMax
	if r.c.issuerRevoked(r.cert.Issuer) {
		// Half of a life is no time to wait for now; and whoever is asked first may
		// not know of the revocation yet.
		first, most = r.c.prof.retryMin, r.c.prof.renew
	}
	r.backoff = min(max(2*r.backoff, first), most)
	r.retryAt = now.Add(r.backoff + jitter(r.backoff/4))
	if text := err.Error(); text != r.failed && ctx.Err() == nil {
		r.failed = text
		r.c.log.Warn("own certificate is not renewed yet", logkey.Expires, r.cert.NotAfter, logkey.Error, err)
	}
}

// renew gets a certificate, keeps it, and only then shows it to others: after
// a crash the disk must not be behind what the cluster has seen.
//
// A clock that has just jumped renews nothing: where an issuer has jumped along
// (its own clock, or one that two nodes share), the new certificate would begin in
// the future and lock this node out when the clock is right again. Half of a life
// is long enough to wait.
func (r *renewal) renew(ctx context.Context) error {
	if !r.c.opts.Clock.Settled() {
		return errUnsettled
	}
	cred, err := r.ask(ctx)
	if err != nil {
		return err
	}
	cert, err := r.check(r.c.opts.Clock.For(cred.Begins()), cred)
	if err != nil {
		return err
	}
	if err := r.c.opts.Adopt(cred); err != nil {
		return fmt.Errorf("keep renewed certificate: %w", err)
	}
	r.cert = cert
	r.c.transport.SetCredential(cred)
	select {
	case r.c.renewed <- cred:
	case <-ctx.Done():
		// The next start reads it from the disk.
	}
	return nil
}

// ask tries this node's own issuer, else every other one, live ones first.
func (r *renewal) ask(ctx context.Context) (keys.Credential, error) {
	switch own := r.c.opts.Renewal; {
	case own != nil && !r.c.issuerRevoked(r.c.issuer):
		return own.Renew(r.c.now(), r.cert, r.c.issuerRevoked(r.cert.Issuer))
	case own != nil && r.c.opts.DropIssuer != nil:
		// First, so that no later start shows a certificate by that key in the
		// place of the one that another issuer gives now.
		if err := r.c.opts.DropIssuer(); err != nil {
			return keys.Credential{}, fmt.Errorf("remove the revoked issuer key: %w", err)
		}
	}
	err := errNoIssuer
	for _, id := range issuers(r.c.Snapshot()) {
		var b []byte
		if b, err = r.c.call(ctx, id, []byte{kindRenew, version}); err != nil {
			continue
		}
		var cred keys.Credential
		if cred, err = parseRenewAnswer(b); err == nil {
			return cred, nil
		}
	}
	return keys.Credential{}, fmt.Errorf("renew certificate: %w", err)
}

// issuers lists the other nodes that say in their certificate that they have an
// issuer key, which is the one that signed it. The role only tells whom to ask:
// check decides.
func issuers(s Snapshot) []ids.NodeID {
	var alive, others []ids.NodeID
	for _, m := range s.Members {
		switch {
		case m.ID == s.Self || m.Cert.Roles&keys.RoleIssuer == 0 || s.IssuerRevoked(m.Cert.Issuer):
		case m.State == StateAlive:
			alive = append(alive, m.ID)
		default:
			others = append(others, m.ID)
		}
	}
	return append(alive, others...)
}

// check accepts a credential that every other member will accept, for exactly
// this node's keys, that lasts longer than the one in force: an answer, even
// an issuer's, must not lock this node out of the cluster.
func (r *renewal) check(now time.Time, cred keys.Credential) (keys.Cert, error) {
	cert, err := r.c.opts.Identity.Trust.VerifyMember(cred, now)
	if err != nil {
		return keys.Cert{}, fmt.Errorf("check renewed certificate: %w", err)
	}
	id := r.c.opts.Identity
	if r.c.issuerRevoked(cert.Issuer) {
		return keys.Cert{}, fmt.Errorf("check renewed certificate: its issuer %s is revoked", cert.Issuer.Fingerprint())
	}
	// A certificate of a revoked issuer is not one to outlast.
	longer := cert.NotAfter.After(r.cert.NotAfter) || r.c.issuerRevoked(r.cert.Issuer)
	if cert.Identity != id.Node.Public() || cert.Noise != id.Noise.Public() ||
		!longer || !cert.NotBefore.After(r.cert.NotBefore) {
		return keys.Cert{}, errNotRenewed
	}
	return cert, nil
}

// serveRenew answers a member that asks for a new certificate. It renews the
// certificate that the peer has shown in its handshake, verified again as of
// now: a stream may be older than the certificate's end.
func (c *Cluster) serveRenew(from noisenet.Peer, req []byte) ([]byte, error) {
	if len(req) != 2 {
		return nil, errMessage
	}
	if c.opts.Renewal == nil || c.issuerRevoked(c.issuer) {
		return nil, errors.New("this node has no issuer key")
	}
	now := c.now()
	cert, err := c.opts.Identity.Trust.VerifyMember(from.Credential, c.opts.Clock.For(from.Credential.Begins()))
	if err != nil {
		return nil, fmt.Errorf("renew certificate: %w", err)
	}
	// Noise has tied the credential to the peer; this keeps a mistake there
	// from handing one member's certificate to another.
	if cert.ID() != from.ID {
		return nil, errors.New("renew certificate: it belongs to another node")
	}
	// That the node is known, and so is vouched for, was asked before.
	early := c.issuerRevoked(cert.Issuer)
	if early {
		// If it was an issuer, it was that one.
		cert.Roles &^= keys.RoleIssuer
	}
	cred, err := c.opts.Renewal.Renew(now, cert, early)
	if err != nil {
		c.log.Warn("certificate of a member is not renewed", logkey.Node, from.ID, logkey.Name, cert.Hostname, logkey.Error, err)
		// The reason stays in this node's log.
		return nil, errors.New("renewal refused")
	}
	c.log.Info("certificate of a member is renewed", logkey.Node, from.ID, logkey.Name, cert.Hostname)
	return renewAnswer(cred), nil
}

// renewAnswer carries a credential: u16 length and delegation, u16 length and
// certificate.
func renewAnswer(c keys.Credential) []byte {
	b := []byte{kindRenew | kindAnswer, version}
	for _, part := range [][]byte{c.Delegation, c.Cert} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(part)))
		b = append(b, part...)
	}
	return b
}

// parseRenewAnswer copies what it returns.
func parseRenewAnswer(b []byte) (c keys.Credential, err error) {
	r := wire.NewReader(b, errMessage)
	if r.U8() != kindRenew|kindAnswer || r.U8() != version {
		r.Fail("not a renewal of version %d", version)
	}
	c.Delegation = bytes.Clone(r.Block("delegation", record.MaxCredential))
	c.Cert = bytes.Clone(r.Block("certificate", record.MaxCredential))
	if len(c.Delegation) == 0 || len(c.Cert) == 0 {
		r.Fail("no delegation or no certificate")
	}
	if err := r.Done(); err != nil {
		return keys.Credential{}, err
	}
	return c, nil
}
