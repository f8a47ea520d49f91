package e2e

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestReload changes the configuration of running agents in each of the ways: by the
// file alone, by the command, and by SIGHUP. What runs is not disturbed.
func TestReload(t *testing.T) {
	blue := fleet.Network{Name: "blue", Encrypted: true, Subnets: prefixes("10.77.0.0/16")}
	green := fleet.Network{Name: "green", Encrypted: true, Subnets: prefixes("10.99.0.0/16")}
	ctx, f := start(t, 2, []fleet.Network{blue})
	at := attachAll(t, ctx, f, "blue")
	mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(at), Rate: 100})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mesh.Stop() })
	if err := mesh.WaitReceived(ctx, 20); err != nil {
		t.Fatal(err)
	}
	has := func(name string, want bool) func(api.Status) bool {
		return func(s api.Status) bool {
			return want == slices.ContainsFunc(s.Networks, func(n api.Network) bool { return n.Name == name && n.State == api.StateOK })
		}
	}
	refused := func(s api.Status) bool {
		return slices.ContainsFunc(s.Problems, func(p api.Problem) bool { return p.Code == "config-refused" })
	}

	// The file alone.
	for _, n := range f.Nodes {
		if err := n.WriteConfig([]fleet.Network{blue, green}); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range f.Nodes {
		if err := n.WaitStatus(ctx, "the new network", has("green", true)); err != nil {
			t.Fatal(err)
		}
	}
	fresh := attachAll(t, ctx, f, "green")
	mustPing(t, ctx, fresh[0], fresh[1].V4(), 100)

	// A mistake, and what a running agent cannot change: all of it is refused.
	node := f.Nodes[0]
	good, err := os.ReadFile(node.ConfigPath())
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string]string{
		"a mistake":    strings.Replace(string(good), "subnets:", "subnts:", 1),
		"another port": string(good) + "\ndata:\n  vxlan_port: 5000\n",
	} {
		if bad == string(good) {
			t.Fatal("nothing was changed in the file")
		}
		if err := os.WriteFile(node.ConfigPath(), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := node.CLI(ctx, "reload"); err == nil {
			t.Errorf("%s: taken up", what)
		}
		if err := node.WaitStatus(ctx, what, func(s api.Status) bool { return refused(s) && has("green", true)(s) }); err != nil {
			t.Fatal(err)
		}
	}

	// By the command, and by the signal.
	if err := node.WriteConfig([]fleet.Network{blue}); err != nil {
		t.Fatal(err)
	}
	out, err := node.CLI(ctx, "reload", "-o", "json")
	var r api.Reload
	if err != nil || json.Unmarshal(out, &r) != nil {
		t.Fatalf("%s, %v", out, err)
	}
	if err := node.WaitStatus(ctx, "the network gone", func(s api.Status) bool { return has("green", false)(s) && has("blue", true)(s) && !refused(s) }); err != nil {
		t.Fatal(err)
	}
	if err := node.WriteConfig([]fleet.Network{blue, green}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(node.PID(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for _, n := range f.Nodes {
		if err := n.WaitStatus(ctx, "the network again", func(s api.Status) bool {
			return slices.ContainsFunc(s.Networks, func(n api.Network) bool { return n.Name == "green" && n.State == api.StateOK && n.Peers.OK == 1 })
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WaitEndpoints(ctx, "green", 2); err != nil {
		t.Fatal(err)
	}
	mustPing(t, ctx, fresh[1], fresh[0].V4(), 100)
	mesh.Stop()
	if err := mesh.Check(); err != nil {
		t.Errorf("blue, which nobody changed: %v", err)
	}
}
