package agent

import (
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
)

// lowLife is the part of a certificate's life below which its end is a
// problem. Renewal begins at half, so by then it has failed for days: nine of
// thirty.
const lowLife = 5 // one in lowLife

// adoptInto keeps a renewed credential in the store, beside the access key
// that is there.
func adoptInto(s *keystore.Store) func(keys.Credential) error {
	return func(c keys.Credential) error {
		id, err := s.Identity()
		if err != nil {
			return err
		}
		return s.Adopt(id.Trust, keys.JoinAnswer{Credential: c, Access: id.Access})
	}
}

// ownCert is the certificate that this node shows: the one in its record's
// entry, which is renewed while the agent runs.
func (l *loop) ownCert(snap membership.Snapshot) keys.Cert {
	if m, ok := snap.Member(l.identity.ID); ok && m.Cert.NotAfter.After(l.identity.Cert.NotAfter) {
		return m.Cert
	}
	return l.identity.Cert
}

// certificateProblem reports that this node's certificate is about to run out,
// or has. Tunnels that are up stay up either way; what ends is that other
// nodes accept this one's connections.
func certificateProblem(c keys.Cert, now time.Time) (api.Problem, bool) {
	left, life := c.NotAfter.Sub(now), c.NotAfter.Sub(c.NotBefore)
	p := api.Problem{Code: "certificate-expiring", Subject: c.ID().String()}
	end := c.NotAfter.UTC().Format(time.RFC3339)
	switch {
	case life <= 0 || left >= life/lowLife:
		return api.Problem{}, false
	case left > 0:
		p.Message = fmt.Sprintf("the certificate of this node expires at %s and could not be renewed since half of its life", end)
		p.Fix = "start the agent on the node where the cluster was initialised, and check that this node reaches its control port"
	case c.Roles&keys.RoleIssuer != 0:
		p.Code = "certificate-expired"
		p.Message = fmt.Sprintf("the certificate of this node expired at %s: other nodes refuse its connections", end)
		p.Fix = "look in the agent's log why this node's issuer could not renew it, and check the clock"
	default:
		p.Code = "certificate-expired"
		p.Message = fmt.Sprintf("the certificate of this node expired at %s: other nodes refuse its connections", end)
		p.Fix = "check the clock; if it is right, make a token on the node where the cluster was initialised, and join anew with an empty data directory"
	}
	return p, true
}
