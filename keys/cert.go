package keys

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Limits of a signed certificate's length in bytes: hostname of 1 and of 63.
const (
	minCertSize = len(domainCert) + 16 + 8 + 32 + 32 + 1 + 1 + 1 + 16 + 8 + 8 + 8 + 32 + SignatureSize
	maxCertSize = minCertSize - 1 + maxHostname
)

// RoleIssuer marks a node that runs an issuer, so that others know where to
// ask for renewal. It grants nothing: authority comes from a delegation.
const RoleIssuer uint8 = 1 << 0

// RoleObserver marks a node that takes part in gossip and in nothing else, such
// as one that monitors: the other nodes have no network, no tunnel and no key with
// it, whatever its record says. It only takes away, so it is no authority either.
const RoleObserver uint8 = 1 << 1

// Cert binds a node's identity key, Noise key, hostname and inner address to
// each other and to the cluster. Times are whole seconds.
type Cert struct {
	Cluster   ids.ClusterID
	Serial    uint64 // grows with every node an issuer admits, kept by renewals; never 0
	Identity  IdentityPublic
	Noise     NoisePublic
	Hostname  string     // ValidHostname; for people, not unique
	Roles     uint8      // bits; unknown ones are carried and ignored
	Inner     netip.Addr // IPv6; equals ID().InnerAddr()
	Token     TokenID    // the join token that admitted the node; zero for the first node
	NotBefore time.Time
	NotAfter  time.Time
	Issuer    IssuerPublic
}

// ID returns the node ID, which is a hash of the identity key: a certificate
// for another key can never carry it.
func (c Cert) ID() ids.NodeID { return c.Identity.ID() }

// Validate reports the first field that has no canonical form or contradicts
// another.
func (c Cert) Validate() error {
	if err := c.wellFormed(); err != nil {
		return err
	}
	if c.Inner != c.ID().InnerAddr() {
		return fmt.Errorf("certificate: %w", ErrInnerAddr)
	}
	return nil
}

func (c Cert) wellFormed() error {
	switch {
	case c.Serial == 0:
		return errors.New("certificate: serial is 0")
	case smallOrder(c.Identity) || smallOrder(c.Issuer):
		return errors.New("certificate: identity or issuer key is of small order")
	case c.Noise.IsZero():
		return errors.New("certificate: no Noise key")
	case !c.Inner.Is6() || c.Inner.Is4In6() || c.Inner.Zone() != "":
		return errors.New("certificate: inner address is not IPv6")
	}
	if err := ValidHostname(c.Hostname); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	if err := checkWindow(c.NotBefore, c.NotAfter); err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	return nil
}

// SignCert returns the signed bytes (PROTOCOL.md), or nil where Validate gives
// an error: nil is no certificate to any decoder. It signs whatever valid
// content it is given; who may get which certificate is the caller's decision
// (keystore.Issuer).
func SignCert(issuer IssuerPrivate, c Cert) []byte {
	if c.Validate() != nil {
		return nil
	}
	return c.sign(issuer)
}

func (c Cert) sign(issuer IssuerPrivate) []byte {
	b := c.fields()
	sig := issuer.Sign(domainCert, b)
	return append(signedBytes(domainCert, b), sig[:]...)
}

// fields encodes everything between the domain and the signature.
func (c Cert) fields() []byte {
	b := make([]byte, 0, maxCertSize)
	b = append(b, c.Cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, c.Serial)
	b = append(b, c.Identity[:]...)
	b = append(b, c.Noise[:]...)
	b = appendHostname(b, c.Hostname)
	b = append(b, c.Roles)
	b = append(b, c.Inner.AsSlice()...)
	b = append(b, c.Token[:]...)
	b = appendTime(b, c.NotBefore)
	b = appendTime(b, c.NotAfter)
	return append(b, c.Issuer[:]...)
}

// ParseCert decodes raw. It does not check the signature: what it returns is
// a claim until Trust.VerifyMember has accepted the same bytes.
func ParseCert(raw []byte) (Cert, error) {
	r := reader{what: "certificate", b: raw}
	var c Cert
	r.domain(domainCert)
	c.Cluster = ids.ClusterID(r.take(16, "cluster"))
	c.Serial = r.u64("serial")
	c.Identity = r.key("identity key")
	c.Noise = r.key("Noise key")
	c.Hostname = r.hostname()
	c.Roles = r.u8("roles")
	c.Inner = netip.AddrFrom16([16]byte(r.take(16, "inner address")))
	c.Token = TokenID(r.take(8, "token ID"))
	c.NotBefore, c.NotAfter = r.window()
	c.Issuer = r.key("issuer key")
	r.signature()
	if err := r.done(); err != nil {
		return Cert{}, err
	}
	if err := c.wellFormed(); err != nil {
		return Cert{}, fmt.Errorf("parse %w: %w", err, ErrMalformed)
	}
	return c, nil
}

// Credential is what a member shows of itself: the signed bytes of its
// issuer's delegation and of its own certificate.
type Credential struct {
	Delegation []byte
	Cert       []byte
}

// Begins returns the first moment at which the whole chain of c may be valid, as
// c itself claims: nothing is verified. Zero if it cannot be read.
func (c Credential) Begins() time.Time {
	cert, err := ParseCert(c.Cert)
	if err != nil {
		return time.Time{}
	}
	del, err := ParseDelegation(c.Delegation)
	if err != nil {
		return time.Time{}
	}
	if cert.NotBefore.Before(del.NotBefore) {
		return del.NotBefore
	}
	return cert.NotBefore
}

// TokenID names a join token. It is public: it is in logs and certificates.
type TokenID [8]byte

// String returns 16 hexadecimal digits.
func (t TokenID) String() string { return hex.EncodeToString(t[:]) }

// Low32 returns the last four bytes as a number: the key-ID with which a
// joiner announces its token before it proves to hold the secret.
func (t TokenID) Low32() uint32 { return binary.BigEndian.Uint32(t[4:]) }

// IsZero reports whether t is the zero value, which names no token.
func (t TokenID) IsZero() bool { return t == TokenID{} }

// MarshalText implements encoding.TextMarshaler.
func (t TokenID) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The error does not
// repeat the input, which may be a whole token.
func (t *TokenID) UnmarshalText(b []byte) error {
	raw, err := hex.DecodeString(string(b))
	if err != nil || len(raw) != len(t) || hex.EncodeToString(raw) != string(b) {
		return fmt.Errorf("parse token ID: want 16 hexadecimal digits in lower case, have %d characters", len(b))
	}
	copy(t[:], raw)
	return nil
}
