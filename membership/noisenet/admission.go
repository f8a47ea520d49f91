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

// IssuerAdmission lets a node's issuer decide about newcomers.
func IssuerAdmission(i Issuer) Admission { return issuerAdmission{i} }

type issuerAdmission struct{ issuer Issuer }

func (a issuerAdmission) JoinKeys(low32 uint32) []JoinKey { return a.issuer.JoinKeys(low32) }

func (a issuerAdmission) Issue(_ context.Context, from netip.AddrPort, id keys.TokenID, req keys.JoinRequest) (keys.JoinAnswer, error) {
	return a.issuer.Issue(time.Now(), from.Addr(), id, req)
}
