package membertest

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
)

// Authority is a cluster with all its private keys.
type Authority struct {
	Trust      keys.Trust
	Delegation []byte
	Begin, End time.Time // of the delegation

	label  string
	issuer keys.IssuerPrivate
	access keys.AccessKey
}

// New makes the cluster with this label. Its issuer may sign certificates of
// up to 90 days, from begin on for ten years.
func New(label string, begin time.Time) (*Authority, error) {
	a := &Authority{label: label, Begin: begin.Truncate(time.Second)}
	a.End = a.Begin.AddDate(10, 0, 0)
	root, err := keys.RootPrivateFromRaw32(a.secret("root"))
	if err != nil {
		return nil, err
	}
	if a.issuer, err = keys.IssuerPrivateFromRaw32(a.secret("issuer")); err != nil {
		return nil, err
	}
	if a.access, err = keys.AccessKeyFromRaw32(a.secret("access")); err != nil {
		return nil, err
	}
	a.Trust = keys.Trust{Cluster: ids.ClusterID(a.secret("cluster")[:16]), Root: root.Public()}
	a.Delegation = keys.SignDelegation(root, keys.Delegation{
		Cluster:     a.Trust.Cluster,
		Issuer:      a.issuer.Public(),
		MaxLifetime: 90 * 24 * time.Hour,
		NotBefore:   a.Begin,
		NotAfter:    a.End,
	})
	if a.Delegation == nil {
		return nil, fmt.Errorf("make cluster %s: delegation is not valid", label)
	}
	return a, nil
}

func (a *Authority) secret(name string) []byte {
	sum := sha256.Sum256([]byte("membertest|" + a.label + "|" + name))
	return sum[:]
}

// Member makes the identity called name, with a certificate for 30 days from
// begin on.
func (a *Authority) Member(name string, serial uint64, begin time.Time) (keystore.Identity, error) {
	begin = begin.Truncate(time.Second)
	node, err := keys.NodePrivateFromRaw32(a.secret("node " + name))
	if err != nil {
		return keystore.Identity{}, err
	}
	noise, err := keys.NoisePrivateFromRaw32(a.secret("noise " + name))
	if err != nil {
		return keystore.Identity{}, err
	}
	id := keystore.Identity{ID: node.Public().ID(), Hostname: name, Node: node, Noise: noise, Trust: a.Trust, Access: a.access}
	id.Cert = keys.Cert{
		Cluster:   a.Trust.Cluster,
		Serial:    serial,
		Identity:  node.Public(),
		Noise:     noise.Public(),
		Hostname:  name,
		Inner:     id.ID.InnerAddr(),
		NotBefore: begin,
		NotAfter:  begin.AddDate(0, 0, 30),
		Issuer:    a.issuer.Public(),
	}
	if id.Credential, err = a.Certify(id.Cert); err != nil {
		return keystore.Identity{}, fmt.Errorf("make member %s: %w", name, err)
	}
	return id, nil
}

// Certify signs a certificate of the cluster, whatever it says.
func (a *Authority) Certify(c keys.Cert) (keys.Credential, error) {
	c.Cluster, c.Issuer = a.Trust.Cluster, a.issuer.Public()
	out := keys.Credential{Delegation: a.Delegation, Cert: keys.SignCert(a.issuer, c)}
	if out.Cert == nil {
		return out, fmt.Errorf("sign certificate: %w", c.Validate())
	}
	return out, nil
}

// CertifyBy signs a certificate with another issuer's key.
func (a *Authority) CertifyBy(i *Issuer, c keys.Cert) (keys.Credential, error) {
	c.Cluster, c.Issuer = a.Trust.Cluster, i.key.Public()
	out := keys.Credential{Delegation: i.Delegation(), Cert: keys.SignCert(i.key, c)}
	if out.Cert == nil {
		return out, fmt.Errorf("sign certificate: %w", c.Validate())
	}
	return out, nil
}
