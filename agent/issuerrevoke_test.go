package agent

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// still is gossip that shows one snapshot.
type still struct {
	*fakeGossip
	snap membership.Snapshot
}

func (s still) Snapshot() membership.Snapshot { return s.snap }

// drafts remembers what it was asked for.
type drafts struct{ asked []item.IssuerRevocation }

func (d *drafts) IssuerRevocation(r item.IssuerRevocation) ([]byte, error) {
	d.asked = append(d.asked, r)
	r.Created = time.Unix(1e9, 0)
	return r.Unsigned(keys.Trust{Root: keys.RootPublic{3}})
}

func (d *drafts) RevokeIssuer([]byte) (item.IssuerRevocation, error) {
	return item.IssuerRevocation{}, membership.ErrNotRunning
}

func memberBy(n byte, issuer keys.IssuerPublic, roles uint8) membership.Member {
	return membership.Member{
		ID: ids.NodeID{n}, Hostname: "web-" + string('0'+n), State: membership.StateAlive, SameItems: true,
		Cert: keys.Cert{Issuer: issuer, Roles: roles}, Record: record.Node{},
	}
}

func TestDraftIssuerRevocation(t *testing.T) {
	founder, second, lost := keys.IssuerPublic{1}, keys.IssuerPublic{2}, keys.IssuerPublic{3}
	members := []membership.Member{
		memberBy(1, founder, keys.RoleIssuer), memberBy(2, second, keys.RoleIssuer), memberBy(3, founder, 0), memberBy(4, lost, 0),
	}
	out := func(undo bool) []item.IssuerRevocation {
		return []item.IssuerRevocation{{Issuer: second, Undo: undo}}
	}
	for name, c := range map[string]struct {
		req     api.IssuerRevocationRequest
		revoked []item.IssuerRevocation
		want    keys.IssuerPublic
		members int
		code    api.Code
		text    string
	}{
		"by name":           {api.IssuerRevocationRequest{Issuer: "web-1"}, nil, founder, 2, "", ""},
		"by ID":             {api.IssuerRevocationRequest{Issuer: ids.NodeID{2}.String()}, nil, second, 1, "", ""},
		"by fingerprint":    {api.IssuerRevocationRequest{Issuer: lost.Fingerprint()}, nil, lost, 1, "", ""},
		"by key":            {api.IssuerRevocationRequest{Issuer: founder.String()}, nil, founder, 2, "", ""},
		"a key of nobody":   {api.IssuerRevocationRequest{Issuer: keys.IssuerPublic{9}.String()}, nil, keys.IssuerPublic{9}, 0, "", ""},
		"not an issuer":     {api.IssuerRevocationRequest{Issuer: "web-3"}, nil, founder, 0, api.CodeNotFound, "did you mean"},
		"the last one":      {api.IssuerRevocationRequest{Issuer: "web-1"}, out(false), founder, 0, api.CodeRefused, "no other issuer"},
		"the last, forced":  {api.IssuerRevocationRequest{Issuer: "web-1", Force: true}, out(false), founder, 2, "", ""},
		"twice":             {api.IssuerRevocationRequest{Issuer: "web-2"}, out(false), second, 0, api.CodeRefused, "already"},
		"undo afterwards":   {api.IssuerRevocationRequest{Issuer: "web-2", Undo: true}, out(false), second, 1, "", ""},
		"undo twice":        {api.IssuerRevocationRequest{Issuer: "web-2", Undo: true}, out(true), second, 0, api.CodeRefused, "already"},
		"reason of a novel": {api.IssuerRevocationRequest{Issuer: "web-1", Reason: strings.Repeat("x", 201)}, nil, founder, 0, api.CodeInvalid, "reason"},
	} {
		d := &drafts{}
		l := &loop{gossip: still{snap: membership.Snapshot{Members: members, RevokedIssuers: c.revoked}}, rooted: d}
		got, err := l.draftIssuerRevocation(c.req)
		if api.CodeOf(err) != c.code && err != nil || (err == nil) != (c.code == "") || !strings.Contains(fullText(err), c.text) {
			t.Errorf("%s: %v", name, fullText(err))
			continue
		}
		if err != nil {
			continue
		}
		if len(d.asked) != 1 || d.asked[0].Issuer != c.want || d.asked[0].Undo != c.req.Undo || len(got.Members) != c.members || got.Issuer.Key != c.want.String() && c.members > 0 {
			t.Errorf("%s: asked %+v, got %+v", name, d.asked, got)
		}
		if !strings.HasPrefix(got.Request, item.RootRequestTag) {
			t.Errorf("%s: request %q", name, got.Request)
		}
	}
}

// TestIssuerProblem: a node whose certificate nobody new believes says so.
func TestIssuerProblem(t *testing.T) {
	cert := keys.Cert{Issuer: keys.IssuerPublic{1}}
	if _, ok := issuerProblem(cert, membership.Snapshot{RevokedIssuers: []item.IssuerRevocation{{Issuer: keys.IssuerPublic{2}}}}); ok {
		t.Error("another issuer's revocation is a problem")
	}
	p, ok := issuerProblem(cert, membership.Snapshot{RevokedIssuers: []item.IssuerRevocation{{Issuer: cert.Issuer}}})
	if !ok || p.Code != "certificate-issuer-revoked" || !strings.Contains(p.Fix, "issuer request") {
		t.Errorf("%v, %+v", ok, p)
	}
}

// TestRevocationUndone: a node whose revocation is void is connected again.
func TestRevocationUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.three()
		if _, err := a.revoke("web-3", ""); err != nil {
			t.Fatal(err)
		}
		w.until("it is out", func() bool { return !a.knows(c.id) && !b.knows(c.id) && !c.knows(a.id) })
		w.board.set(func() { w.board.revoked = nil })
		w.until("it is back", func() bool { return a.on(1, 2) && b.on(1, 2) && c.on(1, 2) && a.knows(c.id) && c.knows(a.id) })
		if s := c.status(); hasProblem(s, "node-revoked") {
			t.Errorf("%+v", s.Problems)
		}
	})
}
