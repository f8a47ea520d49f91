package keys

import (
	"crypto/ed25519"
	"encoding/hex"
	"testing"
)

func TestDomains(t *testing.T) {
	for _, d := range []string{domainDelegation, domainCert, domainJoinRequest, domainIssuerRequest, "so-rec-v1", "so-a-v9"} {
		if !validDomain(d) {
			t.Errorf("domain %q is refused", d)
		}
	}
	for _, d := range []string{"", "so--v1", "so-cert-v", "so-cert-v0", "so-cert-v10", "so-cert-v1x", "SO-cert-v1",
		"so-Cert-v1", "so-ce-rt-v1", "so-cert-w1", "xx-cert-v1", "so-v1"} {
		if validDomain(d) {
			t.Errorf("domain %q is accepted", d)
		}
	}
	k, err := NewNodePrivate()
	if err != nil {
		t.Fatal(err)
	}
	sig := k.Sign("so-cert-v1", []byte("m"))
	pub := k.Public()
	if !pub.Verify("so-cert-v1", []byte("m"), sig) {
		t.Error("own signature is refused")
	}
	if pub.Verify("so-dele-v1", []byte("m"), sig) || pub.Verify("so-cert-v2", []byte("m"), sig) || pub.Verify("cert", []byte("m"), sig) {
		t.Error("a signature holds in another domain")
	}
	defer func() {
		if recover() == nil {
			t.Error("Sign accepted a domain without form")
		}
	}()
	k.Sign("cert", nil)
}

// Without the check for small order, anybody could sign under such a key: the
// library accepts a made-up signature, Verify does not.
func TestSmallOrderKeysVerifyNothing(t *testing.T) {
	points := []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	}
	var weak [][32]byte
	for _, p := range points {
		raw, err := hex.DecodeString(p)
		if err != nil {
			t.Fatal(err)
		}
		k := [32]byte(raw)
		weak = append(weak, k)
		k[31] |= 0x80
		weak = append(weak, k)
	}
	library := 0
	for _, a := range weak {
		forgeable := false
		for _, r := range weak {
			for try := range 24 {
				// S = 0 and R a small point: valid when R = -hash*A.
				sig := [SignatureSize]byte{}
				copy(sig[:], r[:])
				msg := []byte{byte(try)}
				if ed25519.Verify(a[:], signedBytes("so-cert-v1", msg), sig[:]) {
					forgeable = true
				}
				if IdentityPublic(a).Verify("so-cert-v1", msg, sig) || RootPublic(a).Verify("so-cert-v1", msg, sig) ||
					IssuerPublic(a).Verify("so-cert-v1", msg, sig) {
					t.Errorf("key %x verifies a made-up signature", a)
				}
			}
		}
		if forgeable {
			library++
		}
	}
	// 8 points; 0, 1 and -1 with either sign bit, some in two spellings.
	if library < 8 {
		t.Errorf("the attack works on %d keys only, so this test shows nothing", library)
	}
	t.Logf("forgeable without the check: %d of %d encodings", library, len(weak))
	for range 100 {
		k, err := NewNodePrivate()
		if err != nil {
			t.Fatal(err)
		}
		if smallOrder(k.Public()) {
			t.Fatal("an honest key is taken for one of small order")
		}
	}
}

func TestPublicText(t *testing.T) {
	node, err := NodePrivateFromRaw32(secretBytes())
	if err != nil {
		t.Fatal(err)
	}
	pub := node.Public()
	text, err := pub.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	var back IdentityPublic
	if err := back.UnmarshalText(text); err != nil || back != pub {
		t.Errorf("%s reads back as %v, %v", text, back, err)
	}
	if len(pub.Fingerprint()) != 8 || pub.Fingerprint() == IssuerPublic(pub).Fingerprint() {
		t.Errorf("fingerprint %q is not 8 characters or does not depend on the role", pub.Fingerprint())
	}
	secret := hex.EncodeToString(secretBytes())
	for _, bad := range []string{"", "so-node-pub:", secret, "so-node-pub:" + secret + "0", "so-node-pub:" + secret[:63] + "g",
		"so-node-pub:" + "C1" + secret[2:], IssuerPublic(pub).String(), " " + pub.String(), pub.String() + "\n"} {
		var k IdentityPublic
		err := k.UnmarshalText([]byte(bad))
		if err == nil {
			t.Errorf("%q is accepted", bad)
		} else if form := leaks(err.Error()); form != "" {
			t.Errorf("error repeats its input as %s: %v", form, err)
		}
		if !k.IsZero() {
			t.Errorf("%q left a key behind", bad)
		}
	}
	for name, k := range map[string]interface {
		MarshalText() ([]byte, error)
	}{"root": RootPublic(pub), "issuer": IssuerPublic(pub), "noise": NoisePublic(pub), "tunnel": TunnelPublic(pub)} {
		text, err := k.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		if err := back.UnmarshalText(text); err == nil {
			t.Errorf("text of a %s key is accepted as an identity key", name)
		}
	}
}
