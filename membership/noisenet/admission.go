package noisenet

import (
	"context"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// Issuer is what IssuerAdmission needs of a *keystore.Issuer.
type Issuer interface {
	JoinKeys(low32 uint32) []JoinKey
	Issue(now time.Time, from netip.Addr, id keys.TokenID, req keys.JoinRequest) (keys.JoinAnswer, error)
}

// IssuerAdmission lets a node's issuer decide about newcomers, by a clock.
func IssuerAdmission(i Issuer, now func() time.Time) Admission { return issuerAdmission{i, now} }

type issuerAdmission struct {
	issuer Issuer
	now    func() time.Time
}

func (a issuerAdmission) JoinKeys(low32 uint32) []JoinKey { return a.issuer.JoinKeys(low32) }

func (a issuerAdmission) Issue(_ context.Context, from netip.AddrPort, id keys.TokenID, req keys.JoinRequest) (keys.JoinAnswer, error) {
	return a.issuer.Issue(a.now(), from.Addr(), id, req)
}
