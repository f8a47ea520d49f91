package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
)

func TestReloadCommand(t *testing.T) {
	changes := []api.ConfigChange{{Key: "log.level", From: "info", To: "debug"}, {Key: "networks[blue]", From: "-", To: "10.77.0.0/16, encrypted, VNI 7"}}
	got := against(t, canned{reloaded: changes}, "reload")
	if got.code != 0 || !strings.Contains(got.out, "log.level") || !strings.Contains(got.out, "10.77.0.0/16, encrypted, VNI 7") {
		t.Errorf("exit code %d\n%s%s", got.code, got.out, got.err)
	}
	if got := against(t, canned{reloaded: []api.ConfigChange{}}, "reload"); got.code != 0 || got.out != "nothing has changed\n" {
		t.Errorf("exit code %d\n%s", got.code, got.out)
	}
	if got := against(t, canned{reloaded: changes}, "reload", "-o", "json"); got.code != 0 || !strings.Contains(got.out, `"key": "log.level"`) {
		t.Errorf("exit code %d\n%s", got.code, got.out)
	}
	if got := against(t, canned{}, "reload"); got.code != 6 || !strings.Contains(got.err, "start it again") {
		t.Errorf("exit code %d\n%s", got.code, got.err)
	}
}

// TestWatch: a file that is written, replaced, or gone for a moment is taken up once
// it stands still, and only then.
func TestWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a")
	var reloads atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	r := newReloading(nil, path, new(slog.LevelVar))
	r.every = 5 * time.Millisecond
	go func() {
		defer close(done)
		r.watch(ctx, slog.New(slog.NewTextHandler(io.Discard, nil)), func(context.Context) (api.Reload, error) {
			reloads.Add(1)
			return api.Reload{}, nil
		})
	}()
	wait := func(what string, n int32) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); reloads.Load() < n; <-time.After(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %d reloads, want %d", what, reloads.Load(), n)
			}
		}
	}
	write("two lines")
	wait("written", 1)
	next := path + ".new"
	if err := os.WriteFile(next, []byte("2 lines.."), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	wait("replaced", 2)
	cancel()
	<-done
	r.loaded(config.Config{Log: config.Log{Level: "debug"}})
	if r.level.Level() != slog.LevelDebug {
		t.Errorf("the level of the log is %v", r.level.Level())
	}
}
