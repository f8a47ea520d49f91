package house

import (
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
)

// checkDocFile wants a doc.go with a package comment in each package: what it
// owns, what not, its invariants, and where to start reading.
func checkDocFile(t *Tree) []Violation {
	dirs := make(map[string]bool)
	var vs []Violation
	for _, f := range t.GoFiles() {
		dirs[f.Dir()] = dirs[f.Dir()] || path.Base(f.Path) == "doc.go"
		if path.Base(f.Path) != "doc.go" {
			if f.Go.Doc != nil && strings.HasPrefix(f.Go.Doc.Text(), "Package ") {
				vs = append(vs, t.at(f.Go.Doc.Pos(), "package comment outside doc.go"))
			}
			continue
		}
		want := "Package " + f.Go.Name.Name + " "
		if f.Go.Name.Name == "main" {
			want = "Command "
		}
		if f.Go.Doc == nil || !strings.HasPrefix(f.Go.Doc.Text(), want) {
			vs = append(vs, Violation{File: f.Path, What: "the package comment does not begin with " + want})
		}
	}
	for dir, ok := range dirs {
		if !ok {
			vs = append(vs, Violation{File: dir, What: "no doc.go"})
		}
	}
	return vs
}

// checkDocumented wants a comment on every exported type, function, method,
// constant and variable. One comment on a group of constants or variables
// serves the group.
func checkDocumented(t *Tree) []Violation {
	var vs []Violation
	for _, f := range t.GoFiles() {
		if f.Test() {
			continue
		}
		for _, d := range f.Go.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && exportedReceiver(d) && d.Doc == nil {
					vs = append(vs, t.at(d.Pos(), "exported %s has no comment", d.Name.Name))
				}
			case *ast.GenDecl:
				vs = append(vs, undocumentedSpecs(t, d)...)
			}
		}
	}
	return vs
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}

func undocumentedSpecs(t *Tree, d *ast.GenDecl) []Violation {
	if d.Tok == token.IMPORT {
		return nil
	}
	var vs []Violation
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if s.Name.IsExported() && s.Doc == nil && (d.Doc == nil || d.Lparen.IsValid()) {
				vs = append(vs, t.at(s.Pos(), "exported type %s has no comment", s.Name.Name))
			}
		case *ast.ValueSpec:
			exported := slices.ContainsFunc(s.Names, func(n *ast.Ident) bool { return n.IsExported() })
			if exported && s.Doc == nil && s.Comment == nil && d.Doc == nil {
				vs = append(vs, t.at(s.Pos(), "exported %s has no comment, nor has its group", s.Names[0].Name))
			}
		}
	}
	return vs
}
