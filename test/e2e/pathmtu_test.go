package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/pathmtu"
)

// TestNarrowPath: something between the hosts begins to swallow large packets, and no
// ICMP message tells of it. The networks of all nodes become as narrow as the path,
// packets of their whole MTU pass, and a restart of the agents does not forget it.
func TestNarrowPath(t *testing.T) {
	ctx, f := prepareWith(t, 3*timeout, fleet.Options{Nodes: 3, Networks: bothNetworks()})
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	at := attachAll(t, ctx, f, "blue")
	const path = 1450
	// WireGuard fills packets up to a multiple of 16 bytes; and a link lets 4 bytes more
	// through than its MTU, for a VLAN tag (VLAN_HLEN in is_skb_forwardable).
	most := path + 4 - tunnel.Overhead(at[0].Node.Host.V4()) - vxlanOverhead
	if err := f.Nodes[1].Host.Narrow(path); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	inner := 0
	narrowed := func(s api.Status) bool {
		i := slices.IndexFunc(s.Networks, func(n api.Network) bool { return n.Name == "blue" })
		if i >= 0 && s.Networks[i].MTU <= most && s.Networks[i].MTU > most-20 && (inner == 0 || inner == s.Networks[i].MTU) {
			inner = s.Networks[i].MTU
			return true
		}
		return false
	}
	for _, n := range f.Nodes {
		if err := n.WaitStatus(ctx, "an MTU that fits the path, the same everywhere", narrowed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("found after %v; a check is every %v", time.Since(began).Round(time.Millisecond), pathmtu.Check)
	fits := func(when string) {
		t.Helper()
		for _, from := range at {
			for _, to := range at {
				if from.Node != to.Node {
					mustPing(t, ctx, from, to.V4(), inner-28)
					mustPing(t, ctx, from, to.V6(), inner-48)
				}
			}
		}
		if t.Failed() {
			t.Fatal(when)
		}
	}
	fits("packets of the whole MTU")
	if !slices.ContainsFunc(f.Nodes, func(n *fleet.Node) bool {
		s, err := n.Status(ctx)
		return err == nil && slices.ContainsFunc(s.Warnings, func(p api.Problem) bool { return p.Code == "narrow-path" })
	}) {
		t.Error("no node warns of it")
	}
	for _, n := range f.Nodes {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range f.Nodes {
		if err := n.Up(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range f.Nodes {
		if err := n.WaitStatus(ctx, "the same MTU after a restart", narrowed); err != nil {
			t.Fatal(err)
		}
	}
	fits("packets of the whole MTU after a restart")
}

// vxlanOverhead is what VXLAN adds inside a tunnel: Ethernet, VXLAN, UDP, IPv6.
const vxlanOverhead = 14 + 8 + 8 + 40
