package noisenet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// party is this node in handshakes. It is read only after prepare.
type party struct {
	node       ids.NodeID
	trust      keys.Trust
	static     keys.NoisePrivate
	credential keys.Credential
	renewed    func() *keys.Credential // nil, or gives nil: credential is shown
	access     keys.AccessKey
	port       uint16
	boot       uint64
	ring       func() []accessEntry                  // keys in force, newest first; nil: access alone
	unkeyed    func() bool                           // may one more peer without access key begin? nil: none may
	refuse     func(keys.Cert, keys.Credential) bool // nil: nobody
	clock      Clock                                 // nil: the system clock, which the caller reads
	random     io.Reader
	versionMax uint8        // highest version that is offered and chosen
	floor      func() uint8 // lowest version that the cluster allows; nil: any
	hybridOnly bool         // peers that do without version 2 are refused
	kem        kem

	// Set by prepare, so that a stranger's first message costs one AEAD check
	// and not a Diffie-Hellman.
	public keys.NoisePublic
	keyID  uint32 // of access
}

// prepare computes what every handshake needs. It fails if the node has no
// access key or no Noise key.
func (p *party) prepare() error {
	var err error
	if p.keyID, err = accessKeyID(p.access); err != nil {
		return err
	}
	if p.public = p.static.Public(); p.public.IsZero() {
		return errors.New("prepare handshakes: node has no Noise key")
	}
	return nil
}

// least is the lowest version that is offered and chosen. A node that speaks none
// that the cluster allows speaks to nobody: what the floor is there to end must
// not go on where the program is old.
func (p *party) least() (uint8, error) {
	least := uint8(versionMin)
	if p.floor != nil {
		least = max(least, p.floor())
	}
	if least > p.versionMax {
		return 0, fmt.Errorf("cluster wants version %d or higher, this program speaks up to %d: %w", least, p.versionMax, ErrFloor)
	}
	return least, nil
}

// shown is the credential that peers get to see.
func (p *party) shown() keys.Credential {
	if p.renewed != nil {
		if c := p.renewed(); c != nil {
			return *c
		}
	}
	return p.credential
}

// at is the time with which to verify a credential that is shown at now.
func (p *party) at(now time.Time, shown keys.Credential) time.Time {
	if p.clock == nil {
		return now
	}
	return p.clock.For(shown.Begins())
}

// accessKeyID names a cluster access key in the clear header: 32 bits of HKDF
// output, which say nothing about the key, never zero.
func accessKeyID(k keys.AccessKey) (uint32, error) {
	raw := exposeCopy(k.Expose)
	defer clear(raw)
	if len(raw) != len(secret{}) {
		return 0, fmt.Errorf("derive access key ID: node has no access key")
	}
	s := secret(raw)
	id := s.derive(labelAccessID)
	clear(s[:])
	return max(binary.BigEndian.Uint32(id[:]), 1), nil
}
