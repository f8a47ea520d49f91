package house

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"strings"
)

// checkSecrets forbids that a type of package api leads to a secret: what the
// control socket can say, a log or a support ticket will contain one day.
// Every named type of the package is followed, exported or not, through
// fields, elements, methods' parameters and results, so a new type cannot be
// forgotten. A secret is any type of keys (or below) that has an Expose method.
func checkSecrets(t *Typed) []Violation {
	var vs []Violation
	secrets := 0
	for _, p := range t.Packages {
		switch {
		case within(p.Dir, []string{"keys"}):
			for _, name := range p.Types.Scope().Names() {
				if n := namedType(p.Types.Scope().Lookup(name)); n != nil && isSecret(n) {
					secrets++
				}
			}
		case within(p.Dir, []string{"api", "plugin"}):
			for _, name := range p.Types.Scope().Names() {
				obj := p.Types.Scope().Lookup(name)
				w := &walker{seen: make(map[types.Type]bool)}
				if _, ok := obj.(*types.TypeName); ok && w.reaches(obj.Type()) {
					vs = append(vs, t.at(obj.Pos(), "type %s leads to the secret %s", name, w.secret))
				}
			}
		}
	}
	if secrets == 0 {
		vs = append(vs, Violation{File: "keys", What: "no type with an Expose method: this rule does not know the secrets any more"})
	}
	return vs
}

func namedType(obj types.Object) *types.Named {
	if _, ok := obj.(*types.TypeName); !ok {
		return nil
	}
	n, _ := types.Unalias(obj.Type()).(*types.Named)
	return n
}

// isSecret reports whether n is one of the key types that can be exposed.
func isSecret(n *types.Named) bool {
	pkg := n.Obj().Pkg()
	if pkg == nil {
		return false
	}
	dir, ours := strings.CutPrefix(pkg.Path(), ModulePath+"/")
	if !ours || !within(dir, []string{"keys"}) {
		return false
	}
	obj, _, _ := types.LookupFieldOrMethod(types.NewPointer(n), true, pkg, "Expose")
	_, ok := obj.(*types.Func)
	return ok
}

// walker follows types until it meets a secret.
type walker struct {
	seen   map[types.Type]bool
	secret string
}

func (w *walker) reaches(t types.Type) bool {
	if w.seen[t] {
		return false
	}
	w.seen[t] = true
	switch t := t.(type) {
	case *types.Alias:
		return w.reaches(types.Unalias(t))
	case *types.Named:
		return w.named(t)
	case *types.Pointer:
		return w.reaches(t.Elem())
	case *types.Slice:
		return w.reaches(t.Elem())
	case *types.Array:
		return w.reaches(t.Elem())
	case *types.Chan:
		return w.reaches(t.Elem())
	case *types.Map:
		return w.reaches(t.Key()) || w.reaches(t.Elem())
	case *types.Signature:
		return w.tuple(t.Params()) || w.tuple(t.Results())
	case *types.Struct:
		for f := range t.Fields() {
			if w.reaches(f.Type()) {
				return true
			}
		}
	case *types.Interface:
		for m := range t.Methods() {
			if w.reaches(m.Type()) {
				return true
			}
		}
	}
	return false
}

func (w *walker) named(t *types.Named) bool {
	if isSecret(t) {
		w.secret = t.Obj().Pkg().Name() + "." + t.Obj().Name()
		return true
	}
	// Types of other modules cannot hold ours, except by type arguments.
	for arg := range t.TypeArgs().Types() {
		if w.reaches(arg) {
			return true
		}
	}
	if pkg := t.Obj().Pkg(); pkg == nil || !strings.HasPrefix(pkg.Path(), ModulePath) {
		return false
	}
	return w.reaches(t.Underlying())
}

func (w *walker) tuple(t *types.Tuple) bool {
	for v := range t.Variables() {
		if w.reaches(v.Type()) {
			return true
		}
	}
	return false
}

// checkXfrmFormat forbids to hand XFRM structures of the netlink library to
// anything that takes any value, such as fmt and slog: they print keys, and one
// of them panics.
func checkXfrmFormat(t *Typed) []Violation {
	var vs []Violation
	for _, p := range t.Packages {
		for _, f := range p.Files {
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				for _, arg := range call.Args {
					if name := xfrmStruct(p.Info.TypeOf(arg)); name != "" && takesAny(p.Info, call) {
						vs = append(vs, t.at(arg.Pos(), "netlink.%s as any: its fields include keys", name))
					}
				}
				return true
			})
		}
	}
	return vs
}

// xfrmStruct names the XFRM structure that t is, points to or is a list of.
func xfrmStruct(t types.Type) string {
	for t != nil {
		switch x := types.Unalias(t).(type) {
		case *types.Pointer:
			t = x.Elem()
		case *types.Slice:
			t = x.Elem()
		case *types.Named:
			_, isStruct := x.Underlying().(*types.Struct)
			if isStruct && x.Obj().Pkg() != nil && x.Obj().Pkg().Path() == "github.com/vishvananda/netlink" && strings.HasPrefix(x.Obj().Name(), "Xfrm") {
				return x.Obj().Name()
			}
			return ""
		default:
			return ""
		}
	}
	return ""
}

// takesAny reports whether the called function has a parameter of type any.
func takesAny(info *types.Info, call *ast.CallExpr) bool {
	sig, ok := info.TypeOf(call.Fun).(*types.Signature)
	if !ok {
		return false
	}
	for v := range sig.Params().Variables() {
		typ := v.Type()
		if s, ok := typ.(*types.Slice); ok {
			typ = s.Elem()
		}
		if i, ok := typ.Underlying().(*types.Interface); ok && i.NumMethods() == 0 {
			return true
		}
	}
	return false
}

// checkNoGlobalState forbids package-level variables that change: two agents
// in one process, or two tests at once, would disturb each other.
func checkNoGlobalState(t *Typed) []Violation {
	var vs []Violation
	for _, p := range t.Packages {
		for _, f := range p.Files {
			ast.Inspect(f, func(n ast.Node) bool {
				for _, target := range targets(n) {
					if v := globalVar(p, target); v != nil {
						vs = append(vs, t.at(n.Pos(), "changes the package-level variable %s", v.Name()))
					}
				}
				return true
			})
		}
		for _, name := range p.Types.Scope().Names() {
			if v, ok := p.Types.Scope().Lookup(name).(*types.Var); ok && isLockLike(v.Type()) {
				vs = append(vs, t.at(v.Pos(), "package-level %s of type %s is state", name, v.Type()))
			}
		}
	}
	return vs
}

// targets returns what a statement writes to.
func targets(n ast.Node) []ast.Expr {
	switch n := n.(type) {
	case *ast.AssignStmt:
		if n.Tok != token.DEFINE {
			return n.Lhs
		}
	case *ast.IncDecStmt:
		return []ast.Expr{n.X}
	}
	return nil
}

// globalVar returns the package-level variable that e, an element of it or a
// field of it is, or nil.
func globalVar(p *Package, e ast.Expr) *types.Var {
	for {
		switch x := e.(type) {
		case *ast.IndexExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.SelectorExpr:
			if id, ok := x.X.(*ast.Ident); ok {
				if _, isPkg := p.Info.Uses[id].(*types.PkgName); isPkg {
					e = x.Sel
					continue
				}
			}
			e = x.X
		case *ast.Ident:
			v, ok := p.Info.Uses[x].(*types.Var)
			if ok && v.Parent() != nil && v.Pkg() != nil && v.Parent() == v.Pkg().Scope() {
				return v
			}
			return nil
		default:
			return nil
		}
	}
}

// isLockLike reports types whose only use is to change: locks, counters, channels.
func isLockLike(t types.Type) bool {
	if _, ok := t.Underlying().(*types.Chan); ok {
		return true
	}
	n, ok := types.Unalias(t).(*types.Named)
	if !ok || n.Obj().Pkg() == nil {
		return false
	}
	p := n.Obj().Pkg().Path()
	return p == "sync" || p == "sync/atomic" || strings.HasPrefix(fmt.Sprint(n), "math/rand")
}
