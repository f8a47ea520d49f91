package keystore

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

func TestHundredUsesOfOneTokenGiveOneCertificate(t *testing.T) {
	s, _ := founded(t)
	i := issuerOf(t, s)
	now := time.Now()
	tok := newToken(t, i, now)
	const n = 100
	requests := make([]keys.JoinRequest, n)
	for k := range requests {
		requests[k] = newJoiner(t).request("host")
	}
	answers, errs := make([]keys.JoinAnswer, n), make([]error, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for k := range requests {
		wg.Go(func() {
			<-start
			answers[k], errs[k] = i.Issue(now, netip.Addr{}, tok.ID, requests[k])
		})
	}
	close(start)
	wg.Wait()
	issued := 0
	for k := range requests {
		switch {
		case errs[k] == nil:
			issued++
			if _, err := tok.Trust().VerifyMember(answers[k].Credential, now); err != nil {
				t.Errorf("the certificate is refused: %v", err)
			}
		case !errors.Is(errs[k], ErrTokenUsed):
			t.Errorf("request %d: %v, want ErrTokenUsed", k, errs[k])
		}
	}
	if issued != 1 {
		t.Errorf("%d certificates for one token, want 1", issued)
	}
	if got := len(logged(t, s, "join")); got != 1 {
		t.Errorf("%d certificates in the log, want 1", got)
	}
}

// logged reads the issue log's entries of one reason.
func logged(t *testing.T, s *Store, reason string) []logEntry {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Dir(), logName))
	if err != nil {
		t.Fatal(err)
	}
	var out []logEntry
	for line := range bytes.Lines(b) {
		var e logEntry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		if e.Reason == reason {
			out = append(out, e)
		}
	}
	return out
}

func TestIssueRefusals(t *testing.T) {
	s, _ := founded(t)
	i := issuerOf(t, s)
	now := time.Now()
	alice, bob := newJoiner(t), newJoiner(t)
	used, revoked, fresh := newToken(t, i, now), newToken(t, i, now), newToken(t, i, now)
	if _, err := i.Issue(now, netip.Addr{}, used.ID, alice.request("a")); err != nil {
		t.Fatal(err)
	}
	if err := i.RevokeToken(revoked.ID); err != nil {
		t.Fatal(err)
	}
	otherNoise := joiner{alice.node, bob.noise}
	for name, tt := range map[string]struct {
		at   time.Time
		id   keys.TokenID
		req  keys.JoinRequest
		want error
	}{
		"used, another identity":        {now, used.ID, bob.request("a"), ErrTokenUsed},
		"used, another Noise key":       {now, used.ID, otherNoise.request("a"), ErrTokenUsed},
		"used, same identity too late":  {now.Add(RepeatWindow + time.Second), used.ID, alice.request("a"), ErrTokenUsed},
		"revoked":                       {now, revoked.ID, alice.request("a"), ErrTokenRevoked},
		"expired":                       {now.Add(TokenTTL), fresh.ID, alice.request("a"), ErrTokenExpired},
		"unknown":                       {now, keys.TokenID{9}, alice.request("a"), ErrTokenUnknown},
		"revoked stays so when expired": {now.Add(2 * TokenTTL), revoked.ID, alice.request("a"), ErrTokenRevoked},
	} {
		a, err := i.Issue(tt.at, netip.Addr{}, tt.id, tt.req)
		if !errors.Is(err, tt.want) || a.Credential.Cert != nil {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	if _, err := i.Issue(now, netip.Addr{}, fresh.ID, keys.JoinRequest{Hostname: "x y"}); err == nil {
		t.Error("an invalid request was served")
	}
	if _, err := i.Issue(now, netip.Addr{}, fresh.ID, bob.request("b")); err != nil {
		t.Errorf("the token is spoilt by refusals: %v", err)
	}
	if err := i.RevokeToken(used.ID); !errors.Is(err, ErrTokenUsed) {
		t.Errorf("revoke a used token: %v, want ErrTokenUsed", err)
	}
	if err := i.RevokeToken(keys.TokenID{9}); !errors.Is(err, ErrTokenUnknown) {
		t.Errorf("revoke an unknown token: %v, want ErrTokenUnknown", err)
	}
	if err := i.RevokeToken(revoked.ID); err != nil {
		t.Errorf("revoke again: %v", err)
	}
}

func TestSameIdentityGetsTheSameCertificate(t *testing.T) {
	s, _ := founded(t)
	i := issuerOf(t, s)
	now := time.Now()
	tok, alice := newToken(t, i, now), newJoiner(t)
	first, err := i.Issue(now, netip.Addr{}, tok.ID, alice.request("a"))
	if err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	i = issuerOf(t, s)
	again, err := i.Issue(now.Add(RepeatWindow-2*time.Second), netip.Addr{}, tok.ID, alice.request("renamed"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Credential.Cert, again.Credential.Cert) || !bytes.Equal(first.Credential.Delegation, again.Credential.Delegation) {
		t.Error("the second certificate differs from the first")
	}
	if j, r := logged(t, s, "join"), logged(t, s, "repeat"); len(j) != 1 || len(r) != 1 || j[0].Token != tok.ID || r[0].Serial != j[0].Serial {
		t.Errorf("log: %d joins, %d repeats", len(j), len(r))
	}
}

func TestSerialsGrow(t *testing.T) {
	s, _ := founded(t)
	now := time.Now()
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	last := id.Cert.Serial
	for range 6 {
		i := issuerOf(t, s)
		tok := newToken(t, i, now)
		a, err := i.Issue(now, netip.Addr{}, tok.ID, newJoiner(t).request("h"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := tok.Trust().VerifyMember(a.Credential, now)
		if err != nil {
			t.Fatal(err)
		}
		if c.Serial <= last {
			t.Errorf("serial %d after %d", c.Serial, last)
		}
		if c.Token != tok.ID || c.NotAfter.Sub(c.NotBefore) != CertLifetime || c.Roles != 0 {
			t.Errorf("certificate: token %v, life %v, roles %d", c.Token, c.NotAfter.Sub(c.NotBefore), c.Roles)
		}
		last = c.Serial
		s = reopen(t, s)
	}
}

func TestTokensAreListed(t *testing.T) {
	s, _ := founded(t)
	i := issuerOf(t, s)
	now := time.Now()
	seeds := []netip.AddrPort{netip.MustParseAddrPort("198.18.0.1:7946")}
	pending, used, revoked := newToken(t, i, now), newToken(t, i, now), newToken(t, i, now)
	short, info, err := i.CreateToken(TokenSpec{TTL: time.Second, Seeds: seeds}, now)
	if err != nil || info.ID != short.ID || info.State != TokenPending {
		t.Fatalf("CreateToken: %+v, %v", info, err)
	}
	alice := newJoiner(t)
	if _, err := i.Issue(now, netip.Addr{}, used.ID, alice.request("a")); err != nil {
		t.Fatal(err)
	}
	if err := i.RevokeToken(revoked.ID); err != nil {
		t.Fatal(err)
	}
	i = issuerOf(t, reopen(t, s))
	want := map[keys.TokenID]TokenState{pending.ID: TokenPending, used.ID: TokenUsed, revoked.ID: TokenRevoked, short.ID: TokenExpired}
	list := i.Tokens(now.Add(time.Minute))
	if len(list) != len(want) {
		t.Fatalf("%d tokens listed, want %d", len(list), len(want))
	}
	for _, info := range list {
		if info.State != want[info.ID] {
			t.Errorf("token %v is %s, want %s", info.ID, info.State, want[info.ID])
		}
		if info.State == TokenUsed && (len(info.Uses) != 1 || info.Uses[0].Node != alice.node.Public().ID() || info.Uses[0].Hostname != "a" || info.Uses[0].Serial == 0) {
			t.Errorf("used token: %+v", info)
		}
		if info.State != TokenUsed && len(info.Uses) != 0 {
			t.Errorf("unused token: %+v", info)
		}
	}
	// A day after its end a token is dropped when the next one is made.
	later := now.Add(TokenTTL + keepTokens + time.Second)
	if _, _, err := i.CreateToken(TokenSpec{}, later); err != nil {
		t.Fatal(err)
	}
	if list := i.Tokens(later); len(list) != 1 {
		t.Errorf("%d tokens listed a day later, want 1", len(list))
	}
	if _, err := i.Issue(later, netip.Addr{}, used.ID, newJoiner(t).request("b")); !errors.Is(err, ErrTokenUnknown) {
		t.Errorf("dropped token: %v, want ErrTokenUnknown", err)
	}
	for _, ttl := range []time.Duration{-time.Second, time.Millisecond, MaxTokenTTL + 1} {
		if _, _, err := i.CreateToken(TokenSpec{TTL: ttl}, now); err == nil {
			t.Errorf("lifetime %v is accepted", ttl)
		}
	}
}

func TestJoinKeys(t *testing.T) {
	s, dir := founded(t)
	i := issuerOf(t, s)
	tok := newToken(t, i, time.Now())
	check := func(i *Issuer) {
		t.Helper()
		got := i.JoinKeys(tok.ID.Low32())
		if len(got) != 1 || got[0].ID != tok.ID || !got[0].Key.Equal(tok.Secret.JoinKey()) {
			t.Errorf("JoinKeys: %d candidates", len(got))
		}
		if got := i.JoinKeys(tok.ID.Low32() + 1); len(got) != 0 {
			t.Errorf("JoinKeys of another ID: %d candidates", len(got))
		}
	}
	check(i)
	s = reopen(t, s)
	check(issuerOf(t, s))
	// The secret itself is nowhere on disk, in any spelling of it.
	text := tok.Encode()
	tok.Secret.Expose(func(raw []byte) {
		for name, content := range contents(t, dir) {
			low := strings.ToLower(content)
			if strings.Contains(content, string(raw)) || strings.Contains(low, hexText(raw)) || strings.Contains(content, text[80:120]) {
				t.Errorf("%s holds the token's secret", name)
			}
		}
	})
}

func hexText(raw []byte) string {
	b, err := keys.IdentityPublic(raw).MarshalText()
	if err != nil {
		return ""
	}
	_, text, _ := strings.Cut(string(b), ":")
	return text
}

func TestRenew(t *testing.T) {
	s, _ := founded(t)
	i := issuerOf(t, s)
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	half := id.Cert.NotBefore.Add(CertLifetime / 2)
	if _, err := i.Renew(half.Add(-time.Second), id.Cert, false); !errors.Is(err, ErrTooEarly) {
		t.Errorf("before half life: %v, want ErrTooEarly", err)
	}
	cred, err := i.Renew(half, id.Cert, false)
	if err != nil {
		t.Fatal(err)
	}
	c, err := id.Trust.VerifyMember(cred, half)
	if err != nil {
		t.Fatal(err)
	}
	// The serial decides disputes by age: a renewal must not change it.
	if c.Serial != id.Cert.Serial || c.Identity != id.Cert.Identity || c.Roles != keys.RoleIssuer || !c.NotAfter.After(id.Cert.NotAfter) {
		t.Errorf("renewed: serial %d, roles %d, until %v", c.Serial, c.Roles, c.NotAfter)
	}
	if again, err := i.Renew(half.Add(time.Hour), id.Cert, false); err != nil || !bytes.Equal(again.Cert, cred.Cert) {
		t.Errorf("the old certificate shown again: %v, want the same answer", err)
	}
	if _, err := i.Renew(half.Add(time.Hour), c, false); !errors.Is(err, ErrTooEarly) {
		t.Errorf("the renewed certificate: %v, want ErrTooEarly", err)
	}
	s.clock = func() time.Time { return half }
	if err := s.Adopt(id.Trust, keys.JoinAnswer{Credential: cred, Access: id.Access}); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, s)
	if again, err := s.Identity(); err != nil || !again.Cert.NotAfter.Equal(c.NotAfter) {
		t.Errorf("after reopening: until %v, %v", again.Cert.NotAfter, err)
	}
	if len(logged(t, s, "renew")) != 1 {
		t.Error("the renewal is not in the log")
	}
}

// TestRenewBeginsLater: a certificate that takes another's place begins later, also
// when both are made in one second, or the first by a clock that was ahead; and one that
// does not is not handed out again.
func TestRenewBeginsLater(t *testing.T) {
	s, _ := founded(t)
	i := issuerOf(t, s)
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	old := id.Cert
	for _, ahead := range []time.Duration{0, time.Minute, 2 * time.Minute} {
		now := id.Cert.NotBefore
		old.NotBefore, old.NotAfter = now.Add(ahead), now.Add(ahead+CertLifetime)
		cred, err := i.Renew(now, old, true)
		if err != nil {
			t.Fatal(err)
		}
		c, err := id.Trust.VerifyMember(cred, now)
		if err != nil || !c.NotBefore.After(old.NotBefore) || !c.NotAfter.After(old.NotAfter) {
			t.Errorf("%v ahead: from %v to %v, %v", ahead, c.NotBefore, c.NotAfter, err)
		}
	}
}

func TestAdoptRefusals(t *testing.T) {
	founder, _ := founded(t)
	stranger, _ := founded(t)
	i, now := issuerOf(t, founder), time.Now()
	s, err := Prepare(filepath.Join(t.TempDir(), "j"), "h")
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	tok, spare := newToken(t, i, now), newToken(t, i, now)
	good, err := i.Issue(now, netip.Addr{}, tok.ID, joiner{id.Node, id.Noise}.request("h"))
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := i.Issue(now, netip.Addr{}, spare.ID, newJoiner(t).request("h"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := stranger.Identity()
	if err != nil {
		t.Fatal(err)
	}
	before := contents(t, s.Dir())
	flipped := good
	flipped.Credential = cloneCredential(good.Credential)
	flipped.Credential.Cert[60] ^= 1
	if err := s.Adopt(tok.Trust(), foreign); err == nil {
		t.Error("the certificate of another node was adopted")
	}
	if err := s.Adopt(other.Trust, good); !errors.Is(err, keys.ErrWrongCluster) {
		t.Errorf("another cluster's trust: %v, want ErrWrongCluster", err)
	}
	if err := s.Adopt(tok.Trust(), flipped); !errors.Is(err, keys.ErrBadSignature) {
		t.Errorf("flipped bit: %v, want ErrBadSignature", err)
	}
	if err := s.Adopt(tok.Trust(), keys.JoinAnswer{Credential: good.Credential}); err == nil {
		t.Error("an answer without access key was adopted")
	}
	s.clock = func() time.Time { return now.Add(-time.Hour) }
	if err := s.Adopt(tok.Trust(), good); !errors.Is(err, keys.ErrNotYetValid) {
		t.Errorf("slow clock: %v, want ErrNotYetValid", err)
	}
	s.clock = time.Now
	sameContents(t, before, contents(t, s.Dir()))
	if err := s.Adopt(tok.Trust(), good); err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(other.Trust, good); !errors.Is(err, ErrExists) {
		t.Errorf("a member changes the cluster: %v, want ErrExists", err)
	}
}

func TestClosedStore(t *testing.T) {
	s, _ := founded(t)
	i := issuerOf(t, s)
	now := time.Now()
	tok := newToken(t, i, now)
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if !id.Node.IsZero() || !id.Noise.IsZero() || !id.Access.IsZero() {
		t.Error("Close left secrets behind")
	}
	_, e1 := s.Identity()
	_, e2 := s.NextSeq()
	_, e3 := i.Issue(now, netip.Addr{}, tok.ID, newJoiner(t).request("a"))
	_, _, e4 := i.CreateToken(TokenSpec{}, now)
	_, e5 := i.Renew(now, id.Cert, false)
	for n, err := range []error{e1, e2, e3, e4, e5, i.RevokeToken(tok.ID), s.RaiseSeq(5000),
		s.SaveSeeds([]netip.AddrPort{netip.MustParseAddrPort("198.18.0.9:1")}), s.Adopt(id.Trust, keys.JoinAnswer{})} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("call %d after Close: %v, want ErrClosed", n+1, err)
		}
	}
}

// BenchmarkIssue includes the flushes to disk: the list of tokens, its
// directory, the log.
func BenchmarkIssue(b *testing.B) {
	s, err := Init(filepath.Join(b.TempDir(), "data"), InitOptions{Hostname: "a"})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	i, err := s.Issuer()
	if err != nil {
		b.Fatal(err)
	}
	alice, err := fixedJoiner(1)
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	for b.Loop() {
		b.StopTimer()
		now = now.Add(25 * time.Hour) // so that earlier tokens are dropped
		tok, _, err := i.CreateToken(TokenSpec{}, now)
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if _, err := i.Issue(now, netip.Addr{}, tok.ID, alice.request("a")); err != nil {
			b.Fatal(err)
		}
	}
}
