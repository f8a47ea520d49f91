package agent

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
)

func TestCertificateProblem(t *testing.T) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	c := keys.Cert{NotBefore: begin, NotAfter: begin.Add(30 * day)}
	for name, want := range map[string]struct {
		after time.Duration
		code  string
	}{
		"clock before its begin": {-400 * day, ""},
		"new":                    {0, ""},
		"half":                   {15 * day, ""},
		"last fifth":             {24*day + time.Second, "certificate-expiring"},
		"last moment":            {30*day - 1, "certificate-expiring"},
		"end":                    {30 * day, "certificate-expired"},
		"long over":              {400 * day, "certificate-expired"},
	} {
		p, ok := certificateProblem(c, begin.Add(want.after))
		if ok != (want.code != "") || p.Code != want.code || ok && p.Fix == "" {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if _, ok := certificateProblem(keys.Cert{}, begin); ok {
		t.Error("no certificate at all is a problem of its own, not this one")
	}
}

// TestCertificateInStatus: status takes the renewed certificate as soon as it
// is in the own record.
func TestCertificateInStatus(t *testing.T) {
	now := time.Now()
	old := keys.Cert{Identity: keys.IdentityPublic{1}, NotBefore: now.Add(-29 * 24 * time.Hour), NotAfter: now.Add(24 * time.Hour)}
	l := &loop{identity: keystore.Identity{ID: old.ID(), Cert: old}}
	if _, ok := certificateProblem(l.ownCert(membership.Snapshot{}), now); !ok {
		t.Error("an ending certificate is no problem")
	}
	renewed := old
	renewed.NotAfter = now.Add(30 * 24 * time.Hour)
	snap := membership.Snapshot{Members: []membership.Member{{ID: old.ID(), Cert: renewed}}}
	if p, ok := certificateProblem(l.ownCert(snap), now); ok {
		t.Errorf("a renewed certificate: %+v", p)
	}
}

// TestAdoptInto takes a certificate from the issuer to the disk and back.
func TestAdoptInto(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	begin := time.Now().Add(-20 * 24 * time.Hour)
	s, err := keystore.Init(dir, keystore.InitOptions{Hostname: "a", Now: begin})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := s.Issuer()
	if err != nil {
		t.Fatal(err)
	}
	c, err := issuer.Renew(time.Now(), id.Cert, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := adoptInto(s)(c); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := adoptInto(s)(c); !errors.Is(err, keystore.ErrClosed) {
		t.Errorf("closed store: %v", err)
	}
	if !id.Access.IsZero() {
		t.Error("closing the store left a copy of the access key that was in use before the renewal")
	}
	if s, err = keystore.Open(dir); err != nil {
		t.Fatal(err)
	}
	again, err := s.Identity()
	if err != nil || !again.Cert.NotAfter.After(id.Cert.NotAfter) || again.Cert.Serial != id.Cert.Serial {
		t.Errorf("after reopening: %+v, %v", again.Cert, err)
	}
}
