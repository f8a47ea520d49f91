package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// containerEnv makes a copy of the test binary a container runtime: it holds a
// container as JSON.
const containerEnv = "SECURE_OVERLAY_TEST_API_CONTAINER"

// apart are the namespaces that a container has of its own, beside users.
const apart = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS

// container says how a process is shut in, with the socket mounted.
type container struct {
	Spaces uintptr // clone(2)'s flags of its namespaces, beside users
	Users  bool    // it has a user namespace, whose only user is otherUID outside
	UID    int     // inside
	GID    int
	Socket string // of the agent
	Root   string // empty folder; there the socket is mounted
}

// run starts a runtime for the container, whose only process makes every call.
func (c container) run(t *testing.T) map[string]Code {
	t.Helper()
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{containerEnv + "=" + string(raw)}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: c.Spaces}
	return codes(t, cmd)
}

// codes runs a command that ends in child and returns what it printed.
func codes(t *testing.T, cmd *exec.Cmd) map[string]Code {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	raw, err := cmd.Output()
	if err != nil {
		t.Fatalf("child: %v: %s", err, stderr.String())
	}
	var out map[string]Code
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return out
}

// runContainer mounts the socket where the container sees it, hides where it was, and
// runs the container's process.
func runContainer(spec string) int {
	var c container
	err := json.Unmarshal([]byte(spec), &c)
	if err == nil {
		err = c.mount()
	}
	if err == nil {
		err = c.start()
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (c container) inside() string { return filepath.Join(c.Root, "agent.sock") }

func (c container) mount() error {
	// From here on nothing that is mounted is seen by others.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// Numbers of processes are those of the namespace.
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", c.Root, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount a root: %w", err)
	}
	if err := os.WriteFile(c.inside(), nil, 0o600); err != nil {
		return err
	}
	if err := unix.Mount(c.Socket, c.inside(), "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount the socket: %w", err)
	}
	if err := unix.Mount("tmpfs", filepath.Dir(c.Socket), "tmpfs", 0, "mode=0700"); err != nil {
		return fmt.Errorf("hide the socket's folder: %w", err)
	}
	return nil
}

func (c container) start() error {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{childEnv + "=" + c.inside()}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID)}}
	if c.Users {
		// All namespaces anew, so that they belong to the user namespace's root.
		cmd.SysProcAttr.Cloneflags = c.Spaces | unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: c.UID, HostID: otherUID, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: c.GID, HostID: otherGID, Size: 1}}
		cmd.SysProcAttr.GidMappingsEnableSetgroups = true
	}
	return cmd.Run()
}

// anyCall asks for every call that changes something, those to come included, and
// adds the code of each answer.
func anyCall(ctx context.Context, path string, out map[string]Code) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial}}
	defer client.CloseIdleConnections()
	for _, r := range (&Server{}).routes() {
		for method := range r.methods {
			if method == http.MethodGet {
				continue
			}
			name := method + " " + r.path
			req, err := http.NewRequestWithContext(ctx, method, "http://agent"+strings.ReplaceAll(r.path, "{id}", "x"), strings.NewReader("{}"))
			if err != nil {
				out[name] = CodeFailed
				continue
			}
			resp, err := client.Do(req)
			if err != nil {
				out[name] = CodeNotRunning
				continue
			}
			var f failure
			_ = json.NewDecoder(resp.Body).Decode(&f) // of an answer without error nothing is left
			_ = resp.Body.Close()
			out[name] = "ok"
			if f.Error != nil {
				out[name] = f.Error.Code
			}
		}
	}
}

// wantChanges asserts that each call of anyCall was refused for want of permission,
// or that none was.
func wantChanges(t *testing.T, got map[string]Code, refused bool) {
	t.Helper()
	n := 0
	for call, code := range got {
		if !strings.Contains(call, " /") {
			continue
		}
		if n++; (code == CodePermission) != refused || code == CodeNotRunning {
			t.Errorf("%s: %s; want it refused: %v", call, code, refused)
		}
	}
	if n < 10 {
		t.Errorf("only %d calls were tried", n)
	}
}

// TestContainersMayNotChange mounts the socket into containers of every kind, where
// its file may be opened: they can read, and change nothing. Root in namespaces of
// its own but in the agent's for processes is no container, and the control.
func TestContainersMayNotChange(t *testing.T) {
	netlab.Require(t, netlab.FeatureNetns)
	f := newFake()
	path, _, _ := start(t, f)
	if err := os.Chown(path, -1, otherGID); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]container{
		"uid 1000":                    {Spaces: apart, UID: otherUID, GID: otherGID},
		"uid 1000, user namespace":    {Spaces: apart, UID: otherUID, GID: otherGID, Users: true},
		"root of a user namespace":    {Spaces: apart, Users: true},
		"root of the host":            {Spaces: apart},
		"root, only processes":        {Spaces: unix.CLONE_NEWNS | unix.CLONE_NEWPID},
		"user namespace's root, near": {Spaces: unix.CLONE_NEWNS, Users: true},
	} {
		t.Run(name, func(t *testing.T) {
			before := f.changes()
			c.Socket, c.Root = path, publicDir(t)
			got := c.run(t)
			for _, call := range reads() {
				if got[call] != "ok" {
					t.Errorf("%s: %s, want ok", call, got[call])
				}
			}
			for _, call := range changes() {
				if got[call] != CodePermission {
					t.Errorf("%s: %s, want %s", call, got[call], CodePermission)
				}
			}
			wantChanges(t, got, true)
			if n := f.changes() - before; n != 0 {
				t.Errorf("%d calls reached the agent", n)
			}
		})
	}
	c := container{Spaces: apart &^ unix.CLONE_NEWPID, Socket: path, Root: publicDir(t)}
	wantChanges(t, c.run(t), false)
	if f.changes() == 0 {
		t.Error("control: no call of root reached the agent")
	}
}
