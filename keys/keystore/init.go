package keystore

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// InitOptions describes a new cluster.
type InitOptions struct {
	Hostname    string    // of this node; keys.ValidHostname
	RootKeyFile string    // where the root's private key goes; default DIR/root.key
	Now         time.Time // default: the system clock
}

// Init founds a cluster in dir, which it creates if need be: root key,
// issuer key with delegation, this node's identity and certificate, cluster
// access key. The root key goes to o.RootKeyFile and is not kept in the
// Store. It never overwrites anything: ErrExists where an identity is.
func Init(dir string, o InitOptions) (*Store, error) {
	if err := keys.ValidHostname(o.Hostname); err != nil {
		return nil, fmt.Errorf("init: %w", err)
	}
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	d, err := openDir(dir, true)
	if err != nil {
		return nil, err
	}
	if err := vacant(d); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return finish(d, func(s *Store) error { return s.found(o) })
}

// vacant returns an error unless d holds nothing that Init would write.
func vacant(d *dir) error {
	if d.exists(nodeCertName) {
		return fmt.Errorf("%s is the data directory of a cluster member: start it with secure-overlay up: %w", d.path, ErrExists)
	}
	if err := interrupted(d); err != nil {
		return err
	}
	if d.exists(nodeKeyName) {
		return fmt.Errorf("%s is prepared to join a cluster: finish with secure-overlay join TOKEN, or use another data directory: %w", d.path, ErrExists)
	}
	return nil
}

// interrupted recognises what a crash in Init leaves: an issuer key, which
// Init writes first, without a certificate, which it writes last. It is left
// to the operator to remove it: the root key may be among it.
func interrupted(d *dir) error {
	if d.exists(nodeCertName) || !d.exists(issuerKeyName) {
		return nil
	}
	var found []string
	for _, name := range initFiles() {
		if d.exists(name) {
			found = append(found, name)
		}
	}
	return fmt.Errorf("%s holds an init that was interrupted: remove %s from it and the root key file, then repeat: %w",
		d.path, strings.Join(found, ", "), ErrExists)
}

func initFiles() []string {
	return []string{issuerKeyName, rootKeyName, issuerCertName, nodeKeyName, noiseKeyName, accessKeyName,
		tokensName, logName, stateName, nodeCertName}
}

// founder holds the secrets of a cluster while it is made.
type founder struct {
	root   keys.RootPrivate
	issuer keys.IssuerPrivate
	node   keys.NodePrivate
	noise  keys.NoisePrivate
	access keys.AccessKey
}

func newFounder() (f founder, err error) {
	var errs [5]error
	f.root, errs[0] = keys.NewRootPrivate()
	f.issuer, errs[1] = keys.NewIssuerPrivate()
	f.node, errs[2] = keys.NewNodePrivate()
	f.noise, errs[3] = keys.NewNoisePrivate()
	f.access, errs[4] = keys.NewAccessKey()
	return f, errors.Join(errs[:]...)
}

func (f founder) wipe() {
	f.root.Wipe()
	f.issuer.Wipe()
	f.node.Wipe()
	f.noise.Wipe()
	f.access.Wipe()
}

// certify makes the founder's delegation and first certificate.
func (f founder) certify(hostname string, now time.Time) membership {
	var m membership
	rand.Read(m.trust.Cluster[:])
	m.trust.Root = f.root.Public()
	now = now.UTC().Truncate(time.Second)
	m.credential.Delegation = keys.SignDelegation(f.root, keys.Delegation{
		Cluster: m.trust.Cluster, Issuer: f.issuer.Public(), MaxLifetime: MaxCertLifetime,
		NotBefore: now, NotAfter: now.Add(DelegationLifetime),
	})
	identity := f.node.Public()
	m.credential.Cert = keys.SignCert(f.issuer, keys.Cert{
		Cluster: m.trust.Cluster, Serial: 1, Identity: identity, Noise: f.noise.Public(),
		Hostname: hostname, Roles: keys.RoleIssuer, Inner: identity.ID().InnerAddr(),
		NotBefore: now, NotAfter: now.Add(CertLifetime), Issuer: f.issuer.Public(),
	})
	return m
}

func (s *Store) found(o InitOptions) error {
	f, err := newFounder()
	if err != nil {
		return fmt.Errorf("init: draw keys: %w", err)
	}
	// The files are read back below; from then on the Store has the keys, and
	// the root key is nowhere but in its file.
	defer f.wipe()
	m := f.certify(o.Hostname, o.Now)
	if _, err := m.trust.VerifyMember(m.credential, o.Now); err != nil {
		return fmt.Errorf("init: check the new certificate: %w", err)
	}
	var undo undoList
	if err := s.writeFounder(&undo, f, m, o); err != nil {
		return errors.Join(fmt.Errorf("init: %w", err), undo.run())
	}
	return s.loadMember()
}

// writeFounder writes the files, the certificate last: it is what makes the
// directory a member's.
func (s *Store) writeFounder(undo *undoList, f founder, m membership, o InitOptions) error {
	d := s.dir
	cert, err := keys.ParseCert(m.credential.Cert)
	if err != nil {
		return err
	}
	steps := []struct {
		name  string
		write func() error
	}{
		{issuerKeyName, func() error { return d.createKey(issuerKeyName, issuerKeyTag, f.issuer) }},
		{"", func() error { return writeRootKey(undo, d, o.RootKeyFile, f.root) }},
		{issuerCertName, func() error { return d.create(issuerCertName, objectLine(delegationTag, m.credential.Delegation)) }},
		{nodeKeyName, func() error { return d.createKey(nodeKeyName, nodeKeyTag, f.node) }},
		{noiseKeyName, func() error { return d.createKey(noiseKeyName, noiseKeyTag, f.noise) }},
		{accessKeyName, func() error { return d.createKey(accessKeyName, accessKeyTag, f.access) }},
		{tokensName, func() error { return d.saveBoth(tokensName, ledger{NextSerial: cert.Serial + 1}) }},
		{logName, func() error { return logIssue(d, o.Now, cert, "init") }},
		{stateName, func() error { return d.saveBoth(stateName, state{Hostname: o.Hostname}) }},
		{nodeCertName, func() error { return d.create(nodeCertName, m.encode()) }},
	}
	for _, step := range steps {
		if err := step.write(); err != nil {
			return err
		}
		if step.name != "" {
			undo.add(func() error { return d.root.Remove(step.name) })
		}
	}
	return nil
}

// writeRootKey puts the root key where the operator wants it, which may be a
// removable medium. Its directory need not be private; the file is.
func writeRootKey(undo *undoList, d *dir, path string, root keys.RootPrivate) error {
	if path == "" {
		path = d.file(rootKeyName)
	}
	parent, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write root key: %w", err)
	}
	defer parent.Close()
	at := &dir{path: filepath.Dir(path), root: parent, step: d.step}
	line := keyLine(rootKeyTag, root)
	defer clear(line)
	if err := at.createPlain(filepath.Base(path), line); err != nil {
		return fmt.Errorf("write root key: %w", err)
	}
	undo.add(func() error { return os.Remove(path) })
	return nil
}

// undoList removes, newest first, what a failed Init wrote.
type undoList struct{ steps []func() error }

func (u *undoList) add(f func() error) { u.steps = append(u.steps, f) }

func (u *undoList) run() error {
	var errs []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		errs = append(errs, u.steps[i]())
	}
	return errors.Join(errs...)
}

// Prepare opens dir for a joiner and makes its identity and Noise keys unless
// they are there. Repeating it gives the same keys and takes the newest
// hostname. ErrExists if the node is a member already.
func Prepare(dir, hostname string) (*Store, error) {
	if err := keys.ValidHostname(hostname); err != nil {
		return nil, fmt.Errorf("prepare to join: %w", err)
	}
	d, err := openDir(dir, true)
	if err != nil {
		return nil, err
	}
	err = interrupted(d)
	if d.exists(nodeCertName) {
		err = fmt.Errorf("%s is the data directory of a cluster member: start it with secure-overlay up: %w", d.path, ErrExists)
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return finish(d, func(s *Store) error { return s.prepare(hostname) })
}

func (s *Store) prepare(hostname string) error {
	node, err1 := keys.NewNodePrivate()
	noise, err2 := keys.NewNoisePrivate()
	defer node.Wipe()
	defer noise.Wipe()
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("prepare to join: draw keys: %w", err)
	}
	if !s.dir.exists(nodeKeyName) {
		if err := s.dir.createKey(nodeKeyName, nodeKeyTag, node); err != nil {
			return err
		}
	}
	if !s.dir.exists(noiseKeyName) {
		if err := s.dir.createKey(noiseKeyName, noiseKeyTag, noise); err != nil {
			return err
		}
	}
	if err := s.loadKeys(); err != nil {
		return err
	}
	s.state.Hostname = hostname
	if err := s.loadState(); err != nil {
		return err
	}
	if s.state.Hostname != hostname {
		st := s.state
		st.Hostname = hostname
		if err := s.putState(st); err != nil {
			return err
		}
	}
	s.id.Hostname = hostname
	return nil
}

// Adopt makes a prepared node a member: it checks that the answer's
// certificate is for this node's keys and that its chain ends at trust.Root,
// and persists it. A member may adopt a newer certificate of its cluster;
// ErrExists for another cluster's. a.Access is copied.
func (s *Store) Adopt(trust keys.Trust, a keys.JoinAnswer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.id.Joined() && s.id.Trust != trust {
		return fmt.Errorf("adopt certificate: %s is a member of cluster %v: %w", s.dir.path, s.id.Trust.Cluster, ErrExists)
	}
	if err := a.Validate(); err != nil {
		return fmt.Errorf("adopt certificate: %w", err)
	}
	m := membership{trust, cloneCredential(a.Credential)}
	cert, err := s.verifyOwn(m, s.clock())
	if err != nil {
		return fmt.Errorf("adopt certificate: %w", err)
	}
	// The access key first: a key without certificate is harmless, and a
	// certificate makes the directory a member's, which needs the key.
	line := keyLine(accessKeyTag, a.Access)
	defer clear(line)
	if err := s.dir.replace(accessKeyName, line); err != nil {
		return fmt.Errorf("adopt certificate: %w", err)
	}
	st := s.state
	st.Seeds = mergeSeeds(maxSeeds, a.Seeds, st.Seeds)
	st.Hostname = cert.Hostname
	if err := s.putState(st); err != nil {
		return fmt.Errorf("adopt certificate: %w", err)
	}
	if err := s.dir.replace(nodeCertName, m.encode()); err != nil {
		return fmt.Errorf("adopt certificate: %w", err)
	}
	s.id.setMember(m, cert, a.Access.Clone())
	return nil
}

func cloneCredential(c keys.Credential) keys.Credential {
	return keys.Credential{
		Delegation: append([]byte(nil), c.Delegation...),
		Cert:       append([]byte(nil), c.Cert...),
	}
}
