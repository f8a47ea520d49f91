package secure

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// read compares the kernel's table with the ruleset this package would
// write, expression by expression; counters do not count. A table, chain,
// set or rule that is missing, changed or too many makes it not intact.
func (t *table) read() (tableState, error) {
	c, err := t.conn()
	if err != nil {
		return tableState{}, fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = c.CloseLasting() }()
	state, err := read(c)
	if errors.Is(err, unix.ENOENT) {
		return tableState{}, nil // flushed, wholly or while we looked
	}
	if err != nil {
		return tableState{}, fmt.Errorf("read nftables table %s: %w", tableName, err)
	}
	return state, nil
}

func read(c *nftables.Conn) (tableState, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return tableState{}, err
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == tableName })
	// A dormant table (flag 1) is there, but its chains are not hooked up.
	if i < 0 || tables[i].Flags != 0 {
		return tableState{}, nil
	}
	have, err := readChains(c)
	if err != nil {
		return tableState{}, err
	}
	var state tableState
	state.port = portOf(have)
	state.intact = matches(have, chains(state.port))
	state.accepted, state.dropped = counters(have)
	set, err := c.GetSetByName(nftTable(), membersSet)
	if err != nil {
		return tableState{}, err
	}
	elems, err := c.GetSetElements(set)
	if err != nil {
		return tableState{}, err
	}
	for _, e := range elems {
		m, ok := memberOf(e)
		state.intact = state.intact && ok
		state.members = append(state.members, m)
	}
	slices.SortFunc(state.members, compareMembers)
	return state, nil
}

// readChain is a chain with the expressions of its rules.
type readChain struct {
	chain *nftables.Chain
	rules [][]expr.Any
}

func readChains(c *nftables.Conn) ([]readChain, error) {
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	var out []readChain
	for _, chain := range all {
		if chain.Table.Name != tableName {
			continue
		}
		rules, err := c.GetRules(nftTable(), chain)
		if err != nil {
			return nil, err
		}
		rc := readChain{chain: chain}
		for _, r := range rules {
			rc.rules = append(rc.rules, r.Exprs)
		}
		out = append(out, rc)
	}
	return out, nil
}

func matches(have []readChain, want []chainSpec) bool {
	if len(have) != len(want) {
		return false
	}
	for _, w := range want {
		i := slices.IndexFunc(have, func(h readChain) bool { return h.chain.Name == w.name })
		if i < 0 {
			return false
		}
		h := have[i]
		if !hooked(h.chain, w.hook) || len(h.rules) != len(w.rules) {
			return false
		}
		for j := range w.rules {
			if !reflect.DeepEqual(plain(h.rules[j]), plain(w.rules[j])) {
				return false
			}
		}
	}
	return true
}

func hooked(c *nftables.Chain, hook *nftables.ChainHook) bool {
	return c.Type == nftables.ChainTypeFilter &&
		c.Hooknum != nil && *c.Hooknum == *hook &&
		c.Priority != nil && *c.Priority == *nftables.ChainPriorityFilter &&
		c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
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

// portOf finds the port in the rule that looks members up, 0 if there is no
// such rule. Whether the rule is right otherwise is for matches to say.
func portOf(have []readChain) uint16 {
	for _, c := range have {
		for _, rule := range c.rules {
			if !slices.ContainsFunc(rule, isLookup) {
				continue
			}
			for _, e := range rule {
				if cmp, ok := e.(*expr.Cmp); ok && len(cmp.Data) == 2 {
					return binary.BigEndian.Uint16(cmp.Data)
				}
			}
		}
	}
	return 0
}

func isLookup(e expr.Any) bool { _, ok := e.(*expr.Lookup); return ok }

// counters sums the packets of accepting and of dropping rules.
func counters(have []readChain) (accepted, dropped uint64) {
	for _, c := range have {
		for _, rule := range c.rules {
			var packets uint64
			for _, e := range rule {
				switch e := e.(type) {
				case *expr.Counter:
					packets = e.Packets
				case *expr.Verdict:
					if e.Kind == expr.VerdictAccept {
						accepted += packets
					} else {
						dropped += packets
					}
				}
			}
		}
	}
	return accepted, dropped
}
