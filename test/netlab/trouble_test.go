package netlab

import (
	"errors"
	"io/fs"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// answers reports whether one ping gets through.
func answers(t *testing.T, from, to *Host) bool {
	t.Helper()
	r, err := Ping(t.Context(), from.NS(), to.V4(), PingOptions{Timeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return r.Received == 1
}

// udpArrives reports whether one of some UDP packets to a port gets through.
func udpArrives(t *testing.T, from, to *Host, port uint16) bool {
	t.Helper()
	r, err := UDPFlow(t.Context(), 50*time.Millisecond, FlowOptions{From: from.NS(), To: to.NS(), Dst: netip.AddrPortFrom(to.V4(), port)})
	if err != nil {
		t.Fatal(err)
	}
	return r.Received > 0
}

func TestBlock(t *testing.T) {
	l := newLab(t, "block")
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	tcp := func() bool {
		ctx := within(t, 300*time.Millisecond)
		_, err := TCPTransfer(ctx, a.NS(), b.NS(), netip.AddrPortFrom(b.V4(), 0), TransferOptions{Bytes: 1})
		return err == nil
	}
	type seen struct{ ping, toPort, toOther, back, tcp bool }
	for _, tc := range []struct {
		name   string
		blocks []Block
		want   seen
	}{
		{"nothing", nil, seen{true, true, true, true, true}},
		{"UDP", []Block{{Out: true, In: true, Proto: unix.IPPROTO_UDP}}, seen{ping: true, tcp: true}},
		{"a port", []Block{{Out: true, In: true, Proto: unix.IPPROTO_UDP, Port: 7000}}, seen{ping: true, toOther: true, tcp: true}},
		{"TCP out", []Block{{Out: true, Proto: unix.IPPROTO_TCP}}, seen{ping: true, toPort: true, toOther: true, back: true}},
		{"half open", []Block{{Out: true, Proto: unix.IPPROTO_UDP}, {Out: true, Proto: unix.IPPROTO_ICMP}}, seen{back: true, tcp: true}},
		{"everything", []Block{Cut()}, seen{}},
		{"nothing again", nil, seen{true, true, true, true, true}},
	} {
		if err := a.Block(tc.blocks...); err != nil {
			t.Fatal(err)
		}
		got := seen{answers(t, a, b), udpArrives(t, a, b, 7000), udpArrives(t, a, b, 7001), udpArrives(t, b, a, 7000), tcp()}
		if got != tc.want {
			t.Errorf("%s blocked: %+v, want %+v", tc.name, got, tc.want)
		}
	}
}

func TestReplay(t *testing.T) {
	l := newLab(t, "replay")
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	newHost(t, l, "c")
	ctx := within(t, 30*time.Second)
	rec, err := l.Record(ContainsMarker(testMarker))
	if err != nil {
		t.Fatal(err)
	}
	f, err := StartUDPFlow(ctx, FlowOptions{From: a.NS(), To: b.NS(), Dst: netip.AddrPortFrom(b.V4(), 0), Marker: testMarker})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Stop()
	if err := f.WaitReceived(ctx, 100); err != nil {
		t.Fatal(err)
	}
	frames, missed := rec.Stop()
	if len(frames) < 50 || missed != 0 {
		t.Fatalf("recorded %d frames, missed %d", len(frames), missed)
	}
	if d := f.Result().Duplicated; d != 0 {
		t.Errorf("%d packets came twice before any was sent again", d)
	}
	if err := l.Replay(ctx, frames, 5000); err != nil {
		t.Fatal(err)
	}
	if err := waitFor(ctx, func() bool { return f.Result().Duplicated == uint64(len(frames)) }, func() string { return "replayed packets are missing" }); err != nil {
		t.Errorf("%v: %+v for %d frames", err, f.Result(), len(frames))
	}
}

func TestMeshAndStream(t *testing.T) {
	l := newLab(t, "mesh")
	ctx := within(t, 60*time.Second)
	var points []Point
	for _, name := range []string{"a", "b", "c"} {
		h := newHost(t, l, name)
		points = append(points, Point{Name: name, NS: h.NS(), Addr: h.V4()})
	}
	before, err := Counters(points[0].NS)
	if err != nil {
		t.Fatal(err)
	}
	s := StartTCPStream(ctx, StreamOptions{From: points[0].NS, To: points[1].NS, Dst: netip.AddrPortFrom(points[1].Addr, 0), Rate: 10 << 20})
	m, err := StartMesh(ctx, MeshOptions{Points: points, Rate: 500})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WaitReceived(ctx, 100); err != nil {
		t.Error(err)
	}
	if r := m.Stop(); r.Received < 6*100 || m.Check() != nil {
		t.Errorf("%+v, %v", r, m.Check())
	}
	r, err := s.Stop(ctx)
	if want := int64(r.Elapsed.Seconds() * (10 << 20)); err != nil || r.Bytes == 0 || r.Bytes > want+want/10+1<<20 {
		t.Errorf("stream: %+v, %v; want about %d bytes", r, err, want)
	}
	after, err := Counters(points[0].NS)
	if err != nil {
		t.Fatal(err)
	}
	if g := Grown(before, after); g["Tcp.ActiveOpens"] != 1 || g["Udp.OutDatagrams"] < 200 || g[TCPTimeouts] != 0 {
		t.Errorf("counters grew by %v", g)
	}
}

// TestTimeoutIsCounted is the control for tests that want no timeout: one is
// counted, and a patient sender's comes when its patience is at an end.
func TestTimeoutIsCounted(t *testing.T) {
	for name, patience := range map[string]time.Duration{"usual": 0, "patient": 2 * time.Second} {
		t.Run(name, func(t *testing.T) { timeoutIsCounted(t, patience) })
	}
}

func timeoutIsCounted(t *testing.T, patience time.Duration) {
	l := newLab(t, "rto")
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	ctx := within(t, 30*time.Second)
	s := StartTCPStream(ctx, StreamOptions{From: a.NS(), To: b.NS(), Dst: netip.AddrPortFrom(b.V4(), 0), Patience: patience})
	timeouts := func() int64 {
		c, err := Counters(a.NS())
		if err != nil {
			t.Fatal(err)
		}
		return c[TCPTimeouts]
	}
	sent := func() bool {
		c, err := Counters(b.NS())
		return err == nil && c["Tcp.InSegs"] > 10
	}
	if err := waitFor(ctx, sent, func() string { return "nothing arrives" }); err != nil {
		t.Fatal(err)
	}
	if n := timeouts(); n != 0 {
		t.Fatalf("%d timeouts before the cut", n)
	}
	if err := a.Block(Cut()); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	if err := waitFor(ctx, func() bool { return timeouts() > 0 }, func() string { return "no timeout is counted" }); err != nil {
		t.Error(err)
	}
	if after := time.Since(cut); after < patience*9/10 {
		t.Errorf("a timeout is counted after %v of %v", after, patience)
	}
	if err := a.Block(); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Stop(ctx); err != nil {
		t.Errorf("stream after a cut: %+v, %v", r, err)
	}
}

func TestXfrmCounters(t *testing.T) {
	l := newLab(t, "xfrm")
	c, err := XfrmCounters(newHost(t, l, "a").NS())
	if errors.Is(err, fs.ErrNotExist) {
		return // this kernel has none; the virtual machine's has
	}
	if _, ok := c["XfrmInStateSeqError"]; err != nil || !ok {
		t.Errorf("counters = %v, %v", c, err)
	}
}

func TestParsePairedLines(t *testing.T) {
	got := make(map[string]int64)
	if err := parsePairedLines("Tcp: MaxConn InSegs\nTcp: -1 7\nIpExt: InOctets\nIpExt: 18446744073709551615\n", got); err != nil {
		t.Fatal(err)
	}
	if got["Tcp.MaxConn"] != -1 || got["Tcp.InSegs"] != 7 || got["IpExt.InOctets"] != -1 || len(got) != 3 {
		t.Errorf("counters = %v", got)
	}
	for _, bad := range []string{"Tcp: A\n", "Tcp: A B\nTcp: 1\n", "Tcp: A\nUdp: 1\n", "Tcp: A\nTcp: x\n"} {
		if parsePairedLines(bad, map[string]int64{}) == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestImpair(t *testing.T) {
	l := newLab(t, "impair")
	Require(t, FeatureNetem)
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	ctx := within(t, 60*time.Second)
	const size = 300
	if err := a.Impair(Impairment{Delay: 20 * time.Millisecond}, 20+8+size, Impairment{Loss: 20, Delay: 10 * time.Millisecond, Jitter: 5 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	r, err := Ping(ctx, b.NS(), a.V4(), PingOptions{Count: 5})
	if err != nil || r.Received != 5 || r.RTTs[0] < 40*time.Millisecond {
		t.Errorf("ping through delay: %+v, %v", r, err)
	}
	f, err := StartUDPFlow(ctx, FlowOptions{From: a.NS(), To: b.NS(), Dst: netip.AddrPortFrom(b.V4(), 0), Size: size, Rate: 500})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WaitReceived(ctx, 300); err != nil {
		t.Error(err)
	}
	res := f.Stop()
	out, in, err := a.Impaired()
	if err != nil {
		t.Fatal(err)
	}
	want := Impaired{Passed: res.Received, Dropped: res.Lost()}
	if res.Lost() == 0 || out != want || in != (Impaired{}) || out.Taken() != res.Sent || res.Reordered == 0 {
		t.Errorf("flow through loss: %+v, lost %d; the wire says %+v out, %+v in", res, res.Lost(), out, in)
	}
	if err := a.Repair(); err != nil {
		t.Fatal(err)
	}
	if r, err := Ping(ctx, b.NS(), a.V4(), PingOptions{Count: 3, Interval: time.Millisecond}); err != nil || r.Received != 3 || r.RTTs[0] > 20*time.Millisecond {
		t.Errorf("ping after the repair: %+v, %v", r, err)
	}
}
