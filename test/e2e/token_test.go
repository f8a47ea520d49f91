package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
)

// tokenFor makes a token on the first node.
func tokenFor(t *testing.T, ctx context.Context, f *fleet.Fleet, args ...string) api.NewToken {
	t.Helper()
	var tok api.NewToken
	if err := f.Nodes[0].JSON(ctx, &tok, append([]string{"token", "create"}, args...)...); err != nil {
		t.Fatal(err)
	}
	return tok
}

// TestTokenConditions: a token admits as many nodes as it says, of the names and
// from the networks that it says, and a refusal costs none of its uses.
func TestTokenConditions(t *testing.T) {
	ctx, f := start(t, 1, bothNetworks()[:1])
	tok := tokenFor(t, ctx, f, "--uses", "2", "--name", "web-*", "--from", "198.18.0.0/15")
	for _, c := range []struct {
		name string
		code int
		err  string
	}{{"db-1", 6, "another name"}, {"web-1", 0, ""}, {"web-2", 0, ""}, {"web-3", 6, "has been used"}} {
		n, err := f.AddNode(c.name)
		if err != nil {
			t.Fatal(err)
		}
		_, err = n.CLI(ctx, "join", tok.Text)
		if exitCode(err) != c.code || !strings.Contains(fmt.Sprint(err), c.err) {
			t.Errorf("%s: %v, want exit code %d", c.name, err, c.code)
		}
	}
	away := tokenFor(t, ctx, f, "--from", "192.0.2.0/24")
	n, err := f.AddNode("web-4")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.CLI(ctx, "join", away.Text); exitCode(err) != 6 || !strings.Contains(fmt.Sprint(err), "another address") {
		t.Errorf("from another network: %v", err)
	}
	var list api.TokenList
	if err := f.Nodes[0].JSON(ctx, &list, "token", "ls"); err != nil {
		t.Fatal(err)
	}
	if len(list.Tokens) != 2 || len(list.Tokens[0].Uses) != 2 || list.Tokens[0].State != api.TokenUsed || len(list.Tokens[1].Uses) != 0 {
		t.Errorf("tokens: %+v", list.Tokens)
	}
}

// TestTokenRole: an observer sees the members, carries no network, and cannot be
// configured to.
func TestTokenRole(t *testing.T) {
	ctx, f := start(t, 2, bothNetworks()[:1])
	tok := tokenFor(t, ctx, f, "--role", "observer")
	n, err := f.AddNode("eye")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.CLI(ctx, "join", tok.Text); err != nil {
		t.Fatal(err)
	}
	if _, err := n.CLI(ctx, "up", "-c", n.ConfigPath()); exitCode(err) != 2 || !strings.Contains(fmt.Sprint(err), "observer") {
		t.Errorf("with a network in its configuration: %v", err)
	}
	if err := n.WriteConfig(nil); err != nil {
		t.Fatal(err)
	}
	if err := n.Up(ctx); err != nil {
		t.Fatal(err)
	}
	for _, m := range append(f.Nodes[:2:2], n) {
		if err := m.WaitStatus(ctx, "three members", func(s api.Status) bool { return s.Members.OK == 3 }); err != nil {
			t.Fatal(err)
		}
	}
	var list api.MemberList
	if err := f.Nodes[0].JSON(ctx, &list, "members"); err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Members {
		if (m.Role == api.RoleObserver) != (m.Name == "eye") {
			t.Errorf("%s has role %q", m.Name, m.Role)
		}
	}
	var st api.Status
	if err := f.Nodes[0].JSON(ctx, &st, "status"); err != nil || len(st.Peers) != 1 {
		t.Errorf("%d peers: %v", len(st.Peers), err)
	}
	if _, err := n.CLI(ctx, "keys", "rotate"); err == nil {
		t.Error("an observer rotates keys")
	}
	if _, err := f.Nodes[0].CLI(ctx, "token", "create", "--role", "king"); exitCode(err) != 2 {
		t.Errorf("another role: %v", err)
	}
}

// TestTokenApproval: a node waits until somebody approves it, over a restart of
// its join, and one that is denied is told so.
func TestTokenApproval(t *testing.T) {
	ctx, f := start(t, 1, bothNetworks()[:1])
	tok := tokenFor(t, ctx, f, "--uses", "2", "--approve")
	waiting := func(want int) []api.TokenWait {
		t.Helper()
		var list api.TokenList
		err := f.Nodes[0].WaitStatus(ctx, "nodes that wait", func(api.Status) bool {
			if err := f.Nodes[0].JSON(ctx, &list, "token", "ls"); err != nil {
				t.Fatal(err)
			}
			return len(list.Tokens[0].Waiting) == want
		})
		if err != nil {
			t.Fatal(err)
		}
		return list.Tokens[0].Waiting
	}
	good, err := f.AddNode("good")
	if err != nil {
		t.Fatal(err)
	}
	bad, err := f.AddNode("bad")
	if err != nil {
		t.Fatal(err)
	}
	// Whoever gives up waiting goes on with the same command.
	short, cancel := context.WithTimeout(ctx, 4*time.Second)
	_, err = good.CLI(short, "join", tok.Text)
	cancel()
	if err == nil {
		t.Fatal("a node joined without approval")
	}
	joined := map[*fleet.Node]chan error{good: make(chan error, 1), bad: make(chan error, 1)}
	for n, done := range joined {
		go func() {
			_, err := n.CLI(ctx, "join", tok.Text)
			done <- err
		}()
	}
	w := waiting(2)
	if names := w[0].Name + " " + w[1].Name; !strings.Contains(names, "good") || !strings.Contains(names, "bad") {
		t.Errorf("who waits: %+v", w)
	}
	if _, err := f.Nodes[0].CLI(ctx, "token", "approve", tok.ID); exitCode(err) != 2 {
		t.Errorf("approve one of two without saying which: %v", err)
	}
	if _, err := f.Nodes[0].CLI(ctx, "token", "deny", tok.ID, "bad"); err != nil {
		t.Error(err)
	}
	if _, err := f.Nodes[0].CLI(ctx, "token", "approve", tok.ID[:6]); err != nil {
		t.Error(err)
	}
	if err := <-joined[good]; err != nil {
		t.Errorf("approved: %v", err)
	}
	if err := <-joined[bad]; exitCode(err) != 6 || !strings.Contains(fmt.Sprint(err), "denied") {
		t.Errorf("denied: %v", err)
	}
	waiting(0)
}
