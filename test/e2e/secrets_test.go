package e2e

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/test/fleet"
)

// keptKeys reads the secrets that a node keeps in files of its data folder.
func keptKeys(t *testing.T, n *fleet.Node) []hunted {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.DataDir(), "*.key"))
	if err != nil || len(files) < 3 {
		t.Fatalf("%s has key files %v, %v", n.Name, files, err)
	}
	var found []hunted
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, digits, _ := strings.Cut(strings.TrimSpace(string(text)), ":")
		raw, err := hex.DecodeString(digits)
		if err != nil || len(raw) != 32 {
			t.Fatalf("%s is not as expected: %d bytes", file, len(raw))
		}
		found = append(found, hunt(filepath.Base(file)+" of "+n.Name, raw))
	}
	return found
}

// newTokenSecret makes a join token and returns its secret.
func newTokenSecret(t *testing.T, ctx context.Context, f *fleet.Fleet) hunted {
	t.Helper()
	tok, err := keys.ParseToken(tokenFor(t, ctx, f, "--uses", "2").Text)
	if err != nil {
		t.Fatal(err)
	}
	defer tok.Secret.Wipe()
	var h hunted
	tok.Secret.Expose(func(raw []byte) { h = hunt("secret of a join token", raw) })
	return h
}

// inTraces adds the forms in which a key would stand among the arguments in a
// goroutine's trace: as words, and as the first elements of an array.
func inTraces(k hunted) hunted {
	raw := k.patterns["raw"]
	out := hunted{k.what, map[string][]byte{}}
	for form, p := range k.patterns {
		out.patterns[form] = p
	}
	for i := 0; i+8 <= len(raw); i += 8 {
		out.patterns[fmt.Sprintf("word %d", i/8)] = fmt.Appendf(nil, "%#x", binary.LittleEndian.Uint64(raw[i:]))
	}
	var elements []string
	for _, b := range raw[:6] {
		elements = append(elements, fmt.Sprintf("%#x", b))
	}
	out.patterns["elements"] = []byte(strings.Join(elements, ", "))
	return out
}

// TestLiveSecretsStayInside looks for every secret that a cluster has now where
// none belongs: logs at their most talkative, files but those of the keys, all
// answers of the API, command lines and environments, the memory of workers, and
// the traces that a dying agent prints.
func TestLiveSecretsStayInside(t *testing.T) {
	ctx, f := startFor(t, suited(), 2, 2, "")
	l := startLoad(t, ctx, f, 100, 200)
	var identity, all []hunted
	for _, n := range f.Nodes {
		identity = append(identity, keptKeys(t, n)...)
	}
	identity = append(identity, newTokenSecret(t, ctx, f))
	// A join and a rotation, so that everything has been handled.
	join(t, ctx, f, f.Nodes[0], "late")
	rotate(t, ctx, f.Nodes[0], drivers()[0])
	for _, n := range f.Nodes {
		all = append(all, liveKeys(t, n)...)
	}
	all = append(slices.Clone(identity), all...)
	l.more(ctx, 20, "with all of it in use")

	for _, n := range f.Nodes[:2] {
		own, err := searchMemory(n.PID(), identity)
		if err != nil || len(own) == 0 {
			t.Errorf("control: the agent of %s works with keys that the search does not find: %v", n.Name, err)
		}
		for _, place := range slices.Concat(besideKeys(t, n, all), everyAnswer(t, ctx, n, all), commandLines(t, n, all), workerMemory(t, n, identity)) {
			t.Errorf("%s: %s", n.Name, place)
		}
	}
	l.finish(ctx)
	if !emulated() { // workers of ESP have no use for them either
		toDriver(t, ctx, f, "ipsec-userspace")
		for _, n := range f.Nodes[:2] {
			for _, place := range workerMemory(t, n, identity) {
				t.Errorf("%s: %s", n.Name, place)
			}
		}
	}
	for _, n := range f.Nodes[:2] {
		for _, place := range dyingTraces(t, n, all) {
			t.Errorf("%s: %s", n.Name, place)
		}
	}
}

// besideKeys searches all files of a node but those whose content is a secret.
func besideKeys(t *testing.T, n *fleet.Node, keys []hunted) []string {
	t.Helper()
	secret := func(name string) bool {
		return strings.HasSuffix(name, ".key") || strings.HasPrefix(name, "tokens.json") || strings.HasPrefix(name, "access.json")
	}
	var found []string
	files := 0
	err := filepath.WalkDir(filepath.Dir(n.LogPath()), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || filepath.Dir(path) == n.DataDir() && secret(d.Name()) {
			return nil // removed meanwhile, no file, or one that may
		}
		if raw, err := os.ReadFile(path); err == nil {
			files++
			found = append(found, searchIn("file "+path, raw, keys)...)
		}
		return nil
	})
	if err != nil || files < 3 {
		t.Fatalf("search files of %s: %d files, %v", n.Name, files, err)
	}
	return found
}

// everyAnswer asks for everything that can be read from an agent.
func everyAnswer(t *testing.T, ctx context.Context, n *fleet.Node, keys []hunted) []string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(n.RuntimeDir(), "agent.sock"))
		},
	}}
	var found []string
	for _, path := range []string{
		"status", "members", "networks", "endpoints", "tokens", "issuers", "keys", "keys/history", "revocations", "events", "metrics",
	} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v1/"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode == http.StatusNotFound {
			t.Fatalf("%s: %s, %v", path, resp.Status, err)
		}
		found = append(found, searchIn("answer of "+path, body, keys)...)
	}
	return found
}

// commandLines searches what ps shows of a node's programs.
func commandLines(t *testing.T, n *fleet.Node, keys []hunted) []string {
	t.Helper()
	pids, err := n.Host.Processes()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, pid := range pids {
		for _, name := range []string{"cmdline", "environ"} {
			raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
			if err == nil { // else it has ended
				found = append(found, searchIn(fmt.Sprintf("%s of process %d", name, pid), raw, keys)...)
			}
		}
	}
	return found
}

// workerMemory searches the programs beside the agent, which have no use for who
// the node is.
func workerMemory(t *testing.T, n *fleet.Node, keys []hunted) []string {
	t.Helper()
	pids, err := n.Host.Processes()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	workers := 0
	for _, pid := range pids {
		if cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || !strings.Contains(string(cmdline), "\x00worker\x00") && !strings.Contains(string(cmdline), "\x00esp-worker\x00") {
			continue
		}
		workers++
		hits, err := searchMemory(pid, keys)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, hits...)
	}
	if workers == 0 && !emulated() { // else the tunnels are the kernel's
		t.Errorf("%s has no worker: this shows nothing", n.Name)
	}
	return found
}

// dyingTraces has an agent print the traces of all its goroutines, which is what
// a panic prints, and searches its log.
func dyingTraces(t *testing.T, n *fleet.Node, keys []hunted) []string {
	t.Helper()
	if err := syscall.Kill(n.PID(), syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	var raw []byte
	waitUntil(t, t.Context(), 20*time.Second, "traces in the log", func() (bool, error) {
		var err error
		raw, err = os.ReadFile(n.LogPath())
		return !n.Running() && strings.Contains(string(raw), "SIGQUIT: quit"), err
	})
	if count := strings.Count(string(raw), "\ngoroutine "); count < 10 {
		t.Errorf("%s printed traces of %d goroutines: this shows nothing", n.Name, count)
	}
	var forms []hunted
	for _, k := range keys {
		forms = append(forms, inTraces(k))
	}
	return searchIn("traces", raw, forms)
}
