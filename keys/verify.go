package keys

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Why a credential is refused. The errors of the two links of the chain wrap
// a common one, so a caller may ask coarsely or exactly.
var (
	ErrWrongCluster = errors.New("belongs to another cluster")
	ErrBadSignature = errors.New("signature is not valid")
	ErrExpired      = errors.New("has expired")
	ErrNotYetValid  = errors.New("is not valid yet: compare the clocks of both hosts")

	ErrDelegationSignature = fmt.Errorf("root's %w", ErrBadSignature)
	ErrCertSignature       = fmt.Errorf("issuer's %w", ErrBadSignature)
	ErrOtherIssuer         = errors.New("names another issuer than the delegation")
	ErrLifetime            = errors.New("lives longer than the delegation allows")
	ErrInnerAddr           = errors.New("inner address does not follow from the identity key")
)

// ClockTolerance is how far apart the clocks of two hosts may be where nobody
// says otherwise: validity periods are widened by it on both sides (security.md 2.9).
const ClockTolerance = 5 * time.Minute

// Trust is what a node believes without proof: the cluster it is in and the
// cluster's root key, both from init or from a join token.
type Trust struct {
	Cluster ids.ClusterID
	Root    RootPublic
	// Tolerance is how far apart the clocks of two hosts may be; 0: ClockTolerance.
	// It is this node's own matter: nothing of it is on disk or on the wire.
	Tolerance time.Duration
}

// Leeway returns by how much validity periods are widened on both sides.
func (t Trust) Leeway() time.Duration { return cmp.Or(t.Tolerance, ClockTolerance) }

// VerifyDelegation accepts raw if it is a delegation of this cluster, signed
// by its root, and valid at now.
func (t Trust) VerifyDelegation(raw []byte, now time.Time) (Delegation, error) {
	d, err := ParseDelegation(raw)
	if err != nil {
		return Delegation{}, err
	}
	// The cluster is compared before the signature only to give the better
	// error: the signed bytes hold the cluster ID, so a delegation of another
	// cluster fails the next check, too, unless the two share a root key.
	if d.Cluster != t.Cluster {
		return Delegation{}, fmt.Errorf("delegation %w", ErrWrongCluster)
	}
	// Root key and message are fixed here: t.Root is pinned, and the bytes
	// checked are the bytes parsed, because the encoding is canonical.
	if !t.Root.Verify(domainDelegation, body(raw, domainDelegation), trailer(raw)) {
		return Delegation{}, fmt.Errorf("delegation: %w", ErrDelegationSignature)
	}
	if err := t.inWindow(d.NotBefore, d.NotAfter, now); err != nil {
		return Delegation{}, fmt.Errorf("delegation %w", err)
	}
	return d, nil
}

// VerifyMember accepts a credential if the whole chain holds at now, and
// returns the certificate. Why that proves membership: the root key is pinned
// (Trust) and signed the delegation, which names the issuer key; that key
// signed the certificate, which names the node's identity and Noise keys. Each
// link is checked before anything it says is used.
//
// It does not prove that the peer holds those keys: the Noise handshake does
// (its static key must be Cert.Noise), or a signature by Cert.Identity. Nor
// does it know of revocations.
func (t Trust) VerifyMember(c Credential, now time.Time) (Cert, error) {
	d, err := t.VerifyDelegation(c.Delegation, now)
	if err != nil {
		return Cert{}, err
	}
	cert, err := ParseCert(c.Cert)
	if err != nil {
		return Cert{}, err
	}
	// An issuer key could serve two clusters with one root each; its
	// certificates then differ in this field only.
	if cert.Cluster != t.Cluster {
		return Cert{}, fmt.Errorf("certificate %w", ErrWrongCluster)
	}
	// The certificate states its issuer inside the signed bytes, so that it
	// cannot be shown under another delegation with wider limits.
	if cert.Issuer != d.Issuer {
		return Cert{}, fmt.Errorf("certificate %w", ErrOtherIssuer)
	}
	// The verifying key is the delegated one, never one that the certificate
	// brings along; after the check above the two are the same.
	if !d.Issuer.Verify(domainCert, body(c.Cert, domainCert), trailer(c.Cert)) {
		return Cert{}, fmt.Errorf("certificate: %w", ErrCertSignature)
	}
	// A stolen issuer key cannot make certificates that outlive the root's
	// limit.
	if cert.NotAfter.Sub(cert.NotBefore) > d.MaxLifetime {
		return Cert{}, fmt.Errorf("certificate %w", ErrLifetime)
	}
	if err := t.inWindow(cert.NotBefore, cert.NotAfter, now); err != nil {
		return Cert{}, fmt.Errorf("certificate %w", err)
	}
	// The inner address is what the data plane filters by. Derived from the
	// identity key, it cannot be another member's even if an issuer errs.
	if cert.Inner != cert.ID().InnerAddr() {
		return Cert{}, fmt.Errorf("certificate: %w", ErrInnerAddr)
	}
	return cert, nil
}

// inWindow checks from - leeway <= now <= to + leeway.
func (t Trust) inWindow(from, to, now time.Time) error {
	if now.Before(from.Add(-t.Leeway())) {
		return ErrNotYetValid
	}
	if now.After(to.Add(t.Leeway())) {
		return ErrExpired
	}
	return nil
}

// body and trailer split signed bytes that a decoder has accepted, so raw is
// known to hold domain, fields and signature.
func body(raw []byte, domain string) []byte {
	return raw[len(domain) : len(raw)-SignatureSize]
}

func trailer(raw []byte) [SignatureSize]byte {
	return [SignatureSize]byte(raw[len(raw)-SignatureSize:])
}
