package house

import (
	"go/ast"
	"reflect"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

const (
	maxFileLines     = 500 // aim at 300
	maxFunctionLines = 80  // aim at 50; tests are exempt: they may hold tables
	maxMethods       = 4   // of an interface
)

// checkNoInit forbids init functions: nothing happens by being imported.
func checkNoInit(t *Tree) []Violation {
	var vs []Violation
	for _, f := range t.GoFiles() {
		for _, d := range f.Go.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				vs = append(vs, t.at(fn.Pos(), "init function: let main or a constructor call it"))
			}
		}
	}
	return vs
}

// checkNoSleep forbids sleeping: a test that sleeps is slow or flaky or both,
// and a loop that sleeps cannot be stopped.
func checkNoSleep(t *Tree) []Violation {
	return selectors(t, func(f *File, pkg, name string) string {
		if pkg == "time" && name == "Sleep" {
			return "time.Sleep: wait on a condition with a deadline, or on a timer and a context"
		}
		return ""
	})
}

// checkNoSkip forbids a test to skip itself other than by netlab.Require,
// which knows where the skip would be a hole.
func checkNoSkip(t *Tree) []Violation {
	return selectors(t, func(f *File, recv, name string) string {
		if f.Path == "test/netlab/require.go" || f.Path == "test/netlab/require_test.go" {
			return ""
		}
		switch name {
		case "Skip", "Skipf", "SkipNow":
			if recv == "t" || recv == "b" || recv == "f" || recv == "tb" || recv == "ts" || recv == "h" {
				return recv + "." + name + ": use netlab.Require"
			}
		}
		return ""
	})
}

// checkExternalProgram forbids the product to run other programs by name: it
// needs root and nothing else. The one exception is the own binary, started
// again as a worker, which exec.Command is given by os.Executable.
func checkExternalProgram(t *Tree) []Violation {
	var vs []Violation
	for _, f := range t.GoFiles() {
		if f.Test() || within(f.Dir(), []string{"test"}) {
			continue
		}
		ast.Inspect(f.Go, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			pkg, name := selector(call.Fun)
			if pkg != "exec" || (name != "Command" && name != "CommandContext" && name != "LookPath") {
				return true
			}
			program := 0
			if name == "CommandContext" {
				program = 1
			}
			if len(call.Args) > program {
				if lit, ok := call.Args[program].(*ast.BasicLit); ok {
					vs = append(vs, t.at(lit.Pos(), "runs the program %s: the product calls no external program", lit.Value))
				}
			}
			return true
		})
	}
	return vs
}

// selectors reports every x.Name for which check returns a complaint; recv is
// the identifier x.
func selectors(t *Tree, check func(f *File, recv, name string) string) []Violation {
	var vs []Violation
	for _, f := range t.GoFiles() {
		ast.Inspect(f.Go, func(n ast.Node) bool {
			e, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			if recv, name := selector(e); recv != "" {
				if what := check(f, recv, name); what != "" {
					vs = append(vs, t.at(n.Pos(), "%s", what))
				}
			}
			return true
		})
	}
	return vs
}

// selector splits x.Name with an identifier x; otherwise it returns "".
func selector(e ast.Expr) (recv, name string) {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	x, ok := s.X.(*ast.Ident)
	if !ok {
		return "", ""
	}
	return x.Name, s.Sel.Name
}

// checkSize keeps files and functions short enough to be read at once.
func checkSize(t *Tree) []Violation {
	var vs []Violation
	for _, f := range t.GoFiles() {
		if n := f.Lines(); n > maxFileLines {
			vs = append(vs, Violation{File: f.Path, What: "too long: split it by responsibility"})
		}
		if f.Test() {
			continue
		}
		for _, d := range f.Go.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := t.Fset.Position(fn.End()).Line - t.Fset.Position(fn.Pos()).Line + 1; n > maxFunctionLines {
				vs = append(vs, t.at(fn.Pos(), "function %s has %d lines, at most %d", fn.Name.Name, n, maxFunctionLines))
			}
		}
	}
	return vs
}

// checkSmallInterface keeps interfaces small enough to be faked in a test.
func checkSmallInterface(t *Tree) []Violation {
	var vs []Violation
	for _, f := range t.GoFiles() {
		ast.Inspect(f.Go, func(n ast.Node) bool {
			if i, ok := n.(*ast.InterfaceType); ok && i.Methods.NumFields() > maxMethods {
				vs = append(vs, t.at(i.Pos(), "interface with %d methods, at most %d", i.Methods.NumFields(), maxMethods))
			}
			return true
		})
	}
	return vs
}

// checkGlobalHandle forbids the package-level functions of the netlink
// library outside internal/nl: they talk to whatever namespace the current
// thread is in, and their dumps are not retried when the kernel interrupts
// them. Each is also a method of the handle, which is how they are known here.
func checkGlobalHandle(t *Tree) []Violation {
	methods := make(map[string]bool)
	for m := range reflect.TypeFor[*nl.Handle]().Methods() {
		methods[m.Name] = true
	}
	const lib = `"github.com/vishvananda/netlink"`
	return selectors(t, func(f *File, pkg, name string) string {
		if within(f.Dir(), []string{"internal/nl"}) || !methods[name] {
			return ""
		}
		for _, imp := range f.Go.Imports {
			alias := "netlink"
			if imp.Name != nil {
				alias = imp.Name.Name
			}
			if imp.Path.Value == lib && alias == pkg {
				return strings.Join([]string{pkg, name}, ".") + ": use a handle of internal/nl, bound to one namespace"
			}
		}
		return ""
	})
}
