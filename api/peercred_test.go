package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childEnv names the socket for a copy of the test binary that runs as
// another user and tries every call.
const childEnv = "SECURE_OVERLAY_TEST_API_CHILD"

// child makes every call once and prints the code of each result.
func child() int {
	c := NewClient(os.Getenv(childEnv))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	code := func(err error) Code {
		if err == nil {
			return "ok"
		}
		return CodeOf(err)
	}
	out := map[string]Code{}
	_, err := c.Status(ctx)
	out["status"] = code(err)
	_, err = c.Members(ctx)
	out["members"] = code(err)
	_, err = c.Networks(ctx)
	out["networks"] = code(err)
	_, err = c.Endpoints(ctx)
	out["endpoints"] = code(err)
	_, err = c.Tokens(ctx)
	out["tokens"] = code(err)
	_, err = c.Attach(ctx, AttachRequest{Network: "blue", PID: 1})
	out["attach"] = code(err)
	out["detach"] = code(c.Detach(ctx, "x"))
	_, err = c.CreateToken(ctx, TokenRequest{})
	out["create"] = code(err)
	out["revoke"] = code(c.RevokeToken(ctx, "x"))
	_, err = c.Keys(ctx)
	out["keys"] = code(err)
	_, err = c.KeyHistory(ctx)
	out["history"] = code(err)
	_, err = c.Events(ctx, EventQuery{})
	out["events"] = code(err)
	_, err = c.Rotate(ctx, RotateRequest{})
	out["rotate"] = code(err)
	_, err = c.Rotate(ctx, RotateRequest{DryRun: true})
	out["rotate --dry-run"] = code(err)
	_, err = c.Departure(ctx)
	out["departure"] = code(err)
	_, err = c.Leave(ctx, LeaveRequest{Force: true})
	out["leave"] = code(err)
	_, err = c.FinishLeave(ctx)
	out["finish leave"] = code(err)
	_, err = c.Down(ctx, DownRequest{})
	out["down"] = code(err)
	anyCall(ctx, os.Getenv(childEnv), out)
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		return 1
	}
	return 0
}

// runAs runs child as a user and group.
func runAs(t *testing.T, path string, uid, gid uint32) map[string]Code {
	t.Helper()
	cmd := exec.Command("/proc/self/exe") // readable to the child wherever the binary lies
	cmd.Env = []string{childEnv + "=" + path}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	return codes(t, cmd)
}

// Another user, and a group that may read.
const otherUID, otherGID = 1000, 54321

func reads() []string {
	return []string{"status", "members", "networks", "endpoints", "tokens", "keys", "history", "events"}
}

func changes() []string {
	return []string{"attach", "detach", "create", "revoke", "rotate", "rotate --dry-run", "leave", "finish leave", "down"}
}

func TestOtherUsersMayNotChange(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test runs processes as other users and needs root")
	}
	f := newFake()
	path, _, _ := start(t, f)

	// Outside the group: not even reading.
	got := runAs(t, path, otherUID, otherUID)
	for _, call := range append(reads(), changes()...) {
		if got[call] != CodePermission {
			t.Errorf("outside the group, %s: %s, want %s", call, got[call], CodePermission)
		}
	}
	// In the group: reading only.
	if err := os.Chown(path, -1, otherGID); err != nil {
		t.Fatal(err)
	}
	got = runAs(t, path, otherUID, otherGID)
	for _, call := range reads() {
		if got[call] != "ok" {
			t.Errorf("in the group, %s: %s, want ok", call, got[call])
		}
	}
	for _, call := range changes() {
		if got[call] != CodePermission {
			t.Errorf("in the group, %s: %s, want %s", call, got[call], CodePermission)
		}
	}
	if n := f.changes(); n != 0 {
		t.Errorf("%d calls of another user reached the agent", n)
	}
	// Root, as the positive control: every call arrives.
	got = runAs(t, path, 0, 0)
	for call, want := range map[string]Code{"attach": "ok", "detach": CodeNotFound, "create": "ok", "revoke": CodeNotFound, "rotate": "ok", "rotate --dry-run": "ok",
		"departure": CodeRefused, "leave": "ok", "finish leave": "ok", "down": "ok", "status": "ok"} {
		if got[call] != want {
			t.Errorf("as root, %s: %s, want %s", call, got[call], want)
		}
	}
}

// TestEveryChangeIsRefused asks for every call that changes something, those to
// come included, as another user, and as somebody whom the kernel does not know.
func TestEveryChangeIsRefused(t *testing.T) {
	f := newFake()
	s := NewServer(ServerOptions{Backend: f.backend()})
	h, n := s.handler(), 0
	for _, r := range s.routes() {
		for method := range r.methods {
			if method == http.MethodGet {
				continue
			}
			n++
			for name, ctx := range map[string]context.Context{
				"another user":        context.WithValue(context.Background(), callerKey{}, Caller{UID: 1000, Near: true}),
				"root of a container": context.WithValue(context.Background(), callerKey{}, Caller{}),
				"nobody":              context.Background(),
			} {
				req, err := http.NewRequestWithContext(ctx, method, strings.ReplaceAll(r.path, "{id}", "x"), strings.NewReader("{}"))
				if err != nil {
					t.Fatal(err)
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, req)
				if !strings.Contains(w.Body.String(), `"code":"`+string(CodePermission)+`"`) {
					t.Errorf("%s %s by %s: %d %s", method, r.path, name, w.Code, w.Body.String())
				}
			}
		}
	}
	if n < 10 || f.changes() != 0 {
		t.Errorf("%d calls that change something, %d reached the agent", n, f.changes())
	}
}

// The user whom the agent runs as may change things, whoever that is.
func TestOwnUserMayChange(t *testing.T) {
	s := &Server{uid: 1000}
	for uid, want := range map[uint32]bool{0: true, 1000: true, 1001: false, 65534: false} {
		for _, near := range []bool{true, false} {
			ctx := context.WithValue(context.Background(), callerKey{}, Caller{UID: uid, Near: near})
			if got := s.mayChange(requestWith(t, ctx)) == nil; got != (want && near) {
				t.Errorf("uid %d, near %v, may change: %v", uid, near, got)
			}
		}
	}
	if s.mayChange(requestWith(t, context.Background())) == nil {
		t.Error("a caller without credentials may change")
	}
}

func requestWith(t *testing.T, ctx context.Context) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "/v1/down", nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOnlyHere(t *testing.T) {
	for status, want := range map[string]bool{
		"Name:\tx\nPid:\t42\nNSpid:\t42\nKthread:\t0\n": true,
		"Name:\tx\nPid:\t42\nNSpid:\t42\t7\n":           false, // in a namespace below
		"Name:\tx\nPid:\t42\nNSpid:\t43\n":              false,
		"Name:\tx\nPid:\t42\n":                          false,
		"":                                              false,
	} {
		if got := onlyHere(status, 42); got != want {
			t.Errorf("%q: %v", status, got)
		}
	}
}
