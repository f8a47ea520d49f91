package house

import (
	"bytes"
	"go/ast"
	"regexp"
	"strings"
)

// namedTest is how a document names a test: `folder.TestName`.
var namedTest = regexp.MustCompile("`([a-z][a-z0-9/]*)\\.(Test[A-Za-z0-9_]+)`")

// checkNamedTests wants every test that a document names to exist: a promise
// must not rest on a test that was renamed or removed.
func checkNamedTests(t *Tree) []Violation {
	have := make(map[string]bool)
	for _, f := range t.GoFiles() {
		if !f.Test() {
			continue
		}
		for _, d := range f.Go.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				have[f.Dir()+"."+fn.Name.Name] = true
			}
		}
	}
	var vs []Violation
	for _, f := range t.Files {
		if !strings.HasSuffix(f.Path, ".md") {
			continue
		}
		for i, line := range bytes.Split(f.Src, []byte("\n")) {
			for _, m := range namedTest.FindAllSubmatch(line, -1) {
				if name := string(m[1]) + "." + string(m[2]); !have[name] {
					vs = append(vs, Violation{File: f.Path, Line: i + 1, What: "there is no test " + name})
				}
			}
		}
	}
	return vs
}
