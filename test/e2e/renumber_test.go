package e2e

import (
	"slices"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestAddressChanges: a host gets another underlay address, twice, as by DHCP or in
// another place. Its peers follow, encrypted and in clear, and connections live on.
func TestAddressChanges(t *testing.T) {
	for name, hosts := range map[string][]netlab.HostOption{"IPv4": {netlab.V4Only()}, "IPv6": {netlab.V6Only()}, "both": nil} {
		t.Run(name, func(t *testing.T) {
			ctx, f := prepareWith(t, 3*timeout, fleet.Options{Nodes: 3, Networks: bothNetworks(), Host: hosts, Derive: true})
			if err := f.Start(ctx); err != nil {
				t.Fatal(err)
			}
			var meshes []*netlab.Mesh
			for _, network := range []string{"blue", "lab"} {
				mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(attachAll(t, ctx, f, network)), Rate: 50})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { mesh.Stop() })
				meshes = append(meshes, mesh)
			}
			more := func(when string) {
				t.Helper()
				for _, m := range meshes {
					if err := m.WaitReceived(ctx, 20); err != nil {
						t.Fatalf("%s: %v", when, err)
					}
				}
			}
			more("before")
			mover := f.Nodes[1]
			for range 2 {
				began := time.Now()
				if err := mover.Host.Renumber(); err != nil {
					t.Fatal(err)
				}
				more("after the address had changed")
				t.Logf("all pairs exchange packets again, and 20 more each, %v after the change", time.Since(began).Round(time.Millisecond))
				for _, n := range f.Nodes {
					if err := n.WaitStatus(ctx, "the new address", func(s api.Status) bool {
						return s.State == api.StateOK && (n == mover || slices.ContainsFunc(s.Peers, func(p api.Peer) bool {
							return p.Name == mover.Name && (p.Underlay.Addr() == mover.Host.V4() || p.Underlay.Addr() == mover.Host.V6())
						}))
					}); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, m := range meshes {
				r := m.Stop()
				t.Logf("%d packets, %d lost, longest gap %v", r.Sent, r.Lost(), r.LongestGap.Round(time.Millisecond))
				if r.LongestGap > 10*time.Second {
					t.Errorf("nothing came for %v", r.LongestGap)
				}
			}
		})
	}
}
