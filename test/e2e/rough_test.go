package e2e

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestRoughWire carries traffic over a wire that loses, doubles, changes, cuts, lengthens, delays and replays
// packets of the tunnel, and rotates meanwhile: every byte of TCP arrives as it was sent, and of datagrams none is
// changed or comes twice, fragmented ones included. At full size (SECURE_OVERLAY_TEST_ROTATIONS) it is 10 GB for each driver.
func TestRoughWire(t *testing.T) {
	all := []string{"userspace", "ipsec-userspace"}
	if emulated() {
		all = []string{"wireguard", "ipsec"}
	}
	if raceDetector && os.Getenv(rotationsEnv) == "" {
		all = all[1:] // half a minute each
	}
	bytes := int64(40_000_000)
	switch {
	case os.Getenv(rotationsEnv) != "" && !slowMachine():
		bytes = 2_500_000_000
	case slowMachine():
		bytes = 2_000_000
	}
	ctx, f := startFor(t, suited(), 2, 20+int(bytes>>23), "")
	var at [2]fleet.Attached
	for i, n := range f.Nodes {
		var err error
		if at[i], err = f.Attach(ctx, n, "blue"); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WaitEndpoints(ctx, "blue", 2); err != nil {
		t.Fatal(err)
	}
	wire, err := f.Nodes[0].Host.Rough(netlab.Roughness{
		Drop: 0.001, Double: 0.002, Flip: 0.001, Resize: 0.001, Hold: 0.002, Replay: 0.002, Reach: 512, Seed: 3,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := wire.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, driver := range all {
		t.Run(driver, func(t *testing.T) {
			toDriver(t, ctx, f, driver)
			roughWire(t, ctx, f, at, driver, bytes)
		})
	}
	n := wire.Counts()
	t.Logf("the wire: %+v", n)
	if min(n.Dropped, n.Doubled, n.Flipped, n.Resized, n.Held, n.Replayed) == 0 {
		t.Errorf("the wire was not rough: %+v", n)
	}
}

// roughWire carries traffic both ways.
func roughWire(t *testing.T, ctx context.Context, f *fleet.Fleet, at [2]fleet.Attached, driver string, bytes int64) {
	t.Helper()
	var flows []*netlab.Flow
	for i, size := range []int{200, 200, 4000, 4000} { // the large ones are fragmented before they are encrypted
		from, to := at[i%2], at[1-i%2]
		flow, err := netlab.StartUDPFlow(ctx, netlab.FlowOptions{
			From: from.Box.NS(), To: to.Box.NS(), Dst: netip.AddrPortFrom(to.V4(), 0), Size: size, Rate: lowRate(t) / 2,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { flow.Stop() })
		flows = append(flows, flow)
	}
	for i, dst := range []netip.Addr{at[1].V4(), at[0].V4(), at[1].V6(), at[0].V6()} {
		from, to := at[i%2], at[1-i%2]
		r, err := netlab.TCPTransfer(ctx, from.Box.NS(), to.Box.NS(), netip.AddrPortFrom(dst, 0), netlab.TransferOptions{Bytes: bytes})
		if err != nil {
			t.Fatalf("%s to %s: %v", from.Node.Name, dst, err)
		}
		t.Logf("%s to %s: %d bytes, %.0f Mbit/s", from.Node.Name, dst, r.Bytes, r.MbitPerS)
		if i == 1 {
			rotate(t, ctx, f.Nodes[0], driver)
		}
	}
	for i, flow := range flows {
		r := flow.Stop()
		t.Logf("flow %d: %+v", i, r)
		if r.Corrupt != 0 || r.Duplicated != 0 || r.Received == 0 {
			t.Errorf("flow %d: %d packets changed, %d came twice, %d arrived", i, r.Corrupt, r.Duplicated, r.Received)
		}
	}
	wantDriver(t, ctx, f.Nodes, driver)
	if driver == "ipsec-userspace" {
		wantCounted(t, ctx, f)
	}
}

// wantCounted waits until both nodes say what their workers have dropped.
func wantCounted(t *testing.T, ctx context.Context, f *fleet.Fleet) {
	t.Helper()
	for _, n := range f.Nodes {
		waitUntil(t, ctx, 15*time.Second, n.Name+" to count what was forged and replayed", func() (bool, error) {
			var s api.KeyStatus
			if err := n.JSON(ctx, &s, "keys", "status"); err != nil || len(s.Devices) == 0 {
				return false, err
			}
			dropped := s.Devices[len(s.Devices)-1].Dropped
			return dropped["forged"] > 0 && dropped["replay"] > 0, nil
		})
	}
}
