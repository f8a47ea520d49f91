package config

import (
	"fmt"
	"slices"
	"strings"
)

// nearest returns the choice closest to got by edit distance, if one is close
// enough that it was probably meant: a third of its length, at least one.
// Letter case, dashes and underscores do not count.
func nearest(got string, choices []string) (string, bool) {
	norm := strings.NewReplacer("-", "", "_", "", ".", "", " ", "")
	fold := func(s string) string { return norm.Replace(strings.ToLower(s)) }
	best, bestDist := "", -1
	for _, c := range choices {
		d := distance(fold(got), fold(c))
		if bestDist < 0 || d < bestDist {
			best, bestDist = c, d
		}
	}
	if bestDist < 0 || bestDist > max(1, (len(fold(best))+1)/3) {
		return "", false
	}
	return best, true
}

// Nearest returns the choice closest to got, or false if none is close
// enough to have been meant. Commands use it for their own suggestions.
func Nearest(got string, choices []string) (string, bool) { return nearest(got, choices) }

// distance is the Levenshtein distance with adjacent transposition counted as
// one edit, over bytes. Long inputs are cut: nobody misspells 64 letters.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}

// choiceHint suggests the nearest of a fixed set of words and lists the set.
func choiceHint(got string, choices []string) string {
	all := "one of " + strings.Join(choices, ", ")
	if c, ok := nearest(got, choices); ok {
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
	if c, ok := nearest(got, names); ok {
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
