package vm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
)

// Result is one test of a suite and what it printed. The suite itself is the
// one without a name.
type Result struct {
	Name   string // last part: the subtest's own name
	Action string // pass, fail, skip, or "" if it did not end
	Output string
	Sub    []*Result // in the order of their start
}

// event is what go tool test2json says (go doc test2json).
type event struct {
	Action string
	Test   string
	Output string
}

// Results reads a suite's output. It fails if the output is no test output.
func (o Outcome) Results() (*Result, error) {
	cmd := exec.Command("go", "tool", "test2json", "-p", o.Suite)
	cmd.Stdin = bytes.NewReader(o.Output)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("read output of %s: %w", o.Suite, err)
	}
	all := &Result{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var e event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("read output of %s: %w", o.Suite, err)
		}
		r := all.find(e.Test)
		switch e.Action {
		case "pass", "fail", "skip":
			r.Action = e.Action
		case "output":
			if !strings.HasPrefix(strings.TrimSpace(e.Output), "=== ") {
				r.Output += e.Output
			}
		}
	}
	return all, nil
}

// find returns the result of a test, and makes it if it is new.
func (r *Result) find(name string) *Result {
	if name == "" {
		return r
	}
	first, rest, _ := strings.Cut(name, "/")
	i := slices.IndexFunc(r.Sub, func(s *Result) bool { return s.Name == first })
	if i < 0 {
		r.Sub = append(r.Sub, &Result{Name: first})
		i = len(r.Sub) - 1
	}
	return r.Sub[i].find(rest)
}

// Complaint says what is wrong with a result besides its subtests, or "".
func (r *Result) Complaint() string {
	switch r.Action {
	case "pass":
		return ""
	case "skip":
		return "skipped inside the machine, which has everything that is required"
	case "fail":
		return "failed inside the machine"
	default:
		return "did not end inside the machine"
	}
}
