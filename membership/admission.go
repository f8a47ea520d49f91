package membership

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// admission tells an issuer what the cluster knows: who is revoked, and which
// serial numbers are taken.
type admission struct {
	noisenet.Admission
	c *Cluster
}

// Issue implements noisenet.Admission.
func (a admission) Issue(ctx context.Context, from netip.AddrPort, id keys.TokenID, req keys.JoinRequest) (keys.JoinAnswer, error) {
	if node := req.Identity.ID(); a.c.refuse(node) {
		err := a.c.refusal(node)
		a.c.log.Warn("a node that is out tried to join again", logkey.Node, node, logkey.Addr, from, logkey.Error, err)
		return keys.JoinAnswer{}, fmt.Errorf("admit node %s: %w", node, err)
	}
	if a.c.issuerRevoked(a.c.issuer) {
		// Every member would refuse the certificate.
		return keys.JoinAnswer{}, fmt.Errorf("admit node %s: %w", req.Identity.ID(), ErrIssuerRevoked)
	}
	if a.c.opts.Serials != nil {
		var highest uint64
		for _, m := range a.c.Snapshot().Members {
			highest = max(highest, m.Serial)
		}
		a.c.opts.Serials.RaiseSerial(highest)
	}
	return a.Admission.Issue(ctx, from, id, req)
}

func (c *Cluster) admission() noisenet.Admission {
	if c.opts.Admission == nil {
		return nil
	}
	return admission{c.opts.Admission, c}
}
