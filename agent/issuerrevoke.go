package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nearest"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// rooted is what the loop needs for what only the root key decides;
// *membership.Cluster.
type rooted interface {
	IssuerRevocation(r item.IssuerRevocation) ([]byte, error)
	RevokeIssuer(raw []byte) (item.IssuerRevocation, error)
}

// issuerViews lists the issuer keys that this node knows of: those that members
// show, those that signed members' certificates, and those that are revoked.
func (l *loop) issuerViews(snap membership.Snapshot) map[keys.IssuerPublic]api.Issuer {
	out := map[keys.IssuerPublic]api.Issuer{}
	for _, m := range snap.Members {
		i := out[m.Cert.Issuer]
		i.Members++
		// A node with an issuer shows a certificate that its own issuer signed.
		if m.Cert.Roles&keys.RoleIssuer != 0 {
			i.NodeRef, i.State, i.Self = api.NodeRef{ID: m.ID, Name: m.Hostname}, m.State.String(), m.ID == l.identity.ID
		}
		out[m.Cert.Issuer] = i
	}
	for _, r := range snap.RevokedIssuers {
		i := out[r.Issuer]
		rev := l.issuerRevocation(r, snap)
		i.Revoked = &rev
		out[r.Issuer] = i
	}
	for key, i := range out {
		i.Key, i.Fingerprint, i.State = key.String(), key.Fingerprint(), cmp.Or(i.State, membership.StateUnknown.String())
		out[key] = i
	}
	return out
}

// issuerRevocation shows a revocation and who is known to have it.
func (l *loop) issuerRevocation(r item.IssuerRevocation, snap membership.Snapshot) api.IssuerRevocation {
	out := api.IssuerRevocation{
		Key: r.Issuer.String(), Fingerprint: r.Issuer.Fingerprint(), Reason: r.Reason, Created: r.Created, Undo: r.Undo,
	}
	out.Applied, out.Waiting = appliedBy(snap, ids.NodeID{})
	return out
}

// noteRevokedIssuers takes notice of issuers that were revoked since the last
// turn.
func (l *loop) noteRevokedIssuers(snap membership.Snapshot) {
	for _, r := range snap.RevokedIssuers {
		if r.Issuer == l.issuerKey {
			l.canIssue = false
		}
		if l.revokedIssuers[r.Issuer] {
			continue
		}
		l.revokedIssuers[r.Issuer] = true
		if l.round > 0 { // else it was so before this agent
			text := "issuer " + r.Issuer.Fingerprint()
			if r.Reason != "" {
				text += ": " + r.Reason
			}
			l.note(api.Event{Time: l.now(), Kind: api.EventIssuerRevoked, Text: text})
		}
	}
}

// issuerProblem says that this node has its certificate from an issuer that is
// revoked, and no other has given it a new one yet.
func issuerProblem(c keys.Cert, snap membership.Snapshot) (api.Problem, bool) {
	if !snap.IssuerRevoked(c.Issuer) {
		return api.Problem{}, false
	}
	return api.Problem{
		Code: "certificate-issuer-revoked", Subject: c.ID().String(),
		Message: "issuer " + c.Issuer.Fingerprint() + ", which signed this node's certificate, is revoked, and no other issuer has renewed it yet: nodes that do not know the certificate refuse this node",
		Fix:     "look with secure-overlay issuer ls for one that is alive; if there is none, make one: secure-overlay issuer request",
	}, true
}

// RequestIssuerRevocation implements api.IssuerRevoker.
func (a *Agent) RequestIssuerRevocation(ctx context.Context, req api.IssuerRevocationRequest) (api.IssuerRevocationDraft, error) {
	var out api.IssuerRevocationDraft
	var err error
	if doErr := a.do(ctx, func(_ context.Context, l *loop) { out, err = l.draftIssuerRevocation(req) }); doErr != nil {
		return out, doErr
	}
	return out, err
}

func (l *loop) draftIssuerRevocation(req api.IssuerRevocationRequest) (api.IssuerRevocationDraft, error) {
	var out api.IssuerRevocationDraft
	snap := l.gossip.Snapshot()
	views := l.issuerViews(snap)
	key, err := findIssuer(req.Issuer, views)
	if err != nil {
		return out, err
	}
	if done := views[key].Revoked; done != nil && (done.Undo || !req.Undo) {
		return out, typed(api.CodeRefused, nil, fmt.Sprintf("issuer %s is revoked already", key.Fingerprint()), "secure-overlay issuer ls")
	}
	if !req.Force && !othersIssue(key, views) {
		return out, typed(api.CodeRefused, nil,
			"no other issuer is known: without one nobody renews the certificates that this one has signed, and nodes that do not know each other yet stay apart",
			"make another issuer first: secure-overlay issuer request on its node; or give --force")
	}
	unsigned, err := l.rooted.IssuerRevocation(item.IssuerRevocation{Issuer: key, Undo: req.Undo, Reason: req.Reason})
	if errors.Is(err, item.ErrTooMany) {
		return out, typed(api.CodeRefused, err, fmt.Sprintf("issuer %s has signed more than %d items that its revocation would have to name", key.Fingerprint(), item.MaxStands),
			"change some of its networks on a node with another issuer, which then signs them")
	}
	if errors.Is(err, item.ErrMalformed) {
		return out, typed(api.CodeInvalid, err, fmt.Sprintf("the reason is not one line of at most %d bytes of printable text", item.MaxReason), "")
	}
	if err != nil {
		return out, err
	}
	out.Issuer, out.Request = views[key], item.Line(item.RootRequestTag, unsigned)
	for _, m := range snap.Members {
		if m.Cert.Issuer == key {
			out.Members = append(out.Members, api.NodeRef{ID: m.ID, Name: m.Hostname})
		}
	}
	return out, nil
}

// othersIssue reports whether another issuer than key is there and not revoked.
func othersIssue(key keys.IssuerPublic, views map[keys.IssuerPublic]api.Issuer) bool {
	for k, i := range views {
		if k != key && !i.ID.IsZero() && i.Revoked == nil {
			return true
		}
	}
	return false
}

// findIssuer finds the issuer key that a text means: by the name or the ID of its
// node, by its fingerprint, or by itself.
func findIssuer(text string, views map[keys.IssuerPublic]api.Issuer) (keys.IssuerPublic, error) {
	var key keys.IssuerPublic
	if key.UnmarshalText([]byte(text)) == nil {
		return key, nil
	}
	var found []keys.IssuerPublic
	var known []string
	for k, i := range views {
		known = append(known, k.Fingerprint())
		if i.Name != "" {
			known = append(known, i.Name)
		}
		byID := !i.ID.IsZero() && text != "" && strings.HasPrefix(i.ID.String(), text)
		if k.Fingerprint() == text || i.Name != "" && i.Name == text || byID {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		slices.Sort(known)
		fix := "secure-overlay issuer ls; one that is not listed has to be named by its whole key"
		if near, ok := nearest.Of(text, known); ok {
			fix = "did you mean " + near + "?"
		}
		return key, typed(api.CodeNotFound, nil, fmt.Sprintf("there is no issuer %q", text), fix)
	}
	return key, typed(api.CodeInvalid, nil, fmt.Sprintf("%q means %d issuers", text, len(found)), "give its key: secure-overlay issuer ls")
}

// RevokeIssuer implements api.IssuerRevoker.
func (a *Agent) RevokeIssuer(ctx context.Context, req api.IssuerRevocationSigned) (api.IssuerRevocation, error) {
	var out api.IssuerRevocation
	items, err := item.ParseLine(item.RootSignedTag, req.Revocation)
	if err == nil && len(items) != 1 {
		err = fmt.Errorf("%w: there are %d", item.ErrMalformed, len(items))
	}
	if err != nil {
		return out, issuerRevocationError(err)
	}
	var root rooted
	if err := a.do(ctx, func(_ context.Context, l *loop) { root = l.rooted }); err != nil {
		return out, err
	}
	done, err := root.RevokeIssuer(items[0])
	if err != nil {
		return out, issuerRevocationError(err)
	}
	err = a.do(ctx, func(_ context.Context, l *loop) { out = l.issuerRevocation(done, l.gossip.Snapshot()) })
	return out, err
}

// issuerRevocationError says what to do about a revocation that is not taken.
func issuerRevocationError(err error) error {
	switch {
	case errors.Is(err, item.ErrOtherSigner), errors.Is(err, keys.ErrBadSignature), errors.Is(err, keys.ErrWrongCluster):
		return typed(api.CodeInvalid, err, "the revocation was not signed with the root key of this cluster", "sign it with the root key that init wrote")
	case errors.Is(err, keys.ErrNotYetValid):
		return typed(api.CodeInvalid, err, fmt.Sprintf("the revocation cannot be used now: %v", err), "compare the clocks")
	case errors.Is(err, item.ErrMalformed):
		return typed(api.CodeInvalid, err, "this is no signed revocation: it begins with "+item.RootSignedTag+" and is one line",
			"copy the whole line that secure-overlay issuer sign printed")
	}
	return err
}
