package house

import (
	"slices"
	"strings"
)

// importRule says which packages of this module the packages under From may
// import. A name stands for the package and everything below it.
type importRule struct {
	From  string
	Allow []string
	Why   string
}

// importRules is DESIGN.md section 2, "who may import whom". The first rule
// whose From matches decides. A package may always import what lies under
// its own top folder, unless a rule for a deeper folder comes first.
var importRules = []importRule{
	{"internal/demo", nil, "the demo is wiring, like a command"},
	{"internal", []string{"internal"}, "internal imports nothing of ours upward"},
	{"keys", []string{"keys", "internal"}, "keys imports nothing of ours upward"},
	{"config", []string{"config", "internal"}, "config knows no domain package"},
	{"membership", []string{"membership", "keys", "internal"}, "membership knows keys only"},
	{"tunnel/tunneltest", []string{"tunnel", "keys", "internal", "test/netlab"}, "the conformance suite stands on the lab, and nothing else"},
	{"tunnel", []string{"tunnel", "keys", "internal"}, "tunnel knows keys only, and not vxlan"},
	{"vxlan", []string{"vxlan", "internal"}, "vxlan does not know tunnel"},
	{"api", []string{"api", "internal"}, "the api is what others see: it knows no domain package"},
	{"plugin", []string{"plugin", "api", "internal"}, "a plugin is a client of the api"},
	{"agent/resolver", []string{"internal"}, "the resolver is told its names: it knows no domain package"},
	{"agent", []string{"agent", "api", "config", "keys", "membership", "tunnel", "vxlan", "internal"}, "the agent is wired by cmd"},
}

// testOnly lists what tests may import beyond the rules: shared test tools.
var testOnly = []string{"test/netlab", "test/fleet", "test/protocol"}

// bothSides are the packages that may import both tunnel and vxlan.
var bothSides = []string{"agent", "test"}

func checkImports(t *Tree) []Violation {
	var vs []Violation
	sides := make(map[string][2]bool)
	for _, f := range t.GoFiles() {
		rule, ruled := ruleFor(f.Dir())
		for _, imp := range f.Imports() {
			rel, ours := strings.CutPrefix(imp, ModulePath+"/")
			if !ours {
				continue
			}
			if ruled && rule.Allow != nil && !within(rel, rule.Allow) && (!f.Test() || !within(rel, testOnly)) {
				vs = append(vs, Violation{File: f.Path, What: "imports " + rel + ": " + rule.Why})
			}
			if !f.Test() {
				s := sides[f.Dir()]
				s[0] = s[0] || within(rel, []string{"tunnel"})
				s[1] = s[1] || within(rel, []string{"vxlan"})
				sides[f.Dir()] = s
			}
		}
	}
	for dir, s := range sides {
		if s[0] && s[1] && !within(dir, bothSides) {
			vs = append(vs, Violation{File: dir, What: "imports tunnel and vxlan: only agent knows both"})
		}
	}
	return vs
}

func ruleFor(dir string) (importRule, bool) {
	for _, r := range importRules {
		if within(dir, []string{r.From}) {
			return r, true
		}
	}
	return importRule{}, false
}

// within reports whether dir is one of the roots or lies below one.
func within(dir string, roots []string) bool {
	return slices.ContainsFunc(roots, func(r string) bool { return dir == r || strings.HasPrefix(dir, r+"/") })
}

// confinements says which libraries only some packages may import.
var confinements = []struct {
	Library string
	Allow   []string
}{
	{"github.com/spf13/viper", []string{"config"}},
	{"github.com/hashicorp/memberlist", []string{"membership"}},
	{"github.com/flynn/noise", []string{"membership/noisenet"}},
	{"github.com/vishvananda/netlink", []string{"internal/nl", "tunnel", "vxlan", "test/netlab"}},
	{"github.com/miekg/dns", []string{"agent/resolver"}},
	{"github.com/spf13/cobra", []string{"cmd"}},
	{"github.com/prometheus", []string{"api/metrics"}},
	{"testing", []string{"tunnel/tunneltest", "test"}},
	{"C", nil}, // one static binary, cross-compiled
}

// checkConfinement keeps a library's types and habits in the packages that
// are there to hide it. Test files may use "testing" everywhere.
func checkConfinement(t *Tree) []Violation {
	var vs []Violation
	for _, f := range t.GoFiles() {
		for _, imp := range f.Imports() {
			for _, c := range confinements {
				if !within(imp, []string{c.Library}) || within(f.Dir(), c.Allow) || (f.Test() && c.Library == "testing") {
					continue
				}
				vs = append(vs, Violation{File: f.Path, What: "imports " + imp + ": allowed only in " + strings.Join(c.Allow, ", ")})
			}
			// The demo needs the lab in the product, so the lab must not
			// bring the testing package's flags along.
			if imp == "testing" && !f.Test() && within(f.Dir(), []string{"test/netlab"}) {
				vs = append(vs, Violation{File: f.Path, What: "imports testing: the demo uses netlab, too"})
			}
		}
	}
	return vs
}
