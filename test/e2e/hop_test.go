package e2e

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/time/rate"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// hops is how many frames the rogue sends through its tunnels that are not its own to
// send, and how many per second.
func hops(t *testing.T) (count int, perSecond rate.Limit) {
	t.Helper()
	if !emulated() {
		return 10_000, 3000
	}
	return min(10_000, 10*scaled(t, 10_000)), 1000
}

// vxlanPort is that of all networks here (RFC 7348).
const vxlanPort = 4789

// hop sends VXLAN frames through the tunnels that a rogue has as a member: on networks that
// it is not on, with inner addresses that are not its own, with MACs of others. None
// arrives that must not; its own right ones do, before and after. The last container on
// blue is the rogue's, and it is not on green.
func hop(t *testing.T, ctx context.Context, bad *fleet.Node, rogue ids.NodeID, blue, green, lab []fleet.Attached) {
	t.Helper()
	ns := secureNS(t, bad)
	// Its own filter would be in the way; a rogue has none.
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	in, err := netlab.OpenInjector(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	last := len(blue) - 1
	var inner []netip.Addr // of the others, the rogue's last
	for _, a := range blue[:last] {
		inner = append(inner, nodeID(t, ctx, a.Node).InnerAddr())
	}
	inner = append(inner, rogue.InnerAddr())
	tunnel := func(src, dst netip.Addr, vni ids.VNI, frame []byte) {
		t.Helper()
		err := in.UDP(netip.AddrPortFrom(src, 40000), netip.AddrPortFrom(dst, vxlanPort), netlab.VXLANPayload(uint32(vni), frame))
		if err != nil {
			t.Fatal(err)
		}
	}

	allowed := []byte("a frame that the rogue may send ")
	seen := listen(t, blue[0], allowed)
	control := func(when string) {
		t.Helper()
		want := seen.Counts().Matched + 50
		for range 100 {
			tunnel(inner[last], inner[0], ids.DeriveVNI("blue"), frameFor(blue[last], blue[0], allowed))
		}
		if err := seen.WaitMatched(ctx, want); err != nil {
			t.Fatalf("control %s: frames that the rogue may send do not arrive: %v", when, err)
		}
	}
	control("before")
	marker := []byte("a frame that the rogue must not send ")
	var heard []*netlab.Capture
	for _, list := range [][]fleet.Attached{blue[:last], green, lab[:last]} {
		for _, a := range list {
			heard = append(heard, listen(t, a, marker))
		}
	}
	before := received(t, ctx, blue[0].Node, bad)
	hopped, perSecond := hops(t)
	limit := rate.NewLimiter(perSecond, int(perSecond)/100)
	for i := range hopped {
		if err := limit.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		v := i % last // the victim; and another of the others
		o := (v + 1) % last
		switch i / last % 6 {
		case 0:
			tunnel(inner[last], inner[v], ids.DeriveVNI("green"), frameFor(green[o], green[v], marker))
		case 1:
			tunnel(inner[last], inner[v], ids.VNI(1+rand.N(1<<24-1)), frameFor(blue[last], blue[v], marker))
		case 2: // somebody else's address, right network
			tunnel(inner[o], inner[v], ids.DeriveVNI("blue"), frameFor(blue[o], blue[v], marker))
		case 3:
			tunnel(inner[o], inner[v], ids.DeriveVNI("green"), frameFor(green[o], green[v], marker))
		case 4: // a network that is not encrypted
			tunnel(inner[last], inner[v], ids.DeriveVNI("lab"), frameFor(lab[o], lab[v], marker))
		case 5: // its own network, the MAC of somebody else: it may arrive, and teaches nobody
			tunnel(inner[last], inner[v], ids.DeriveVNI("blue"), frameFor(blue[o], blue[v], allowed))
		}
	}
	control("after")
	for i := range green {
		mustPing(t, ctx, green[i], green[(i+1)%len(green)].V4(), 56)
		mustPing(t, ctx, lab[i], lab[(i+1)%len(green)].V4(), 56)
	}
	for _, h := range heard {
		if n := h.Stop(); n.Matched != 0 || n.Dropped != 0 || n.Frames == 0 {
			t.Errorf("%d of %d frames arrived that the rogue must not send (%+v)", n.Matched, hopped, n)
		}
	}
	// A sixth of them each; two sixths have an address that no tunnel lets through.
	if grown := received(t, ctx, blue[0].Node, bad) - before; grown < uint64(hopped/last)/2*100 {
		t.Errorf("control: %s received only %d bytes from the rogue", blue[0].Node.Name, grown)
	}
}

// received is how much a node has received from another through their tunnel.
func received(t *testing.T, ctx context.Context, n, from *fleet.Node) uint64 {
	t.Helper()
	s, err := n.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Peers {
		if p.Name == from.Name {
			return p.RxBytes
		}
	}
	t.Fatalf("%s has no peer %s", n.Name, from.Name)
	return 0
}
