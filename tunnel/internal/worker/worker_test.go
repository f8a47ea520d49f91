package worker

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// The test binary is also the worker, if its first argument says so.
const workerWord = "worker"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == workerWord {
		work(os.Args[2], os.Args[3:])
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// work is the worker: what it does and says is its first argument.
func work(do string, args []string) {
	ready := os.NewFile(3, "ready")
	switch do {
	case "listen":
		l, err := net.Listen("unix", args[0])
		Report(ready, err)
		for err == nil {
			var c net.Conn
			if c, err = l.Accept(); err == nil {
				_ = c.Close()
			}
		}
	case "refuse":
		Report(ready, errors.New("no such thing"))
	case "busy":
		Report(ready, unix.EADDRINUSE)
	case "hang":
		select {}
	case "file": // it is open before the pipe
		said, _ := io.ReadAll(ready)
		Report(os.NewFile(4, "ready"), errors.New(string(said)))
	}
}

func command(t *testing.T, args ...string) Command {
	t.Helper()
	netlab.Require(t, netlab.FeatureNetns)
	host, err := nl.CurrentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = host.Close() })
	return Command{
		Argv: append([]string{"/proc/self/exe", workerWord}, args...), Host: host, Log: filepath.Join(t.TempDir(), "log"),
	}
}

// TestWorker starts a worker, finds it by its socket, and ends it.
func TestWorker(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "worker.sock")
	if _, err := Find(socket); !errors.Is(err, ErrNone) {
		t.Errorf("before it is started: %v", err)
	}
	pid, err := command(t, "listen", socket).Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	children := Children{pid: true}
	if children.Reap(); len(children) != 1 {
		t.Error("a worker that lives was collected")
	}
	p, err := Find(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.PID != pid || !p.Carries(socket) || p.Carries("--another") {
		t.Errorf("found process %d, started %d", p.PID, pid)
	}
	p.Signal(unix.SIGTERM)
	if err := p.End(t.Context()); err != nil {
		t.Error(err)
	}
	if children.Reap(); len(children) != 0 {
		t.Error("a worker that has ended is still there")
	}
	if _, err := Find(socket); !errors.Is(err, ErrNone) {
		t.Errorf("after its end: %v", err)
	}
}

// TestNotReady: a worker that does not become ready is an error with its
// reason, and no process.
func TestNotReady(t *testing.T) {
	for do, want := range map[string]string{
		"refuse": "no such thing", "busy": "address already in use", "die": "ended before", "hang": "timeout", "file": "hello",
	} {
		t.Run(do, func(t *testing.T) {
			c := command(t, do)
			if do == "file" {
				c.Files = []*os.File{fileWith(t, want)}
			}
			ctx, patience := t.Context(), 30*time.Second
			if do == "hang" {
				patience = 100 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			pid, err := c.Start(ctx)
			if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, unix.EADDRINUSE) != (do == "busy") || pid != 0 {
				t.Errorf("process %d, %v; want %s", pid, err, want)
			}
			if _, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
				t.Errorf("a child is left: %v", err)
			}
		})
	}
	c := command(t)
	c.Argv = []string{filepath.Join(t.TempDir(), "none")}
	if _, err := c.Start(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a program that is not there: %v", err)
	}
}

func fileWith(t *testing.T, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestFlags: what a worker does not understand is an error, which nobody
// prints.
func TestFlags(t *testing.T) {
	f := Flags()
	port := f.Uint("port", 0, "")
	if err := f.Parse([]string{"--port=7"}); err != nil || *port != 7 {
		t.Errorf("port %d, %v", *port, err)
	}
	if err := f.Parse([]string{"--prot=7"}); err == nil || f.Output() != io.Discard {
		t.Errorf("an unknown parameter: %v, printed to %v", err, f.Output())
	}
}
