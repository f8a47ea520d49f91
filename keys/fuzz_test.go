package keys

import (
	"bytes"
	"testing"
)

// Every target states the same property: a decoder does not panic, and what
// it accepts encodes to the very bytes that it read.

func seedFuzz(f *testing.F, raw []byte) {
	f.Add([]byte{})
	f.Add(raw)
	f.Add(raw[:len(raw)/2])
	f.Add(append(append([]byte(nil), raw...), 0))
	for _, at := range []int{0, 10, 26, 58, 90, len(raw) - 65, len(raw) - 1} {
		if at >= 0 && at < len(raw) {
			changed := append([]byte(nil), raw...)
			changed[at] ^= 0xff
			f.Add(changed)
		}
	}
}

func FuzzParseDelegation(f *testing.F) {
	seedFuzz(f, fixedCluster(f).credential().Delegation)
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := ParseDelegation(raw)
		if err != nil {
			return
		}
		sig := trailer(raw)
		if again := append(signedBytes(domainDelegation, d.fields()), sig[:]...); !bytes.Equal(again, raw) {
			t.Errorf("encodes to %x", again)
		}
	})
}

func FuzzParseCert(f *testing.F) {
	seedFuzz(f, fixedCluster(f).credential().Cert)
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := ParseCert(raw)
		if err != nil {
			return
		}
		sig := trailer(raw)
		if again := append(signedBytes(domainCert, c.fields()), sig[:]...); !bytes.Equal(again, raw) {
			t.Errorf("encodes to %x", again)
		}
	})
}

// FuzzVerifyMember: only the one true credential is accepted.
func FuzzVerifyMember(f *testing.F) {
	c := fixedCluster(f)
	good := c.credential()
	f.Add(good.Delegation, good.Cert)
	f.Add(good.Cert, good.Delegation)
	f.Fuzz(func(t *testing.T, d, k []byte) {
		if _, err := c.trust.VerifyMember(Credential{d, k}, c.now()); err != nil {
			return
		}
		if !bytes.Equal(d, good.Delegation) || !bytes.Equal(k, good.Cert) {
			t.Errorf("accepted %x, %x", d, k)
		}
	})
}

func FuzzParseJoinRequest(f *testing.F) {
	seedFuzz(f, fixedCluster(f).request.Encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := ParseJoinRequest(raw)
		if err != nil {
			return
		}
		if again := r.Encode(); !bytes.Equal(again, raw) {
			t.Errorf("encodes to %x", again)
		}
	})
}

func FuzzParseJoinAnswer(f *testing.F) {
	seedFuzz(f, fixedCluster(f).answer().Encode())
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := ParseJoinAnswer(raw)
		if err != nil {
			return
		}
		if again := a.Encode(); !bytes.Equal(again, raw) {
			t.Errorf("encodes to %x", again)
		}
	})
}

func FuzzParseToken(f *testing.F) {
	c := fixedCluster(f)
	text := c.token.Encode()
	for _, s := range []string{"", "SO1", "SO2", text, text[:40], text + "A", "so1" + text[3:]} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if again := tok.Encode(); again != upper(trimToken(s)) {
			t.Error("encodes to another text")
		}
	})
}

// FuzzTokenContent goes past the checksum, which random text never meets.
func FuzzTokenContent(f *testing.F) {
	seedFuzz(f, tokenContent(f, fixedCluster(f).token))
	f.Fuzz(func(t *testing.T, content []byte) {
		if len(content) > 200 {
			return
		}
		s := sealToken(content)
		tok, err := ParseToken(s)
		if err != nil {
			return
		}
		if tok.Encode() != s {
			t.Error("encodes to another text")
		}
	})
}

func FuzzPublicText(f *testing.F) {
	c := fixedCluster(f)
	f.Add([]byte(c.node.Public().String()))
	f.Add([]byte("so-node-pub:"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var k IdentityPublic
		if err := k.UnmarshalText(text); err == nil && k.String() != string(text) {
			t.Errorf("%q prints as %v", text, k)
		}
	})
}
