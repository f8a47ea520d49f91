package house

import (
	"flag"
	"fmt"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the violations found in testdata to the want.txt files")

const root = "../.."

// TestHouse applies every rule to this module.
func TestHouse(t *testing.T) {
	tree, err := Load(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.GoFiles()) < 20 {
		t.Fatalf("only %d Go files found", len(tree.GoFiles()))
	}
	for _, r := range Rules() {
		t.Run(r.Name, func(t *testing.T) { report(t, r.Check(tree)) })
	}
	imports, err := ExportData(root, tree.Fset)
	if err != nil {
		t.Fatal(err)
	}
	typed, err := Check(tree, imports)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range TypedRules() {
		t.Run(r.Name, func(t *testing.T) { report(t, r.Check(typed)) })
	}
}

func report(t *testing.T, vs []Violation) {
	t.Helper()
	for _, line := range sorted(vs) {
		t.Error(line)
	}
}

func sorted(vs []Violation) []string {
	var lines []string
	for _, v := range vs {
		lines = append(lines, v.String())
	}
	slices.Sort(lines)
	return lines
}

// TestRulesFire applies each rule to its bad example, and compares what it
// finds with want.txt: a rule that cannot fail protects nothing. The examples
// also hold code that is right, which must not be reported.
func TestRulesFire(t *testing.T) {
	for _, r := range Rules() {
		t.Run(r.Name, func(t *testing.T) {
			tree := loadExample(t, r.Name)
			compare(t, r.Name, r.Check(tree))
		})
	}
	for _, r := range TypedRules() {
		t.Run(r.Name, func(t *testing.T) {
			tree := loadExample(t, r.Name)
			typed, err := Check(tree, stubs{})
			if err != nil {
				t.Fatal(err)
			}
			compare(t, r.Name, r.Check(typed))
		})
	}
}

// loadExample reads a bad example. Its files end in .go.txt, so that neither
// the go command nor gofmt nor an editor takes them for code of the module.
func loadExample(t *testing.T, rule string) *Tree {
	t.Helper()
	dst := t.TempDir()
	src := filepath.Join("testdata", rule)
	err := filepath.WalkDir(src, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "want.txt" {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		raw, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		// The repository names no machine's path or proxy, not even as a bad
		// example: braces keep the pieces apart.
		raw = []byte(strings.NewReplacer("{/}", "/", "{.}", ".").Replace(string(raw)))
		to := filepath.Join(dst, strings.TrimSuffix(rel, ".txt"))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		return os.WriteFile(to, raw, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	tree, err := Load(dst)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func compare(t *testing.T, rule string, vs []Violation) {
	t.Helper()
	if len(vs) == 0 {
		t.Fatal("the rule finds nothing wrong with its bad example")
	}
	got := strings.Join(sorted(vs), "\n") + "\n"
	file := filepath.Join("testdata", rule, "want.txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("violations (-want +got):\n%s", diff)
	}
}

// stubs stands for the libraries that a bad example imports: it knows the few
// types the examples need.
type stubs struct{}

// Import implements types.Importer.
func (stubs) Import(p string) (*types.Package, error) {
	pkg := types.NewPackage(p, filepath.Base(p))
	name := map[string]string{"github.com/vishvananda/netlink": "XfrmState", "sync": "Mutex"}[p]
	if name == "" {
		return nil, fmt.Errorf("no stub for %s", p)
	}
	obj := types.NewTypeName(token.NoPos, pkg, name, nil)
	types.NewNamed(obj, types.NewStruct(nil, nil), nil)
	pkg.Scope().Insert(obj)
	pkg.MarkComplete()
	return pkg, nil
}
