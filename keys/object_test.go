package keys

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// cluster holds a complete set of fixed keys and the objects made of them:
// the same in every run, so that vectors can be checked.
type cluster struct {
	root   RootPrivate
	issuer IssuerPrivate
	node   NodePrivate
	noise  NoisePrivate
	access AccessKey
	secret TokenSecret
	trust  Trust

	delegation Delegation
	cert       Cert
	token      Token
	request    JoinRequest
	handshake  [HandshakeHashSize]byte
}

// repeated returns 32 times b, as the seed of a fixed key.
func repeated(b byte) []byte {
	out := make([]byte, secretSize)
	for i := range out {
		out[i] = b
	}
	return out
}

func fixedCluster(t testing.TB) cluster {
	t.Helper()
	var c cluster
	var errs [6]error
	c.root, errs[0] = RootPrivateFromRaw32(repeated(1))
	c.issuer, errs[1] = IssuerPrivateFromRaw32(repeated(2))
	c.node, errs[2] = NodePrivateFromRaw32(repeated(3))
	c.noise, errs[3] = NoisePrivateFromRaw32(repeated(4))
	c.access, errs[4] = AccessKeyFromRaw32(repeated(5))
	c.secret, errs[5] = TokenSecretFromRaw32(repeated(6))
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	id := ids.ClusterID(repeated(7)[:16])
	c.trust = Trust{Cluster: id, Root: c.root.Public()}
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c.delegation = Delegation{
		Cluster: id, Issuer: c.issuer.Public(), MaxLifetime: 90 * 24 * time.Hour,
		NotBefore: start, NotAfter: start.Add(3650 * 24 * time.Hour),
	}
	identity := c.node.Public()
	c.cert = Cert{
		Cluster: id, Serial: 2, Identity: identity, Noise: c.noise.Public(), Hostname: "host-a", Roles: 0,
		Inner: identity.ID().InnerAddr(), Token: TokenID{0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77},
		NotBefore: start.Add(time.Hour), NotAfter: start.Add(time.Hour + 30*24*time.Hour), Issuer: c.issuer.Public(),
	}
	c.token = Token{Cluster: id, Root: c.root.Public(), ID: c.cert.Token, Secret: c.secret, Seeds: []netip.AddrPort{
		netip.MustParseAddrPort("198.18.0.1:7946"), netip.MustParseAddrPort("[fd00:198:18::2]:7947")}}
	c.handshake = [HandshakeHashSize]byte(repeated(8))
	c.request = JoinRequest{Noise: c.noise.Public(), Hostname: "host-a"}
	c.request.Prove(c.node, c.handshake)
	return c
}

func (c cluster) credential() Credential {
	return Credential{SignDelegation(c.root, c.delegation), SignCert(c.issuer, c.cert)}
}

func (c cluster) answer() JoinAnswer {
	return JoinAnswer{Credential: c.credential(), Access: c.access, Seeds: c.token.Seeds}
}

// now is a time at which everything is valid.
func (c cluster) now() time.Time { return c.cert.NotBefore.Add(time.Hour) }

var equality = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}),
	cmp.Comparer(func(a, b AccessKey) bool { return a.Equal(b) }),
	cmp.Comparer(func(a, b TokenSecret) bool { return a.Equal(b) }),
}

func same[T any](t *testing.T, what string, got T, err error, want T) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if d := cmp.Diff(want, got, equality); d != "" {
		t.Errorf("%s differs after decoding (-want +got):\n%s", what, d)
	}
}

func TestRoundTrip(t *testing.T) {
	c := fixedCluster(t)
	long := c.cert
	long.Hostname = strings.Repeat("x", maxHostname)
	if n := len(SignCert(c.issuer, long)); n != maxCertSize {
		t.Errorf("longest certificate has %d bytes, want %d", n, maxCertSize)
	}
	d, err := ParseDelegation(SignDelegation(c.root, c.delegation))
	same(t, "delegation", d, err, c.delegation)
	cert, err := ParseCert(SignCert(c.issuer, c.cert))
	same(t, "certificate", cert, err, c.cert)
	cert, err = ParseCert(SignCert(c.issuer, long))
	same(t, "longest certificate", cert, err, long)
	tok, err := ParseToken(c.token.Encode())
	same(t, "token", tok, err, c.token)
	tok, err = ParseToken("\r\n  " + strings.ToLower(c.token.Encode()) + " \n")
	same(t, "token in lower case with space around", tok, err, c.token)
	req, err := ParseJoinRequest(c.request.Encode())
	same(t, "join request", req, err, c.request)
	ans, err := ParseJoinAnswer(c.answer().Encode())
	same(t, "join answer", ans, err, c.answer())
	bare := c.answer()
	bare.Seeds = nil
	ans, err = ParseJoinAnswer(bare.Encode())
	same(t, "join answer without seeds", ans, err, bare)
	got, err := c.trust.VerifyMember(c.credential(), c.now())
	same(t, "verified certificate", got, err, c.cert)
	if err := c.request.VerifyProof(c.handshake); err != nil {
		t.Error(err)
	}
}

// flips calls f with every one-bit change of raw.
func flips(raw []byte, f func(bit int, changed []byte)) {
	for bit := range len(raw) * 8 {
		changed := append([]byte(nil), raw...)
		changed[bit/8] ^= 1 << (bit % 8)
		f(bit, changed)
	}
}

func TestEveryBitMatters(t *testing.T) {
	c := fixedCluster(t)
	good, tried := c.credential(), 0
	check := func(what string, bit int, err error) {
		tried++
		if err == nil {
			t.Errorf("%s with bit %d flipped is accepted", what, bit)
		}
	}
	flips(good.Delegation, func(bit int, raw []byte) {
		_, err := c.trust.VerifyMember(Credential{raw, good.Cert}, c.now())
		check("delegation", bit, err)
	})
	flips(good.Cert, func(bit int, raw []byte) {
		_, err := c.trust.VerifyMember(Credential{good.Delegation, raw}, c.now())
		check("certificate", bit, err)
	})
	flips(c.request.Encode(), func(bit int, raw []byte) {
		r, err := ParseJoinRequest(raw)
		if err == nil {
			err = r.VerifyProof(c.handshake)
		}
		check("join request", bit, err)
	})
	flips(c.handshake[:], func(bit int, raw []byte) {
		check("handshake hash", bit, c.request.VerifyProof([HandshakeHashSize]byte(raw)))
	})
	text := c.token.Encode()
	flips([]byte(text), func(bit int, raw []byte) {
		// Bit 5 of a letter is its case, which does not matter.
		if strings.EqualFold(string(raw), text) {
			return
		}
		_, err := ParseToken(string(raw))
		check("token", bit, err)
		if err != nil && strings.Contains(err.Error(), string(raw[8:20])) {
			t.Errorf("the error repeats the token: %v", err)
		}
	})
	t.Logf("%d changed objects refused", tried)
}

func TestEveryLengthMatters(t *testing.T) {
	c := fixedCluster(t)
	for what, o := range map[string]struct {
		raw   []byte
		parse func([]byte) error
	}{
		"delegation":   {c.credential().Delegation, func(b []byte) error { _, err := ParseDelegation(b); return err }},
		"certificate":  {c.credential().Cert, func(b []byte) error { _, err := ParseCert(b); return err }},
		"join request": {c.request.Encode(), func(b []byte) error { _, err := ParseJoinRequest(b); return err }},
		"join answer":  {c.answer().Encode(), func(b []byte) error { _, err := ParseJoinAnswer(b); return err }},
	} {
		for n := range o.raw {
			if err := o.parse(o.raw[:n]); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s cut to %d bytes: %v, want ErrMalformed", what, n, err)
			}
		}
		if err := o.parse(append(o.raw, 0)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s with a byte more: %v, want ErrMalformed", what, err)
		}
	}
}

func TestInvalidContentIsNotEncoded(t *testing.T) {
	c := fixedCluster(t)
	d := func(change func(*Delegation)) []byte { x := c.delegation; change(&x); return SignDelegation(c.root, x) }
	k := func(change func(*Cert)) []byte { x := c.cert; change(&x); return SignCert(c.issuer, x) }
	r := func(change func(*JoinRequest)) []byte { x := c.request; change(&x); return x.Encode() }
	a := func(change func(*JoinAnswer)) []byte { x := c.answer(); change(&x); return x.Encode() }
	tok := func(change func(*Token)) []byte { x := c.token; change(&x); return []byte(x.Encode()) }
	six := []netip.AddrPort{}
	for i := range 6 {
		six = append(six, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 1)}), 1))
	}
	for what, raw := range map[string][]byte{
		"delegation: issuer zero":         d(func(x *Delegation) { x.Issuer = IssuerPublic{} }),
		"delegation: lifetime 0":          d(func(x *Delegation) { x.MaxLifetime = 0 }),
		"delegation: fraction of second":  d(func(x *Delegation) { x.MaxLifetime += time.Millisecond }),
		"delegation: lifetime 200 years":  d(func(x *Delegation) { x.MaxLifetime = 200 * 365 * 24 * time.Hour }),
		"delegation: ends before start":   d(func(x *Delegation) { x.NotAfter = x.NotBefore }),
		"delegation: year 1990":           d(func(x *Delegation) { x.NotBefore = time.Unix(631152000, 0) }),
		"delegation: year 12000":          d(func(x *Delegation) { x.NotAfter = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC) }),
		"delegation: before 1970":         d(func(x *Delegation) { x.NotBefore = time.Unix(-1, 0) }),
		"certificate: serial 0":           k(func(x *Cert) { x.Serial = 0 }),
		"certificate: no Noise key":       k(func(x *Cert) { x.Noise = NoisePublic{} }),
		"certificate: identity zero":      k(func(x *Cert) { x.Identity = IdentityPublic{} }),
		"certificate: inner IPv4":         k(func(x *Cert) { x.Inner = netip.MustParseAddr("10.0.0.1") }),
		"certificate: inner of another":   k(func(x *Cert) { x.Inner = x.Inner.Next() }),
		"certificate: hostname empty":     k(func(x *Cert) { x.Hostname = "" }),
		"certificate: hostname too long":  k(func(x *Cert) { x.Hostname = strings.Repeat("a", 64) }),
		"certificate: window empty":       k(func(x *Cert) { x.NotAfter = x.NotBefore }),
		"request: hostname":               r(func(x *JoinRequest) { x.Hostname = "a b" }),
		"request: no Noise key":           r(func(x *JoinRequest) { x.Noise = NoisePublic{} }),
		"request: identity of low order":  r(func(x *JoinRequest) { x.Identity = IdentityPublic{1} }),
		"answer: no access key":           a(func(x *JoinAnswer) { x.Access = AccessKey{} }),
		"answer: six seeds":               a(func(x *JoinAnswer) { x.Seeds = six }),
		"answer: damaged delegation":      a(func(x *JoinAnswer) { x.Credential.Delegation = x.Credential.Delegation[1:] }),
		"answer: damaged certificate":     a(func(x *JoinAnswer) { x.Credential.Cert = nil }),
		"token: no secret":                tok(func(x *Token) { x.Secret = TokenSecret{} }),
		"token: no ID":                    tok(func(x *Token) { x.ID = TokenID{} }),
		"token: root zero":                tok(func(x *Token) { x.Root = RootPublic{} }),
		"token: four seeds":               tok(func(x *Token) { x.Seeds = six[:4] }),
		"token: seed without port":        tok(func(x *Token) { x.Seeds = []netip.AddrPort{netip.MustParseAddrPort("198.18.0.1:0")} }),
		"token: seed unspecified":         tok(func(x *Token) { x.Seeds = []netip.AddrPort{netip.MustParseAddrPort("[::]:1")} }),
		"token: seed multicast":           tok(func(x *Token) { x.Seeds = []netip.AddrPort{netip.MustParseAddrPort("224.0.0.1:1")} }),
		"token: seed with zone":           tok(func(x *Token) { x.Seeds = []netip.AddrPort{netip.MustParseAddrPort("[fe80::1%eth0]:1")} }),
		"token: seed IPv4 inside of IPv6": tok(func(x *Token) { x.Seeds = []netip.AddrPort{netip.MustParseAddrPort("[::ffff:198.18.0.1]:1")} }),
	} {
		if len(raw) != 0 {
			t.Errorf("%s: was encoded", what)
		}
	}
}

func TestValidHostname(t *testing.T) {
	for _, good := range []string{"a", "A1", "host-a", "node_1", "a.b.example", strings.Repeat("a", 63)} {
		if err := ValidHostname(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", "a..b", ".a", "a.", "a.-b", "a-.b", "a b", "a/b", "ä", "a\x00", "a\n",
		"\x1b[31m", strings.Repeat("a", 64)} {
		if err := ValidHostname(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestTokenID(t *testing.T) {
	id := TokenID{1, 2, 3, 4, 5, 6, 7, 8}
	if id.Low32() != 0x05060708 {
		t.Errorf("Low32 = %#x", id.Low32())
	}
	var back TokenID
	text, err := id.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	if err := back.UnmarshalText(text); err != nil || back != id {
		t.Errorf("%s reads back as %v, %v", text, back, err)
	}
	for _, bad := range []string{"", "0102", "010203040506070G", "01020304050607AA"} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if a, b := NewTokenID(), NewTokenID(); a == b {
		t.Error("two new token IDs are equal")
	}
}
