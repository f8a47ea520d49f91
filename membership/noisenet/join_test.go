package noisenet

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
)

// fakeAdmission issues like a keystore, in memory.
type fakeAdmission struct {
	cluster *testCluster
	err     error // of Issue
	mangle  func(*keys.Cert)

	mu     sync.Mutex
	tokens map[keys.TokenID]keys.AccessKey
	used   map[keys.TokenID]bool
	calls  int
}

func newFakeAdmission(c *testCluster) *fakeAdmission {
	return &fakeAdmission{cluster: c, tokens: map[keys.TokenID]keys.AccessKey{}, used: map[keys.TokenID]bool{},
		mangle: func(*keys.Cert) {}}
}

func (f *fakeAdmission) token(seed byte) keys.Token {
	t := keys.Token{Cluster: f.cluster.trust.Cluster, Root: f.cluster.trust.Root,
		ID: keys.TokenID{seed, 0, 0, 0, 1, 2, 3, 4}, Secret: must(keys.TokenSecretFromRaw32(raw32(seed)))}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens[t.ID] = t.Secret.JoinKey()
	return t
}

func (f *fakeAdmission) JoinKeys(low32 uint32) []JoinKey {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []JoinKey
	for id, k := range f.tokens {
		if id.Low32() == low32 {
			out = append(out, JoinKey{ID: id, Key: k})
		}
	}
	return out
}

func (f *fakeAdmission) Issue(_ context.Context, from netip.AddrPort, id keys.TokenID, req keys.JoinRequest) (keys.JoinAnswer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	switch {
	case f.err != nil:
		return keys.JoinAnswer{}, f.err
	case !from.IsValid():
		return keys.JoinAnswer{}, errors.New("no source address")
	case f.used[id]:
		return keys.JoinAnswer{}, ErrTokenUsed
	}
	f.used[id] = true
	c := f.cluster
	cert := keys.Cert{Cluster: c.trust.Cluster, Serial: 9, Identity: req.Identity, Noise: req.Noise,
		Hostname: req.Hostname, Inner: req.Identity.ID().InnerAddr(), Token: id,
		NotBefore: c.epoch, NotAfter: c.epoch.Add(24 * time.Hour), Issuer: c.issuer.Public()}
	f.mangle(&cert)
	return keys.JoinAnswer{Credential: keys.Credential{Delegation: c.delegation, Cert: keys.SignCert(c.issuer, cert)},
		Access: c.access, Seeds: []netip.AddrPort{netip.MustParseAddrPort("198.18.0.1:7946")}}, nil
}

func issuerNode(t *testing.T) (*fakeAdmission, *running) {
	t.Helper()
	c := newTestCluster(1)
	f := newFakeAdmission(c)
	return f, start(t, c.issuerNode(10), func(cfg *Config) {
		cfg.Admission = f
		cfg.limits.perSource = 128
		cfg.limits.bucketRate, cfg.limits.bucketBurst = 1000, 1000
	})
}

func joinOptions(at netip.AddrPort, token keys.Token, n *testNode) JoinOptions {
	return JoinOptions{Addr: at, Token: token, Node: n.identity, Noise: n.noise.Public(), Hostname: "newcomer"}
}

func TestJoin(t *testing.T) {
	f, issuer := issuerNode(t)
	n := f.cluster.node(20)
	token := f.token(50)
	f.token(51) // the same low 32 bits
	a, err := Join(testContext(t), joinOptions(issuer.addr(), token, n))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := f.cluster.trust.VerifyMember(a.Credential, time.Now())
	if err != nil || cert.ID() != n.id || cert.Token != token.ID || cert.Hostname != "newcomer" || !a.Access.Equal(f.cluster.access) || len(a.Seeds) != 1 {
		t.Errorf("answer for %v by token %v, %v", cert.ID(), cert.Token, err)
	}
	// With what it got, the newcomer is a member.
	n.credential = a.Credential
	m := start(t, n, nil)
	if _, err := m.Contact(testContext(t), issuer.addr()); err != nil {
		t.Error(err)
	}
	// The line is written after the answer.
	eventually(t, "the admission is logged", func() bool { return issuer.log.count("node admitted") == 1 })
}

func TestJoinRefusals(t *testing.T) {
	f, issuer := issuerNode(t)
	n, other := f.cluster.node(20), newTestCluster(61)
	good := f.token(50)
	for _, want := range []error{ErrTokenUsed, ErrTokenExpired, ErrTokenUnknown, ErrTokenRevoked} {
		f.err = want
		if _, err := Join(testContext(t), joinOptions(issuer.addr(), good, n)); !errors.Is(err, want) {
			t.Errorf("join: %v, want %v", err, want)
		}
	}
	f.err = errors.New("disk is full")
	_, err := Join(testContext(t), joinOptions(issuer.addr(), good, n))
	if !errors.Is(err, ErrJoinRefused) || strings.Contains(err.Error(), "disk") {
		t.Errorf("join: %v, want ErrJoinRefused without detail", err)
	}
	f.err = nil
	calls := f.calls
	wrongSecret, unknown, root, cluster := good, good, good, good
	wrongSecret.Secret = must(keys.TokenSecretFromRaw32(raw32(99)))
	unknown.ID = keys.TokenID{9, 9, 9, 9, 9, 9, 9, 9}
	root.Root = other.trust.Root
	cluster.Cluster = other.trust.Cluster
	for name, tc := range map[string]struct {
		token keys.Token
		want  error
	}{
		"wrong secret": {wrongSecret, ErrHandshake}, "unknown ID": {unknown, ErrHandshake},
		"other root": {root, keys.ErrBadSignature}, "other cluster": {cluster, ErrHandshake},
	} {
		if _, err := Join(testContext(t), joinOptions(issuer.addr(), tc.token, n)); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	if f.calls != calls {
		t.Errorf("%d of these reached the issuer", f.calls-calls)
	}
	// A node without an issuer, and nobody at all.
	plain := start(t, f.cluster.node(30), nil)
	if _, err := Join(testContext(t), joinOptions(plain.addr(), good, n)); !errors.Is(err, ErrHandshake) {
		t.Errorf("join at a node without issuer: %v", err)
	}
	plain.stop()
	if _, err := Join(testContext(t), joinOptions(plain.addr(), good, n)); !errors.Is(err, ErrUnreachable) {
		t.Errorf("join at nobody: %v, want ErrUnreachable", err)
	}
}

// TestJoinChecksAnswer: an issuer that errs does not make the newcomer run with
// a certificate that is not its own.
func TestJoinChecksAnswer(t *testing.T) {
	f, issuer := issuerNode(t)
	n := f.cluster.node(20)
	f.mangle = func(c *keys.Cert) { c.Noise = f.cluster.node(33).noise.Public() }
	if _, err := Join(testContext(t), joinOptions(issuer.addr(), f.token(50), n)); !errors.Is(err, ErrJoinRefused) {
		t.Errorf("certificate for another Noise key: %v", err)
	}
	f.mangle = func(c *keys.Cert) {
		c.NotBefore, c.NotAfter = c.NotBefore.Add(-48*time.Hour), c.NotBefore.Add(-24*time.Hour)
	}
	if _, err := Join(testContext(t), joinOptions(issuer.addr(), f.token(51), n)); !errors.Is(err, keys.ErrExpired) {
		t.Errorf("expired certificate: %v", err)
	}
}

// TestJoinAnsweredByAMember: a member that knows the token, as all do that a token of
// many uses has admitted, cannot answer in the issuer's place, and learns nothing.
func TestJoinAnsweredByAMember(t *testing.T) {
	f, issuer := issuerNode(t)
	token := f.token(50)
	member := start(t, f.cluster.node(30), func(cfg *Config) { cfg.Admission = f })
	n := f.cluster.node(20)
	if _, err := Join(testContext(t), joinOptions(member.addr(), token, n)); !errors.Is(err, ErrNoIssuer) || !errors.Is(err, ErrHandshake) {
		t.Errorf("answered by a member: %v", err)
	}
	if f.calls != 0 {
		t.Errorf("the member got %d requests", f.calls)
	}
	if _, err := Join(testContext(t), joinOptions(issuer.addr(), token, n)); err != nil {
		t.Errorf("the control: %v", err)
	}
}

// TestJoinProof: a request whose proof is for another handshake, or by another
// key, does not reach the issuer's store.
func TestJoinProof(t *testing.T) {
	f, issuer := issuerNode(t)
	token := f.token(50)
	victim, thief := f.cluster.node(20), f.cluster.node(30)
	for name, prove := range map[string]func(*keys.JoinRequest, [32]byte){
		"other handshake": func(r *keys.JoinRequest, _ [32]byte) { r.Prove(victim.identity, [32]byte{1}) },
		"other identity": func(r *keys.JoinRequest, h [32]byte) {
			r.Prove(thief.identity, h)
			r.Identity = victim.identity.Public()
		},
		"other Noise key": func(r *keys.JoinRequest, h [32]byte) {
			r.Prove(victim.identity, h)
			r.Noise = thief.noise.Public()
		},
	} {
		conn := rawDial(t, issuer.addr())
		j, first, err := newJoiner(token, &counterReader{next: 3})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(first); err != nil {
			t.Fatal(err)
		}
		e, err := j.finish(time.Now(), must(readHandshake(conn, helloSize, maxHandshake)))
		if err != nil {
			t.Fatal(err)
		}
		req := keys.JoinRequest{Noise: victim.noise.Public(), Hostname: "x"}
		prove(&req, e.hash)
		rec := must(newRecord(&e.secret, true))
		if _, err := conn.Write(must(rec.seal(nil, channelJoin, req.Encode()))); err != nil {
			t.Fatal(err)
		}
		if b := expectClosed(t, conn, 10*time.Second); len(b) != 0 {
			t.Errorf("%s: answered with %d bytes", name, len(b))
		}
	}
	if f.calls != 0 {
		t.Errorf("%d requests reached the store", f.calls)
	}
}

// TestJoinWithKeystore runs the exchange between two real stores.
func TestJoinWithKeystore(t *testing.T) {
	first := must(keystore.Init(t.TempDir()+"/first", keystore.InitOptions{Hostname: "first"}))
	t.Cleanup(func() { _ = first.Close() })
	issuer := must(first.Issuer())
	token, _, err := issuer.CreateToken(keystore.TokenSpec{TTL: time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	open := func(s *keystore.Store, admit Admission) *Transport {
		id := must(s.Identity())
		tr := New(Config{Node: id.ID, Trust: id.Trust, Noise: id.Noise, Credential: id.Credential, Access: id.Access,
			Bind: netip.MustParseAddrPort("127.0.0.1:0"), Admission: admit})
		if err := tr.Open(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- tr.Run(context.Background()) }()
		t.Cleanup(func() {
			_ = tr.Shutdown()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		})
		return tr
	}
	a := open(first, IssuerAdmission(issuer, time.Now))
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), a.Port())
	second := must(keystore.Prepare(t.TempDir()+"/second", "second"))
	t.Cleanup(func() { _ = second.Close() })
	id, err := second.Identity()
	if err != nil {
		t.Fatal(err)
	}
	o := JoinOptions{Addr: at, Token: token, Node: id.Node, Noise: id.Noise.Public(), Hostname: "second"}
	answer, err := Join(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Adopt(token.Trust(), answer); err != nil {
		t.Fatal(err)
	}
	b := open(second, nil)
	if p, err := b.Contact(testContext(t), at); err != nil || p.ID != must(first.Identity()).ID {
		t.Errorf("contact after joining: %v, %v", p.ID, err)
	}
	o.Node = must(keys.NewNodePrivate())
	if _, err := Join(testContext(t), o); !errors.Is(err, ErrTokenUsed) {
		t.Errorf("second use of the token: %v, want ErrTokenUsed", err)
	}
}

// TestJoinRace: security.md check 16 as far as the network part goes.
func TestJoinRace(t *testing.T) {
	f, issuer := issuerNode(t)
	token := f.token(50)
	var mu sync.Mutex
	granted, used, other := 0, 0, []error{}
	var wg sync.WaitGroup
	for i := range 100 {
		n := f.cluster.node(byte(30 + i))
		wg.Go(func() {
			_, err := Join(testContext(t), joinOptions(issuer.addr(), token, n))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				granted++
			case errors.Is(err, ErrTokenUsed):
				used++
			default:
				other = append(other, err)
			}
		})
	}
	wg.Wait()
	if granted != 1 || used != 99 {
		t.Errorf("%d granted, %d used, %d others: %v", granted, used, len(other), errors.Join(other...))
	}
}
