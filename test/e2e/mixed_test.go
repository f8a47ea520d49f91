package e2e

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// mixed is a cluster of two nodes with both families and two that have no family in
// common, the last two.
type mixed struct {
	*fleet.Fleet
	refs []api.NodeRef
}

// apart reports whether nodes i and k have no way to each other.
func (m mixed) apart(i, k int) bool { return i != k && min(i, k) == 2 && max(i, k) == 3 }

// startMixed starts the nodes one after the other, as an operator does, and waits
// until each pair that has a way uses it on each network.
func startMixed(t *testing.T) (context.Context, mixed) {
	t.Helper()
	ctx, f := prepareWith(t, 2*timeout, fleet.Options{Networks: bothNetworks(), Derive: true, Profile: suited(), Config: keysConfig(suited(), "")})
	m := mixed{Fleet: f}
	for i, only := range [][]netlab.HostOption{nil, nil, {netlab.V4Only()}, {netlab.V6Only()}} {
		n, err := f.AddNode(fmt.Sprintf("host%d", i+1), only...)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if _, err := n.CLI(ctx, "init"); err != nil {
				t.Fatal(err)
			}
			err = n.Up(ctx)
		} else {
			err = f.Join(ctx, n)
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err := n.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		m.refs = append(m.refs, s.Node)
	}
	m.waitWays(t, ctx)
	return ctx, m
}

// waitWays waits until every node is connected with all that it has a way to, and
// says nothing but who the one is to which there is none.
func (m mixed) waitWays(t *testing.T, ctx context.Context) {
	t.Helper()
	for i, n := range m.Nodes {
		peers, state := 3, api.StateOK
		if i >= 2 {
			peers, state = 2, api.StateDegraded
		}
		if err := n.WaitStatus(ctx, fmt.Sprintf("%d of 3 peers on each network and all members", peers), func(s api.Status) bool {
			return s.State == state && s.Members == api.Count{OK: 4, Total: 4} && len(s.Networks) >= 2 &&
				!slices.ContainsFunc(s.Networks, func(nw api.Network) bool { return nw.Peers != api.Count{OK: peers, Total: 3} })
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// pings sends between all pairs in both families: what has a way is answered, and
// what has none is not.
func (m mixed) pings(t *testing.T, ctx context.Context, network string, at []fleet.Attached) {
	t.Helper()
	mtu := m.mtu(t, ctx, network)
	for i := range at {
		for k := range at {
			switch {
			case i == k:
			case m.apart(i, k):
				if r, err := netlab.Ping(ctx, at[i].Box.NS(), at[k].V4(), netlab.PingOptions{}); err != nil || r.Received != 0 {
					t.Errorf("ping from %s to %s, which have no family in common: %+v, %v", m.Nodes[i].Name, m.Nodes[k].Name, r, err)
				}
			default:
				mustPing(t, ctx, at[i], at[k].V4(), mtu-28)
				mustPing(t, ctx, at[i], at[k].V6(), mtu-48)
			}
		}
	}
}

// mtu is that of a network, the same on all nodes.
func (m mixed) mtu(t *testing.T, ctx context.Context, network string) int {
	t.Helper()
	mtu := 0
	for _, n := range m.Nodes {
		list, err := n.Client().Networks(ctx)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(list.Networks, func(nw api.Network) bool { return nw.Name == network })
		if i < 0 || mtu != 0 && list.Networks[i].MTU != mtu {
			t.Fatalf("network %s on %s: %+v, elsewhere its MTU is %d", network, n.Name, list.Networks, mtu)
		}
		mtu = list.Networks[i].MTU
	}
	return mtu
}

// named asserts that a node with a pair that has no way says so once, with what to
// do, and nothing else.
func (m mixed) named(t *testing.T, ctx context.Context, i int) {
	t.Helper()
	s, err := m.Nodes[i].Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if i < 2 {
		if len(s.Problems) != 0 {
			t.Errorf("%s has a way to everybody and says %+v", m.Nodes[i].Name, s.Problems)
		}
		return
	}
	other := m.refs[5-i]
	if len(s.Problems) != 1 {
		t.Fatalf("%s says %+v, want one problem", m.Nodes[i].Name, s.Problems)
	}
	p := s.Problems[0]
	if p.Code != "no-common-family" || p.Subject != other.ID.String() || !strings.Contains(p.Message, other.Name) ||
		!strings.Contains(p.Message, "IPv4") || !strings.Contains(p.Message, "IPv6") || !strings.Contains(p.Fix, "address") {
		t.Errorf("%s says %+v", m.Nodes[i].Name, p)
	}
	if g := memberOf(t, ctx, m.Nodes[i], other); g.State != "indirect" {
		t.Errorf("%s shows %s as %s", m.Nodes[i].Name, other.Name, g.State)
	}
}

// calm asserts that no node took another for suspect or dead. A slow machine is late
// now and then, whatever ways there are; what counts there is that nobody was taken for dead.
func (m mixed) calm(t *testing.T, when string) {
	t.Helper()
	for _, n := range m.Nodes {
		raw, err := os.ReadFile(n.LogPath())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if strings.Contains(line, "member state changed") && (strings.Contains(line, "state=suspect") && !slowMachine() || strings.Contains(line, "state=dead")) {
				t.Errorf("%s, %s: %s", n.Name, when, line)
			}
		}
	}
}

// rotate rotates keys from a node, waiting as the command does.
func (m mixed) rotate(t *testing.T, ctx context.Context, from int) {
	t.Helper()
	start := time.Now()
	var r struct {
		To      ids.Epoch `json:"to"`
		Outcome string    `json:"outcome"`
	}
	if err := m.Nodes[from].JSON(ctx, &r, "keys", "rotate", "--wait"); err != nil || r.Outcome != "done" {
		t.Fatalf("rotation from %s: %+v, %v", m.Nodes[from].Name, r, err)
	}
	t.Logf("rotation from %s: %v", m.Nodes[from].Name, time.Since(start).Round(10*time.Millisecond))
	for i, n := range m.Nodes {
		peers := 3
		if i >= 2 {
			peers = 2
		}
		if err := n.WaitKeys(ctx, "the new epoch", func(s api.KeyStatus) bool { return fleet.AtEpoch(s, r.To, peers) }); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMixedUnderlay: one cluster of nodes with both families, with IPv4 only and with
// IPv6 only. Whoever has a family in common talks, encrypted and in clear; everything
// that is of the cluster reaches everybody; and the pair that has no way is named by
// both, and holds up nothing.
func TestMixedUnderlay(t *testing.T) {
	ctx, m := startMixed(t)
	blue, lab := attachAll(t, ctx, m.Fleet, "blue"), attachAll(t, ctx, m.Fleet, "lab")
	m.pings(t, ctx, "blue", blue)
	m.pings(t, ctx, "lab", lab)
	for i := range m.Nodes {
		m.named(t, ctx, i)
	}

	// Each of the two with the others, in each form.
	var flows []*netlab.Mesh
	rate := lowRate(t) / 4
	if slowMachine() {
		rate = 20 // there are 24 of them
	}
	for _, at := range [][]fleet.Attached{blue[:3], {blue[0], blue[1], blue[3]}, lab[:3], {lab[0], lab[1], lab[3]}} {
		mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(at), Rate: rate})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { mesh.Stop() })
		flows = append(flows, mesh)
	}
	m.rotate(t, ctx, 2)
	m.rotate(t, ctx, 3)
	for _, mesh := range flows {
		if r := mesh.Stop(); r.Lost() != 0 {
			t.Errorf("rotations lost %d of %d packets", r.Lost(), r.Sent)
		}
	}
	m.calm(t, "after two rotations")

	// Of the cluster: a network, and its change while it carries packets.
	first := m.Nodes[0]
	if _, err := first.CLI(ctx, "network", "create", "made", "--subnet", "10.79.0.0/16,fd79::/64", "--plaintext"); err != nil {
		t.Fatal(err)
	}
	for _, n := range m.Nodes {
		if err := n.WaitStatus(ctx, "the new network", func(api.Status) bool {
			list, err := n.Client().Networks(ctx)
			return err == nil && slices.ContainsFunc(list.Networks, func(nw api.Network) bool { return nw.Name == "made" })
		}); err != nil {
			t.Fatal(err)
		}
	}
	made := attachAll(t, ctx, m.Fleet, "made")
	m.pings(t, ctx, "made", made)
	if _, err := first.CLI(ctx, "network", "update", "made", "--encrypted", "--migrate"); err != nil {
		t.Fatal(err)
	}
	m.pings(t, ctx, "made", made)
	m.calm(t, "after the change of a network")

	m.restart(t, ctx, lab)
	m.out(t, ctx)
}

// restart ends an agent that has both families, and the IPv6-only one, and starts
// them again, without what they knew of the others: addresses of the first seeds
// alone must lead back.
func (m mixed) restart(t *testing.T, ctx context.Context, at []fleet.Attached) {
	t.Helper()
	for _, i := range []int{1, 3} {
		n := m.Nodes[i]
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(n.DataDir() + "/records.cache"); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if err := n.Up(ctx); err != nil {
			t.Fatal(err)
		}
		m.waitWays(t, ctx)
		m.pings(t, ctx, "lab", at)
	}
}

// out has one of the two leave, and the other thrown out.
func (m mixed) out(t *testing.T, ctx context.Context) {
	t.Helper()
	start := time.Now()
	var left api.LeaveResult
	if err := m.Nodes[3].JSON(ctx, &left, "leave", "--yes"); err != nil {
		t.Fatal(err)
	}
	t.Logf("leave took %v: %+v", time.Since(start).Round(10*time.Millisecond), left.Told)
	if left.Told != (api.Count{OK: 2, Total: 2}) || len(left.Waiting) != 0 {
		t.Errorf("leave answered %+v: who has no way to the leaver is not waited for", left)
	}
	for i, n := range m.Nodes[:3] {
		if err := n.WaitStatus(ctx, "three members", func(s api.Status) bool {
			return s.Members == api.Count{OK: 3, Total: 3} && s.State == api.StateOK && len(s.Problems) == 0
		}); err != nil {
			t.Fatal(err)
		}
		if g := memberOf(t, ctx, n, m.refs[3]); g.State != "left" {
			t.Errorf("node %d shows the leaver as %s", i, g.State)
		}
	}
	var rev api.RevocationAnswer
	if err := m.Nodes[0].JSON(ctx, &rev, "revoke", m.refs[2].Name, "--wait"); err != nil || rev.Applied != (api.Count{OK: 2, Total: 2}) {
		t.Fatalf("revoke: %+v, %v", rev, err)
	}
}
