package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/nearest"
)

// choiceHint suggests the nearest of a fixed set of words and lists the set.
func choiceHint(got string, choices []string) string {
	all := "one of " + strings.Join(choices, ", ")
	if c, ok := nearest.Of(got, choices); ok {
		return fmt.Sprintf("did you mean %q? %s", c, all)
	}
	return all
}

// keyHint suggests what to write instead of an unknown key: a near key at the
// same level, else the place where a key of that name exists.
func keyHint(parent, got string, siblings []field) string {
	names := make([]string, len(siblings))
	for i, f := range siblings {
		names[i] = f.name
	}
	if c, ok := nearest.Of(got, names); ok {
		return fmt.Sprintf("did you mean %q?", c)
	}
	for _, p := range allPaths() {
		if p != joinPath(parent, got) && (p == got || strings.HasSuffix(p, "."+strings.ToLower(got))) {
			return fmt.Sprintf("there is %q", p)
		}
	}
	slices.Sort(names)
	return "known here: " + strings.Join(names, ", ")
}

// allPaths lists every key of the file, those of a network below networks[].
func allPaths() []string {
	var out []string
	for _, l := range leaves() {
		out = append(out, l.path)
	}
	for _, f := range networkFields() {
		out = append(out, "networks[]."+f.name)
	}
	return out
}

func joinPath(parent, key string) string {
	if parent == "" {
		return key
	}
	return parent + "." + key
}
