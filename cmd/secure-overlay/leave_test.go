package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
)

// leaver answers with one state after the other; the last one stays.
type leaver struct {
	mu       sync.Mutex
	dir      string
	states   []api.Departure
	refusal  error // of Leave
	stuck    error // of FinishLeave
	asked    []api.LeaveRequest
	finished int
}

func (l *leaver) Leave(_ context.Context, req api.LeaveRequest) (api.Departure, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, req)
	return l.states[0], l.refusal
}

func (l *leaver) Departure(context.Context) (api.Departure, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.states) > 1 {
		l.states = l.states[1:]
	}
	return l.states[0], nil
}

func (l *leaver) FinishLeave(context.Context) (api.LeaveResult, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finished++
	return api.LeaveResult{Departure: l.states[0], Removed: []string{"network blue"}, DataDir: l.dir}, l.stuck
}

func departureOf(ok, total int, waiting ...api.RevocationWait) api.Departure {
	return api.Departure{Node: nodeRef("web-1"), Left: time.Now(), Told: api.Count{OK: ok, Total: total}, Waiting: waiting}
}

// endedProcess is the ID of a process that has ended.
func endedProcess(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Not waited for before the end, so that the number stays its.
	t.Cleanup(func() { _ = cmd.Wait() })
	return cmd.Process.Pid
}

func TestLeave(t *testing.T) {
	refused := api.NewError(api.CodeRefused, "this node holds the only issuer key", "install another issuer first")
	pid := endedProcess(t)
	for name, c := range map[string]struct {
		states []api.Departure
		edit   func(*leaver)
		files  string // in the data directory
		args   string
		code   int
		out    string // holds
		err    string
		ends   bool // the agent was asked to end
	}{
		"all are told": {
			[]api.Departure{departureOf(0, 2, waits("b", "alive"), waits("c", "alive")), departureOf(1, 2, waits("c", "suspect")), departureOf(2, 2)},
			nil, "", "leave", 0, "left     the cluster; 2 of 2 other nodes know it", "[2/2] nodes", true,
		},
		"alone":     {[]api.Departure{departureOf(0, 0)}, nil, "", "leave --yes", 0, "left     the cluster\n", "", true},
		"one lost":  {[]api.Departure{departureOf(1, 2, waits("c", "dead"))}, nil, "", "leave", 0, "1 of 2 other nodes", "hear it from the others: c (dead)", true},
		"one slow":  {[]api.Departure{departureOf(1, 2, waits("c", "alive"))}, nil, "", "leave --timeout 300ms", 0, "1 of 2 other nodes", "hear it from the others: c (alive)", true},
		"nobody":    {[]api.Departure{departureOf(0, 2, waits("b", "dead"), waits("c", "dead"))}, nil, "", "leave", 4, "0 of 2 other nodes", "secure-overlay revoke " + nodeRef("web-1").ID.String(), true},
		"refused":   {[]api.Departure{departureOf(0, 1)}, func(l *leaver) { l.refusal = refused }, "", "leave", 6, "", "install another issuer first", false},
		"stuck":     {[]api.Departure{departureOf(1, 1)}, func(l *leaver) { l.stuck = api.NewError(api.CodeFailed, "busy", "once more") }, "", "leave", 1, "", "once more", true},
		"keys stay": {[]api.Departure{departureOf(1, 1)}, nil, "node.key records.cache", "leave", 1, "", "node.key, records.cache", true},
		"root key":  {[]api.Departure{departureOf(1, 1)}, nil, "root.key", "leave", 0, "root.key: it is the cluster's", "", true},
		"programs":  {[]api.Departure{departureOf(1, 1)}, nil, "", "leave -o json", 0, `"told": {`, "", true},
		"usage":     {[]api.Departure{departureOf(1, 1)}, nil, "", "leave --timeout 0s", 2, "", "--timeout", false},
		"argument":  {[]api.Departure{departureOf(1, 1)}, nil, "", "leave web-1", 2, "", "too many", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := &leaver{dir: t.TempDir(), states: c.states}
			for _, f := range strings.Fields(c.files) {
				if err := os.WriteFile(filepath.Join(l.dir, f), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if c.edit != nil {
				c.edit(l)
			}
			got := against(t, canned{leaver: l, status: api.Status{PID: pid}}, strings.Fields(c.args)...)
			if got.code != c.code || !strings.Contains(got.out, c.out) || !strings.Contains(got.err, c.err) {
				t.Errorf("exit code %d, want %d\n%s\n%s", got.code, c.code, got.out, got.err)
			}
			if c.ends != (l.finished == 1) {
				t.Errorf("the agent was asked %d times to end", l.finished)
			}
		})
	}
	l := &leaver{dir: t.TempDir(), states: []api.Departure{departureOf(1, 1)}}
	if got := against(t, canned{leaver: l, status: api.Status{PID: pid}}, "leave", "--force"); got.code != 0 || len(l.asked) != 1 || !l.asked[0].Force {
		t.Errorf("%d, asked %+v\n%s", got.code, l.asked, got.err)
	}
}

// TestMembersLeft: a node that has left is listed with the time, and is not what
// revoke is offered.
func TestMembersLeft(t *testing.T) {
	now := time.Now()
	list := []api.Member{
		{NodeRef: nodeRef("a"), Self: true, State: "alive", Synced: true},
		{NodeRef: nodeRef("b"), State: "left", Left: now.Add(-3 * time.Minute)},
		{NodeRef: nodeRef("c"), State: "alive", Synced: true, LastSeen: now},
	}
	got := against(t, canned{members: list}, "members")
	if got.code != 0 || !strings.Contains(got.out, "left ") {
		t.Fatalf("%d\n%s\n%s", got.code, got.out, got.err)
	}
	for line := range strings.Lines(got.out) {
		f := strings.Fields(line)
		if f[0] == "b" && (f[2] != "left" || f[3] != "-" || f[len(f)-1] != "3m") {
			t.Errorf("row of the node that left: %q", line)
		}
	}
	with(t, canned{members: list}, func(_ *app, c *api.Client) int {
		if offered := otherMembers(t.Context(), c); !slices.Equal(offered, []string{"c"}) {
			t.Errorf("revoke is offered %q", offered)
		}
		return 0
	})
}
