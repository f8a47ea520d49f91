package keystore

import (
	"errors"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// founded returns the store of a new cluster and its directory.
func founded(t *testing.T) (*Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	s, err := Init(dir, InitOptions{Hostname: "founder"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s, dir
}

func closeStore(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func reopen(t *testing.T, s *Store) *Store {
	t.Helper()
	closeStore(t, s)
	s, err := Open(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	return s
}

func issuerOf(t *testing.T, s *Store) *Issuer {
	t.Helper()
	i, err := s.Issuer()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func newToken(t *testing.T, i *Issuer, now time.Time) keys.Token {
	t.Helper()
	tok, _, err := i.CreateToken(TokenSpec{Seeds: []netip.AddrPort{netip.MustParseAddrPort("198.18.0.1:7946")}}, now)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// joiner is a node that wants in.
type joiner struct {
	node  keys.NodePrivate
	noise keys.NoisePrivate
}

func newJoiner(t *testing.T) joiner {
	t.Helper()
	node, err1 := keys.NewNodePrivate()
	noise, err2 := keys.NewNoisePrivate()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return joiner{node, noise}
}

func (j joiner) request(hostname string) keys.JoinRequest {
	r := keys.JoinRequest{Noise: j.noise.Public(), Hostname: hostname}
	r.Prove(j.node, [keys.HandshakeHashSize]byte{1})
	return r
}

func TestJoinFromInitToMember(t *testing.T) {
	founder, _ := founded(t)
	issuer := issuerOf(t, founder)
	tok := newToken(t, issuer, time.Now())

	dir := filepath.Join(t.TempDir(), "joiner")
	s, err := Prepare(dir, "second")
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.Identity()
	if err != nil || id.Joined() || id.Hostname != "second" {
		t.Fatalf("prepared identity: joined %v, hostname %q, %v", id.Joined(), id.Hostname, err)
	}
	req := joiner{id.Node, id.Noise}.request(id.Hostname)
	answer, err := issuer.Issue(time.Now(), netip.Addr{}, tok.ID, req)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(tok.Trust(), answer); err != nil {
		t.Fatal(err)
	}
	answer.Access.Wipe() // Adopt has copied it
	s = reopen(t, s)
	got, err := s.Identity()
	if err != nil || !got.Joined() {
		t.Fatalf("identity after reopening: joined %v, %v", got.Joined(), err)
	}
	first, err := founder.Identity()
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != id.ID || got.Trust != first.Trust || !got.Access.Equal(first.Access) || got.Cert.Token != tok.ID {
		t.Errorf("identity after reopening: %v of %v, token %v", got.ID, got.Trust, got.Cert.Token)
	}
	if seeds := s.Seeds(); len(seeds) != 1 || seeds[0] != tok.Seeds[0] {
		t.Errorf("seeds after joining: %v, want those of the token", seeds)
	}
	if _, err := s.Issuer(); !errors.Is(err, ErrNoIssuer) {
		t.Errorf("Issuer of an ordinary member: %v, want ErrNoIssuer", err)
	}
}
