package item

import (
	"bytes"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Signer signs items for an issuer; *keystore.Issuer.
type Signer interface {
	// Delegation returns the root's statement about the issuer.
	Delegation() []byte
	// SignItem appends the issuer's signature to unsigned, which begins with
	// keys.DomainItem. Of a slot it signs each version once at most: asked
	// again for one that it has signed, or for a lower one, it returns the
	// newest item that it has signed for the slot.
	SignItem(now time.Time, slot string, version uint64, unsigned []byte) ([]byte, error)
	// SignHeartbeat does the same with a heartbeat, any number of times: its
	// version is the time, so nothing has to be remembered.
	SignHeartbeat(now time.Time, unsigned []byte) ([]byte, error)
}

// IssuerOf returns the public key of an issuer, zero if there is no signer.
func IssuerOf(s Signer) keys.IssuerPublic {
	if s == nil {
		return keys.IssuerPublic{}
	}
	d, err := keys.ParseDelegation(s.Delegation())
	if err != nil {
		return keys.IssuerPublic{} // whoever made the signer has verified it
	}
	return d.Issuer
}

// Content is what an item says, whoever signs it.
type Content struct {
	Slot    Slot
	Version uint64
	Created time.Time // whole seconds
	Body    []byte
}

// Sign makes an item with an issuer's key. What the signer returns may be
// another item of the same slot (Signer), and is verified like anybody's.
func Sign(now time.Time, trust keys.Trust, s Signer, c Content) (*Item, error) {
	return sign(now, trust, s, c, func(unsigned []byte) ([]byte, error) {
		return s.SignItem(now, c.Slot.name(), c.Version, unsigned)
	})
}

// sign makes an item and verifies what the signer made of it.
func sign(now time.Time, trust keys.Trust, s Signer, c Content, by func(unsigned []byte) ([]byte, error)) (*Item, error) {
	delegation := s.Delegation()
	d, err := keys.ParseDelegation(delegation)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", c.Slot, err)
	}
	it := c.item()
	it.Delegation, it.Signer = delegation, d.Issuer
	if err := it.validate(); err != nil {
		return nil, fmt.Errorf("sign %s: %w", c.Slot, err)
	}
	raw, err := by(encode(trust.Cluster, it))
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", c.Slot, err)
	}
	out, err := Verify(trust, now, raw)
	if err == nil && out.Slot != c.Slot {
		err = malformed("signer returned an item about %s", out.Slot)
	}
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", c.Slot, err)
	}
	return out, nil
}

// SignRoot makes an item with the root key.
func SignRoot(cluster ids.ClusterID, root keys.RootPrivate, c Content) ([]byte, error) {
	it := c.item()
	it.Root, it.Signer = true, root.Public()
	if err := it.validate(); err != nil {
		return nil, fmt.Errorf("sign %s: %w", c.Slot, err)
	}
	b := encode(cluster, it)
	sig := root.Sign(keys.DomainItem, b[len(keys.DomainItem):])
	return append(b, sig[:]...), nil
}

func (c Content) item() *Item {
	return &Item{Slot: c.Slot, Version: c.Version, Created: c.Created, Body: c.Body}
}

// name is the slot as a Signer sees it: the kind's byte, then the key.
func (s Slot) name() string { return string([]byte{byte(s.Kind)}) + s.Key }

// Verify accepts raw if it is an item of this cluster, signed by its root or by
// an issuer that the root had delegated when the item was created, which is not
// in the future of now.
//
// The end of a delegation does not end its items: a target epoch stays the
// target when the issuer that named it retires. The price is that the holder of
// an issuer key whose delegation has ended can make items that claim to be
// older. Against a stolen key there is revocation, not expiry.
func Verify(trust keys.Trust, now time.Time, raw []byte) (*Item, error) {
	raw = bytes.Clone(raw)
	cluster, it, err := parse(raw)
	if err != nil {
		return nil, fmt.Errorf("verify cluster item: %w", err)
	}
	if cluster != trust.Cluster {
		return nil, fmt.Errorf("verify %s: it %w", it.Slot, keys.ErrWrongCluster)
	}
	if err := it.verifySigner(trust); err != nil {
		return nil, fmt.Errorf("verify %s, version %d: %w", it.Slot, it.Version, err)
	}
	if err := it.verifyBase(trust); err != nil {
		return nil, fmt.Errorf("verify %s, version %d: %w", it.Slot, it.Version, err)
	}
	// Only after the signature, so that what is not signed is called so. An
	// item from the future would hold up what waits for its age. Nothing waits
	// for that of a revocation, and one that was made by a wrong clock must not
	// wait until its date: an issuer cannot make it again.
	revokes := it.Slot.Kind == KindRevocation || it.Slot.Kind == KindIssuer
	if !revokes && it.Created.After(now.Add(trust.Leeway())) {
		return nil, fmt.Errorf("verify %s, version %d: it %w", it.Slot, it.Version, keys.ErrNotYetValid)
	}
	return it, nil
}

// Reverify is Verify for an item that this node has accepted before and kept:
// a clock that went back must not make it forget a version.
func Reverify(trust keys.Trust, raw []byte) (*Item, error) {
	it, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("verify cluster item: %w", err)
	}
	return Verify(trust, it.Created, raw)
}

// verifySigner checks the chain and the signature. The key that verifies is the
// pinned root's or the delegated one, never one that the item brings along.
func (it *Item) verifySigner(trust keys.Trust) error {
	body := it.Raw[len(keys.DomainItem) : len(it.Raw)-keys.SignatureSize]
	sig := [keys.SignatureSize]byte(it.Raw[len(it.Raw)-keys.SignatureSize:])
	if it.Root {
		if it.Signer != trust.Root {
			return ErrOtherSigner
		}
		if !trust.Root.Verify(keys.DomainItem, body, sig) {
			return fmt.Errorf("root's %w", keys.ErrBadSignature)
		}
		return nil
	}
	d, err := trust.VerifyDelegation(it.Delegation, it.Created)
	if err != nil {
		return err
	}
	if it.Signer != d.Issuer {
		return ErrOtherSigner
	}
	if !d.Issuer.Verify(keys.DomainItem, body, sig) {
		return fmt.Errorf("issuer's %w", keys.ErrBadSignature)
	}
	return nil
}
