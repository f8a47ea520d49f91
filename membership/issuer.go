package membership

import (
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// ErrIssuerRevoked: the root has revoked this node's issuer key, so that
// nothing it would sign is of any worth.
var ErrIssuerRevoked = errors.New("this node's issuer key is revoked")

// IssuerRevocation returns the bytes that the root key has to sign for an issuer
// key to be revoked: with them what of the issuer's word stands, as this node
// knows it. r.Created, r.Target, r.Access and r.Stands are ignored. Errors:
// item.ErrMalformed, item.ErrTooMany (wrapped).
func (c *Cluster) IssuerRevocation(r item.IssuerRevocation) ([]byte, error) {
	r.Created = c.now().UTC().Truncate(time.Second)
	r.Target = c.Snapshot().Target.Epoch
	if a, ok := c.access(); ok {
		r.Access = a.Version
	}
	var err error
	if r.Stands, err = c.view.Load().cluster.StandsOf(r.Issuer); err != nil {
		return nil, err
	}
	return r.Unsigned(c.opts.Identity.Trust)
}

// RevokeIssuer takes in a revocation of an issuer key that the root has signed,
// on any node: it proves itself. It returns when this node's Snapshot shows it;
// the others learn it as they learn of revoked nodes.
//
// What follows: certificates of that issuer are good only where they were known
// before, and their nodes get new ones by another issuer at once; items that it
// signed are void, but for what item.IssuerRevocation lists.
// Errors: ErrNotRunning, item.ErrMalformed, keys.ErrBadSignature (wrapped).
func (c *Cluster) RevokeIssuer(raw []byte) (item.IssuerRevocation, error) {
	r, err := c.revokeIssuer(c.now(), raw)
	if err != nil {
		return item.IssuerRevocation{}, fmt.Errorf("revoke issuer: %w", err)
	}
	return r, nil
}

func (c *Cluster) revokeIssuer(now time.Time, raw []byte) (item.IssuerRevocation, error) {
	var none item.IssuerRevocation
	if !c.running.Load() {
		return none, ErrNotRunning
	}
	it, err := item.Verify(c.opts.Identity.Trust, now, raw)
	if err != nil {
		return none, err
	}
	if _, ok := it.IssuerRevocation(); !ok {
		return none, fmt.Errorf("%w: it is a %s", item.ErrMalformed, it.Slot.Kind)
	}
	if err := c.items.merge([]*item.Item{it}, true); err != nil {
		return none, err
	}
	// A newer one may have been there already.
	if have := c.view.Load().cluster.Get(it.Slot); have != nil {
		r, _ := have.IssuerRevocation()
		return r, nil
	}
	return none, errors.New("set of cluster items has no room for it")
}

// issuerRevoked reports whether the root has revoked an issuer key.
func (c *Cluster) issuerRevoked(issuer keys.IssuerPublic) bool {
	return c.view.Load().cluster.IssuerRevoked(issuer)
}

// signer is what this node signs items with; nil if nothing it signs would be
// taken.
func (c *Cluster) signer() item.Signer {
	if c.opts.Signer == nil || c.issuerRevoked(c.issuer) {
		return nil
	}
	return c.opts.Signer
}

// vouched reports whether a node's credential is worth something: its issuer is
// not revoked, or exactly this credential was known here before. have is what
// the set holds of the node, or nil.
//
// Of a revoked issuer nothing new is believed, because it cannot be told from
// what a thief of the key makes: not a new node, and not another certificate of
// a known one, which could be for a Noise key of the thief. What was known stays,
// so that the cluster holds together until its nodes have new certificates. Nodes
// that the thief had let in before are known, too: they are the operator's to
// revoke.
func vouched(cluster *item.Set, have *record.Item, issuer keys.IssuerPublic, c keys.Credential) bool {
	return !cluster.IssuerRevoked(issuer) || have != nil && have.Shows(c)
}

// vouched is the same for one that stands in an entry or a handshake.
func (v *view) vouched(cert keys.Cert, c keys.Credential) bool {
	return vouched(&v.cluster, v.set.Get(cert.ID()), cert.Issuer, c)
}

// refusePeer is asked by the transport about everybody who has proved an identity.
func (c *Cluster) refusePeer(cert keys.Cert, credential keys.Credential) bool {
	v := c.view.Load()
	return v.cluster.Revoked(cert.ID()) || v.left(cert.ID()) || !v.vouched(cert, credential)
}

// dropIssuer takes notice of a revoked issuer: who is connected with a
// certificate of its that the set does not know has its streams closed, when the
// view shows it (dropExpelled).
func (l *loop) dropIssuer(r item.IssuerRevocation) {
	l.c.log.Warn("issuer is revoked", logkey.Subject, r.Issuer.Fingerprint(), logkey.Reason, r.Reason)
	for id := range l.peers {
		p, ok := l.c.transport.Peer(id)
		if ok && !vouched(&l.items, l.set.Get(id), p.Cert.Issuer, p.Credential) {
			l.expelled = append(l.expelled, id)
		}
	}
}

// refuses says why a control request is not answered, or nil. It is one that was
// under way when its node, or the issuer of its node, was revoked, or its node
// left, and whose stream is being closed.
func (c *Cluster) refuses(from noisenet.Peer) error {
	switch {
	case c.refuse(from.ID):
		return c.refusal(from.ID)
	case !c.view.Load().vouched(from.Cert, from.Credential):
		return errors.New("issuer of the certificate is revoked")
	}
	return nil
}
