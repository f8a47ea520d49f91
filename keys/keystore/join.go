package keystore

import (
	"errors"
	"fmt"

	"github.com/secure-overlay/secure-overlay/keys"
)

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
	err = stayed(d)
	switch {
	case err != nil:
	case !d.exists(nodeCertName):
		err = interrupted(d)
	default:
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
	at := s.now()
	if begins := a.Credential.Begins(); s.id.Joined() && begins.After(at) {
		// A member has verified its renewal with a better clock than this one
		// (package clock); here it is about chain and keys.
		at = begins
	}
	cert, err := s.verifyOwn(m, at)
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
	access := s.id.Access
	if !access.Equal(a.Access) {
		access = a.Access.Clone()
	}
	// After a renewal it is the same key, in the memory that Close wipes.
	s.id.setMember(m, cert, access)
	return nil
}

func cloneCredential(c keys.Credential) keys.Credential {
	return keys.Credential{
		Delegation: append([]byte(nil), c.Delegation...),
		Cert:       append([]byte(nil), c.Cert...),
	}
}
