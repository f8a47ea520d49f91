package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// anySim draws a cluster of two to six nodes with overlapping, sometimes
// disagreeing networks, mixed families and MTUs, and clashing addresses.
func anySim(t *rapid.T) *sim {
	small := blue()
	small.Subnets = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/27")}
	red := lab()
	red.Name, red.VNI, red.Encrypted = "red", 4099, true
	choices := []config.Network{small, lab(), red}
	s := newSim(rapid.IntRange(2, 6).Draw(t, "nodes"))
	for i, n := range s.nodes {
		for _, c := range choices {
			if !rapid.Bool().Draw(t, "joins") {
				continue
			}
			if rapid.IntRange(0, 5).Draw(t, "contradicts") == 0 {
				c.Encrypted = !c.Encrypted
			}
			n.in.Config.Networks = append(n.in.Config.Networks, c)
			for range rapid.IntRange(0, 2).Draw(t, "endpoints") {
				host := rapid.IntRange(2, 9).Draw(t, "host")
				base := c.Subnets[0].Addr().As4()
				base[3] = byte(host)
				s.attach(i+1, c.Name, netip.PrefixFrom(netip.AddrFrom4(base), c.Subnets[0].Bits()).String())
			}
		}
		mtu := rapid.SampledFrom([]int{1400, 1500, 9000}).Draw(t, "mtu")
		own4, own6 := OwnAddr{Control: v4(i + 1), MTU: mtu}, OwnAddr{Control: v6(i + 1), MTU: mtu}
		n.in.Underlay.Own = [][]OwnAddr{{own4}, {own6}, {own4, own6}, {own6, own4}}[rapid.IntRange(0, 3).Draw(t, "families")]
	}
	// Serials in another order than IDs.
	if rapid.Bool().Draw(t, "reverse") {
		for i, n := range s.nodes {
			n.serial = uint64(len(s.nodes) - i)
			n.in.Self.Serial = n.serial
		}
	}
	return s
}

// TestNodesAgree lets random clusters converge and checks what must hold
// between any two nodes: both or neither connect a network, one of the two
// initiates, encrypted networks use inner addresses only, the MTU is the
// same, no address and no block has two owners.
func TestNodesAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySim(t)
		if err := s.run(); err != nil {
			t.Fatal(err)
		}
		for i, a := range s.nodes {
			if err := a.out.Record.Validate(); err != nil {
				t.Fatalf("record of %s: %v", a.name, err)
			}
			for driver, spec := range a.out.Tunnels {
				if err := spec.Validate(); err != nil {
					t.Fatalf("spec of driver %s of %s: %v", driver, a.name, err)
				}
			}
			for _, b := range s.nodes[i+1:] {
				checkPair(t, a, b)
			}
		}
		checkOwners(t, s)
	})
}

func checkPair(t *rapid.T, a, b *node) {
	at, aHas := tunnelTo(a, b)
	bt, bHas := tunnelTo(b, a)
	if aHas != bHas || aHas && (at == bt) {
		t.Fatalf("%s has tunnel %v (initiates %v), %s has %v (initiates %v)", a.name, aHas, at, b.name, bHas, bt)
	}
	for _, x := range a.out.Networks {
		for _, y := range b.out.Networks {
			if x.Network != y.Network {
				continue
			}
			ab, ba := floods(x, b), floods(y, a)
			if ab != ba {
				t.Fatalf("network %s: %s -> %s %v, back %v", x.Network, a.name, b.name, ab, ba)
			}
			if locals := y.Way(y.Encrypted).Locals(); ab && !slices.ContainsFunc(locals, func(a netip.Addr) bool { return slices.Contains(x.Flood, a) }) {
				t.Fatalf("network %s: %s sends to %v, %s listens on %s", x.Network, a.name, x.Flood, b.name, locals)
			}
			if want := x.Encrypted == y.Encrypted && commonFamily(a, b); ab != want {
				t.Fatalf("network %s: %s and %s are connected: %v, want %v", x.Network, a.name, b.name, ab, want)
			}
			if ab && (x.Encrypted != y.Encrypted || x.VNI != y.VNI) {
				t.Fatalf("network %s connected with two definitions", x.Network)
			}
			if ab && x.MTU != y.MTU {
				t.Fatalf("network %s: MTU %d on %s, %d on %s", x.Network, x.MTU, a.name, y.MTU, b.name)
			}
		}
	}
}

// commonFamily reports whether some underlay address of each node is of one family.
func commonFamily(a, b *node) bool {
	return slices.ContainsFunc(a.in.Underlay.Own, func(x OwnAddr) bool {
		return slices.ContainsFunc(b.in.Underlay.Own, func(y OwnAddr) bool { return x.Control.Addr().Is4() == y.Control.Addr().Is4() })
	})
}

// floods reports whether a spec sends to a node at any of its addresses.
func floods(spec vxlan.Spec, n *node) bool {
	return slices.ContainsFunc(spec.Flood, func(a netip.Addr) bool {
		return a == n.id.InnerAddr() || slices.ContainsFunc(n.in.Underlay.Own, func(o OwnAddr) bool { return o.Control.Addr() == a })
	})
}

// tunnelTo reports whether a has a tunnel to b, and whether a initiates it.
func tunnelTo(a, b *node) (initiates, has bool) {
	for _, spec := range a.out.Tunnels {
		for _, p := range spec.Peers {
			if p.ID == b.id {
				return p.Keys[0].Endpoint.IsValid(), true
			}
		}
	}
	return false, false
}

func checkOwners(t *rapid.T, s *sim) {
	addrs, macs, blocks := map[string]string{}, map[string]string{}, map[string]string{}
	own := func(m map[string]string, group, what, who string) {
		if o, ok := m[group+what]; ok && o != who {
			t.Fatalf("%s of %s belongs to %s and to %s", what, group, o, who)
		}
		m[group+what] = who
	}
	for _, n := range s.nodes {
		for _, spec := range n.out.Networks {
			checkInner(t, n, spec)
			// Nodes with different definitions are different networks.
			group := fmt.Sprint(spec.Network, spec.VNI, spec.Encrypted, " ")
			for _, e := range spec.Endpoints {
				own(macs, group, e.MAC.String(), n.name)
				for _, p := range e.Addrs {
					own(addrs, group, p.Addr().String(), n.name)
				}
			}
			for _, r := range spec.Remotes {
				who := nodeAt(s, spec, r.VTEP)
				own(macs, group, r.MAC.String(), who)
				for _, a := range r.Addrs {
					own(addrs, group, a.String(), who)
				}
			}
		}
		for _, w := range n.out.Record.Networks {
			for _, block := range w.Blocks {
				own(blocks, fmt.Sprint(w.Name, w.VNI, w.Encrypted, " "), block.String(), n.name)
			}
		}
	}
}

// checkInner checks that an encrypted network knows no underlay address, and
// that the guard lets in exactly its nodes.
func checkInner(t *rapid.T, n *node, spec vxlan.Spec) {
	if !spec.Encrypted {
		return
	}
	inner := netip.MustParsePrefix("fd00::/8")
	for _, a := range append([]netip.Addr{spec.Local}, spec.Flood...) {
		if !inner.Contains(a) || netip.MustParsePrefix("fd00:198:18::/64").Contains(a) {
			t.Fatalf("encrypted network %s of %s uses address %s", spec.Network, n.name, a)
		}
	}
	allowed := 0
	for _, m := range n.out.Secure.Members {
		if m.VNI == spec.VNI {
			allowed++
			if !slices.Contains(spec.Flood, m.Inner) {
				t.Fatalf("guard of %s admits %s to %s", n.name, m.Inner, spec.Network)
			}
		}
	}
	if allowed != len(spec.Flood) {
		t.Fatalf("guard of %s admits %d of %d nodes to %s", n.name, allowed, len(spec.Flood), spec.Network)
	}
}

func nodeAt(s *sim, spec vxlan.Spec, vtep netip.Addr) string {
	for _, n := range s.nodes {
		if n.id.InnerAddr() == vtep || slices.ContainsFunc(n.in.Underlay.Own, func(o OwnAddr) bool { return o.Control.Addr() == vtep }) {
			return n.name
		}
	}
	return "nobody: " + spec.Network
}

// TestDesiredIsPure checks that the order of members and attachments does not
// matter and that the input is not written to.
func TestDesiredIsPure(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySim(t)
		if err := s.run(); err != nil {
			t.Fatal(err)
		}
		n := s.nodes[rapid.IntRange(0, len(s.nodes)-1).Draw(t, "node")]
		before := fmt.Sprintf("%+v", n.in)
		first := fmt.Sprintf("%+v", Desired(n.in))
		if after := fmt.Sprintf("%+v", n.in); after != before {
			t.Fatalf("Desired changed its input:\n%s\n%s", before, after)
		}
		n.in.Members = slices.Clone(n.in.Members)
		slices.Reverse(n.in.Members)
		n.in.Attachments = slices.Clone(n.in.Attachments)
		slices.Reverse(n.in.Attachments)
		if second := fmt.Sprintf("%+v", Desired(n.in)); second != first {
			t.Fatalf("order of the input matters:\n%s\n%s", first, second)
		}
	})
}

// FuzzDesired feeds records that no honest node would sign but that the
// decoder accepts: Desired must neither panic nor publish a bad record.
func FuzzDesired(f *testing.F) {
	s := newSim(3, blue(), lab())
	s.attach(1, "blue", "10.77.0.9/16")
	if err := s.run(); err != nil {
		f.Fatal(err)
	}
	for _, n := range s.nodes {
		f.Add(record.Encode(n.out.Record))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		rec, err := record.Parse(append(raw, make([]byte, 64)...)) // Parse does not check the signature
		if err != nil {
			return
		}
		rec.ID = ids.NodeID{9}
		in := newSim(1, blue(), lab()).nodes[0].in
		in.Members = []Member{{ID: rec.ID, Serial: 0, Record: rec}}
		out := Desired(in)
		if err := out.Record.Validate(); err != nil {
			t.Errorf("own record: %v", err)
		}
		for driver, spec := range out.Tunnels {
			if err := spec.Validate(); err != nil {
				t.Errorf("spec of driver %s: %v", driver, err)
			}
		}
		for _, n := range out.Networks {
			if n.MTU < config.MinMTU {
				t.Errorf("network %s has MTU %d", n.Network, n.MTU)
			}
		}
	})
}
