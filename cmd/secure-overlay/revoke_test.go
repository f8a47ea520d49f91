package main

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
)

// revoker answers with one state after the other; the last one stays.
type revoker struct {
	mu      sync.Mutex
	states  []api.Revocation
	refusal error
	asked   []api.RevokeRequest
}

func (r *revoker) Revoke(_ context.Context, req api.RevokeRequest) (api.Revocation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, req)
	return r.states[0], r.refusal
}

func (r *revoker) Revocations(context.Context) ([]api.Revocation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.states) > 1 {
		r.states = r.states[1:]
	}
	return r.states[:1], nil
}

func revocationOf(ok int, waiting ...api.RevocationWait) api.Revocation {
	return api.Revocation{
		Node: nodeRef("db-1"), Reason: "disk was stolen", Created: time.Now().Add(-3 * time.Minute),
		Applied: api.Count{OK: ok, Total: 3}, Waiting: waiting,
	}
}

func waits(name, state string) api.RevocationWait {
	return api.RevocationWait{NodeRef: nodeRef(name), State: state}
}

func TestRevoke(t *testing.T) {
	live := func() *revoker {
		return &revoker{states: []api.Revocation{revocationOf(1, waits("b", "alive"), waits("c", "alive")), revocationOf(2, waits("c", "suspect")), revocationOf(3)}}
	}
	lost := &revoker{states: []api.Revocation{revocationOf(2, waits("c", "dead"))}}
	slow := &revoker{states: []api.Revocation{revocationOf(2, waits("c", "alive"))}}
	refused := &revoker{states: []api.Revocation{{}}, refusal: api.NewError(api.CodeRefused, "this node holds no issuer key", "run the command on a node that has one: a")}
	for name, c := range map[string]struct {
		r    *revoker
		args string
		code int
		out  string // begins with
		err  string // holds
	}{
		"asked":        {live(), "revoke db-1", 0, "db-1 is revoked here; 1 of 3 nodes have applied it\n", ""},
		"waited":       {live(), "revoke db-1 --wait", 0, "db-1 is out everywhere", "[3/3] nodes"},
		"lost":         {lost, "revoke db-1 --wait", 4, "", "missing: c (dead)"},
		"slow":         {slow, "revoke db-1 --wait --timeout 300ms", 8, "", "c (alive)"},
		"refused":      {refused, "revoke db-1", 6, "", "a node that has one: a"},
		"no node":      {live(), "revoke", 2, "", "NODE"},
		"no waiting":   {live(), "revoke db-1 --timeout 1s", 2, "", "--wait"},
		"for programs": {live(), "revoke db-1 --wait -o json", 0, "{", ""},
		"list":         {live(), "members --revoked", 0, "NAME", ""},
	} {
		got := against(t, canned{revoker: c.r}, strings.Fields(c.args)...)
		if got.code != c.code || !strings.HasPrefix(got.out, c.out) || !strings.Contains(got.err, c.err) {
			t.Errorf("%s: exit code %d, want %d\n%s\n%s", name, got.code, c.code, got.out, got.err)
		}
	}
	r := live()
	if got := against(t, canned{revoker: r}, "revoke", "db-1", "--reason", "disk was stolen"); got.code != 0 {
		t.Error(got.err)
	}
	if want := (api.RevokeRequest{Node: "db-1", Reason: "disk was stolen"}); len(r.asked) != 1 || r.asked[0] != want {
		t.Errorf("the agent was asked %+v", r.asked)
	}
	got := against(t, canned{revoker: lost}, "members", "--revoked")
	for _, line := range strings.Split(got.out, "\n") {
		if len(line) > 80 {
			t.Errorf("a line of %d columns: %s", len(line), line)
		}
	}
	if !strings.Contains(got.out, "disk was stolen") || !strings.Contains(got.out, "2/3") {
		t.Errorf("the list is\n%s", got.out)
	}
}
