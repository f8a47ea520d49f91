package house

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ModulePath is the path of this module, which fixtures under testdata use, too.
const ModulePath = "github.com/secure-overlay/secure-overlay"

// Violation is one place that breaks a rule.
type Violation struct {
	File string // relative to the tree's root, with slashes
	Line int    // 0 if the whole file or folder is meant
	What string // what is wrong and what to do instead
}

// String formats the violation as compilers do.
func (v Violation) String() string {
	if v.Line == 0 {
		return v.File + ": " + v.What
	}
	return fmt.Sprintf("%s:%d: %s", v.File, v.Line, v.What)
}

// File is one committed file of a tree. Go files outside testdata are parsed.
type File struct {
	Path string // relative to the root, with slashes
	Src  []byte
	Go   *ast.File // nil unless the file is Go source to be checked
}

// Dir returns the file's folder relative to the root: the package path
// without the module path. The root is ".".
func (f *File) Dir() string { return path.Dir(f.Path) }

// Test reports whether the file is compiled only for tests.
func (f *File) Test() bool { return strings.HasSuffix(f.Path, "_test.go") }

// Lines returns the number of lines.
func (f *File) Lines() int { return bytes.Count(f.Src, []byte("\n")) }

// Imports returns the file's import paths.
func (f *File) Imports() []string {
	var paths []string
	for _, s := range f.Go.Imports {
		if p, err := strconv.Unquote(s.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

// Tree is the source of one module.
type Tree struct {
	Root  string
	Fset  *token.FileSet
	Files []*File
}

// Load reads the text files under root that belong to the repository: hidden
// folders (but not .ci), build products and binary files are left out.
func Load(root string) (*Tree, error) {
	t := &Tree{Root: root, Fset: token.NewFileSet()}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel != "." && ignoredDir(d.Name(), rel) {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || ignoredFile(d.Name()) {
			return nil
		}
		return t.add(p, filepath.ToSlash(rel))
	})
	if err != nil {
		return nil, fmt.Errorf("load source tree: %w", err)
	}
	return t, nil
}

func ignoredDir(name, rel string) bool {
	return (strings.HasPrefix(name, ".") && name != ".ci") || rel == "bin"
}

// ignoredFile reports build products, as .gitignore has them, and the file
// that a linked work tree has in the place of the folder .git.
func ignoredFile(name string) bool {
	return strings.HasSuffix(name, ".test") || strings.HasSuffix(name, ".out") || name == ".git"
}

func (t *Tree) add(file, rel string) error {
	src, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if bytes.IndexByte(src, 0) >= 0 {
		return nil // binary
	}
	f := &File{Path: rel, Src: src}
	if strings.HasSuffix(rel, ".go") && !slices.Contains(strings.Split(rel, "/"), "testdata") {
		if f.Go, err = parser.ParseFile(t.Fset, rel, src, parser.ParseComments|parser.SkipObjectResolution); err != nil {
			return err
		}
	}
	t.Files = append(t.Files, f)
	return nil
}

// GoFiles returns the files that were parsed.
func (t *Tree) GoFiles() []*File {
	var fs []*File
	for _, f := range t.Files {
		if f.Go != nil {
			fs = append(fs, f)
		}
	}
	return fs
}

// at makes a violation at a position.
func (t *Tree) at(pos token.Pos, format string, args ...any) Violation {
	p := t.Fset.Position(pos)
	return Violation{File: p.Filename, Line: p.Line, What: fmt.Sprintf(format, args...)}
}

// Rule checks a tree.
type Rule struct {
	Name  string // also the name of the folder under testdata with the bad example
	Check func(*Tree) []Violation
}

// Rules returns the rules that need only the syntax.
func Rules() []Rule {
	return []Rule{
		{"imports", checkImports},
		{"confinement", checkConfinement},
		{"docfile", checkDocFile},
		{"documented", checkDocumented},
		{"noinit", checkNoInit},
		{"nosleep", checkNoSleep},
		{"noskip", checkNoSkip},
		{"size", checkSize},
		{"smallinterface", checkSmallInterface},
		{"globalhandle", checkGlobalHandle},
		{"externalprogram", checkExternalProgram},
		{"nolater", checkNoLater},
		{"nomachine", checkNoMachine},
		{"namedtests", checkNamedTests},
	}
}
