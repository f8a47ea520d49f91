package keystore

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// member joins a new node to the cluster of an issuer.
func member(t *testing.T, i *Issuer, name string) *Store {
	t.Helper()
	s, err := Prepare(filepath.Join(t.TempDir(), "data"), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	tok := newToken(t, i, time.Now())
	a, err := i.Issue(time.Now(), netip.Addr{}, tok.ID, joiner{id.Node, id.Noise}.request(name))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(tok.Trust(), a); err != nil {
		t.Fatal(err)
	}
	return s
}

// rootOf reads the root key as the operator would.
func rootOf(t *testing.T, s *Store) keys.RootPrivate {
	t.Helper()
	root, err := ReadRootKey(filepath.Join(s.Dir(), "root.key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func delegate(t *testing.T, root keys.RootPrivate, request string) string {
	t.Helper()
	req, err := ParseIssuerRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	text, err := SignIssuer(root, req, time.Now(), 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestSecondIssuer makes a member an issuer and lets it admit a node, renew a
// certificate and sign, all of which the first one's members accept.
func TestSecondIssuer(t *testing.T) {
	founder := first(t)
	s := member(t, issuerOf(t, founder), "second")
	request, err := s.RequestIssuer()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.RequestIssuer(); err != nil || again != request {
		t.Errorf("the second request is another one: %v", err)
	}
	if _, err := s.Issuer(); !errors.Is(err, ErrNoIssuer) {
		t.Errorf("with a request alone: %v", err)
	}
	s = reopen(t, s)
	if again, err := s.RequestIssuer(); err != nil || again != request {
		t.Errorf("after a restart the request is another one: %v", err)
	}
	d, err := s.InstallIssuer(delegate(t, rootOf(t, founder), request), time.Now(), 41)
	if err != nil || d.NotAfter.Before(time.Now()) {
		t.Fatalf("%+v, %v", d, err)
	}
	s = reopen(t, s)
	i := issuerOf(t, s)
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	if id.Cert.Roles&keys.RoleIssuer == 0 || id.Cert.Serial != 2 || id.Cert.Issuer != d.Issuer {
		t.Errorf("its certificate is %+v", id.Cert)
	}
	founderID, err := founder.Identity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := founderID.Trust.VerifyMember(id.Credential, time.Now()); err != nil {
		t.Errorf("the founder refuses its certificate: %v", err)
	}
	third := member(t, i, "third")
	thirdID, err := third.Identity()
	if err != nil {
		t.Fatal(err)
	}
	if thirdID.Cert.Serial != 42 {
		t.Errorf("serial %d, want the one above the highest known", thirdID.Cert.Serial)
	}
	i.RaiseSerial(99)
	i.RaiseSerial(7)
	fourth, err := member(t, i, "fourth").Identity()
	if err != nil || fourth.Cert.Serial != 100 {
		t.Errorf("serial %d after another issuer gave out 99: %v", fourth.Cert.Serial, err)
	}
	for name, c := range map[string]keys.Credential{"third": thirdID.Credential, "fourth": fourth.Credential} {
		if _, err := founderID.Trust.VerifyMember(c, time.Now()); err != nil {
			t.Errorf("the founder refuses the %s: %v", name, err)
		}
	}
	if left := present(s.dir, []string{issuerNewName}); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
	// A new delegation for the key that is there: its tokens stay.
	tok := newToken(t, i, time.Now())
	request2, err := s.RequestIssuer()
	if err != nil || request2 != request {
		t.Errorf("request of an issuer: %v", err)
	}
	if _, err := s.InstallIssuer(delegate(t, rootOf(t, founder), request2), time.Now(), 0); err != nil {
		t.Fatal(err)
	}
	i = issuerOf(t, reopen(t, s))
	if _, err := i.Issue(time.Now(), netip.Addr{}, tok.ID, newJoiner(t).request("fifth")); err != nil {
		t.Errorf("a token from before: %v", err)
	}
}

func TestInstallIssuerRefuses(t *testing.T) {
	founder, stranger := first(t), first(t)
	s := member(t, issuerOf(t, founder), "second")
	root := rootOf(t, founder)
	if _, err := s.InstallIssuer("so-delegation:AAAA", time.Now(), 1); err == nil {
		t.Error("without a request: accepted")
	}
	request, err := s.RequestIssuer()
	if err != nil {
		t.Fatal(err)
	}
	other, err := member(t, issuerOf(t, founder), "other").RequestIssuer()
	if err != nil {
		t.Fatal(err)
	}
	req, err := ParseIssuerRequest(request)
	if err != nil {
		t.Fatal(err)
	}
	old, err := SignIssuer(root, req, time.Now().Add(-48*time.Hour), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	good := delegate(t, root, request)
	for name, c := range map[string]struct {
		text string
		want error
	}{
		"nothing":       {"", ErrCorrupt},
		"the request":   {request, ErrCorrupt},
		"cut":           {good[:len(good)-4], keys.ErrMalformed},
		"another's key": {delegate(t, root, other), ErrOtherKey},
		"another root":  {delegate(t, rootOf(t, stranger), request), keys.ErrDelegationSignature},
		"expired":       {old, keys.ErrExpired},
	} {
		if _, err := s.InstallIssuer(c.text, time.Now(), 1); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if _, err := reopen(t, s).Issuer(); !errors.Is(err, ErrNoIssuer) {
		t.Errorf("after refusals: %v", err)
	}
	// Requests: each changed byte is noticed.
	for n := range request {
		b := []byte(request)
		if b[n]++; b[n] == '=' || b[n] == request[n] {
			continue
		}
		if r, err := ParseIssuerRequest(string(b)); err == nil && r != req {
			t.Errorf("byte %d of the request changed: accepted as %+v", n, r)
		}
	}
	if _, err := ParseIssuerRequest("  " + request + "\n"); err != nil {
		t.Errorf("with white space around: %v", err)
	}
	path := filepath.Join(t.TempDir(), "root.key")
	if err := os.WriteFile(path, []byte("so-root-key:"+strings.Repeat("0", 63)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRootKey(path, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a damaged root key: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadRootKey(path, nil); !errors.Is(err, ErrUnsafe) {
		t.Errorf("a root key that others can read: %v", err)
	}
}

// TestInstallIssuerCrash cuts the installation after each write: the node is no
// issuer then, or a whole one, and repeating it makes it one.
func TestInstallIssuerCrash(t *testing.T) {
	for n := 1; ; n++ {
		founder := first(t)
		s := member(t, issuerOf(t, founder), "second")
		request, err := s.RequestIssuer()
		if err != nil {
			t.Fatal(err)
		}
		text := delegate(t, rootOf(t, founder), request)
		left := n
		stop := errors.New("crash")
		s.dir.step = func(string, string) error {
			if left--; left <= 0 {
				return stop
			}
			return nil
		}
		_, err = s.InstallIssuer(text, time.Now(), 5)
		s.dir.step = nil
		if err == nil {
			if n < 5 {
				t.Errorf("only %d steps were cut", n)
			}
			return
		}
		s = reopen(t, s)
		if _, err := s.InstallIssuer(text, time.Now(), 5); err != nil {
			t.Fatalf("cut at step %d, repeated: %v", n, err)
		}
		issuerOf(t, reopen(t, s))
	}
}

// TestDropIssuer takes a revoked issuer's key away, with a crash at every step:
// after each of them the node is an issuer as before, or none.
func TestDropIssuer(t *testing.T) {
	for at := 1; ; at++ {
		s := first(t)
		i := issuerOf(t, s)
		newToken(t, i, time.Now())
		step := 0
		s.dir.step = func(string, string) error {
			if step++; step == at {
				return errors.New("crash")
			}
			return nil
		}
		err := s.DropIssuer()
		if _, _, e := i.CreateToken(TokenSpec{}, time.Now()); !errors.Is(e, ErrIssuerRevoked) {
			t.Errorf("step %d: the issuer works on: %v", at, e)
		}
		s.dir.step = nil
		s = reopen(t, s)
		_, gone := s.Issuer()
		if had := at == 1; had != (gone == nil) {
			t.Errorf("crash at step %d: after a restart: %v", at, gone)
		}
		if id, e := s.Identity(); e != nil || !id.Joined() {
			t.Errorf("crash at step %d: no member any more: %v", at, e)
		}
		if err == nil {
			left := present(s.dir, []string{issuerKeyName, issuerCertName, tokensName, tokensName + prevSuffix, itemsName, itemsName + prevSuffix})
			if len(left) != 0 || at < 3 {
				t.Errorf("left over after %d steps: %v", at-1, left)
			}
			if e := s.DropIssuer(); e != nil {
				t.Errorf("once more: %v", e)
			}
			// It can become one again, with another key.
			request, e := s.RequestIssuer()
			if e != nil {
				t.Fatal(e)
			}
			req, e := ParseIssuerRequest(request)
			if e != nil || req.Issuer == i.limits.Issuer {
				t.Errorf("the new request is for the old key: %v", e)
			}
			return
		}
	}
}
