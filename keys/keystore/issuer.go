package keystore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
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
)

// Lifetimes that Init and the issuer use.
const (
	CertLifetime       = 30 * 24 * time.Hour
	MaxCertLifetime    = 90 * 24 * time.Hour
	DelegationLifetime = 3650 * 24 * time.Hour
	TokenTTL           = time.Hour
	MaxTokenTTL        = 30 * 24 * time.Hour

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

// TokenInfo is what the issuer knows of a token. It holds no secret.
type TokenInfo struct {
	ID      keys.TokenID
	State   TokenState
	Created time.Time
	Expires time.Time

	// Set when used.
	UsedBy   ids.NodeID
	Hostname string
	UsedAt   time.Time
	Serial   uint64
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

// CreateToken makes a single-use token that is valid for ttl (0: TokenTTL) and
// persists what checking it needs, which is not its secret: the returned
// Token is the only copy of that. At most keys.MaxTokenSeeds seeds.
func (i *Issuer) CreateToken(ttl time.Duration, seeds []netip.AddrPort, now time.Time) (keys.Token, TokenInfo, error) {
	if ttl == 0 {
		ttl = TokenTTL
	}
	if ttl < time.Second || ttl > MaxTokenTTL {
		return keys.Token{}, TokenInfo{}, fmt.Errorf("create token: lifetime %v: want 1s to %v", ttl, MaxTokenTTL)
	}
	secret, err := keys.NewTokenSecret()
	if err != nil {
		return keys.Token{}, TokenInfo{}, fmt.Errorf("create token: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	out := keys.Token{
		Cluster: i.trust.Cluster, Root: i.trust.Root, ID: i.newTokenID(), Secret: secret,
		Seeds: slices.Clone(seeds),
	}
	if err := errors.Join(i.open(), out.Validate()); err != nil {
		return keys.Token{}, TokenInfo{}, fmt.Errorf("create token: %w", err)
	}
	l := i.ledger.clone()
	l.prune(now)
	if len(l.Tokens) >= maxTokens {
		return keys.Token{}, TokenInfo{}, fmt.Errorf("create token: %d are listed already: wait until some are a day old", maxTokens)
	}
	created := now.UTC().Truncate(time.Second)
	t := token{ID: out.ID, Created: created, Expires: created.Add(ttl), Seeds: out.Seeds}
	joinKey := secret.JoinKey()
	joinKey.Expose(func(raw []byte) { t.JoinKey = hex.EncodeToString(raw) })
	joinKey.Wipe()
	l.Tokens = append(l.Tokens, t)
	before := i.ledger
	if err := i.put(l); err != nil {
		// Nobody gets this token's secret, so it need not stay. It may be on
		// disk and come back as pending; without its secret it admits nobody.
		return keys.Token{}, TokenInfo{}, fmt.Errorf("create token: %w", errors.Join(err, i.setLedger(before)))
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

// RevokeToken makes a pending token useless; repeating it is harmless.
// ErrTokenUsed if a node was admitted by it: then it is the node that must be
// revoked.
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
	case l.Tokens[n].Use != nil:
		return fmt.Errorf("revoke token %v: by node %v: %w", id, l.Tokens[n].Use.Identity.ID(), ErrTokenUsed)
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
