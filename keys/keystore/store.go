package keystore

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Errors of a data directory. Each is wrapped with the path and the remedy.
var (
	ErrNotInitialised = errors.New("this node belongs to no cluster yet")
	ErrExists         = errors.New("an identity exists already")
	ErrLocked         = errors.New("data directory is in use by another process")
	ErrUnsafe         = errors.New("open to other users")
	ErrCorrupt        = errors.New("file is damaged")
	ErrNewerVersion   = errors.New("file was written by a newer version")
	ErrNoIssuer       = errors.New("this node has no issuer key")
	ErrClosed         = errors.New("store is closed")
	ErrIssuerRevoked  = errors.New("the issuer key of this node was revoked")
)

// Identity is what a node is. The secrets in it share memory with the Store:
// do not Wipe them, Close does.
type Identity struct {
	ID       ids.NodeID
	Hostname string
	Node     keys.NodePrivate
	Noise    keys.NoisePrivate

	// Set once the node is a member (Joined).
	Trust      keys.Trust
	Credential keys.Credential
	Cert       keys.Cert
	Access     keys.AccessKey
}

// Joined reports whether the node has been admitted: the fields after Noise
// are set.
func (i Identity) Joined() bool { return len(i.Credential.Cert) != 0 }

// Store is an open data directory. One process at a time holds it (flock).
// Its methods may be called from any goroutine.
type Store struct {
	dir   *dir
	clock func() time.Time

	mu       sync.Mutex // guards what follows; taken after Issuer.mu
	id       Identity
	state    state
	nextSeq  uint64 // the next number to give out, up to state.Reserved
	warnings []string
	closed   bool
	former   []former  // access keys, newest first
	trusted  time.Time // as time.json has it, else the begin of the certificate
	timeKept bool      // there is a time.json
	left     departure

	issuer    *Issuer // nil without issuer key; set while opening only
	issuerErr error   // why Issuer has nothing to give
}

// Open opens the data directory of a member: ErrNotInitialised if there is no
// identity or no certificate; ErrLeft if the node has left and there is nothing
// more to say to the others (Wipe).
func Open(dir string) (*Store, error) {
	d, err := openDir(dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notInitialised(dir)
	}
	if err != nil {
		return nil, err
	}
	// First: files may be missing, or hold zeros.
	left, err := readDeparture(d)
	if err == nil && left.ending {
		err = leftError(d.path)
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	if !d.exists(nodeKeyName) || !d.exists(nodeCertName) {
		err := interrupted(d)
		if err == nil {
			err = notInitialised(d.path)
		}
		return nil, errors.Join(err, d.close())
	}
	return finish(d, func(s *Store) error {
		s.left = left
		return s.loadMember()
	})
}

func notInitialised(path string) error {
	return fmt.Errorf("%s: run secure-overlay init to found a cluster, or secure-overlay join TOKEN: %w", path, ErrNotInitialised)
}

// finish builds a Store over an open directory and closes both if fill fails.
func finish(d *dir, fill func(*Store) error) (*Store, error) {
	s := &Store{dir: d, clock: time.Now, issuerErr: ErrNoIssuer}
	if err := fill(s); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) loadMember() error {
	if err := s.loadKeys(); err != nil {
		return err
	}
	if err := s.loadMembership(); err != nil {
		return err
	}
	if err := s.loadTime(); err != nil {
		return err
	}
	if now := s.now(); now.After(s.id.Cert.NotAfter) {
		s.warn("the certificate of this node expired at " + s.id.Cert.NotAfter.Format(time.RFC3339))
	}
	if err := s.loadState(); err != nil {
		return err
	}
	if err := s.loadFormer(); err != nil {
		return err
	}
	return s.loadIssuer()
}

func (s *Store) loadKeys() (err error) {
	if s.id.Node, err = readKey(s.dir, nodeKeyName, nodeKeyTag, keys.NodePrivateFromRaw32); err != nil {
		return err
	}
	if s.id.Noise, err = readKey(s.dir, noiseKeyName, noiseKeyTag, keys.NoisePrivateFromRaw32); err != nil {
		return err
	}
	s.id.ID = s.id.Node.Public().ID()
	return nil
}

// loadMembership reads node.cert and checks it as a peer would, except for
// the present time: a node whose certificate has expired must still start, to
// keep its tunnels and to renew.
func (s *Store) loadMembership() error {
	path := s.dir.file(nodeCertName)
	b, err := s.dir.read(nodeCertName)
	if err != nil {
		return err
	}
	m, err := parseMembership(b)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	claim, err := keys.ParseCert(m.credential.Cert)
	if err != nil {
		return fmt.Errorf("read %s: %w: %w", path, err, ErrCorrupt)
	}
	cert, err := s.verifyOwn(m, claim.NotBefore)
	if err != nil {
		return fmt.Errorf("read %s: %w: %w", path, err, ErrCorrupt)
	}
	access, err := readKey(s.dir, accessKeyName, accessKeyTag, keys.AccessKeyFromRaw32)
	if err != nil {
		return err
	}
	s.id.setMember(m, cert, access)
	return nil
}

// verifyOwn checks the chain at a time and that the certificate is for this
// node's keys: one for other keys would be refused by every peer, with an
// error that nobody at this host sees.
func (s *Store) verifyOwn(m membership, at time.Time) (keys.Cert, error) {
	cert, err := m.trust.VerifyMember(m.credential, at)
	if err != nil {
		return keys.Cert{}, err
	}
	if cert.Identity != s.id.Node.Public() || cert.Noise != s.id.Noise.Public() {
		return keys.Cert{}, errors.New("certificate is for other keys than this node's")
	}
	return cert, nil
}

func (i *Identity) setMember(m membership, cert keys.Cert, access keys.AccessKey) {
	i.Trust, i.Credential, i.Cert, i.Access = m.trust, m.credential, cert, access
	i.Hostname = cert.Hostname
}

// warn adds to Warnings; callers hold mu or are alone.
func (s *Store) warn(text string) { s.warnings = append(s.warnings, text) }

// Close releases the directory and wipes the secrets. Repeating it is
// harmless.
func (s *Store) Close() error {
	if s.issuer != nil {
		s.issuer.mu.Lock()
		defer s.issuer.mu.Unlock()
		s.issuer.wipe()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.wipeSecrets()
	if err := s.dir.close(); err != nil {
		return fmt.Errorf("close data directory %s: %w", s.dir.path, err)
	}
	return nil
}

// wipeSecrets makes every later call fail with ErrClosed and wipes what is in
// memory; both locks are held.
func (s *Store) wipeSecrets() {
	s.closed = true
	s.id.Node.Wipe()
	s.id.Noise.Wipe()
	s.id.Access.Wipe()
	for _, f := range s.former {
		f.key.Wipe()
	}
}

// Dir returns the data directory as an absolute path.
func (s *Store) Dir() string { return s.dir.path }

// Warnings returns what opening had to put right or found worth saying, such
// as a damaged state file that was replaced by the copy before it. For the
// log; empty is normal.
func (s *Store) Warnings() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.warnings...)
}

// Identity returns the node's identity, or ErrClosed.
func (s *Store) Identity() (Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Identity{}, ErrClosed
	}
	id := s.id
	id.Credential = cloneCredential(s.id.Credential)
	return id, nil
}

// Issuer returns the issuer of this node, or ErrNoIssuer. ErrCorrupt where
// there is one whose list of tokens is lost: it must not issue, because it no
// longer knows which tokens are used.
func (s *Store) Issuer() (*Issuer, error) {
	if s.issuer == nil {
		return nil, fmt.Errorf("%s: %w", s.dir.path, s.issuerErr)
	}
	return s.issuer, nil
}
