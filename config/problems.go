package config

import (
	"fmt"
	"strings"
)

// Problem is one thing wrong with a configuration.
type Problem struct {
	File string `json:"file,omitempty"` // empty if the value came from env or flag
	Line int    `json:"line,omitempty"` // 1-based; 0 if unknown
	Key  string `json:"key,omitempty"`  // path such as networks[1].subnets[0], or NAME of a variable, or --flag
	// Problem says what is wrong, in lower case, with the offending value.
	Problem string `json:"problem"`
	// Hint is the nearest valid choice or the way out; may be empty.
	Hint string `json:"hint,omitempty"`
}

// String returns the one-line form: file:line: key: problem (hint).
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Problem)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return b.String()
}

// Problems is the error that Load returns: everything that is wrong, sorted
// by file position, never only the first.
type Problems struct {
	List []Problem
}

// Error returns one line for each problem.
func (p *Problems) Error() string {
	lines := make([]string, len(p.List))
	for i, q := range p.List {
		lines[i] = q.String()
	}
	return strings.Join(lines, "\n")
}
