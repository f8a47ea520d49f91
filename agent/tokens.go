package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// issuer is what the agent uses of *keystore.Issuer.
type issuer interface {
	tokenStore
	admitter
}

// tokenStore is the part that keeps the tokens.
type tokenStore interface {
	CreateToken(spec keystore.TokenSpec, now time.Time) (keys.Token, keystore.TokenInfo, error)
	Tokens(now time.Time) []keystore.TokenInfo
	RevokeToken(id keys.TokenID) error
	DecideJoin(id keys.TokenID, node ids.NodeID, allow bool) error
}

// admitter is the part that answers joiners, renews, and signs what is of the
// whole cluster.
type admitter interface {
	noisenet.Issuer
	membership.Renewer
	item.Signer
	RaiseSerial(above uint64)
}

// errNoIssuer is the answer of nodes that cannot admit others.
func errNoIssuer() error {
	return api.NewError(api.CodeRefused, "this node holds no issuer key, so it cannot make or list join tokens",
		"run the command on the node where the cluster was initialised")
}

// CreateToken implements api.Tokens.
func (a *Agent) CreateToken(ctx context.Context, req api.TokenRequest) (api.NewToken, error) {
	i, err := a.issuer(ctx)
	if err != nil {
		return api.NewToken{}, err
	}
	seeds, err := a.tokenSeeds(ctx, req.Seeds)
	if err != nil {
		return api.NewToken{}, err
	}
	ttl := time.Duration(req.TTL)
	if ttl < 0 || ttl > keystore.MaxTokenTTL {
		return api.NewToken{}, api.NewError(api.CodeInvalid, fmt.Sprintf("a token cannot live for %s", ttl), fmt.Sprintf("give a --ttl up to %s", keystore.MaxTokenTTL))
	}
	var roles uint8
	switch req.Role {
	case "":
	case api.RoleObserver:
		roles = keys.RoleObserver
	default:
		return api.NewToken{}, api.NewError(api.CodeInvalid, fmt.Sprintf("there is no role %q", req.Role), "--role observer, or none for a full member")
	}
	token, info, err := i.CreateToken(keystore.TokenSpec{
		TTL: ttl, Seeds: seeds, Uses: req.Uses, Hostname: req.Hostname, Sources: req.Sources, Approve: req.Approve, Roles: roles,
	}, a.opts.Clock.Now())
	if errors.Is(err, keystore.ErrTokenSpec) {
		return api.NewToken{}, typed(api.CodeInvalid, err, err.Error(), "secure-overlay token create --help")
	}
	if errors.Is(err, keystore.ErrIssuerRevoked) {
		return api.NewToken{}, typed(api.CodeRefused, err, "the issuer key of this node is revoked, so nobody takes the certificates it signs",
			"run the command on a node with another issuer: secure-overlay issuer ls")
	}
	if err != nil {
		return api.NewToken{}, fmt.Errorf("create join token: %w", err)
	}
	defer token.Secret.Wipe()
	return api.NewToken{Schema: api.Schema, Token: tokenView(info), Text: token.Encode()}, nil
}

// tokenSeeds are the addresses a joiner tries: the wanted ones, or this
// node's own.
func (a *Agent) tokenSeeds(ctx context.Context, wanted []string) ([]netip.AddrPort, error) {
	var seeds []netip.AddrPort
	for _, text := range wanted {
		s, err := netip.ParseAddrPort(text)
		if err != nil || s.Port() == 0 {
			return nil, api.NewError(api.CodeInvalid, fmt.Sprintf("seed %q is not an address with a port", text), "give a form such as 192.0.2.1:7946 or [2001:db8::1]:7946")
		}
		seeds = append(seeds, s)
	}
	if len(wanted) == 0 {
		if err := a.do(ctx, func(_ context.Context, l *loop) {
			for _, o := range l.own {
				seeds = append(seeds, o.Control)
			}
		}); err != nil {
			return nil, err
		}
		seeds = seeds[:min(len(seeds), keys.MaxTokenSeeds)]
	}
	if len(seeds) > keys.MaxTokenSeeds {
		return nil, api.NewError(api.CodeInvalid, fmt.Sprintf("%d seeds, a token holds at most %d", len(seeds), keys.MaxTokenSeeds), "")
	}
	return seeds, nil
}

// Tokens implements api.Tokens.
func (a *Agent) Tokens(ctx context.Context) ([]api.Token, error) {
	i, err := a.issuer(ctx)
	if err != nil {
		return nil, err
	}
	var out []api.Token
	for _, info := range i.Tokens(a.opts.Clock.Now()) {
		out = append(out, tokenView(info))
	}
	return out, nil
}

// RevokeToken implements api.Tokens.
func (a *Agent) RevokeToken(ctx context.Context, id string) error {
	i, err := a.issuer(ctx)
	if err != nil {
		return err
	}
	token, err := findToken(i, a.opts.Clock.Now(), id)
	if err != nil {
		return err
	}
	err = i.RevokeToken(token.ID)
	if errors.Is(err, keystore.ErrTokenUsed) {
		return typed(api.CodeRefused, err, fmt.Sprintf("token %s is used up: it has admitted %s", token.ID, admitted(token)), "secure-overlay revoke NODE")
	}
	return err
}

func admitted(t keystore.TokenInfo) string {
	var names []string
	for _, u := range t.Uses {
		names = append(names, "node "+u.Hostname)
	}
	return strings.Join(names, ", ")
}

// findToken returns the token whose ID is or begins with id.
func findToken(i tokenStore, now time.Time, id string) (keystore.TokenInfo, error) {
	var found []keystore.TokenInfo
	for _, info := range i.Tokens(now) {
		if id != "" && strings.HasPrefix(info.ID.String(), id) {
			found = append(found, info)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return keystore.TokenInfo{}, api.NewError(api.CodeNotFound, fmt.Sprintf("there is no token %q", id), "secure-overlay token ls")
	}
	return keystore.TokenInfo{}, api.NewError(api.CodeInvalid, fmt.Sprintf("%q is the beginning of %d token IDs", id, len(found)), "give more characters of the ID")
}

// DecideJoin implements api.Tokens.
func (a *Agent) DecideJoin(ctx context.Context, id string, d api.JoinDecision) (api.NodeRef, error) {
	i, err := a.issuer(ctx)
	if err != nil {
		return api.NodeRef{}, err
	}
	token, err := findToken(i, a.opts.Clock.Now(), id)
	if err != nil {
		return api.NodeRef{}, err
	}
	var found []keystore.TokenWait
	for _, w := range token.Waiting {
		if d.Node == "" || w.Hostname == d.Node || strings.HasPrefix(w.Node.String(), d.Node) {
			found = append(found, w)
		}
	}
	switch len(found) {
	case 1:
	case 0:
		return api.NodeRef{}, api.NewError(api.CodeNotFound, "no such node waits at token "+token.ID.String(), "secure-overlay token ls")
	default:
		return api.NodeRef{}, api.NewError(api.CodeInvalid, fmt.Sprintf("%d nodes wait at token %s", len(found), token.ID), "name one of them: secure-overlay token ls")
	}
	node := api.NodeRef{ID: found[0].Node, Name: found[0].Hostname}
	return node, i.DecideJoin(token.ID, node.ID, d.Approve)
}

// issuer waits for nothing: the store has it or not.
func (a *Agent) issuer(context.Context) (issuer, error) {
	i, err := a.issuerOf()
	if errors.Is(err, keystore.ErrNoIssuer) {
		return nil, errNoIssuer()
	}
	return i, err
}

// roleName names the role that a certificate gives beside that of an issuer.
func roleName(roles uint8) string {
	if roles&keys.RoleObserver != 0 {
		return api.RoleObserver
	}
	return ""
}

func tokenView(info keystore.TokenInfo) api.Token {
	t := api.Token{
		ID: info.ID.String(), Created: info.Created, Expires: info.Expires,
		Limit: info.Limit, Hostname: info.Hostname, Sources: info.Sources, Approve: info.Approve, Role: roleName(info.Roles),
	}
	switch info.State {
	case keystore.TokenPending:
		t.State = api.TokenOpen
	case keystore.TokenUsed:
		t.State = api.TokenUsed
	case keystore.TokenExpired:
		t.State = api.TokenExpired
	case keystore.TokenRevoked:
		t.State = api.TokenRevoked
	}
	for _, u := range info.Uses {
		t.Uses = append(t.Uses, api.TokenUse{NodeRef: api.NodeRef{ID: u.Node, Name: u.Hostname}, At: u.At})
	}
	for _, w := range info.Waiting {
		t.Waiting = append(t.Waiting, api.TokenWait{NodeRef: api.NodeRef{ID: w.Node, Name: w.Hostname}, From: w.From, Since: w.Since})
	}
	return t
}
