package e2e

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// world is what a host looks like from outside.
type world struct {
	Kernel    string   // links, routes, rules, nftables of the host
	Mounts    []string // namespaces bound in the runtime folder
	Processes int
}

func look(t *testing.T, n *fleet.Node) world {
	t.Helper()
	kernel, err := netlab.Snapshot(n.Host.NS())
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := netlab.NamespaceMounts(n.RuntimeDir())
	if err != nil {
		t.Fatal(err)
	}
	procs, err := n.Host.Processes()
	if err != nil {
		t.Fatal(err)
	}
	return world{Kernel: kernel, Mounts: mounts, Processes: len(procs)}
}

// TestDown looks at the hosts before up and after down, once with a running
// agent and once after the agent was killed.
func TestDown(t *testing.T) {
	ctx, f := prepare(t, 2, bothNetworks())
	var before []world
	for _, n := range f.Nodes {
		before = append(before, look(t, n))
	}
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	blue, lab := attachAll(t, ctx, f, "blue"), attachAll(t, ctx, f, "lab")
	mustPing(t, ctx, blue[0], blue[1].V4(), 56)
	mustPing(t, ctx, lab[0], lab[1].V4(), 56)
	if len(look(t, f.Nodes[0]).Mounts) == 0 {
		t.Fatal("control: the agent bound no namespace, so this test cannot see one left behind")
	}
	if err := f.Nodes[1].Kill(); err != nil {
		t.Fatal(err)
	}
	for i, n := range f.Nodes {
		if err := n.Down(ctx); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before[i], look(t, n)); diff != "" {
			t.Errorf("%s after down (-before +after):\n%s", n.Name, diff)
		}
		for _, at := range []fleet.Attached{blue[i], lab[i]} {
			if link := linkOfType(t, at.Box.NS(), "veth"); link != 0 {
				t.Errorf("%s: the container on %s still has its link", n.Name, at.Endpoint.Network)
			}
		}
		// A second down has nothing to do and is no error.
		if _, err := n.CLI(ctx, "down"); err != nil {
			t.Errorf("second down on %s: %v", n.Name, err)
		}
	}
}
