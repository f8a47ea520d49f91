package e2e

import (
	"testing"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestAttachHost: hosts themselves are on an encrypted network, without containers,
// and stay there when their agents start again. What a host publishes as its underlay
// is not what it has on the overlay.
func TestAttachHost(t *testing.T) {
	ctx, f := start(t, 2, bothNetworks())
	var at []api.EndpointAnswer
	for _, n := range f.Nodes {
		var e api.EndpointAnswer
		if err := n.JSON(ctx, &e, "attach", "blue", "--host"); err != nil {
			t.Fatal(err)
		}
		if e.Ifname != "so-blue" {
			t.Errorf("%+v", e)
		}
		at = append(at, e)
	}
	if err := f.WaitEndpoints(ctx, "blue", 2); err != nil {
		t.Fatal(err)
	}
	container := attach(t, ctx, f, f.Nodes[1], "blue")
	marker := []byte("from host to host, unreadable ")
	wire := sniff(t, f, marker)
	flow := func(when string) {
		t.Helper()
		var p []netlab.Point
		for i, n := range f.Nodes {
			p = append(p, netlab.Point{Name: n.Name, NS: n.Host.NS(), Addr: at[i].Addresses[0].Addr()})
		}
		p = append(p, netlab.Point{Name: "container", NS: container.Box.NS(), Addr: container.V4()})
		mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: p, Rate: 100, Marker: marker})
		if err != nil {
			t.Fatal(err)
		}
		defer mesh.Stop()
		if err := mesh.WaitReceived(ctx, 50); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	flow("at first")
	for _, n := range f.Nodes {
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := n.Up(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	flow("after the agents have started again")
	wantSilent(t, wire, "between hosts")
	for _, n := range f.Nodes {
		var list api.MemberList
		if err := n.JSON(ctx, &list, "members"); err != nil {
			t.Fatal(err)
		}
		for _, m := range list.Members {
			for _, u := range m.Underlay {
				for _, e := range at {
					for _, a := range e.Addresses {
						if a.Masked().Contains(u.Addr()) {
							t.Errorf("%s publishes %s, which is of the overlay", m.Name, u)
						}
					}
				}
			}
		}
	}
	for i, n := range f.Nodes {
		if _, err := n.CLI(ctx, "detach", at[i].ID); err != nil {
			t.Error(err)
		}
	}
}
