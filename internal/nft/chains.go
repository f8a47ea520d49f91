package nft

import (
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Chain is one base chain and its rules.
type Chain struct {
	Name     string
	Type     nftables.ChainType
	Hook     *nftables.ChainHook
	Priority *nftables.ChainPriority
	Policy   nftables.ChainPolicy
	Rules    [][]expr.Any
}

// Add queues chains of a table.
func Add(c *nftables.Conn, table *nftables.Table, chains []Chain) {
	for _, spec := range chains {
		chain := c.AddChain(&nftables.Chain{
			Name: spec.Name, Table: table, Type: spec.Type, Hooknum: spec.Hook, Priority: spec.Priority, Policy: &spec.Policy,
		})
		for _, exprs := range spec.Rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		}
	}
}

// Found is a chain as the kernel has it, with the expressions of its rules.
type Found struct {
	Chain *nftables.Chain
	Rules [][]expr.Any
}

// Has reports whether a table exists and is in force: a dormant one (flag 1) is there,
// but its chains are not hooked up.
func Has(c *nftables.Conn, table *nftables.Table) (bool, error) {
	tables, err := c.ListTablesOfFamily(table.Family)
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == table.Name })
	return i >= 0 && tables[i].Flags == 0, nil
}

// Read returns the chains of a table.
func Read(c *nftables.Conn, table *nftables.Table) ([]Found, error) {
	all, err := c.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return nil, err
	}
	var out []Found
	for _, chain := range all {
		if chain.Table.Name != table.Name {
			continue
		}
		rules, err := c.GetRules(table, chain)
		if err != nil {
			return nil, err
		}
		f := Found{Chain: chain}
		for _, r := range rules {
			f.Rules = append(f.Rules, r.Exprs)
		}
		out = append(out, f)
	}
	return out, nil
}

// Matches compares the kernel's chains with those wanted, expression by expression;
// counters do not count. A chain or rule that is missing, changed or too many makes
// them differ.
func Matches(have []Found, want []Chain) bool {
	if len(have) != len(want) {
		return false
	}
	for _, w := range want {
		i := slices.IndexFunc(have, func(h Found) bool { return h.Chain.Name == w.Name })
		if i < 0 || !hooked(have[i].Chain, w) || len(have[i].Rules) != len(w.Rules) {
			return false
		}
		for j := range w.Rules {
			if !reflect.DeepEqual(plain(have[i].Rules[j]), plain(w.Rules[j])) {
				return false
			}
		}
	}
	return true
}

func hooked(c *nftables.Chain, want Chain) bool {
	return c.Type == want.Type &&
		c.Hooknum != nil && *c.Hooknum == *want.Hook &&
		c.Priority != nil && *c.Priority == *want.Priority &&
		c.Policy != nil && *c.Policy == want.Policy
}

// plain returns expressions without what differs between writing and reading:
// the values of counters, and the transaction's number of a set.
func plain(exprs []expr.Any) []expr.Any {
	out := make([]expr.Any, len(exprs))
	for i, e := range exprs {
		switch e := e.(type) {
		case *expr.Counter:
			out[i] = &expr.Counter{}
		case *expr.Lookup:
			l := *e
			l.SetID = 0
			out[i] = &l
		default:
			out[i] = e
		}
	}
	return out
}
