package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
)

// Issuers implements api.Issuing.
func (a *Agent) Issuers(ctx context.Context) ([]api.Issuer, error) {
	var out []api.Issuer
	err := a.do(ctx, func(_ context.Context, l *loop) {
		out = slices.Collect(maps.Values(l.issuerViews(l.gossip.Snapshot())))
	})
	slices.SortFunc(out, func(x, y api.Issuer) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), x.ID.Compare(y.ID), cmp.Compare(x.Key, y.Key))
	})
	return out, err
}

// RequestIssuer implements api.Issuing.
func (a *Agent) RequestIssuer(context.Context) (api.IssuerRequest, error) {
	id, err := a.opts.Store.Identity()
	if err != nil {
		return api.IssuerRequest{}, err
	}
	text, err := a.opts.Store.RequestIssuer()
	return api.IssuerRequest{Node: api.NodeRef{ID: id.ID, Name: id.Hostname}, Request: text}, err
}

// InstallIssuer implements api.Issuing.
func (a *Agent) InstallIssuer(ctx context.Context, req api.IssuerInstall) (api.IssuerInstalled, error) {
	// The highest serial that this node knows: nodes that it will admit are to
	// count as younger than all these.
	var above uint64
	var self api.NodeRef
	if err := a.do(ctx, func(_ context.Context, l *loop) {
		self, above = l.self(), l.identity.Cert.Serial
		for _, m := range l.gossip.Snapshot().Members {
			above = max(above, m.Serial)
		}
	}); err != nil {
		return api.IssuerInstalled{}, err
	}
	d, err := a.opts.Store.InstallIssuer(req.Delegation, a.opts.Clock.Now(), above)
	if err != nil {
		return api.IssuerInstalled{}, delegationError(err)
	}
	return api.IssuerInstalled{Node: self, Expires: d.NotAfter}, nil
}

// delegationError says what to do about a delegation that is not taken.
func delegationError(err error) error {
	switch {
	case errors.Is(err, keystore.ErrOtherKey):
		return typed(api.CodeInvalid, err, "the delegation is for the issuer key of another node, or for none that was requested here",
			"secure-overlay issuer request, and sign what it prints")
	case errors.Is(err, keys.ErrDelegationSignature), errors.Is(err, keys.ErrWrongCluster):
		return typed(api.CodeInvalid, err, "the delegation was not signed with the root key of this cluster", "sign it with the root key that init wrote")
	case errors.Is(err, keys.ErrExpired), errors.Is(err, keys.ErrNotYetValid):
		return typed(api.CodeInvalid, err, fmt.Sprintf("the delegation cannot be used now: %v", err), "compare the clocks, and sign the request again")
	case errors.Is(err, keystore.ErrCorrupt), errors.Is(err, keys.ErrMalformed):
		return typed(api.CodeInvalid, err, "this is no delegation: it begins with so-delegation: and is one line", "copy the whole line that secure-overlay issuer sign printed")
	}
	return err
}
