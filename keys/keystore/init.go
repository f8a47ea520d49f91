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
	Hostname    string // of this node; keys.ValidHostname
	RootKeyFile string // where the root's private key goes; default DIR/root.key
	// RootPassphrase seals the root key file, at least MinPassphrase bytes; nil:
	// whoever has the file has the key.
	RootPassphrase []byte
	Now            time.Time // default: the system clock
}

// Init founds a cluster in dir, which it creates if need be: root key,
// issuer key with delegation, this node's identity and certificate, cluster
// access key. The root key goes to o.RootKeyFile and is not kept in the
// Store. It never overwrites anything: ErrExists where an identity is.
func Init(dir string, o InitOptions) (*Store, error) {
	if err := keys.ValidHostname(o.Hostname); err != nil {
		return nil, fmt.Errorf("init: %w", err)
	}
	if n := len(o.RootPassphrase); o.RootPassphrase != nil && n < MinPassphrase {
		return nil, fmt.Errorf("init: passphrase of %d bytes: want at least %d", n, MinPassphrase)
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
	if err := stayed(d); err != nil {
		return err
	}
	if d.exists(nodeCertName) {
		return fmt.Errorf("%s is the data directory of a cluster member: start it with secure-overlay up: %w", d.path, ErrExists)
	}
	if err := interrupted(d); err != nil {
		return err
	}
	if d.exists(nodeKeyName) {
		return fmt.Errorf("%s is prepared to join a cluster: finish with secure-overlay join TOKEN, or use another data directory: %w", d.path, ErrExists)
	}
	if found := present(d, initFiles()); len(found) != 0 {
		return fmt.Errorf("%s holds %s: use an empty data directory: %w", d.path, strings.Join(found, ", "), ErrExists)
	}
	return nil
}

func present(d *dir, names []string) (found []string) {
	for _, name := range names {
		if d.exists(name) {
			found = append(found, name)
		}
	}
	return found
}

// interrupted recognises what a crash in Init leaves: an issuer key, which
// Init writes first, without a certificate, which it writes last. It is left
// to the operator to remove it: the root key may be among it.
func interrupted(d *dir) error {
	if d.exists(nodeCertName) || !d.exists(issuerKeyName) {
		return nil
	}
	found := present(d, initFiles())
	return fmt.Errorf("%s holds an init that was interrupted: remove %s from it and the root key file, then repeat: %w",
		d.path, strings.Join(found, ", "), ErrExists)
}

func initFiles() []string {
	return []string{issuerKeyName, issuerNewName, rootKeyName, issuerCertName, nodeKeyName, noiseKeyName, accessKeyName,
		tokensName, tokensName + prevSuffix, logName, stateName, stateName + prevSuffix, nodeCertName}
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
	if o.RootKeyFile == "" {
		o.RootKeyFile = s.dir.file(rootKeyName)
	}
	rootWritten, err := s.writeFounder(f, m, o)
	if err == nil {
		return s.loadMember()
	}
	err = fmt.Errorf("init: %w", err)
	if rootWritten {
		err = errors.Join(err, os.Remove(o.RootKeyFile))
	}
	// None of these files existed before: vacant has looked.
	for _, name := range present(s.dir, initFiles()) {
		err = errors.Join(err, s.dir.root.Remove(name))
	}
	return err
}

// writeFounder writes the files: the issuer key first, which tells an init
// that was interrupted, the certificate last, which makes the directory a
// member's.
func (s *Store) writeFounder(f founder, m membership, o InitOptions) (rootWritten bool, err error) {
	d := s.dir
	cert, err := keys.ParseCert(m.credential.Cert)
	if err != nil {
		return false, err
	}
	if err := d.createKey(issuerKeyName, issuerKeyTag, f.issuer); err != nil {
		return false, err
	}
	if err := writeRootKey(o, f.root, d.step); err != nil {
		return false, err
	}
	for _, write := range []func() error{
		func() error { return d.create(issuerCertName, objectLine(delegationTag, m.credential.Delegation)) },
		func() error { return d.createKey(nodeKeyName, nodeKeyTag, f.node) },
		func() error { return d.createKey(noiseKeyName, noiseKeyTag, f.noise) },
		func() error { return d.createKey(accessKeyName, accessKeyTag, f.access) },
		func() error { return d.saveBoth(tokensName, ledger{NextSerial: cert.Serial + 1}) },
		func() error { return logIssue(d, o.Now, cert, "init") },
		func() error { return d.saveBoth(stateName, state{Hostname: o.Hostname}) },
		func() error { return d.create(nodeCertName, m.encode()) },
	} {
		if err := write(); err != nil {
			return true, err
		}
	}
	return true, nil
}

// writeRootKey puts the root key where the operator wants it, which may be a
// removable medium. Its directory need not be private; the file is.
func writeRootKey(o InitOptions, root keys.RootPrivate, step func(name, call string) error) error {
	path, line := o.RootKeyFile, []byte(nil)
	if o.RootPassphrase == nil {
		line = keyLine(rootKeyTag, root)
	} else {
		var err error
		if line, err = sealRoot(root, o.RootPassphrase); err != nil {
			return fmt.Errorf("seal root key: %w", err)
		}
	}
	defer clear(line)
	parent, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write root key: %w", err)
	}
	defer func() { _ = parent.Close() }()
	at := &dir{path: filepath.Dir(path), root: parent, step: step}
	if err := at.createPlain(filepath.Base(path), line); err != nil {
		return fmt.Errorf("write root key: %w", err)
	}
	return nil
}
