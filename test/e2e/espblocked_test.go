package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// esp is ESP's IP protocol (IANA).
const esp = 50

// fallBack is how long a rotation to ipsec may take when ESP is blocked between
// two nodes: it waits for the first form to be given up, and the machine is slow.
const fallBack = 90 * time.Second

// TestESPBlocked rotates a network under load from WireGuard to ipsec while
// something drops ESP between two of three nodes. These two go over to ESP in
// UDP by themselves, nobody else does, everybody is told, and nothing is lost:
// until they have proved it, they stay on their old keys.
func TestESPBlocked(t *testing.T) {
	netlab.Require(t, netlab.FeatureXfrm)
	// Hold-down of profile local is 30 s, and giving up a form takes 10.
	ctx, f := startFor(t, config.ProfileLAN, 3, 3, "")
	a, b, c := f.Nodes[0], f.Nodes[1], f.Nodes[2]
	if err := a.Host.Block(netlab.Block{Out: true, In: true, Proto: esp, With: b.Host}); err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, ctx, f, packetRate(t), 200)
	l.startStream(ctx)
	large := startLarge(t, ctx, f, l)
	begin := time.Now()
	r, took := rotate(t, ctx, a, "ipsec")
	if err := f.WaitEpoch(ctx, r.To); err != nil {
		t.Fatal(err)
	}
	t.Logf("all pairs are on ipsec after %v, the command took %v", time.Since(begin).Round(time.Millisecond), took.Round(time.Millisecond))
	if took > fallBack {
		t.Errorf("the rotation took %v", took)
	}
	wantDriver(t, ctx, f.Nodes, "ipsec")
	wantInUDP(t, ctx, f, a, b)

	// The next rotation begins with the form that passed.
	r, took = rotate(t, ctx, c, "")
	if err := f.WaitEpoch(ctx, r.To); err != nil {
		t.Fatal(err)
	}
	t.Logf("the next rotation took %v", took.Round(time.Millisecond))
	wantInUDP(t, ctx, f, a, b)
	for _, n := range f.Nodes {
		want := 1
		if n == c {
			want = 0
		}
		if got := blockedEvents(t, ctx, n); got != want {
			t.Errorf("%s has %d events about blocked ESP, want %d", n.Name, got, want)
		}
	}
	for _, n := range []*fleet.Node{a, b} {
		out, err := n.CLI(ctx, "doctor")
		if err != nil || !strings.Contains(string(out), "ESP in UDP") {
			t.Errorf("doctor on %s says %v:\n%s", n.Name, err, out)
		}
	}
	l.more(ctx, 50, "after the last rotation")
	if r := large.Stop(); large.Check() != nil {
		t.Errorf("of %d packets of full size: %v", r.Sent, large.Check())
	}
	l.finish(ctx)
	// The longest packets that the network has now pass between all.
	for i, from := range l.blue {
		for j, to := range l.blue {
			if i != j {
				mustPing(t, ctx, from, to.V4(), networkMTU(t, ctx, f.Nodes[i])-28)
			}
		}
	}
}

// startLarge sends packets of the network's whole MTU between all nodes, a few
// per second. The MTU becomes less on the way, each node's at its own time.
func startLarge(t *testing.T, ctx context.Context, f *fleet.Fleet, l *load) *netlab.Mesh {
	t.Helper()
	const header = 20 + 8 // IPv4, UDP
	m, err := netlab.StartMesh(ctx, netlab.MeshOptions{
		Points: points(l.blue), Rate: 20, Size: networkMTU(t, ctx, f.Nodes[0]) - header, Marker: l.marker,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Stop() })
	if err := m.WaitReceived(ctx, 10); err != nil {
		t.Fatal(err)
	}
	return m
}

// wantInUDP asserts that of all pairs exactly that of two nodes has ESP in UDP.
func wantInUDP(t *testing.T, ctx context.Context, f *fleet.Fleet, a, b *fleet.Node) {
	t.Helper()
	for _, n := range f.Nodes {
		s, err := n.Keys(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range s.Peers {
			want := n == a && p.Name == b.Name || n == b && p.Name == a.Name
			if p.InUDP != want || strings.Contains(p.Driver, "in UDP") != want || !p.FullMTU {
				t.Errorf("%s toward %s: %+v; in UDP should be %v", n.Name, p.Name, p, want)
			}
		}
	}
}

// blockedEvents counts what a node's history says about blocked ESP.
func blockedEvents(t *testing.T, ctx context.Context, n *fleet.Node) (count int) {
	t.Helper()
	var h api.KeyHistory
	if err := n.JSON(ctx, &h, "keys", "history"); err != nil {
		t.Fatal(err)
	}
	for _, e := range h.Events {
		if e.Kind == api.EventESPBlocked {
			count++
		}
	}
	return count
}

// networkMTU is the MTU of a node's encrypted network.
func networkMTU(t *testing.T, ctx context.Context, n *fleet.Node) int {
	t.Helper()
	s, err := n.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, nw := range s.Networks {
		if nw.Name == "blue" {
			return nw.MTU
		}
	}
	t.Fatalf("%s has no network: %+v", n.Name, s.Networks)
	return 0
}
