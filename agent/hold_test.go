package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// TestHoldOnlyAdds compares random clusters before and after a restart with
// fewer records: whatever the new output says stays, whatever the previous
// agent had set and the new one does not contradict is still there, and
// networks that are not configured any more do not come back.
func TestHoldOnlyAdds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySim(t)
		if err := s.run(); err != nil {
			t.Fatal(err)
		}
		n := s.nodes[0]
		last := applied{Node: n.id, Secure: n.out.Secure, Networks: n.out.Networks, Record: n.out.Record}
		in := n.in
		in.Members = nil
		for _, m := range n.in.Members {
			if rapid.Bool().Draw(t, "known") {
				in.Members = append(in.Members, m)
			}
		}
		if len(in.Config.Networks) > 0 && rapid.Bool().Draw(t, "one network less") {
			in.Config.Networks = in.Config.Networks[1:]
		}
		now := Desired(in)
		before := fmt.Sprintf("%+v", now)
		got := hold(now, last)
		if after := fmt.Sprintf("%+v", now); after != before {
			t.Fatalf("hold changed its argument:\n%s\n%s", before, after)
		}
		if len(in.Members) == len(n.in.Members) && len(in.Config.Networks) == len(n.in.Config.Networks) &&
			fmt.Sprintf("%+v", got) != before {
			t.Fatalf("all records are known, but hold made\n%+v\nof\n%s", got, before)
		}
		checkHeld(t, now, got, last)
		for driver, spec := range got.Tunnels {
			if err := spec.Validate(); err != nil {
				t.Fatalf("driver %s: %v", driver, err)
			}
		}
	})
}

func checkHeld(t *rapid.T, now, got Output, last applied) {
	if len(got.Networks) != len(now.Networks) {
		t.Fatalf("%d networks, want %d", len(got.Networks), len(now.Networks))
	}
	for i, g := range got.Networks {
		n := now.Networks[i]
		for _, v := range n.Flood {
			if !slices.Contains(g.Flood, v) {
				t.Fatalf("network %s: flood entry %s is lost", g.Network, v)
			}
		}
		for _, l := range last.Networks {
			if l.Network != g.Network || l.VNI != g.VNI || l.Encrypted != g.Encrypted {
				continue
			}
			for _, a := range l.Way(l.Encrypted).Locals() {
				if !slices.Contains(g.Way(l.Encrypted).Locals(), a) {
					t.Fatalf("network %s: the device that sends from %s was not held", g.Network, a)
				}
			}
			for _, v := range l.Flood {
				if !slices.Contains(g.Flood, v) {
					t.Fatalf("network %s: flood entry %s was not held", g.Network, v)
				}
			}
			for _, r := range l.Remotes {
				if !hasRemote(g, r.MAC) && !contradicted(n, r) {
					t.Fatalf("network %s: endpoint %s was not held", g.Network, r.MAC)
				}
			}
		}
	}
	if len(now.Tunnels) == 0 {
		return
	}
	for _, r := range last.Secure.Routes {
		if !slices.ContainsFunc(got.Secure.Routes, func(q secure.Route) bool { return q.Peer == r.Peer }) {
			t.Fatalf("route to %s was not held", r.Peer)
		}
	}
}

func hasRemote(s vxlan.Spec, mac ids.MAC) bool {
	return slices.ContainsFunc(s.Remotes, func(r vxlan.Remote) bool { return r.MAC == mac })
}

// contradicted reports whether a spec gives the MAC or an address of a former
// remote to somebody else.
func contradicted(s vxlan.Spec, r vxlan.Remote) bool {
	return slices.ContainsFunc(s.Endpoints, func(e vxlan.Endpoint) bool {
		return e.MAC == r.MAC || slices.ContainsFunc(e.Addrs, func(p netip.Prefix) bool { return slices.Contains(r.Addrs, p.Addr()) })
	}) || slices.ContainsFunc(s.Remotes, func(o vxlan.Remote) bool {
		return slices.ContainsFunc(o.Addrs, func(a netip.Addr) bool { return slices.Contains(r.Addrs, a) })
	})
}

// TestHoldKnowsNetworksByName restarts a node whose configuration has given the
// VNI of one encrypted network to another: the members of the old one must not
// be let into the new one.
func TestHoldKnowsNetworksByName(t *testing.T) {
	self, peer := ids.NodeID{1}, ids.NodeID{2}
	last := applied{
		Node:     self,
		Networks: []vxlan.Spec{{Network: "red", VNI: 7, Encrypted: true}, {Network: "blue", VNI: 8, Encrypted: true}},
		Secure:   secure.Spec{Members: []secure.Member{{Inner: peer.InnerAddr(), VNI: 7}, {Inner: peer.InnerAddr(), VNI: 8}}},
	}
	now := Output{
		Tunnels:  map[string]tunnel.Spec{"userspace": {Devices: []tunnel.Device{{Epoch: 1}}}},
		Networks: []vxlan.Spec{{Network: "green", VNI: 7, Encrypted: true}, {Network: "blue", VNI: 8, Encrypted: true}},
	}
	now.Record.ID = self
	got := hold(now, last).Secure.Members
	if want := []secure.Member{{Inner: peer.InnerAddr(), VNI: 8}}; !slices.Equal(got, want) {
		t.Errorf("members held = %v, want %v", got, want)
	}
}
