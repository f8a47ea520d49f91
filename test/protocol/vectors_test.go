package protocol

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const example = "# Title\n\n```vectors one\na = 00\nlong = 01\n  02\n```\n\n```sh\nx = y\n```\n\n```vectors two\nb = text\n```\n"

func TestParse(t *testing.T) {
	got, err := Parse([]byte(example))
	want := []Block{{"one", []Line{{"a", "00"}, {"long", "0102"}}}, {"two", []Line{{"b", "text"}}}}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("Parse: %v\n%s", err, d)
	}
	for _, bad := range []string{
		"```vectors a\nx = 1\n", "```vectors a\n  1\n```", "```vectors a\nx=1\n```", "```vectors a\nx = 1\nx = 2\n```",
		"```vectors a\n```\n```vectors a\n```", "```vectors a\nx y = 1\n```", "```vectors a\n\n```",
	} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("Parse(%q) succeeded", bad)
		}
	}
}

func TestFormat(t *testing.T) {
	for _, n := range []int{0, 1, width - 4, width - 3, width, 3 * width} {
		b := Block{"b", []Line{{"x", strings.Repeat("7", n)}, {"y", "1"}}}
		got, err := Parse([]byte(b.format()))
		if d := cmp.Diff([]Block{b}, got); err != nil || d != "" {
			t.Errorf("value of %d characters: %v\n%s", n, err, d)
		}
	}
}

func TestCompare(t *testing.T) {
	for _, c := range []struct {
		block    string
		have     map[string]string
		problems int
		changed  string
	}{
		{"one", map[string]string{"a": "00", "long": "0102", "more": "ff"}, 0, strings.Replace(example, "01\n  02", "0102", 1)},
		{"one", map[string]string{"a": "01", "long": "0102"}, 1, strings.NewReplacer("a = 00", "a = 01", "01\n  02", "0102").Replace(example)},
		{"one", map[string]string{"a": "00"}, 1, ""},
		{"two", map[string]string{"b": "text"}, 0, example},
		{"three", nil, 1, ""},
	} {
		changed, problems := compare([]byte(example), c.block, c.have)
		if len(problems) != c.problems {
			t.Errorf("%s, %v: %d problems: %q", c.block, c.have, len(problems), problems)
		}
		if d := cmp.Diff(c.changed, string(changed)); d != "" {
			t.Errorf("%s, %v: rewritten (-want +have):\n%s", c.block, c.have, d)
		}
	}
}

// TestEveryBlockIsChecked fails for a block of the document that no test of
// this module compares with its code.
func TestEveryBlockIsChecked(t *testing.T) {
	path, err := find()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := Parse(doc)
	if err != nil {
		t.Fatal(err)
	}
	if len(blocks) == 0 {
		t.Errorf("%s has no vectors", document)
	}
	var tests strings.Builder
	err = filepath.WalkDir(filepath.Dir(path), func(p string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(p, "_test.go") {
			return err
		}
		b, err := os.ReadFile(p)
		tests.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocks {
		if !strings.Contains(tests.String(), `protocol.Check(t, "`+b.Name+`", `) {
			t.Errorf("no test checks the vectors %q of %s", b.Name, document)
		}
		if len(b.Lines) == 0 {
			t.Errorf("vectors %q of %s are empty", b.Name, document)
		}
	}
}
