package keys

import (
	"errors"
	"testing"
	"time"
)

// TestVerifyMemberChecks breaks one thing at a time, with everything else
// signed properly, and wants the error of that check.
func TestVerifyMemberChecks(t *testing.T) {
	c := fixedCluster(t)
	rogueRoot, e1 := RootPrivateFromRaw32(repeated(0x21))
	rogueIssuer, e2 := IssuerPrivateFromRaw32(repeated(0x22))
	rogueNode, e3 := NodePrivateFromRaw32(repeated(0x23))
	if err := errors.Join(e1, e2, e3); err != nil {
		t.Fatal(err)
	}
	with := func(d func(*Delegation), k func(*Cert)) Credential {
		dd, kk := c.delegation, c.cert
		if d != nil {
			d(&dd)
		}
		if k != nil {
			k(&kk)
		}
		return Credential{SignDelegation(c.root, dd), kk.sign(c.issuer)}
	}
	good := with(nil, nil)
	other := c.trust.Cluster
	other[0] ^= 1
	for _, tt := range []struct {
		name string
		cred Credential
		now  time.Time
		want error
	}{
		{"delegation of another cluster", with(func(d *Delegation) { d.Cluster = other }, nil), c.now(), ErrWrongCluster},
		{"certificate of another cluster", with(nil, func(k *Cert) { k.Cluster = other }), c.now(), ErrWrongCluster},
		{"delegation by another root", Credential{SignDelegation(rogueRoot, c.delegation), good.Cert}, c.now(), ErrDelegationSignature},
		{"delegation signed by its own issuer", Credential{
			c.delegation.signedBy(c.issuer), good.Cert}, c.now(), ErrDelegationSignature},
		{"certificate by another issuer", Credential{good.Delegation, SignCert(rogueIssuer, c.cert)}, c.now(), ErrCertSignature},
		{"certificate naming another issuer", with(nil, func(k *Cert) { k.Issuer = rogueIssuer.Public() }), c.now(), ErrOtherIssuer},
		{"rogue issuer, honest about itself", Credential{good.Delegation,
			func() []byte { k := c.cert; k.Issuer = rogueIssuer.Public(); return SignCert(rogueIssuer, k) }()}, c.now(), ErrOtherIssuer},
		{"certificate outliving the limit", with(nil, func(k *Cert) { k.NotAfter = k.NotBefore.Add(c.delegation.MaxLifetime + time.Second) }), c.now(), ErrLifetime},
		{"inner address of another node", with(nil, func(k *Cert) { k.Inner = rogueNode.Public().ID().InnerAddr() }), c.now(), ErrInnerAddr},
		{"certificate before its time", good, c.cert.NotBefore.Add(-ClockTolerance - time.Second), ErrNotYetValid},
		{"certificate after its time", good, c.cert.NotAfter.Add(ClockTolerance + time.Second), ErrExpired},
		{"delegation before its time", with(func(d *Delegation) { d.NotBefore = c.now().Add(time.Hour) }, nil), c.now(), ErrNotYetValid},
		{"delegation after its time", with(func(d *Delegation) { d.NotAfter = c.now().Add(-time.Hour) }, nil), c.now(), ErrExpired},
		{"clock at 1970", good, time.Unix(0, 0), ErrNotYetValid},
		{"no clock", good, time.Time{}, ErrNotYetValid},
		{"nothing", Credential{}, c.now(), ErrMalformed},
		{"delegation twice", Credential{good.Delegation, good.Delegation}, c.now(), ErrMalformed},
		{"certificate twice", Credential{good.Cert, good.Cert}, c.now(), ErrMalformed},
		{"within tolerance before", good, c.cert.NotBefore.Add(-ClockTolerance), nil},
		{"within tolerance after", good, c.cert.NotAfter.Add(ClockTolerance), nil},
		{"unknown role bits", with(nil, func(k *Cert) { k.Roles = 0xff }), c.now(), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := c.trust.VerifyMember(tt.cred, tt.now)
			if !errors.Is(err, tt.want) {
				t.Errorf("VerifyMember: %v, want %v", err, tt.want)
			}
			if err != nil && got.Serial != 0 {
				t.Error("a refused certificate was returned")
			}
		})
	}
	for _, e := range []error{ErrDelegationSignature, ErrCertSignature} {
		if !errors.Is(e, ErrBadSignature) {
			t.Errorf("%v is not ErrBadSignature", e)
		}
	}
	// A root key of small order would accept made-up delegations.
	if _, err := (Trust{Cluster: c.trust.Cluster}).VerifyMember(good, c.now()); !errors.Is(err, ErrDelegationSignature) {
		t.Errorf("empty trust: %v, want ErrDelegationSignature", err)
	}
}

// TestTolerance: how far clocks may be apart is the node's own choice.
func TestTolerance(t *testing.T) {
	c := fixedCluster(t)
	cred := c.credential()
	for tolerance, leeway := range map[time.Duration]time.Duration{
		0: ClockTolerance, time.Second: time.Second, 24 * time.Hour: 24 * time.Hour,
	} {
		trust := c.trust
		trust.Tolerance = tolerance
		if got := trust.Leeway(); got != leeway {
			t.Errorf("tolerance %v: leeway %v, want %v", tolerance, got, leeway)
		}
		for _, tt := range []struct {
			at   time.Time
			want error
		}{
			{c.cert.NotBefore.Add(-leeway), nil}, {c.cert.NotBefore.Add(-leeway - time.Second), ErrNotYetValid},
			{c.cert.NotAfter.Add(leeway), nil}, {c.cert.NotAfter.Add(leeway + time.Second), ErrExpired},
		} {
			if _, err := trust.VerifyMember(cred, tt.at); !errors.Is(err, tt.want) {
				t.Errorf("tolerance %v, at %v: %v, want %v", tolerance, tt.at, err, tt.want)
			}
		}
	}
}

// TestBegins: what a credential claims, without a check.
func TestBegins(t *testing.T) {
	c := fixedCluster(t)
	cred := c.credential()
	if got := cred.Begins(); !got.Equal(c.cert.NotBefore) {
		t.Errorf("begins %v, want with the certificate", got)
	}
	late := c.delegation
	late.NotBefore = c.cert.NotBefore.Add(time.Hour)
	if got := (Credential{SignDelegation(c.root, late), cred.Cert}).Begins(); !got.Equal(late.NotBefore) {
		t.Errorf("begins %v, want with the delegation", got)
	}
	for _, bad := range []Credential{{}, {Cert: cred.Cert}, {Delegation: cred.Delegation}, {cred.Cert, cred.Delegation}} {
		if got := bad.Begins(); !got.IsZero() {
			t.Errorf("what cannot be read begins %v", got)
		}
	}
}

// signedBy signs a delegation with an issuer's key, which has no such power.
func (d Delegation) signedBy(k IssuerPrivate) []byte {
	sig := k.Sign(domainDelegation, d.fields())
	return append(signedBytes(domainDelegation, d.fields()), sig[:]...)
}

func TestJoinProofBindsEveryField(t *testing.T) {
	c := fixedCluster(t)
	for name, change := range map[string]func(*JoinRequest){
		"identity": func(r *JoinRequest) { r.Identity[5] ^= 1 },
		"noise":    func(r *JoinRequest) { r.Noise[5] ^= 1 },
		"hostname": func(r *JoinRequest) { r.Hostname = "host-b" },
		"proof":    func(r *JoinRequest) { r.Proof[5] ^= 1 },
	} {
		r := c.request
		change(&r)
		if err := r.VerifyProof(c.handshake); !errors.Is(err, ErrBadSignature) {
			t.Errorf("changed %s: %v, want ErrBadSignature", name, err)
		}
	}
}

func BenchmarkVerifyMember(b *testing.B) {
	c := fixedCluster(b)
	cred, now := c.credential(), c.now()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.trust.VerifyMember(cred, now); err != nil {
			b.Fatal(err)
		}
	}
}
