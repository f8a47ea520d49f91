package keystore

import (
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

func first(t *testing.T) *Store {
	t.Helper()
	s, _ := founded(t)
	return s
}

func mustToken(t *testing.T, i *Issuer, spec TokenSpec) keys.Token {
	t.Helper()
	tok, _, err := i.CreateToken(spec, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

var anywhere = netip.MustParseAddr("10.1.2.3")

func TestTokenSpecRefuses(t *testing.T) {
	i := issuerOf(t, first(t))
	for name, spec := range map[string]TokenSpec{
		"a short life":      {TTL: time.Millisecond},
		"a long life":       {TTL: MaxTokenTTL + 1},
		"a negative number": {Uses: -1},
		"too many uses":     {Uses: MaxTokenUses + 1},
		"a bad pattern":     {Hostname: "web-["},
		"a long pattern":    {Hostname: string(make([]byte, maxPattern+1))},
		"no prefix":         {Sources: []netip.Prefix{{}}},
		"bits behind":       {Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}},
		"role issuer":       {Roles: keys.RoleIssuer},
		"an unknown role":   {Roles: 1 << 7},
		"many prefixes":     {Sources: make([]netip.Prefix, MaxTokenSources+1)},
	} {
		if _, _, err := i.CreateToken(spec, time.Now()); !errors.Is(err, ErrTokenSpec) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(i.Tokens(time.Now())); n != 0 {
		t.Errorf("%d tokens were made", n)
	}
}

// TestTokenUses: a token for three admits three identities, each once, however
// many ask, and a node that asks again costs nothing.
func TestTokenUses(t *testing.T) {
	i := issuerOf(t, first(t))
	tok := mustToken(t, i, TokenSpec{Uses: 3})
	joiners := make([]joiner, 20)
	for n := range joiners {
		joiners[n] = newJoiner(t)
	}
	var mu sync.Mutex
	admitted := map[uint64]int{} // by serial
	var wg sync.WaitGroup
	for range 3 {
		for _, j := range joiners {
			wg.Go(func() {
				a, err := i.Issue(time.Now(), anywhere, tok.ID, j.request("web"))
				if err != nil && !errors.Is(err, ErrTokenUsed) {
					t.Error(err)
				}
				if err == nil {
					c, err := keys.ParseCert(a.Credential.Cert)
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					admitted[c.Serial]++
				}
			})
		}
	}
	wg.Wait()
	if len(admitted) != 3 {
		t.Errorf("certificates of %d serials: %v", len(admitted), admitted)
	}
	for serial, n := range admitted {
		if n != 3 {
			t.Errorf("serial %d was given out %d times, want the same one thrice", serial, n)
		}
	}
	info := i.Tokens(time.Now())[0]
	if info.State != TokenUsed || len(info.Uses) != 3 || info.Limit != 3 {
		t.Errorf("the token is %+v", info)
	}
	if err := i.RevokeToken(tok.ID); !errors.Is(err, ErrTokenUsed) {
		t.Errorf("revoke a used-up token: %v", err)
	}
}

// TestRevokeHalfUsed: a token with uses left can be revoked; then nobody gets one.
func TestRevokeHalfUsed(t *testing.T) {
	i := issuerOf(t, first(t))
	tok := mustToken(t, i, TokenSpec{Uses: 2})
	first := newJoiner(t)
	if _, err := i.Issue(time.Now(), anywhere, tok.ID, first.request("a")); err != nil {
		t.Fatal(err)
	}
	if err := i.RevokeToken(tok.ID); err != nil {
		t.Fatal(err)
	}
	for name, j := range map[string]joiner{"the first": first, "another": newJoiner(t)} {
		if _, err := i.Issue(time.Now(), anywhere, tok.ID, j.request("a")); !errors.Is(err, ErrTokenRevoked) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTokenConditions(t *testing.T) {
	i := issuerOf(t, first(t))
	tok := mustToken(t, i, TokenSpec{Uses: 9, Hostname: "web-*", Sources: []netip.Prefix{
		netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8::/32")}})
	for name, c := range map[string]struct {
		host, from string
		want       error
	}{
		"all right":      {"web-1", "10.1.2.3", nil},
		"IPv4 in IPv6":   {"web-2", "::ffff:10.1.2.3", nil},
		"IPv6":           {"web-3", "2001:db8::1", nil},
		"another name":   {"db-1", "10.1.2.3", ErrTokenHostname},
		"longer name":    {"my-web-1", "10.1.2.3", ErrTokenHostname},
		"other address":  {"web-4", "10.2.2.3", ErrTokenSource},
		"other protocol": {"web-5", "2001:db9::1", ErrTokenSource},
	} {
		_, err := i.Issue(time.Now(), netip.MustParseAddr(c.from), tok.ID, newJoiner(t).request(c.host))
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if n := len(i.Tokens(time.Now())[0].Uses); n != 3 {
		t.Errorf("%d uses, want 3: a refusal costs none", n)
	}
}

func TestApproval(t *testing.T) {
	s := first(t)
	i := issuerOf(t, s)
	tok := mustToken(t, i, TokenSpec{Uses: 5, Approve: true})
	good, bad := newJoiner(t), newJoiner(t)
	ask := func(j joiner, host string) error {
		_, err := i.Issue(time.Now(), anywhere, tok.ID, j.request(host))
		return err
	}
	id := func(j joiner) ids.NodeID { return j.request("x").Identity.ID() }
	for range 3 {
		if err := errors.Join(ask(good, "good")); !errors.Is(err, ErrTokenWaiting) {
			t.Fatal(err)
		}
	}
	if err := ask(bad, "bad"); !errors.Is(err, ErrTokenWaiting) {
		t.Fatal(err)
	}
	w := i.Tokens(time.Now())[0].Waiting
	if len(w) != 2 || w[0].Node != id(good) || w[0].Hostname != "good" || w[0].From != anywhere {
		t.Fatalf("waiting: %+v", w)
	}
	if err := i.DecideJoin(tok.ID, ids.NodeID{1}, true); !errors.Is(err, ErrNotWaiting) {
		t.Errorf("about nobody: %v", err)
	}
	if err := errors.Join(i.DecideJoin(tok.ID, id(good), true), i.DecideJoin(tok.ID, id(bad), false)); err != nil {
		t.Fatal(err)
	}
	// The decision outlives the process.
	i = issuerOf(t, reopen(t, s))
	if err := ask(bad, "bad"); !errors.Is(err, ErrTokenDenied) {
		t.Errorf("denied: %v", err)
	}
	// What was approved is this name, and no other.
	if err := ask(good, "root"); !errors.Is(err, ErrTokenWaiting) {
		t.Errorf("under another name: %v", err)
	}
	if err := i.DecideJoin(tok.ID, id(good), true); err != nil {
		t.Fatal(err)
	}
	if err := ask(good, "good"); !errors.Is(err, ErrTokenWaiting) {
		t.Errorf("back under the first name: %v", err)
	}
	if err := i.DecideJoin(tok.ID, id(good), true); err != nil {
		t.Fatal(err)
	}
	if err := ask(good, "good"); err != nil {
		t.Error(err)
	}
	info := i.Tokens(time.Now())[0]
	if len(info.Waiting) != 0 || len(info.Uses) != 1 || info.Uses[0].Hostname != "good" {
		t.Errorf("in the end: %+v", info)
	}
}

// TestWaitingIsBounded: whoever has a token cannot fill the disk with requests.
func TestWaitingIsBounded(t *testing.T) {
	s := first(t)
	i := issuerOf(t, s)
	tok := mustToken(t, i, TokenSpec{Uses: 1, Approve: true})
	for range maxWaiting + 20 {
		if _, err := i.Issue(time.Now(), anywhere, tok.ID, newJoiner(t).request("x")); !errors.Is(err, ErrTokenWaiting) {
			t.Fatal(err)
		}
	}
	if n := len(i.Tokens(time.Now())[0].Waiting); n != maxWaiting {
		t.Errorf("%d wait, want %d", n, maxWaiting)
	}
	// And asking again writes nothing.
	first := i.ledger.Tokens[0].Waiting[0]
	before := fileTime(t, s.dir.file(tokensName))
	req := keys.JoinRequest{Identity: first.Identity, Noise: first.Noise, Hostname: first.Hostname}
	if _, err := i.Issue(time.Now(), anywhere, tok.ID, req); !errors.Is(err, ErrTokenWaiting) {
		t.Fatal(err)
	}
	if after := fileTime(t, s.dir.file(tokensName)); after != before {
		t.Error("a repeated request is written")
	}
}

func fileTime(t *testing.T, path string) time.Time {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.ModTime()
}

// TestTokenRole: a token gives its role, over renewals, too, and a node cannot ask
// for another.
func TestTokenRole(t *testing.T) {
	i := issuerOf(t, first(t))
	for _, roles := range []uint8{0, keys.RoleObserver} {
		tok := mustToken(t, i, TokenSpec{Roles: roles})
		node := newJoiner(t)
		a, err := i.Issue(time.Now(), anywhere, tok.ID, node.request("web-1"))
		if err != nil {
			t.Fatal(err)
		}
		cert, err := keys.ParseCert(a.Credential.Cert)
		if err != nil || cert.Roles != roles {
			t.Errorf("roles %#x, want %#x: %v", cert.Roles, roles, err)
		}
		again, err := i.Issue(time.Now(), anywhere, tok.ID, node.request("web-1"))
		if err != nil || string(again.Credential.Cert) != string(a.Credential.Cert) {
			t.Errorf("asked again: %v", err)
		}
		half := cert.NotBefore.Add(cert.NotAfter.Sub(cert.NotBefore) / 2)
		renewed, err := i.Renew(half, cert, false)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := keys.ParseCert(renewed.Cert); err != nil || c.Roles != roles {
			t.Errorf("renewed: roles %#x, want %#x: %v", c.Roles, roles, err)
		}
		if list := i.Tokens(time.Now()); list[len(list)-1].Roles != roles {
			t.Errorf("%+v", list[len(list)-1])
		}
	}
}
