package keystore

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// TokenState is what may still be done with a token.
type TokenState string

// The states of a token. Only a pending one admits a node.
const (
	TokenPending TokenState = "pending"
	TokenUsed    TokenState = "used"
	TokenExpired TokenState = "expired"
	TokenRevoked TokenState = "revoked"
)

// TokenSpec says whom a token admits.
type TokenSpec struct {
	TTL      time.Duration    // 0: TokenTTL; at most MaxTokenTTL
	Seeds    []netip.AddrPort // of issuers; at most keys.MaxTokenSeeds
	Uses     int              // how many nodes; 0: one; at most MaxTokenUses
	Hostname string           // pattern (path.Match) of their names; empty: any
	Sources  []netip.Prefix   // where they come from; none: anywhere; at most MaxTokenSources
	Approve  bool             // each of them waits for DecideJoin
	Roles    uint8            // of their certificates: 0 or keys.RoleObserver
}

// MaxTokenSources is how many prefixes a token can name.
const MaxTokenSources = 16

// withDefaults checks s; its error is an ErrTokenSpec.
func (s TokenSpec) withDefaults() (TokenSpec, error) {
	s.TTL, s.Uses = cmp.Or(s.TTL, TokenTTL), cmp.Or(s.Uses, 1)
	if err := s.check(); err != nil {
		return s, fmt.Errorf("%w: %w", ErrTokenSpec, err)
	}
	return s, nil
}

func (s TokenSpec) check() error {
	switch {
	case s.TTL < time.Second || s.TTL > MaxTokenTTL:
		return fmt.Errorf("lifetime %v: want 1s to %v", s.TTL, MaxTokenTTL)
	case s.Uses < 1 || s.Uses > MaxTokenUses:
		return fmt.Errorf("%d uses: want 1 to %d", s.Uses, MaxTokenUses)
	case len(s.Sources) > MaxTokenSources:
		return fmt.Errorf("%d prefixes of addresses: want at most %d", len(s.Sources), MaxTokenSources)
	case s.Roles&^keys.RoleObserver != 0:
		return fmt.Errorf("roles %#x: only observer is given by a token", s.Roles)
	case len(s.Hostname) > maxPattern:
		return fmt.Errorf("pattern of %d bytes: want at most %d", len(s.Hostname), maxPattern)
	}
	if _, err := path.Match(s.Hostname, ""); err != nil {
		return fmt.Errorf("pattern %q: %w", s.Hostname, err)
	}
	for _, p := range s.Sources {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("prefix %v: want one such as 192.0.2.0/24", p)
		}
	}
	return nil
}

// maxPattern bounds a pattern of hostnames, in bytes.
const maxPattern = 255

// TokenInfo is what the issuer knows of a token. It holds no secret.
type TokenInfo struct {
	ID       keys.TokenID
	State    TokenState
	Created  time.Time
	Expires  time.Time
	Limit    int // of uses
	Hostname string
	Sources  []netip.Prefix
	Approve  bool
	Roles    uint8
	Uses     []TokenUse  // oldest first
	Waiting  []TokenWait // nodes that wait for approval, oldest first
}

// TokenUse is a node that was admitted by a token.
type TokenUse struct {
	Node     ids.NodeID
	Hostname string
	At       time.Time
	Serial   uint64 // of its certificate
}

// TokenWait is a node that asked to be admitted.
type TokenWait struct {
	Node     ids.NodeID
	Hostname string
	From     netip.Addr // where it asked from
	Since    time.Time
}

// CreateToken makes a token and persists what checking it needs, which is not
// its secret: the returned Token is the only copy of that.
func (i *Issuer) CreateToken(spec TokenSpec, now time.Time) (keys.Token, TokenInfo, error) {
	out, info, err := i.createToken(spec, now)
	if err != nil {
		return keys.Token{}, TokenInfo{}, fmt.Errorf("create token: %w", err)
	}
	return out, info, nil
}

func (i *Issuer) createToken(spec TokenSpec, now time.Time) (keys.Token, TokenInfo, error) {
	spec, err := spec.withDefaults()
	if err != nil {
		return keys.Token{}, TokenInfo{}, err
	}
	secret, err := keys.NewTokenSecret()
	if err != nil {
		return keys.Token{}, TokenInfo{}, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	out := keys.Token{
		Cluster: i.trust.Cluster, Root: i.trust.Root, ID: i.newTokenID(), Secret: secret,
		Seeds: slices.Clone(spec.Seeds),
	}
	if err := errors.Join(i.open(), out.Validate()); err != nil {
		return keys.Token{}, TokenInfo{}, err
	}
	l := i.ledger.clone()
	l.prune(now)
	if len(l.Tokens) >= maxTokens {
		return keys.Token{}, TokenInfo{}, fmt.Errorf("%d are listed already: wait until some are a day old", maxTokens)
	}
	created := now.UTC().Truncate(time.Second)
	t := token{
		ID: out.ID, Created: created, Expires: created.Add(spec.TTL), Seeds: out.Seeds,
		Limit: spec.Uses, Hostname: spec.Hostname, Sources: slices.Clone(spec.Sources), Approve: spec.Approve, Roles: spec.Roles,
	}
	joinKey := secret.JoinKey()
	joinKey.Expose(func(raw []byte) { t.JoinKey = hex.EncodeToString(raw) })
	joinKey.Wipe()
	l.Tokens = append(l.Tokens, t)
	before := i.ledger
	if err := i.put(l); err != nil {
		// Nobody gets this token's secret, so it need not stay. It may be on
		// disk and come back as pending; without its secret it admits nobody.
		return keys.Token{}, TokenInfo{}, errors.Join(err, i.setLedger(before))
	}
	return out, t.info(now), nil
}

// newTokenID draws an ID whose low 32 bits no listed token has, so that a
// handshake needs to try one key.
func (i *Issuer) newTokenID() keys.TokenID {
	for {
		id := keys.NewTokenID()
		taken := slices.ContainsFunc(i.ledger.Tokens, func(t token) bool { return t.ID.Low32() == id.Low32() })
		if !taken && !id.IsZero() {
			return id
		}
	}
}

// Tokens lists the tokens, oldest first. Used, expired and revoked ones stay
// listed for a day.
func (i *Issuer) Tokens(now time.Time) []TokenInfo {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := make([]TokenInfo, 0, len(i.ledger.Tokens))
	for _, t := range i.ledger.Tokens {
		out = append(out, t.info(now))
	}
	return out
}

// RevokeToken makes a token useless that can still admit a node; repeating it is
// harmless. ErrTokenUsed if it cannot, because it is used up: then it is the nodes
// that must be revoked.
func (i *Issuer) RevokeToken(id keys.TokenID) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.open(); err != nil {
		return fmt.Errorf("revoke token %v: %w", id, err)
	}
	l := i.ledger.clone()
	n, ok := l.find(id)
	switch {
	case !ok:
		return fmt.Errorf("revoke token %v: %w", id, ErrTokenUnknown)
	case l.Tokens[n].usedUp():
		return fmt.Errorf("revoke token %v: %w", id, ErrTokenUsed)
	case l.Tokens[n].Revoked && !i.unsaved:
		return nil
	}
	l.Tokens[n].Revoked = true
	if err := i.put(l); err != nil {
		return fmt.Errorf("revoke token %v: %w", id, err)
	}
	return nil
}
