package agent

import (
	"net/netip"
	"strings"
	"testing"
)

// TestFillingSubnets: from 80 percent of a subnet's blocks on there is a warning that
// names the way out, whoever has claimed them.
func TestFillingSubnets(t *testing.T) {
	subnet := netip.MustParsePrefix("10.1.2.0/26") // 16 blocks of 4
	for _, c := range []struct {
		mine, theirs int
		warns        bool
	}{{0, 0, false}, {6, 6, false}, {6, 7, true}, {0, 13, true}, {16, 0, true}, {12, 0, false}} {
		n := &network{}
		mine, taken := map[netip.Prefix]bool{}, map[netip.Prefix]owner{}
		for i := range c.mine {
			mine[blockAt(subnet, subnet, uint64(i))] = true
		}
		for i := range c.theirs {
			taken[blockAt(subnet, subnet, uint64(c.mine+i))] = owner{}
		}
		n.noteFilling(subnet, mine, taken)
		got := fillingSubnets(View{Networks: []NetworkView{{Name: "blue", Filling: n.fill}}})
		if (len(got) == 1) != c.warns {
			t.Errorf("%d and %d of 16: %+v", c.mine, c.theirs, got)
		}
		if c.warns && (!strings.Contains(got[0].Message, "of 16 address blocks of subnet 10.1.2.0/26") || got[0].Fix == "") {
			t.Errorf("%+v", got[0])
		}
	}
}
