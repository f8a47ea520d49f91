package netlab

import (
	"net/netip"
	"testing"
	"time"
)

var testMarker = []byte("netlab-marker-7f3a")

func TestPing(t *testing.T) {
	l := newLab(t, "ping")
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	ctx := within(t, 30*time.Second)
	for _, dst := range []netip.Addr{b.V4(), b.V6()} {
		for _, o := range []PingOptions{
			{Count: 5, Interval: time.Millisecond},
			{Count: 1, Size: 1400, DontFragment: true, Marker: testMarker},
			{Count: 1, Size: 4000},
		} {
			r, err := Ping(ctx, a.NS(), dst, o)
			if err != nil || r.Sent != o.Count || r.Received != o.Count || len(r.RTTs) != o.Count {
				t.Errorf("ping %s %+v = %+v, %v", dst, o, r, err)
			}
		}
		r, err := Ping(ctx, a.NS(), dst, PingOptions{Size: 4000, DontFragment: true, Timeout: 50 * time.Millisecond})
		if err != nil || r.Received != 0 {
			t.Errorf("a ping too large for the link = %+v, %v", r, err)
		}
		if r.SendErr == nil {
			t.Errorf("ping %s: too large, no send error", dst)
		}
	}
	r, err := Ping(ctx, a.NS(), netip.MustParseAddr("198.18.0.99"), PingOptions{Timeout: 50 * time.Millisecond})
	if err != nil || r.Received != 0 {
		t.Errorf("ping nobody = %+v, %v", r, err)
	}
}

func TestUDPFlow(t *testing.T) {
	l := newLab(t, "flow")
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	ctx := within(t, 30*time.Second)
	for _, dst := range []netip.Addr{b.V4(), b.V6()} {
		f, err := StartUDPFlow(ctx, FlowOptions{From: a.NS(), To: b.NS(), Dst: netip.AddrPortFrom(dst, 0), Rate: 2000, Marker: testMarker})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.WaitReceived(ctx, 200); err != nil {
			t.Error(err)
		}
		r := f.Stop()
		// Packets may change places when the sender changes its processor.
		if r.Lost() != 0 || r.Received < 200 || r.Duplicated+r.Corrupt != 0 {
			t.Errorf("flow to %s = %+v", dst, r)
		}
	}
}

func TestUDPFlowCountsLoss(t *testing.T) {
	l := newLab(t, "loss")
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	ctx := within(t, 30*time.Second)
	f, err := StartUDPFlow(ctx, FlowOptions{From: a.NS(), To: b.NS(), Dst: netip.AddrPortFrom(b.V4(), 0)})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Stop()
	if err := f.WaitReceived(ctx, 10); err != nil {
		t.Fatal(err)
	}
	if err := b.Disconnect(); err != nil {
		t.Fatal(err)
	}
	// What was under way at the cut arrives within the first 100 packets' time.
	for _, more := range []uint64{100, 100} {
		goal := f.Result().Sent + more
		if err := waitFor(ctx, func() bool { return f.Result().Sent >= goal }, func() string { return "nothing is sent" }); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Connect(); err != nil {
		t.Fatal(err)
	}
	if err := f.WaitReceived(ctx, 10); err != nil {
		t.Fatal(err)
	}
	if r := f.Stop(); r.Lost() < 100 || r.LongestGap < StallTime || r.Stalls == 0 {
		t.Errorf("flow through a cut = %+v", r)
	}
}

// TestFlowLate: late packets that arrive together are one spell.
func TestFlowLate(t *testing.T) {
	f := &Flow{
		o: FlowOptions{Late: 100 * time.Millisecond}, began: time.Now().Add(-time.Second),
		sentAt: []uint32{0, 990, 100, 0}, result: FlowResult{Sent: 4},
	}
	for num, want := range []uint64{1, 1, 1} {
		f.arrived([]byte{0, 0, 0, 0, 0, 0, 0, byte(num)}, make([]byte, 8))
		if r := f.Result(); r.Late != want || r.LongestDelay < time.Second {
			t.Errorf("after packet %d: %d spells, longest %v", num, r.Late, r.LongestDelay)
		}
	}
	f.late = f.late.Add(-time.Second) // long ago
	f.arrived([]byte{0, 0, 0, 0, 0, 0, 0, 3}, make([]byte, 8))
	if r := f.Result(); r.Late != 2 {
		t.Errorf("after a pause: %d spells, want 2", r.Late)
	}
}

func TestFlowArrived(t *testing.T) {
	packet := func(num byte, tail string) []byte { return append([]byte{0, 0, 0, 0, 0, 0, 0, num}, tail...) }
	f := &Flow{o: FlowOptions{Late: time.Hour}, began: time.Now(), sentAt: make([]uint32, 5), result: FlowResult{Sent: 5}}
	want := packet(0, "xyz")
	for _, p := range [][]byte{
		packet(0, "xyz"), packet(2, "xyz"), packet(1, "xyz"), packet(2, "xyz"),
		packet(3, "xyZ"), packet(3, "xy"), packet(7, "xyz"),
	} {
		f.arrived(p, want)
	}
	r := f.Result()
	if r.Received != 3 || r.Reordered != 1 || r.Duplicated != 1 || r.Corrupt != 3 || r.Lost() != 2 {
		t.Errorf("result = %+v", r)
	}
}

func TestTCPTransfer(t *testing.T) {
	l := newLab(t, "tcp")
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	ctx := within(t, 30*time.Second)
	for _, dst := range []netip.Addr{b.V4(), b.V6()} {
		addr := netip.AddrPortFrom(dst, 0)
		r, err := TCPTransfer(ctx, a.NS(), b.NS(), addr, TransferOptions{Bytes: 20 << 20})
		if err != nil || r.Bytes != 20<<20 || r.MbitPerS <= 0 {
			t.Errorf("20 MiB to %s = %+v, %v", dst, r, err)
		}
		r, err = TCPTransfer(ctx, a.NS(), b.NS(), addr, TransferOptions{Duration: 200 * time.Millisecond, Marker: testMarker})
		if err != nil || r.Bytes == 0 {
			t.Errorf("200 ms to %s = %+v, %v", dst, r, err)
		}
		t.Logf("veth and bridge, %s: %.0f Mbit/s", dst, r.MbitPerS)
	}
	if _, err := TCPTransfer(ctx, a.NS(), b.NS(), netip.AddrPortFrom(b.V4(), 0), TransferOptions{}); err == nil {
		t.Error("neither bytes nor a duration was taken")
	}
	short := within(t, 100*time.Millisecond)
	if err := b.Disconnect(); err != nil {
		t.Fatal(err)
	}
	if _, err := TCPTransfer(short, a.NS(), b.NS(), netip.AddrPortFrom(b.V4(), 0), TransferOptions{Bytes: 1}); err == nil {
		t.Error("a transfer over a cut wire succeeded")
	}
}
