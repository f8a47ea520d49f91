package keys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// delegationSize is the length in bytes of every signed delegation.
const delegationSize = len(domainDelegation) + 16 + 32 + 4 + 8 + 8 + SignatureSize

// Delegation is the root's statement that an issuer may sign certificates of
// this cluster. Times are whole seconds.
type Delegation struct {
	Cluster     ids.ClusterID
	Issuer      IssuerPublic
	MaxLifetime time.Duration // of a certificate, whole seconds, at most 136 years
	NotBefore   time.Time
	NotAfter    time.Time
}

// Validate reports the first field that has no canonical form.
func (d Delegation) Validate() error {
	if smallOrder(d.Issuer) {
		return errors.New("delegation: issuer key is of small order")
	}
	if d.MaxLifetime < time.Second || d.MaxLifetime%time.Second != 0 || d.MaxLifetime/time.Second > 1<<32-1 {
		return errors.New("delegation: maximum lifetime: want whole seconds in 1..2^32-1")
	}
	if err := checkWindow(d.NotBefore, d.NotAfter); err != nil {
		return fmt.Errorf("delegation: %w", err)
	}
	return nil
}

// SignDelegation returns the signed bytes (PROTOCOL.md), or nil where Validate
// gives an error: nil is no delegation to any decoder.
func SignDelegation(root RootPrivate, d Delegation) []byte {
	if d.Validate() != nil {
		return nil
	}
	b := d.fields()
	sig := root.Sign(domainDelegation, b)
	return append(signedBytes(domainDelegation, b), sig[:]...)
}

// fields encodes everything between the domain and the signature.
func (d Delegation) fields() []byte {
	b := make([]byte, 0, delegationSize)
	b = append(b, d.Cluster[:]...)
	b = append(b, d.Issuer[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(d.MaxLifetime/time.Second))
	b = appendTime(b, d.NotBefore)
	return appendTime(b, d.NotAfter)
}

// ParseDelegation decodes raw. It does not check the signature: what it
// returns is a claim until Trust.VerifyDelegation has accepted the same bytes.
func ParseDelegation(raw []byte) (Delegation, error) {
	r := reader{what: "delegation", b: raw}
	var d Delegation
	r.domain(domainDelegation)
	d.Cluster = ids.ClusterID(r.take(16, "cluster"))
	d.Issuer = r.key("issuer key")
	d.MaxLifetime = time.Duration(r.u32("maximum lifetime")) * time.Second
	d.NotBefore, d.NotAfter = r.window()
	r.signature()
	if err := r.done(); err != nil {
		return Delegation{}, err
	}
	if err := d.Validate(); err != nil {
		return Delegation{}, fmt.Errorf("parse %w: %w", err, ErrMalformed)
	}
	return d, nil
}
