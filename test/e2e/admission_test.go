package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
)

// exitCode returns the exit status of a failed command, 0 for nil.
func exitCode(err error) int {
	var ce *fleet.CommandError
	if errors.As(err, &ce) {
		return ce.Code
	}
	if err != nil {
		return -1
	}
	return 0
}

// members asks the first node how many members it knows.
func members(t *testing.T, ctx context.Context, f *fleet.Fleet) int {
	t.Helper()
	s, err := f.Nodes[0].Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s.Members.Total
}

// flip changes one character of a token into another valid one.
func flip(token string, at int) string {
	b := []byte(token)
	if b[at] == 'A' {
		b[at] = 'B'
	} else {
		b[at] = 'A'
	}
	return string(b)
}

// TestOutsiders tries every way in but the right one.
func TestOutsiders(t *testing.T) {
	ctx, f := start(t, 2, bothNetworks()[:1])
	outsider, err := f.AddNode("outsider")
	if err != nil {
		t.Fatal(err)
	}
	used, err := f.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	third, err := f.AddNode("third")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := third.CLI(ctx, "join", used); err != nil {
		t.Fatal(err)
	}
	fresh, err := f.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	contained(t, ctx, f.Nodes[0])
	before := members(t, ctx, f)
	// The first refusal of a source is logged, once.
	if _, err := outsider.CLI(ctx, "join", used); exitCode(err) != 6 {
		t.Errorf("join with a used token: %v, want exit 6", err)
	}
	waitUntil(t, ctx, 5*time.Second, "the refusal in the log", func() (bool, error) { return refusals(f.Nodes[0]) > 0, nil })
	if n := refusals(f.Nodes[0]); n != 1 {
		t.Errorf("one refused join gave %d lines in the log, want 1", n)
	}

	bad := map[string]string{
		"used again":  used,
		"truncated":   fresh[:len(fresh)-9],
		"half":        fresh[:len(fresh)/2],
		"bit-flipped": flip(fresh, len(fresh)/2),
		"garbage":     "SO1" + strings.Repeat("A", 80),
		"expired":     expiredToken(t, ctx, f),
	}
	for name, token := range bad {
		_, err := outsider.CLI(ctx, "join", token)
		if code := exitCode(err); code == 0 || code == -1 {
			t.Errorf("join with a %s token: exit %d", name, code)
		}
		if err != nil && strings.Contains(err.Error(), token[8:]) {
			t.Errorf("join with a %s token: the error repeats the token", name)
		}
		t.Logf("%s: %v", name, err)
	}
	stranger, err := f.AddNode("stranger")
	if err != nil {
		t.Fatal(err)
	}
	foreignCertificate(t, ctx, f, stranger)
	if after := members(t, ctx, f); after != before {
		t.Errorf("members went from %d to %d", before, after)
	}
	// The stranger has an identity of its own cluster: even a good token must
	// not write over it.
	if _, err := stranger.CLI(ctx, "join", fresh); exitCode(err) != 6 {
		t.Errorf("join of a node that belongs to another cluster: %v, want exit 6", err)
	}
	// The token was only shown in damaged form so far: it still works.
	if _, err := outsider.CLI(ctx, "join", fresh); err != nil {
		t.Error(err)
	}
}

// contained asks a node for a token as root of a container in which its socket can
// be reached: root's user is not enough.
func contained(t *testing.T, ctx context.Context, n *fleet.Node) {
	t.Helper()
	cmd := n.Host.Command(ctx, os.Getenv(binaryEnv), "token", "create")
	cmd.Env = append(os.Environ(), "SECURE_OVERLAY_CONFIG="+n.ConfigPath())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); err == nil || code != api.CodePermission.ExitCode() {
		t.Errorf("token create by root of a container: exit %d, %v: %s", code, err, out)
	}
}

// expiredToken makes a token and waits until its issuer calls it expired.
func expiredToken(t *testing.T, ctx context.Context, f *fleet.Fleet) string {
	t.Helper()
	var tok api.NewToken
	if err := f.Nodes[0].JSON(ctx, &tok, "token", "create", "--ttl", "1s"); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, ctx, 10*time.Second, "the token to expire", func() (bool, error) {
		return time.Now().After(tok.Expires), nil
	})
	return tok.Text
}

// foreignCertificate starts an agent of another cluster that takes the first
// node for a seed. It must be refused, once in the log.
func foreignCertificate(t *testing.T, ctx context.Context, f *fleet.Fleet, stranger *fleet.Node) {
	t.Helper()
	if _, err := stranger.CLI(ctx, "init"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(stranger.ConfigPath())
	if err != nil {
		t.Fatal(err)
	}
	seed := fmt.Sprintf("control:\n  seeds: [\"%s:7946\"]\n", f.Nodes[0].Host.V4())
	text = []byte(strings.Replace(string(text), "control:\n", seed, 1))
	if err := os.WriteFile(stranger.ConfigPath(), text, 0o600); err != nil {
		t.Fatal(err)
	}
	victim := f.Nodes[0]
	known := refusals(victim)
	if err := stranger.Up(ctx); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, ctx, 20*time.Second, "the refusal in the log of "+victim.Name, func() (bool, error) {
		return refusals(victim) > known, nil
	})
	if err := stranger.Down(ctx); err != nil {
		t.Fatal(err)
	}
	s, err := victim.Status(ctx)
	if err != nil || s.State != api.StateOK {
		t.Errorf("after a stranger called: state %s, %v, problems %+v", s.State, err, s.Problems)
	}
}

// refusals counts the log lines about refused handshakes.
func refusals(n *fleet.Node) int {
	return strings.Count(n.LogTail(10_000), "handshake refused")
}

// TestOneTokenManyJoiners uses one token a hundred times at once: exactly one
// gets a certificate.
func TestOneTokenManyJoiners(t *testing.T) {
	const joiners = 100
	ctx, f := start(t, 1, bothNetworks()[:1])
	host, err := f.AddNode("joiners")
	if err != nil {
		t.Fatal(err)
	}
	token, err := f.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var wg sync.WaitGroup
	var mu sync.Mutex
	codes := map[int]int{}
	for i := range joiners {
		wg.Go(func() {
			code := exitCode(joinInto(ctx, host, fmt.Sprintf("%s/%d", dir, i), token))
			mu.Lock()
			defer mu.Unlock()
			codes[code]++
		})
	}
	wg.Wait()
	t.Logf("exit codes: %v", codes)
	if codes[0] != 1 || codes[-1] != 0 {
		t.Errorf("%d of %d joins succeeded, %d did not end by themselves", codes[0], joiners, codes[-1])
	}
	var list struct {
		Tokens []api.Token `json:"tokens"`
	}
	if err := f.Nodes[0].JSON(ctx, &list, "token", "ls"); err != nil {
		t.Fatal(err)
	}
	used := 0
	for _, tok := range list.Tokens {
		if tok.State == api.TokenUsed {
			used++
		}
	}
	if used != 1 {
		t.Errorf("%d tokens are used, want 1: %+v", used, list.Tokens)
	}
}

// joinInto runs join with a data folder of its own.
func joinInto(ctx context.Context, n *fleet.Node, dataDir, token string) error {
	_, err := n.CLIWithEnv(ctx, []string{"SECURE_OVERLAY_DATA_DIR=" + dataDir}, "join", token)
	return err
}
