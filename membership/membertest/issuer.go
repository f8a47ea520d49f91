package membertest

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// Issuer signs cluster items as *keystore.Issuer does, in memory. Its methods
// may be called from any goroutine.
type Issuer struct {
	delegation []byte
	key        keys.IssuerPrivate

	mu   sync.Mutex // guards what follows
	err  error
	made map[string]signed
}

type signed struct {
	version uint64
	raw     []byte
}

// Issuer makes the issuer called name, delegated from begin to end.
func (a *Authority) Issuer(name string, begin, end time.Time) (*Issuer, error) {
	key, err := keys.IssuerPrivateFromRaw32(a.secret("issuer " + name))
	if err != nil {
		return nil, err
	}
	root, err := a.Root()
	if err != nil {
		return nil, err
	}
	i := &Issuer{key: key, made: make(map[string]signed)}
	i.delegation = keys.SignDelegation(root, keys.Delegation{
		Cluster: a.Trust.Cluster, Issuer: key.Public(), MaxLifetime: 90 * 24 * time.Hour,
		NotBefore: begin.Truncate(time.Second), NotAfter: end.Truncate(time.Second),
	})
	if i.delegation == nil {
		return nil, fmt.Errorf("make issuer %s: delegation is not valid", name)
	}
	return i, nil
}

// Root returns the cluster's root key.
func (a *Authority) Root() (keys.RootPrivate, error) {
	return keys.RootPrivateFromRaw32(a.secret("root"))
}

// Public returns the issuer's key.
func (i *Issuer) Public() keys.IssuerPublic { return i.key.Public() }

// Delegation returns the root's statement about the issuer.
func (i *Issuer) Delegation() []byte { return bytes.Clone(i.delegation) }

// SignItem signs each version of a slot once; for that version or a lower one
// it returns the newest item of the slot.
func (i *Issuer) SignItem(_ time.Time, slot string, version uint64, unsigned []byte) ([]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return nil, i.err
	}
	if have, ok := i.made[slot]; ok && have.version >= version {
		return bytes.Clone(have.raw), nil
	}
	sig := i.key.Sign(keys.DomainItem, unsigned[len(keys.DomainItem):])
	i.made[slot] = signed{version, append(bytes.Clone(unsigned), sig[:]...)}
	return bytes.Clone(i.made[slot].raw), nil
}

// SignHeartbeat signs anything.
func (i *Issuer) SignHeartbeat(_ time.Time, unsigned []byte) ([]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return nil, i.err
	}
	sig := i.key.Sign(keys.DomainItem, unsigned[len(keys.DomainItem):])
	return append(bytes.Clone(unsigned), sig[:]...), nil
}

// Fail makes SignItem and SignHeartbeat fail with err, or work again if err is nil.
func (i *Issuer) Fail(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.err = err
}

// Signed returns the highest version that the issuer signed for a slot, or 0.
func (i *Issuer) Signed(slot string) (version uint64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.made[slot].version
}
