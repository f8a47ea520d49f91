package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
)

// Package is one type-checked package of a tree, without its tests.
type Package struct {
	Dir   string // relative to the root
	Files []*ast.File
	Types *types.Package
	Info  *types.Info
}

// Typed is a tree with types.
type Typed struct {
	*Tree
	Packages []*Package // dependencies first
}

// TypedRule checks a tree with types.
type TypedRule struct {
	Name  string
	Check func(*Typed) []Violation
}

// TypedRules returns the rules that need types.
func TypedRules() []TypedRule {
	return []TypedRule{
		{"secrets", checkSecrets},
		{"xfrmformat", checkXfrmFormat},
		{"noglobalstate", checkNoGlobalState},
	}
}

// Check adds types to a tree. Packages of the module are checked from
// source; all others come from imports.
func Check(t *Tree, imports types.Importer) (*Typed, error) {
	c := &checker{tree: t, imports: imports, byDir: make(map[string][]*ast.File), done: make(map[string]*Package)}
	for _, f := range t.GoFiles() {
		if !f.Test() && forLinux(f) {
			c.byDir[f.Dir()] = append(c.byDir[f.Dir()], f.Go)
		}
	}
	dirs := make([]string, 0, len(c.byDir))
	for dir := range c.byDir {
		dirs = append(dirs, dir)
	}
	slices.Sort(dirs)
	for _, dir := range dirs {
		if _, err := c.check(dir); err != nil {
			return nil, err
		}
	}
	return &Typed{Tree: t, Packages: c.order}, nil
}

// forLinux leaves out files for other systems and for special builds.
func forLinux(f *File) bool {
	if strings.HasSuffix(f.Path, "_other.go") || strings.HasSuffix(f.Path, "_darwin.go") {
		return false
	}
	for _, g := range f.Go.Comments {
		for _, line := range g.List {
			if expr, ok := strings.CutPrefix(line.Text, "//go:build "); ok && line.Pos() < f.Go.Package {
				return expr == "linux"
			}
		}
	}
	return true
}

// checker checks packages in the order of their imports.
type checker struct {
	tree    *Tree
	imports types.Importer
	byDir   map[string][]*ast.File
	done    map[string]*Package
	order   []*Package
}

// Import implements types.Importer.
func (c *checker) Import(p string) (*types.Package, error) {
	dir, ours := strings.CutPrefix(p, ModulePath+"/")
	if !ours {
		return c.imports.Import(p)
	}
	pkg, err := c.check(dir)
	if err != nil {
		return nil, err
	}
	return pkg.Types, nil
}

func (c *checker) check(dir string) (*Package, error) {
	if p, ok := c.done[dir]; ok {
		if p == nil {
			return nil, fmt.Errorf("check %s: import cycle", dir)
		}
		return p, nil
	}
	files := c.byDir[dir]
	if len(files) == 0 {
		return nil, fmt.Errorf("check %s: no such package", dir)
	}
	c.done[dir] = nil
	info := &types.Info{
		Types: make(map[ast.Expr]types.TypeAndValue),
		Uses:  make(map[*ast.Ident]types.Object),
		Defs:  make(map[*ast.Ident]types.Object),
	}
	conf := types.Config{Importer: c}
	tp, err := conf.Check(path.Join(ModulePath, dir), c.tree.Fset, files, info)
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", dir, err)
	}
	p := &Package{Dir: dir, Files: files, Types: tp, Info: info}
	c.done[dir] = p
	c.order = append(c.order, p)
	return p, nil
}

// ExportData returns an importer for all dependencies of the module at root,
// from the go command's build cache. Packages of the module itself may be broken
// (Check says how), so errors of the list are left to the lookups.
func ExportData(root string, fset *token.FileSet) (types.Importer, error) {
	cmd := exec.Command("go", "list", "-e", "-deps", "-export", "-json=ImportPath,Export", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list dependencies: %w: %s", err, stderr.String())
	}
	files := make(map[string]string)
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct{ ImportPath, Export string }
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("list dependencies: %w", err)
		}
		files[p.ImportPath] = p.Export
	}
	lookup := func(p string) (io.ReadCloser, error) {
		if files[p] == "" {
			return nil, fmt.Errorf("no export data for %s", p)
		}
		return os.Open(files[p])
	}
	return importer.ForCompiler(fset, "gc", lookup), nil
}
