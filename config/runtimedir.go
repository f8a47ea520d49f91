package config

import (
	"errors"
	"os"
	"strings"
)

// RuntimeDir finds the runtime directory for a command that talks to a
// running agent. It reads this one key only, from flag, environment, file or
// default: a file that was broken after the agent started must keep nobody
// from asking the agent or stopping it. A missing file is no error.
func RuntimeDir(src Source) (string, error) {
	if dir := src.Flags["runtime-dir"]; dir != "" {
		return dir, nil
	}
	name := leaf{path: "runtime_dir"}.env()
	for _, kv := range src.Env {
		if k, v, _ := strings.Cut(kv, "="); k == name && v != "" {
			return v, nil
		}
	}
	if src.Path == "" {
		return DefaultRuntimeDir, nil
	}
	data, _, err := readFile(src.Path)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return DefaultRuntimeDir, nil
	case err != nil:
		return "", err
	}
	if dir, ok := parseDocument(src.Path, data).tree["runtime_dir"].(string); ok {
		return dir, nil
	}
	return DefaultRuntimeDir, nil
}
