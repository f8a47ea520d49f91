package config

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRuntimeDir(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("runtime_dir: /run/file\nnetwroks: []\nlog: {level: loud}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"SECURE_OVERLAY_RUNTIME_DIR=/run/env"}
	for want, src := range map[string]Source{
		"/run/flag":       {Path: path, Env: env, Flags: map[string]string{"runtime-dir": "/run/flag"}},
		"/run/env":        {Path: path, Env: env},
		"/run/file":       {Path: path},
		DefaultRuntimeDir: {Path: path + ".missing"},
	} {
		got, err := RuntimeDir(src)
		if err != nil || got != want {
			t.Errorf("RuntimeDir = %q, %v, want %q", got, err, want)
		}
	}
}
