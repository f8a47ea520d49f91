package membership

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// TestLearnedSeedsOfMixedUnderlays: what is kept for the next start is what this node can call, the
// address of its own family of nodes that have both.
func TestLearnedSeedsOfMixedUnderlays(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:7946"), netip.MustParseAddrPort("[2001:db8::1]:7946")
	member := func(i byte, state State, addrs ...netip.AddrPort) Member {
		m := Member{ID: ids.NodeID{i}, State: state}
		for _, a := range addrs {
			m.Record.Underlay = append(m.Record.Underlay, record.Underlay{Control: a})
		}
		return m
	}
	other4, other6 := netip.MustParseAddrPort("192.0.2.2:7946"), netip.MustParseAddrPort("[2001:db8::2]:7946")
	others := []Member{member(2, StateAlive, other4, other6), member(3, StateDead, v4), member(4, StateIndirect, v6), member(5, StateAlive)}
	for name, c := range map[string]struct {
		own  []netip.AddrPort
		want []netip.AddrPort
	}{
		"IPv4 only": {[]netip.AddrPort{v4}, []netip.AddrPort{other4, v4}},
		"IPv6 only": {[]netip.AddrPort{v6}, []netip.AddrPort{other6, v6}},
		"both":      {[]netip.AddrPort{v4, v6}, []netip.AddrPort{other4, v4, v6}},
		"not known": {nil, []netip.AddrPort{other4, v4, v6}},
	} {
		s := Snapshot{Self: ids.NodeID{1}, Members: append([]Member{member(1, StateAlive, c.own...)}, others...)}
		got := learnedSeeds(s)
		if len(got) == 0 || got[0] != c.want[0] {
			t.Errorf("%s: %v, want the live node's %v first", name, got, c.want[0])
		}
		slices.SortFunc(got, netip.AddrPort.Compare)
		slices.SortFunc(c.want, netip.AddrPort.Compare)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
