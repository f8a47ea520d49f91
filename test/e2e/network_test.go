package e2e

import (
	"slices"
	"testing"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestNetworkByCommand creates networks while the cluster runs, none of which
// stands in a file: a node carries one from its first endpoint to its last, what
// passes is encrypted unless the command said plaintext, and removing leaves
// nothing.
func TestNetworkByCommand(t *testing.T) {
	ctx, f := start(t, 3, nil)
	issuer, second, third := f.Nodes[0], f.Nodes[1], f.Nodes[2]
	networks := func(n *fleet.Node) map[string]api.Network {
		t.Helper()
		var list api.NetworkList
		if err := n.JSON(ctx, &list, "network", "ls"); err != nil {
			t.Fatal(err)
		}
		out := map[string]api.Network{}
		for _, n := range list.Networks {
			out[n.Name] = n
		}
		return out
	}
	if _, err := second.CLI(ctx, "network", "create", "blue", "--subnet", "10.77.0.0/16"); exitCode(err) != 6 {
		t.Errorf("a node without issuer key creates a network: %v", err)
	}
	for _, args := range [][]string{
		{"network", "create", "blue", "--subnet", "10.77.0.0/16,fd77::/64"},
		{"network", "create", "lab", "--subnet", "10.78.0.0/16", "--plaintext"},
	} {
		if _, err := issuer.CLI(ctx, args...); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range f.Nodes {
		if err := n.WaitStatus(ctx, "both networks, unused", func(s api.Status) bool {
			have := networks(n)
			return have["blue"].State == api.StateUnused && have["lab"].State == api.StateUnused && len(s.Networks) == 0
		}); err != nil {
			t.Fatal(err)
		}
	}
	marker := []byte("a network by command, unreadable ")
	wire := sniff(t, f, marker)
	blue := []fleet.Attached{attach(t, ctx, f, issuer, "blue"), attach(t, ctx, f, second, "blue")}
	lab := []fleet.Attached{attach(t, ctx, f, second, "lab"), attach(t, ctx, f, third, "lab")}
	for _, n := range []*fleet.Node{issuer, second} {
		if err := n.WaitStatus(ctx, "a tunnel", func(s api.Status) bool {
			return slices.ContainsFunc(s.Peers, func(p api.Peer) bool { return p.Tunnel == api.TunnelUp })
		}); err != nil {
			t.Fatal(err)
		}
	}
	mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(blue), Rate: 100, Marker: marker})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mesh.Stop() })
	if err := mesh.WaitReceived(ctx, 50); err != nil {
		t.Fatal(err)
	}
	if n := networks(third)["blue"]; n.State != api.StateUnused {
		t.Errorf("a node that nothing is attached to carries the network: %+v", n)
	}
	if n := networks(issuer)["lab"]; n.State != api.StateUnused {
		t.Errorf("the issuer carries a network that nothing there is on: %+v", n)
	}
	wantSilent(t, wire, "an encrypted network by command")
	control(t, ctx, wire, lab[0], lab[1], marker)

	// A third node joins the network in use, and a restart keeps it.
	late := attach(t, ctx, f, third, "blue")
	if err := third.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := third.Up(ctx); err != nil {
		t.Fatal(err)
	}
	if err := third.WaitStatus(ctx, "blue with both others", func(s api.Status) bool {
		i := slices.IndexFunc(s.Networks, func(n api.Network) bool { return n.Name == "blue" })
		return i >= 0 && s.Networks[i].Peers.OK == 2
	}); err != nil {
		t.Fatal(err)
	}
	if err := mesh.WaitReceived(ctx, 20); err != nil {
		t.Error(err)
	}
	if _, err := issuer.CLI(ctx, "network", "rm", "blue"); exitCode(err) != 6 {
		t.Errorf("a network in use is removed: %v", err)
	}
	mesh.Stop()
	if err := mesh.Check(); err != nil {
		t.Errorf("while networks came and nodes joined one: %v", err)
	}
	for i, n := range []*fleet.Node{issuer, second, third} {
		at := []fleet.Attached{blue[0], blue[1], late}[i]
		if _, err := n.CLI(ctx, "detach", at.Endpoint.ID); err != nil {
			t.Error(err)
		}
	}
	if err := issuer.WaitStatus(ctx, "nobody on it", func(api.Status) bool { return networks(issuer)["blue"].State == api.StateUnused }); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, ctx, timeout, "blue to be removed", func() (bool, error) {
		_, err := issuer.CLI(ctx, "network", "rm", "blue")
		if exitCode(err) == 6 {
			return false, nil // the others' records are on their way
		}
		return true, err
	})
	if _, err := issuer.CLI(ctx, "network", "rm", "lab", "--force"); err != nil {
		t.Error(err)
	}
	for _, n := range f.Nodes {
		if err := n.WaitStatus(ctx, "no network", func(s api.Status) bool { return len(networks(n)) == 0 && len(s.Networks) == 0 }); err != nil {
			t.Error(err)
		}
	}
	if _, err := issuer.CLI(ctx, "network", "create", "blue", "--subnet", "10.77.0.0/16", "--plaintext"); exitCode(err) != 6 {
		t.Errorf("what was encrypted comes back in clear: %v", err)
	}
}
