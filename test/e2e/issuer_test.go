package e2e

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestSecondIssuer makes a second node an issuer, under load, and takes the first
// one away: nodes join, keys rotate and nodes are revoked without it.
func TestSecondIssuer(t *testing.T) {
	ctx, f := startFor(t, suited(), 3, 2, "")
	founder, second, third := f.Nodes[0], f.Nodes[1], f.Nodes[2]
	blue := attachAll(t, ctx, f, "blue")
	mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(blue), Rate: lowRate(t) / 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mesh.Stop() })

	if _, err := second.CLI(ctx, "token", "create"); exitCode(err) != 6 {
		t.Errorf("a node without issuer key makes a token: %v", err)
	}
	var req api.IssuerRequest
	if err := second.JSON(ctx, &req, "issuer", "request"); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(founder.DataDir(), "root.key")
	var signed struct {
		Delegation string `json:"delegation"`
	}
	// Anywhere: this needs no agent.
	if err := third.JSON(ctx, &signed, "issuer", "sign", "--root-key", root, req.Request); err != nil {
		t.Fatal(err)
	}
	if _, err := third.CLI(ctx, "issuer", "install", signed.Delegation); exitCode(err) != 2 {
		t.Errorf("another node takes the delegation: %v", err)
	}
	if _, err := second.CLI(ctx, "issuer", "install", signed.Delegation); err != nil {
		t.Fatal(err)
	}
	if err := second.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := second.Up(ctx); err != nil {
		t.Fatal(err)
	}
	issuers := func(want ...string) func(api.Status) bool {
		return func(api.Status) bool {
			var list api.IssuerList
			if err := third.JSON(ctx, &list, "issuer", "ls"); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, i := range list.Issuers {
				got = append(got, i.Name)
			}
			return slices.Equal(got, want)
		}
	}
	if err := third.WaitStatus(ctx, "two issuers", issuers(founder.Name, second.Name)); err != nil {
		t.Fatal(err)
	}

	// All hear the issuers, and speak nothing older from now on.
	if _, err := third.CLI(ctx, "protocol", "floor", "--raise", "2"); exitCode(err) != 6 {
		t.Errorf("a node without issuer key raises the floor: %v", err)
	}
	if _, err := second.CLI(ctx, "protocol", "floor", "--raise", "2"); err != nil {
		t.Error(err)
	}
	floor := func(want uint8) {
		t.Helper()
		for _, n := range f.Nodes[:3] {
			if err := n.WaitStatus(ctx, "the floor and a sign of life", func(s api.Status) bool {
				return s.Protocol.Floor == want && !s.Heartbeat.IsZero() && len(s.Warnings) == 0
			}); err != nil {
				t.Error(err)
			}
		}
	}
	floor(2)

	if err := founder.Kill(); err != nil {
		t.Fatal(err)
	}
	r, err := third.Rotate(ctx, "")
	if exitCode(err) != 4 { // the dead agent keeps the old keys
		t.Errorf("rotation without the founder: %v", err)
	}
	t.Logf("epoch %d without the founder", r.To)
	late := join(t, ctx, f, second, "late")
	if err := late.WaitStatus(ctx, "three peers", func(s api.Status) bool { return len(s.Peers) == 3 }); err != nil {
		t.Fatal(err)
	}
	// By its name it can be revoked once its record has come.
	if err := second.WaitStatus(ctx, "the late node by name", func(s api.Status) bool { return len(s.Peers) == 3 }); err != nil {
		t.Fatal(err)
	}
	var rev api.RevocationAnswer
	if err := second.JSON(ctx, &rev, "revoke", late.Name); err != nil {
		t.Error(err)
	}
	if err := third.WaitStatus(ctx, "the late node is out", func(s api.Status) bool { return len(s.Peers) == 2 }); err != nil {
		t.Error(err)
	}
	if err := founder.Up(ctx); err != nil {
		t.Fatal(err)
	}
	if err := founder.WaitStatus(ctx, "the founder has all of it", func(s api.Status) bool {
		return s.Epoch >= 2 && len(s.Peers) == 2 && s.Members.Total == 3
	}); err != nil {
		t.Error(err)
	}
	if _, err := third.CLI(ctx, "protocol", "floor", "--signed", rootSigns(ctx, t, third, founder, "protocol", "floor", "--lower", "1")); err != nil {
		t.Error(err)
	}
	floor(1)
	if err := mesh.WaitReceived(ctx, 50); err != nil {
		t.Error(err)
	}
	res := mesh.Stop()
	t.Logf("%d sent, %d lost", res.Sent, res.Lost())
	if err := mesh.Check(); err != nil {
		t.Error(err)
	}
}

// TestRevokeIssuer takes the founder's issuer key out of force, under load, after
// a second node has become an issuer: certificates change over, joins go on, and no
// packet is lost.
func TestRevokeIssuer(t *testing.T) {
	ctx, f := startFor(t, suited(), 3, 2, "")
	founder, second, third := f.Nodes[0], f.Nodes[1], f.Nodes[2]
	blue := attachAll(t, ctx, f, "blue")
	mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(blue), Rate: lowRate(t) / 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mesh.Stop() })
	root := filepath.Join(founder.DataDir(), "root.key")
	if _, err := third.CLI(ctx, "issuer", "revoke", founder.Name, "--root-key", root); exitCode(err) != 6 {
		t.Errorf("the only issuer is revoked: %v", err)
	}
	if _, err := second.CLI(ctx, "issuer", "add", "--root-key", root); err != nil {
		t.Fatal(err)
	}
	if err := second.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := second.Up(ctx); err != nil {
		t.Fatal(err)
	}
	// issuers returns those of a node's list, by the name of their node.
	issuers := func(n *fleet.Node) map[string]api.Issuer {
		var list api.IssuerList
		if err := n.JSON(ctx, &list, "issuer", "ls"); err != nil {
			t.Fatal(err)
		}
		out := map[string]api.Issuer{}
		for _, i := range list.Issuers {
			out[i.Name] = i
		}
		return out
	}
	if err := third.WaitStatus(ctx, "two issuers", func(api.Status) bool { return len(issuers(third)) == 2 }); err != nil {
		t.Fatal(err)
	}
	key := issuers(third)[founder.Name].Key
	var rev api.IssuerRevocationAnswer
	if err := third.JSON(ctx, &rev, "issuer", "revoke", founder.Name, "--root-key", root, "--reason", "test", "--wait"); err != nil {
		t.Fatal(err)
	}
	if rev.Key != key || rev.Applied.OK != 3 {
		t.Errorf("%+v", rev)
	}
	for _, n := range f.Nodes {
		if err := n.WaitStatus(ctx, "certificates of the other issuer", func(s api.Status) bool {
			return issuers(n)[second.Name].Members == 3 && s.Members.OK == 3
		}); err != nil {
			t.Error(err)
		}
	}
	if _, err := founder.CLI(ctx, "token", "create"); exitCode(err) != 6 {
		t.Errorf("the revoked issuer makes a token: %v", err)
	}
	if err := founder.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := founder.Up(ctx); err != nil {
		t.Fatal(err)
	}
	late := join(t, ctx, f, second, "late")
	for _, n := range append(f.Nodes[:3:3], late) {
		if err := n.WaitStatus(ctx, "three peers", func(s api.Status) bool { return len(s.Peers) == 3 && s.Members.OK == 4 }); err != nil {
			t.Error(err)
		}
	}
	if _, err := founder.Rotate(ctx, ""); err != nil {
		t.Error(err)
	}
	if err := mesh.WaitReceived(ctx, 50); err != nil {
		t.Error(err)
	}
	res := mesh.Stop()
	t.Logf("%d sent, %d lost", res.Sent, res.Lost())
	if err := mesh.Check(); err != nil {
		t.Error(err)
	}
}

// join adds a node with a token of an issuer that need not be the first node.
func join(t *testing.T, ctx context.Context, f *fleet.Fleet, issuer *fleet.Node, name string) *fleet.Node {
	t.Helper()
	n, err := f.AddNode(name)
	if err != nil {
		t.Fatal(err)
	}
	out, err := issuer.CLI(ctx, "token", "create", "--name", name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.CLI(ctx, "join", strings.TrimSpace(string(out))); err != nil {
		t.Fatal(err)
	}
	if err := n.Up(ctx); err != nil {
		t.Fatal(err)
	}
	return n
}
