package house

import (
	"bytes"
	"regexp"
	"strings"
)

// The patterns are put together from halves, so that this file does not break
// the rules that it states.
var (
	laterRE   = regexp.MustCompile(`\b(` + strings.Join([]string{"TO" + "DO", "FIX" + "ME", "X" + "XX"}, "|") + `)\b`)
	machineRE = regexp.MustCompile(`(?:^|[^\w.\-/])/(?:` + strings.Join([]string{"wo" + "rk", "ro" + "ot"}, "|") + `)/`)
	// Hosts of private registries and proxies give themselves away by these
	// words in a URL or host name; the public ones need no mention either.
	proxyRE = regexp.MustCompile(`(?i)\b(?:[a-z0-9-]+\.)*(?:artifactory|nexus|goproxy|proxy|registry|mirror)[a-z0-9-]*(?:\.[a-z0-9-]+)+\.(?:com|net|org|io|internal|local|corp)\b`)
)

// checkNoLater forbids notes to a later self: what is missing is an issue,
// what is wrong gets repaired.
func checkNoLater(t *Tree) []Violation {
	return grep(t, laterRE, "a note for later: repair it or open an issue")
}

// checkNoMachine keeps the machine that somebody works on out of the repository.
func checkNoMachine(t *Tree) []Violation {
	return append(grep(t, machineRE, "names a path of one machine"),
		grep(t, proxyRE, "names the host of a registry or proxy")...)
}

// grep reports every line of every text file that matches. Bad examples are
// exempt, and checksums, which are random text.
func grep(t *Tree, re *regexp.Regexp, what string) []Violation {
	var vs []Violation
	for _, f := range t.Files {
		if strings.HasPrefix(f.Path, "test/house/testdata/") || f.Path == "go.sum" {
			continue
		}
		for i, line := range bytes.Split(f.Src, []byte("\n")) {
			if re.Match(line) {
				vs = append(vs, Violation{File: f.Path, Line: i + 1, What: what})
			}
		}
	}
	return vs
}
