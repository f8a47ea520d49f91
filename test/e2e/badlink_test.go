package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// The flow's packets on a bad link: 600 bytes of payload are an inner IPv6
// packet of 698 bytes (UDP 8, IPv4 20, Ethernet 14, VXLAN 8, UDP 8, IPv6 40).
const (
	badLinkPayload = 600
	badLinkInner   = badLinkPayload + 8 + 20 + 14 + 8 + 8 + 40
)

// outerLength is the whole IPv4 length of the packet that carries an inner one.
func outerLength(driver string, inner int) uint16 {
	// ESP 8, IV 8, the packet and 2 bytes padded to 4, ICV 16, IPv4 20; in UDP 8 more.
	esp := uint16(20 + 8 + 8 + (inner+2+3)/4*4 + 16)
	switch driver {
	case "ipsec":
		return esp
	case "ipsec-userspace":
		return esp + 8
	}
	// WireGuard pads to 16 and adds 32; UDP 8, IPv4 20.
	return uint16(20 + 8 + 32 + (inner+15)/16*16)
}

// badLink loses about 5 % and delays by 20 ms, more or less 20 ms, on the way
// from one host to another, which crosses two wires.
func badLink() netlab.Impairment {
	return netlab.Impairment{Loss: 2.53, Delay: 10 * time.Millisecond, Jitter: 10 * time.Millisecond}
}

// TestRotationOverBadLink rotates while every wire loses and shuffles packets:
// data, handshakes, probes and the control plane alike.
//
// Comparing the loss with that of another run would not do: at 5 % two runs of
// 100,000 packets differ by 0.1 % by chance alone, ten times what is to be shown.
// So every packet is accounted for instead. The numbered packets have a size of
// their own, the wires count packets of that size separately, and then, exactly:
//
//	sent by the applications    = came to the senders' wires
//	passed the senders' wires   = came to the receivers' wires
//	passed the receivers' wires = arrived at the applications
//
// A packet that rotation loses breaks the first or the third line whatever the
// wires lose, so the test cannot fail by chance. It cannot pass by accident: a
// filter that picks other packets, or too few, breaks the first line, and a wire
// that loses nothing is an error.
func TestRotationOverBadLink(t *testing.T) {
	netlab.Require(t, netlab.FeatureNetem)
	for _, driver := range drivers() {
		t.Run(driver, func(t *testing.T) {
			count := scaled(t, 50)
			ctx, f := startFor(t, suited(), 3, 2*count, "")
			toDriver(t, ctx, f, driver)
			impairAll(t, f, outerLength(driver, badLinkInner))
			l := startLoad(t, ctx, f, lowRate(t), badLinkPayload)
			var took spans
			for i := range count {
				_, d := rotate(t, ctx, f.Nodes[i%len(f.Nodes)], "")
				took = append(took, d)
			}
			l.more(ctx, 50, "after the last rotation")
			r := l.mesh.Stop()
			out, in := wires(t, f)
			waitUntil(t, ctx, 10*time.Second, "the wires to be empty", func() (bool, error) {
				out, in = wires(t, f)
				return out.Queued == 0 && in.Queued == 0, nil
			})
			t.Logf("rotations: %v", took)
			t.Logf("%d sent, %d arrived; senders' wires %+v, receivers' wires %+v", r.Sent, r.Received, out, in)
			checkAccounts(t, r, out, in)
			wantDriver(t, ctx, f.Nodes, driver)
			repairAll(t, ctx, f)
			l.wantUnreadable(ctx)
		})
	}
}

func checkAccounts(t *testing.T, r netlab.FlowResult, out, in netlab.Impaired) {
	t.Helper()
	for _, c := range []struct {
		what      string
		from, got uint64
	}{
		{"between the applications and the senders' wires", r.Sent, out.Taken()},
		{"inside the switch", out.Passed, in.Taken()},
		{"between the receivers' wires and the applications", in.Passed, r.Received},
	} {
		if c.from != c.got {
			t.Errorf("%s: %d of %d packets are missing", c.what, int64(c.from)-int64(c.got), c.from)
		}
	}
	if lost := out.Dropped + in.Dropped; lost*100 < r.Sent {
		t.Errorf("the wires lost %d of %d packets: this is no bad link", lost, r.Sent)
	}
	if r.SendErrors+r.Duplicated+r.Corrupt != 0 || r.Reordered == 0 {
		t.Errorf("flows: %+v", r)
	}
}

func impairAll(t *testing.T, f *fleet.Fleet, size uint16) {
	t.Helper()
	for _, n := range f.Nodes {
		if err := n.Host.Impair(badLink(), size, badLink()); err != nil {
			t.Fatal(err)
		}
	}
}

func repairAll(t *testing.T, ctx context.Context, f *fleet.Fleet) {
	t.Helper()
	for _, n := range f.Nodes {
		if err := n.Host.Repair(); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
}

// wires sums the counts of the flow's packets over all hosts.
func wires(t *testing.T, f *fleet.Fleet) (out, in netlab.Impaired) {
	t.Helper()
	for _, n := range f.Nodes {
		o, i, err := n.Host.Impaired()
		if err != nil {
			t.Fatal(err)
		}
		out, in = out.Plus(o), in.Plus(i)
	}
	return out, in
}
