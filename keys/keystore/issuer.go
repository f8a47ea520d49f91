package keystore

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Why a join is refused.
var (
	ErrTokenUnknown = errors.New("join token is unknown to this issuer")
	ErrTokenExpired = errors.New("join token has expired")
	ErrTokenRevoked = errors.New("join token was revoked")
	ErrTokenUsed    = errors.New("join token has been used")
	// ErrTokenHostname and ErrTokenSource: the token is for nodes of other names,
	// or at other addresses. It is not used up by that.
	ErrTokenHostname = errors.New("join token is for nodes of another name")
	ErrTokenSource   = errors.New("join token is for nodes at another address")
	// ErrTokenWaiting: the operator has not approved the node yet; it may ask
	// again. ErrTokenDenied: the operator said no.
	ErrTokenWaiting = errors.New("join waits for approval")
	ErrTokenDenied  = errors.New("join was denied")
	// ErrTokenSpec: such a token cannot be made.
	ErrTokenSpec = errors.New("not a token that can be made")
	// ErrNotWaiting: no such node waits for approval.
	ErrNotWaiting = errors.New("no such node waits for approval")
)

// Lifetimes that Init and the issuer use.
const (
	CertLifetime       = 30 * 24 * time.Hour
	MaxCertLifetime    = 90 * 24 * time.Hour
	DelegationLifetime = 3650 * 24 * time.Hour
	TokenTTL           = time.Hour
	MaxTokenTTL        = 30 * 24 * time.Hour

	// MaxTokenUses is how many nodes one token can admit.
	MaxTokenUses = 1000

	// RepeatWindow is how long the identity that used a token may ask again
	// and get the same certificate, for the case that the answer was lost.
	RepeatWindow = 10 * time.Minute
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

// JoinKey is a candidate for the preshared key of a join handshake.
type JoinKey struct {
	ID  keys.TokenID
	Key keys.AccessKey
}

// Issuer admits nodes and signs cluster items. Its methods may be called from any goroutine; they
// wait for each other.
type Issuer struct {
	store      *Store
	key        keys.IssuerPrivate
	delegation []byte
	limits     keys.Delegation // what delegation says
	trust      keys.Trust

	mu       sync.Mutex // guards what follows; taken before Store.mu
	ledger   ledger
	unsaved  bool // the last write failed: the disk may or may not have it
	joinKeys map[keys.TokenID]keys.AccessKey
	renewed  map[ids.NodeID]keys.Credential // since the start; as many as members

	items        signedItems
	itemsUnsaved bool // the last write failed: the disk may or may not have it
	itemsFresh   bool // there is no file yet that is worth keeping
}

// loadIssuer opens the issuer of a node that has an issuer key. A node whose
// token list is lost starts without issuer: its data plane is needed.
func (s *Store) loadIssuer() error {
	d := s.dir
	if !d.exists(issuerKeyName) {
		return nil
	}
	key, err := readKey(d, issuerKeyName, issuerKeyTag, keys.IssuerPrivateFromRaw32)
	if err != nil {
		return err
	}
	i := &Issuer{store: s, key: key, trust: s.id.Trust,
		joinKeys: map[keys.TokenID]keys.AccessKey{}, renewed: map[ids.NodeID]keys.Credential{}}
	if err := i.loadDelegation(); err != nil {
		return err
	}
	l, recovered, err := loadLedger(d)
	if errors.Is(err, ErrCorrupt) {
		key.Wipe()
		s.issuerErr = fmt.Errorf("%w: the issuer is off, because it cannot tell which tokens are used; make another issuer with the root key", err)
		s.warn(s.issuerErr.Error())
		return nil
	}
	if err != nil {
		return err
	}
	if recovered {
		s.warn(d.file(tokensName) + " was damaged or missing: went on with the copy before it and revoked every pending join token")
	}
	if err := errors.Join(i.setLedger(l), i.loadItems()); err != nil {
		return err
	}
	s.issuer = i
	if s.id.Cert.Roles&keys.RoleIssuer == 0 {
		if err := i.showRole(s.clock()); err != nil {
			s.warn("this node's certificate does not say that it has an issuer, so that others do not ask it: " + err.Error())
		}
	}
	return nil
}

func (i *Issuer) loadDelegation() error {
	d, path := i.store.dir, i.store.dir.file(issuerCertName)
	b, err := d.read(issuerCertName)
	if err != nil {
		return err
	}
	if i.delegation, err = parseObjectLine(delegationTag, bytes.TrimSuffix(b, []byte("\n"))); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	claim, err := keys.ParseDelegation(i.delegation)
	if err != nil {
		return fmt.Errorf("read %s: %w: %w", path, err, ErrCorrupt)
	}
	i.limits, err = i.trust.VerifyDelegation(i.delegation, claim.NotBefore)
	if err != nil {
		return fmt.Errorf("read %s: %w: %w", path, err, ErrCorrupt)
	}
	if i.limits.Issuer != i.key.Public() {
		return fmt.Errorf("read %s: is for another key than %s: %w", path, d.file(issuerKeyName), ErrCorrupt)
	}
	return nil
}

// setLedger takes l as the present state and opens keys that are new in it.
// Callers hold mu or are alone.
func (i *Issuer) setLedger(l ledger) error {
	for _, t := range l.Tokens {
		if _, ok := i.joinKeys[t.ID]; ok {
			continue
		}
		k, err := t.joinKey()
		if err != nil {
			return err
		}
		i.joinKeys[t.ID] = k
	}
	for id := range i.joinKeys {
		if _, ok := l.find(id); !ok {
			delete(i.joinKeys, id)
		}
	}
	i.ledger = l
	return nil
}

// put makes l the present state, in memory first and then on disk. If the
// write fails, memory keeps l and unsaved is set, because the disk may have
// it, too. That is the safe side: in l a token is used or revoked where the
// state before had it pending.
func (i *Issuer) put(l ledger) error {
	if err := i.setLedger(l); err != nil {
		return err
	}
	i.unsaved = true
	if err := i.store.dir.save(tokensName, l); err != nil {
		return err
	}
	i.unsaved = false
	return nil
}

// open returns ErrClosed after Close. Callers hold mu.
func (i *Issuer) open() error {
	if i.key.IsZero() {
		return ErrClosed
	}
	return nil
}

// wipe clears all secrets; callers hold mu.
func (i *Issuer) wipe() {
	i.key.Wipe()
	for _, k := range i.joinKeys {
		k.Wipe()
	}
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
		Limit: spec.Uses, Hostname: spec.Hostname, Sources: slices.Clone(spec.Sources), Approve: spec.Approve,
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

// RaiseSerial makes later certificates have serial numbers above one that another
// issuer has given out, so that whoever is admitted later counts as younger. It
// is durable with the next certificate.
func (i *Issuer) RaiseSerial(above uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if above >= i.ledger.NextSerial && above < math.MaxUint64/2 {
		i.ledger.NextSerial = above + 1
	}
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

// JoinKeys returns the preshared keys of the tokens with this key-ID, also of
// used and expired ones, so that their holders learn from Issue why they are
// refused. The keys share memory with the Store: do not Wipe them.
func (i *Issuer) JoinKeys(low32 uint32) []JoinKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []JoinKey
	for _, t := range i.ledger.Tokens {
		if t.ID.Low32() == low32 {
			out = append(out, JoinKey{t.ID, i.joinKeys[t.ID]})
		}
	}
	return out
}
