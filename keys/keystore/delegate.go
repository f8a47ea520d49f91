package keystore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// A node becomes an issuer in three steps, of which only the second needs the
// root key, so that it can stay offline: the node makes a key and a request for
// it (RequestIssuer), whoever has the root key signs that (SignIssuer), and the
// node takes the delegation (InstallIssuer). The same steps give an issuer a
// new delegation for the key that it has.

// ErrOtherKey: a delegation is not for the issuer key of this node.
var ErrOtherKey = errors.New("is not for this node's issuer key")

// RequestIssuer makes this node's issuer key, or takes the one it has, and
// returns the text of the request for the holder of the root key. Repeating it
// gives the same text.
func (s *Store) RequestIssuer() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := s.requestIssuer()
	if err != nil {
		return "", fmt.Errorf("make issuer request: %w", err)
	}
	return text, nil
}

func (s *Store) requestIssuer() (string, error) {
	switch {
	case s.closed:
		return "", ErrClosed
	case !s.id.Joined():
		return "", ErrNotInitialised
	}
	key, err := s.issuerKey()
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = keys.NewIssuerPrivate(); err == nil {
			err = s.dir.createKey(issuerNewName, issuerKeyTag, key)
		}
	}
	if err != nil {
		return "", err
	}
	defer key.Wipe()
	return issuerRequestTag + encodeObject(keys.SignIssuerRequest(key, s.id.Trust.Cluster, s.id.ID)), nil
}

// issuerKey reads the key in force, else the one that waits for its delegation;
// fs.ErrNotExist if there is neither.
func (s *Store) issuerKey() (keys.IssuerPrivate, error) {
	name := issuerKeyName
	if !s.dir.exists(name) {
		name = issuerNewName
	}
	if !s.dir.exists(name) {
		return keys.IssuerPrivate{}, fs.ErrNotExist
	}
	return readKey(s.dir, name, issuerKeyTag, keys.IssuerPrivateFromRaw32)
}

// ParseIssuerRequest reads the text that RequestIssuer gave.
func ParseIssuerRequest(text string) (keys.IssuerRequest, error) {
	raw, err := parseObjectLine(issuerRequestTag, bytes.TrimSpace([]byte(text)))
	if err != nil {
		return keys.IssuerRequest{}, fmt.Errorf("read issuer request: %w", err)
	}
	return keys.ParseIssuerRequest(raw)
}

// SignIssuer makes the text of a delegation with the root key: from now on, for
// a time. It needs no Store, and so no host of the cluster.
func SignIssuer(root keys.RootPrivate, req keys.IssuerRequest, now time.Time, lifetime time.Duration) (string, error) {
	now = now.UTC().Truncate(time.Second)
	raw := keys.SignDelegation(root, keys.Delegation{
		Cluster: req.Cluster, Issuer: req.Issuer, MaxLifetime: MaxCertLifetime,
		NotBefore: now, NotAfter: now.Add(lifetime.Truncate(time.Second)),
	})
	if raw == nil {
		return "", fmt.Errorf("sign delegation: lifetime %v does not fit", lifetime)
	}
	return delegationTag + encodeObject(raw), nil
}

// ReadRootKey reads the file that Init wrote, and asks for the passphrase if it
// is sealed: ErrPassphrase if that is another one. The caller wipes the key.
func ReadRootKey(path string, passphrase func() ([]byte, error)) (keys.RootPrivate, error) {
	key, err := readRootKey(path, passphrase)
	if err != nil {
		return keys.RootPrivate{}, fmt.Errorf("read root key %s: %w", path, err)
	}
	return key, nil
}

func readRootKey(path string, passphrase func() ([]byte, error)) (keys.RootPrivate, error) {
	parent, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return keys.RootPrivate{}, err
	}
	defer func() { _ = parent.Close() }()
	d := &dir{path: filepath.Dir(path), root: parent}
	line, err := d.read(filepath.Base(path))
	if err != nil {
		return keys.RootPrivate{}, err
	}
	defer clear(line)
	if !bytes.HasPrefix(line, []byte(sealedRootTag)) {
		return readKey(d, filepath.Base(path), rootKeyTag, keys.RootPrivateFromRaw32)
	}
	secret, err := passphrase()
	if err != nil {
		return keys.RootPrivate{}, err
	}
	defer clear(secret)
	return openRoot(line, secret)
}

// InstallIssuer makes this node an issuer by the root's delegation, or gives the
// issuer that it is a new one. It is in force from the next Open on. Serial
// numbers begin above aboveSerial, the highest that is known in the cluster, so
// that the nodes that this issuer admits count as younger.
//
// The key file is written last: until it is there the node is no issuer, and the
// whole can be repeated.
func (s *Store) InstallIssuer(text string, now time.Time, aboveSerial uint64) (keys.Delegation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, err := s.installIssuer(text, now, aboveSerial)
	if err != nil {
		return keys.Delegation{}, fmt.Errorf("install delegation: %w", err)
	}
	return d, nil
}

func (s *Store) installIssuer(text string, now time.Time, aboveSerial uint64) (keys.Delegation, error) {
	var none keys.Delegation
	if s.closed {
		return none, ErrClosed
	}
	raw, err := parseObjectLine(delegationTag, bytes.TrimSpace([]byte(text)))
	if err != nil {
		return none, err
	}
	d, err := s.id.Trust.VerifyDelegation(raw, now)
	if err != nil {
		return none, err
	}
	key, err := s.issuerKey()
	if errors.Is(err, fs.ErrNotExist) {
		return none, fmt.Errorf("it %w: there is none yet, make a request first", ErrOtherKey)
	}
	if err != nil {
		return none, err
	}
	defer key.Wipe()
	if d.Issuer != key.Public() {
		return none, fmt.Errorf("it %w", ErrOtherKey)
	}
	if s.dir.exists(issuerKeyName) {
		// Only the delegation is new. What was promised by tokens stays.
		return d, s.dir.replace(issuerCertName, objectLine(delegationTag, raw))
	}
	if aboveSerial >= math.MaxUint64/2 {
		return none, fmt.Errorf("serial number %d is out of range", aboveSerial)
	}
	for _, write := range []func() error{
		func() error { return s.dir.saveBoth(tokensName, ledger{NextSerial: aboveSerial + 1}) },
		func() error { return s.dir.replace(issuerCertName, objectLine(delegationTag, raw)) },
		func() error { return s.dir.createKey(issuerKeyName, issuerKeyTag, key) },
	} {
		if err := write(); err != nil {
			return none, err
		}
	}
	return d, s.dir.root.Remove(issuerNewName)
}

// showRole gives this node a certificate that says that it has an issuer, so that
// others know whom to ask. Its own issuer signs it: it may, and no other has to
// be reached.
func (i *Issuer) showRole(now time.Time) error {
	s := i.store
	cert := s.id.Cert
	cert.Roles |= keys.RoleIssuer
	cert.NotBefore = successorBegins(now, cert)
	cert.NotAfter = cert.NotBefore.Add(i.lifetime())
	credential, err := i.certify(now, cert, "role")
	if err != nil {
		return err
	}
	m := membership{s.id.Trust, credential}
	if cert, err = s.verifyOwn(m, now); err != nil {
		return err
	}
	if err := s.dir.replace(nodeCertName, m.encode()); err != nil {
		return err
	}
	s.id.setMember(m, cert, s.id.Access)
	return nil
}

// DropIssuer takes the issuer key of this node away, because the root has revoked
// it: nobody takes what it signs, and the next start must not show a certificate
// of its. The log of what it has issued stays. Repeating it is harmless.
//
// The key goes first: from then on the node has no issuer, whatever a crash
// leaves of the rest.
func (s *Store) DropIssuer() error {
	if s.issuer != nil {
		s.issuer.mu.Lock()
		s.issuer.dropped = true
		s.issuer.wipe()
		s.issuer.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("drop issuer: %w", ErrClosed)
	}
	for _, name := range []string{issuerKeyName, issuerCertName, tokensName, tokensName + prevSuffix, itemsName, itemsName + prevSuffix} {
		if err := s.dir.remove(name); err != nil {
			return fmt.Errorf("drop issuer: %w", err)
		}
	}
	return nil
}
