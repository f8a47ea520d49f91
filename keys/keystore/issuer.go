package keystore

import (
	"bytes"
	"errors"
	"fmt"
	"math"
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
	dropped      bool // by DropIssuer
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
		if err := i.showRole(s.now()); err != nil {
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

// open returns ErrClosed after Close, ErrIssuerRevoked after DropIssuer. Callers
// hold mu.
func (i *Issuer) open() error {
	switch {
	case i.dropped:
		return ErrIssuerRevoked
	case i.key.IsZero():
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
