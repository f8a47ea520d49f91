package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// binary builds the command: the userspace driver starts it by the name that
// it runs under, so the test binary cannot stand in for it.
func binary(t *testing.T) string {
	t.Helper()
	if bin := os.Getenv("SECURE_OVERLAY_BIN"); bin != "" {
		return bin
	}
	path := filepath.Join(t.TempDir(), "secure-overlay")
	if out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// machine is a host of a lab on which commands are run.
type machine struct {
	t    *testing.T
	bin  string
	host *netlab.Host
	dir  string
}

// result is what a command did.
type result struct {
	out, err string
	code     int
}

func (m machine) command(ctx context.Context, args ...string) *netlab.Cmd {
	cmd := m.host.Command(ctx, m.bin, args...)
	cmd.Env = append(os.Environ(), "SECURE_OVERLAY_CONFIG="+m.dir+"/config.yaml")
	return cmd
}

func (m machine) run(args ...string) result {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second) // also used in clean-up
	defer cancel()
	cmd := m.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatalf("%v: %v", args, err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// want runs a command and checks exit code and a part of what it prints.
func (m machine) want(code int, text string, args ...string) result {
	m.t.Helper()
	r := m.run(args...)
	if r.code != code || !strings.Contains(r.out+r.err, text) {
		m.t.Fatalf("%v: exit code %d, want %d with %q\n%s%s", args, r.code, code, text, r.out, r.err)
	}
	return r
}

func newMachine(t *testing.T, bin string) machine {
	t.Helper()
	lab, err := netlab.New("cli")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	host, err := lab.Host("one")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m := machine{t, bin, host, dir}
	m.want(0, "wrote  identity", "init", "--name", "one", "--data-dir", dir+"/data", "--runtime-dir", dir+"/run")
	return m
}

func TestAgentCommands(t *testing.T) {
	netlab.Require(t, "netns")
	bin := binary(t)
	for name, test := range map[string]func(*testing.T, machine){
		"detached": detachedLifecycle, "failure": detachReportsFailure, "foreground": foreground, "json": foregroundJSON,
		"leave": leaveAlone, "leave without agent": leaveOffline,
	} {
		t.Run(name, func(t *testing.T) { test(t, newMachine(t, bin)) })
	}
}

// One agent from the first to the last command, in the background.
func detachedLifecycle(t *testing.T, m machine) {
	up := m.want(0, "agent running", "up", "--detach", "--metrics-listen", "127.0.0.1:9947")
	t.Cleanup(func() { m.run("down", "--yes") })
	if !strings.Contains(up.err, "ok    network blue") {
		t.Errorf("no checklist:\n%s", up.err)
	}
	m.want(6, "already running", "up", "--detach")
	m.want(6, "already running", "up")
	st := m.want(0, "", "status", "-o", "json")
	var status api.Status
	if err := json.Unmarshal([]byte(st.out), &status); err != nil || status.Schema != 1 || !status.Ready || len(status.Networks) != 1 {
		t.Fatalf("status: %v\n%s", err, st.out)
	}
	for line := range strings.Lines(m.want(0, "blue", "status").out) {
		if strings.Contains(line, "blue") && len([]rune(strings.TrimSpace(line))) > 80 {
			t.Errorf("row wider than 80 columns: %q", line)
		}
	}
	if got := m.want(0, "blue", "__complete", "network", "inspect", "").out; !strings.HasPrefix(got, "blue\n") {
		t.Errorf("completion: %q", got)
	}
	m.want(5, `did you mean "blue"?`, "network", "inspect", "bleu")
	tok := m.want(0, "SO1", "token", "create", "--seed", "198.51.100.1:7946")
	if strings.Count(tok.out, "\n") != 1 || !strings.HasPrefix(tok.out, "SO1") {
		t.Errorf("standard output is not the token alone: %q", tok.out)
	}
	m.want(0, "open", "token", "ls")

	// A new node with the agent's address instead of the token's.
	addr := m.host.Addr().String() + ":7946"
	second := []string{"join", strings.TrimSpace(tok.out), "-c", m.dir + "/two.yaml", "--data-dir", m.dir + "/data2", "--runtime-dir", m.dir + "/run2", "--name", "two"}
	m.want(0, "joined cluster", append(second, "--seeds", addr)...)
	m.want(6, "exists already", append(second, "--seeds", addr)...)
	m.want(0, "two", "token", "ls")

	if got := m.want(0, "", "metrics").out; !strings.Contains(got, "\nsecure_overlay_network_encrypted{network=\"blue\"} 1\n") {
		t.Errorf("metrics: %.500s", got)
	}
	if got := m.get("127.0.0.1:9947", "/metrics"); !strings.Contains(got, "\nsecure_overlay_build_info{") {
		t.Errorf("metrics over TCP: %.500s", got)
	}
	if got := m.want(0, "", "events", "-o", "jsonl").out; strings.Count(got, "\n") < 1 || !strings.Contains(got, `"kind":"agent-started"`) {
		t.Errorf("events: %s", got)
	}

	m.want(0, "removed  network blue", "down", "--yes")
	m.want(3, "no agent is running", "status")
	m.want(0, "nothing to remove", "down")
	if pids, err := m.host.Processes(); err != nil || len(pids) != 0 {
		t.Errorf("processes after down: %v, %v", pids, err)
	}
	raw, err := os.ReadFile(m.dir + "/data/events.jsonl")
	if err != nil || !strings.Contains(string(raw), `"kind":"agent-stopped"`) {
		t.Errorf("event log after down: %v\n%s", err, raw)
	}
}

// holds lists the files of the node's data directory.
func (m machine) holds() string {
	m.t.Helper()
	entries, err := os.ReadDir(m.dir + "/data")
	if err != nil {
		m.t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// The last node of a cluster leaves: only if told that it takes the issuer along.
func leaveAlone(t *testing.T, m machine) {
	t.Cleanup(func() { m.run("down", "--yes") })
	m.want(0, "agent running", "up", "--detach")
	m.want(6, "only issuer key", "leave")
	m.want(0, "removed  network blue", "leave", "--force", "--yes")
	m.want(3, "no agent is running", "status")
	if got := m.holds(); got != "events.jsonl lock root.key" {
		t.Errorf("the data directory holds %s", got)
	}
	if pids, err := m.host.Processes(); err != nil || len(pids) != 0 {
		t.Errorf("processes afterwards: %v, %v", pids, err)
	}
	m.want(0, "nothing to leave", "leave")
	m.want(1, "belongs to no cluster", "up")
}

// A node whose agent does not run leaves by force; one that was interrupted at the
// very end, without.
func leaveOffline(t *testing.T, m machine) {
	t.Cleanup(func() { m.run("down", "--yes") })
	all := m.holds()
	m.want(3, "nobody can be told that one leaves", "leave")
	m.want(3, "leave --force, and on another node secure-overlay revoke ", "leave", "--yes")
	if got := m.holds(); got != all {
		t.Errorf("a refusal changes the data directory: %s", got)
	}
	mark := func(text string) {
		if err := os.WriteFile(m.dir+"/data/left", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mark("so-left:1767225600 telling\n") // the others may not know
	m.want(3, "nobody can be told", "leave")
	saved := t.TempDir()
	if err := os.CopyFS(saved, os.DirFS(m.dir+"/data")); err != nil {
		t.Fatal(err)
	}
	mark("so-left:1767225600 ending\n")
	m.want(6, "fix: secure-overlay leave", "up")
	m.want(0, "removed  keys and state", "leave")
	if got := m.holds(); got != "lock root.key" {
		t.Errorf("after an interrupted leave: %s", got)
	}
	// The state before, and an agent that left something in the kernel.
	if err := os.RemoveAll(m.dir + "/data"); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(m.dir+"/data", os.DirFS(saved)); err != nil {
		t.Fatal(err)
	}
	for _, e := range strings.Fields(m.holds()) {
		if err := os.Chmod(m.dir+"/data/"+e, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(m.dir+"/data", 0o700); err != nil {
		t.Fatal(err)
	}
	m.want(0, "agent running", "up", "--detach")
	var status api.Status
	if err := json.Unmarshal([]byte(m.want(4, "node-left", "status", "-o", "json").out), &status); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(status.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); m.run("status").code != 3; {
		if time.Now().After(deadline) {
			t.Fatal("the agent survives SIGKILL")
		}
	}
	m.want(4, "no other node was told", "leave", "--force", "--yes")
	if got := m.holds(); got != "events.jsonl lock root.key" {
		t.Errorf("after a forced leave: %s", got)
	}
	if pids, err := m.host.Processes(); err != nil || len(pids) != 0 {
		t.Errorf("processes afterwards: %v, %v", pids, err)
	}
}

// get asks a server of the machine over HTTP.
func (m machine) get(addr, path string) string {
	m.t.Helper()
	var conn net.Conn
	if err := m.host.NS().Do(func() (err error) { conn, err = net.Dial("tcp", addr); return err }); err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		m.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.0\r\nHost: "+addr+"\r\n\r\n"); err != nil {
		m.t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(answer)
}

// The background agent's failure is the waiting command's failure.
func detachReportsFailure(t *testing.T, m machine) {
	var busy net.Listener
	if err := m.host.NS().Do(func() (err error) { busy, err = net.Listen("tcp", "[::]:7946"); return err }); err != nil {
		t.Fatal(err)
	}
	r := m.run("up", "--detach")
	_ = busy.Close()
	if r.code == 0 || !strings.Contains(r.err, "address already in use") {
		t.Errorf("port in use: exit code %d\n%s%s", r.code, r.out, r.err)
	}
	if pids, err := m.host.Processes(); err != nil || len(pids) != 0 {
		t.Errorf("processes after the failure: %v, %v", pids, err)
	}
	m.want(0, "", "down", "--yes")
}

// In the foreground a signal ends the agent, and the networks stay.
func foreground(t *testing.T, m machine) {
	t.Cleanup(func() { m.run("down", "--yes") })
	cmd := m.command(t.Context(), "up")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	buf := make([]byte, 4096)
	signalled := false
	for {
		n, err := stderr.Read(buf)
		seen.Write(buf[:n])
		if !signalled && strings.Contains(seen.String(), "ask it with: secure-overlay status") {
			signalled = true
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil || !signalled {
		t.Fatalf("up: %v\n%s", err, seen.String())
	}
	text := seen.String()
	if !strings.Contains(text, "the networks stay up") {
		t.Errorf("no word about what stays:\n%s", text)
	}
	if first := strings.Index(text, "level=INFO"); first >= 0 && first < strings.Index(text, "ready  ") {
		t.Errorf("log lines inside the checklist:\n%s", text)
	}
	m.want(3, "no agent is running", "status")
	m.want(0, "removed  network blue", "down", "--yes")
}

// JSON logs are for a program: no checklist among them.
func foregroundJSON(t *testing.T, m machine) {
	t.Cleanup(func() { m.run("down", "--yes") })
	cmd := m.command(t.Context(), "up", "--log-format", "json")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(stderr)
	ready := false
	for {
		var line map[string]any
		if err := dec.Decode(&line); err != nil {
			break
		}
		if line["msg"] == "agent ready" && !ready {
			ready = true
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = cmd.Wait()
	if !ready || err != nil {
		t.Errorf("ready %v, ended with %v", ready, err)
	}
}
