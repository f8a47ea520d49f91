package secure

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nft"
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
	if there, err := nft.Has(c, nftTable()); !there || err != nil {
		return tableState{}, err
	}
	have, err := nft.Read(c, nftTable())
	if err != nil {
		return tableState{}, err
	}
	var state tableState
	state.port = portOf(have)
	state.intact = nft.Matches(have, chains(state.port))
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

// portOf finds the port in the rule that looks members up, 0 if there is no
// such rule. Whether the rule is right otherwise is for matches to say.
func portOf(have []nft.Found) uint16 {
	for _, c := range have {
		for _, rule := range c.Rules {
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
func counters(have []nft.Found) (accepted, dropped uint64) {
	for _, c := range have {
		for _, rule := range c.Rules {
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
