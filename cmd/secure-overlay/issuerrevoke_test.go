package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// issuerDesk is an agent of a cluster whose root key is known.
type issuerDesk struct {
	trust   keys.Trust
	issuer  keys.IssuerPublic
	drafted []api.IssuerRevocationRequest
	taken   []item.IssuerRevocation
	list    []api.Issuer
}

func (d *issuerDesk) Issuers(context.Context) ([]api.Issuer, error) { return d.list, nil }
func (d *issuerDesk) RequestIssuer(context.Context) (api.IssuerRequest, error) {
	return api.IssuerRequest{}, errors.New("not asked for")
}
func (d *issuerDesk) InstallIssuer(context.Context, api.IssuerInstall) (api.IssuerInstalled, error) {
	return api.IssuerInstalled{}, errors.New("not asked for")
}

func (d *issuerDesk) RequestIssuerRevocation(_ context.Context, req api.IssuerRevocationRequest) (api.IssuerRevocationDraft, error) {
	d.drafted = append(d.drafted, req)
	unsigned, err := item.IssuerRevocation{Issuer: d.issuer, Undo: req.Undo, Reason: req.Reason, Created: time.Now().Truncate(time.Second)}.Unsigned(d.trust)
	return api.IssuerRevocationDraft{
		Issuer: api.Issuer{Key: d.issuer.String()}, Members: []api.NodeRef{nodeRef("web-1"), nodeRef("web-2")},
		Request: item.Line(item.RootRequestTag, unsigned),
	}, err
}

func (d *issuerDesk) RevokeIssuer(_ context.Context, req api.IssuerRevocationSigned) (api.IssuerRevocation, error) {
	items, err := item.ParseLine(item.RootSignedTag, req.Revocation)
	if err != nil {
		return api.IssuerRevocation{}, err
	}
	it, err := item.Verify(d.trust, time.Now(), items[0])
	if err != nil {
		return api.IssuerRevocation{}, err
	}
	r, _ := it.IssuerRevocation()
	d.taken = append(d.taken, r)
	out := api.IssuerRevocation{Key: r.Issuer.String(), Fingerprint: r.Issuer.Fingerprint(), Created: r.Created, Applied: api.Count{OK: 3, Total: 3}}
	d.list = []api.Issuer{{NodeRef: nodeRef("web-1"), Key: out.Key, Fingerprint: out.Fingerprint, Members: 2, State: "alive", Revoked: &out}}
	return out, nil
}

// rootKeyFile writes a root key as init does.
func rootKeyFile(t *testing.T, raw byte) (string, keys.RootPrivate) {
	t.Helper()
	root, err := keys.RootPrivateFromRaw32([]byte(strings.Repeat(string(rune(raw)), 32)))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "root.key")
	line := "so-root-key:"
	root.Expose(func(b []byte) {
		for _, x := range b {
			line += string("0123456789abcdef"[x>>4]) + string("0123456789abcdef"[x&15])
		}
	})
	if err := os.WriteFile(path, []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, root
}

// TestIssuerRevoke goes the three steps, and the one where the root key is at
// hand; and shows that another root key does nothing.
func TestIssuerRevoke(t *testing.T) {
	file, root := rootKeyFile(t, 7)
	other, _ := rootKeyFile(t, 8)
	d := &issuerDesk{trust: keys.Trust{Cluster: ids.ClusterID{1}, Root: root.Public()}, issuer: keys.IssuerPublic{5}}
	c := canned{issuers: d}
	got := against(t, c, "issuer", "revoke", "web-1", "--reason", "stolen")
	request := strings.TrimSpace(got.out)
	if got.code != 0 || !strings.HasPrefix(request, item.RootRequestTag) || !strings.Contains(got.err, "2 members have their certificates") || !strings.Contains(got.err, "issuer sign") {
		t.Fatalf("%d\n%s\n%s", got.code, got.out, got.err)
	}
	if got := against(t, c, "issuer", "sign", "--root-key", other, request); got.code == 0 {
		t.Errorf("another root key signs:\n%s", got.out)
	}
	got = against(t, c, "issuer", "sign", "--root-key", file, request)
	signed := strings.TrimSpace(got.out)
	if got.code != 0 || !strings.HasPrefix(signed, item.RootSignedTag) || !strings.Contains(got.err, d.issuer.String()) {
		t.Fatalf("%d\n%s\n%s", got.code, got.out, got.err)
	}
	var forPrograms rootSigned
	if got := against(t, c, "issuer", "sign", "--root-key", file, request, "-o", "json"); got.code != 0 || json.Unmarshal([]byte(got.out), &forPrograms) != nil || forPrograms.Changes[0].Issuer.Reason != "stolen" {
		t.Errorf("%d %s", got.code, got.out)
	}
	got = against(t, c, "issuer", "revoke", "--signed", signed)
	if got.code != 0 || len(d.taken) != 1 || d.taken[0].Reason != "stolen" || !strings.Contains(got.out, "is revoked; 3 of 3 nodes") {
		t.Fatalf("%d %+v\n%s\n%s", got.code, d.taken, got.out, got.err)
	}
	got = against(t, c, "issuer", "revoke", "web-1", "--root-key", file, "--undo-revocations", "--force", "--wait")
	if got.code != 0 || len(d.taken) != 2 || !d.taken[1].Undo || !d.drafted[len(d.drafted)-1].Force || !strings.Contains(got.err, "[3/3] nodes") {
		t.Errorf("%d %+v\n%s\n%s", got.code, d.taken, got.out, got.err)
	}
	got = against(t, c, "issuer", "ls")
	if got.code != 0 || !strings.Contains(got.out, "revoked") || !strings.Contains(got.out, d.issuer.Fingerprint()) {
		t.Errorf("%d\n%s", got.code, got.out)
	}
	for name, args := range map[string][]string{
		"signed and a root key": {"issuer", "revoke", "--signed", signed, "--root-key", file},
		"no root key":           {"issuer", "sign", request},
		"a lifetime":            {"issuer", "sign", "--root-key", file, "--lifetime", "2h", request},
		"half a request":        {"issuer", "sign", "--root-key", file, request[:len(request)-5]},
	} {
		if got := against(t, c, args...); got.code != 2 {
			t.Errorf("%s: exit code %d\n%s", name, got.code, got.err)
		}
	}
}
