package e2e

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// rotationsEnv scales the tests that rotate keys: it says how many rotations
// TestRotationUnderLoad makes of each driver, and the others make as many fewer
// or more. At fullRotations every test has the size that it is meant to have;
// the default fits into a run of everything.
const (
	rateEnv          = "SECURE_OVERLAY_TEST_RATE" // packets per second of each flow
	rotationsEnv     = "SECURE_OVERLAY_TEST_ROTATIONS"
	driversEnv       = "SECURE_OVERLAY_TEST_DRIVERS" // with commas; see drivers
	fullRotations    = 200
	defaultRotations = 8
)

// scaled says how often to do what is done `full` times at full size; at least once.
func scaled(t *testing.T, full int) int {
	t.Helper()
	n := defaultRotations
	if s := os.Getenv(rotationsEnv); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil || n < 1 {
			t.Fatalf("%s=%q: want a number from 1 on; %d is the full size", rotationsEnv, s, fullRotations)
		}
	}
	return max(1, full*n/fullRotations)
}

// emulated reports whether this is the virtual machine, which has every driver
// and is about ten times slower.
func emulated() bool {
	return slices.Contains(strings.Split(os.Getenv(netlab.RequireEnv), ","), netlab.FeatureWireGuard)
}

// slowMachine reports whether programs wait for their turns here for longer than
// the timers of a cluster on one machine, and of TCP, allow for.
func slowMachine() bool { return emulated() || raceDetector }

// drivers are those that a rotation can go to on this machine, or that somebody asks for.
func drivers() []string {
	if s := os.Getenv(driversEnv); s != "" {
		return strings.Split(s, ",")
	}
	if emulated() {
		return []string{"wireguard", "ipsec"}
	}
	return []string{"userspace"}
}

// eachDriver runs a test for each driver that this machine has.
func eachDriver(t *testing.T, test func(t *testing.T, driver string)) {
	for _, driver := range drivers() {
		t.Run(driver, func(t *testing.T) { test(t, driver) })
	}
}

// packetRate is how many numbered packets per second each node sends to each
// other: what the machine carries with all that watches them, and beside other
// tests. The race detector makes wireguard-go several times slower.
func packetRate(t *testing.T) int {
	t.Helper()
	if s := os.Getenv(rateEnv); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("%s=%q: want a number from 1 on", rateEnv, s)
		}
		return n
	}
	switch {
	case emulated():
		return 300
	case raceDetector:
		return 200
	default:
		return 2000
	}
}

// lowRate is packetRate for tests whose point is not the load.
func lowRate(t *testing.T) int {
	t.Helper()
	return min(packetRate(t), 500)
}

// suited is the timer profile for this machine. What local expects of hosts on one
// machine, answers within a quarter of a second, an emulated one or the race
// detector does not keep, and then nodes ask each other whether they live
// instead of doing their work.
func suited() string {
	if slowMachine() {
		return config.ProfileLAN
	}
	return config.ProfileLocal
}

// startFor makes a fleet for a test with so many rotations and waits until its
// nodes are connected. more is further text for the config files, whose
// section keys comes last.
func startFor(t *testing.T, profile string, nodes, rotations int, more string) (context.Context, *fleet.Fleet) {
	t.Helper()
	each := 5 * time.Second
	if slowMachine() {
		each = 20 * time.Second
	}
	ctx, f := prepareWith(t, timeout+time.Duration(rotations)*each, fleet.Options{
		Nodes: nodes, Networks: bothNetworks(), Profile: profile, Config: keysConfig(profile, more),
	})
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx, f
}

// keysConfig adds to config how long an old epoch stays. Profile local has a
// third of a second, which is enough where everybody gets a turn in time. Where
// the machine may stand still for longer, packets wait in the old device for
// longer. The other profiles would make a test wait a minute between rotations.
func keysConfig(profile, more string) string {
	pauses := ""
	if slowMachine() {
		pauses = "  drain: 2s\n  quiet: 1s\n"
	}
	if profile != config.ProfileLocal {
		pauses = "  drain: 2s\n  quiet: 1s\n  min_interval: 1s\n  hold_down: 10m\n"
	}
	if pauses != "" && !strings.Contains(more, "keys:\n") {
		more += "keys:\n"
	}
	return more + pauses
}

// load is traffic between all nodes of a fleet, and all that watches it.
type load struct {
	t      *testing.T
	f      *fleet.Fleet
	blue   []fleet.Attached // encrypted; one per node
	lab    []fleet.Attached // plaintext, for the positive control
	marker []byte
	wire   *netlab.Captures
	mesh   *netlab.Mesh
	stream *netlab.Stream
	before []map[string]int64
	queues *queues
	effort effort // when the load began
	// backlog is what the kernel had dropped by then, because no processor took it.
	backlog uint64
	// refusals are XFRM's counters that may grow in this test; nil: none.
	refusals func(counter string) bool
}

// startLoad sends numbered UDP both ways between all pairs of nodes, at rate
// packets per second each way, and one TCP stream, over the encrypted network. It
// returns when each flow flows.
func startLoad(t *testing.T, ctx context.Context, f *fleet.Fleet, rate, size int) *load {
	t.Helper()
	l := &load{t: t, f: f, marker: []byte("keys rotate, this stays unreadable ")}
	l.blue, l.lab = attachAll(t, ctx, f, "blue"), attachAll(t, ctx, f, "lab")
	var err error
	if l.wire, err = f.Lab.CaptureSent(netlab.ContainsMarker(l.marker)); err != nil {
		t.Fatal(err)
	}
	l.effort = effortNow(f)
	l.before = l.counters()
	secure := map[string]*nl.Namespace{}
	for _, n := range f.Nodes {
		secure[n.Name] = secureNS(t, n)
	}
	l.backlog = softnetDrops()
	l.queues = watchQueues(ctx, secure)
	t.Cleanup(func() { l.queues.stop() })
	o := netlab.MeshOptions{Points: points(l.blue), Rate: rate, Size: size, Marker: l.marker}
	if slowMachine() {
		o.Late = slowPatience / 2
	}
	if l.mesh, err = netlab.StartMesh(ctx, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.mesh.Stop() })
	l.more(ctx, 50, "before the first rotation")
	return l
}

// slowPatience is the least retransmission timeout on a slow machine, which gives
// somebody no turn for 200 ms, TCP's own, every few seconds.
const slowPatience = time.Second

// startStream adds a TCP stream from the first node to the second.
func (l *load) startStream(ctx context.Context) {
	o := netlab.StreamOptions{
		From: l.blue[0].Box.NS(), To: l.blue[1].Box.NS(), Dst: netip.AddrPortFrom(l.blue[1].V4(), 0), Rate: 256 << 10, Marker: l.marker,
	}
	if slowMachine() {
		o.Patience = slowPatience
	}
	if emulated() {
		o.Rate = 32 << 10
	}
	l.stream = netlab.StartTCPStream(ctx, o)
}

func points(at []fleet.Attached) []netlab.Point {
	var ps []netlab.Point
	for _, a := range at {
		ps = append(ps, netlab.Point{Name: a.Node.Name, NS: a.Box.NS(), Addr: a.V4()})
	}
	return ps
}

// more waits until each flow has received n packets more than now.
func (l *load) more(ctx context.Context, n uint64, when string) {
	l.t.Helper()
	if err := l.mesh.WaitReceived(ctx, n); err != nil {
		l.t.Fatalf("%s: %v", when, err)
	}
}

// finish ends the load and asserts the whole promise: nothing lost, doubled or
// changed, nothing readable, no retransmission timeout, no packet that ESP
// refused; then that the sniffer would have seen a leak.
func (l *load) finish(ctx context.Context) netlab.FlowResult {
	l.t.Helper()
	r := l.mesh.Stop()
	if l.stream != nil {
		tcp, err := l.stream.Stop(ctx)
		if err != nil {
			l.t.Error(err)
		}
		l.t.Logf("TCP: %d bytes in %v", tcp.Bytes, tcp.Elapsed.Round(time.Millisecond))
	}
	l.checkCounters(r)
	l.t.Logf("processors: %s", effortNow(l.f).since(l.effort))
	l.t.Logf("dropped for want of time: by the kernel's backlog %d; by tunnel devices%s", softnetDrops()-l.backlog, l.queues.stop())
	l.t.Logf("UDP: %d sent, %d lost, %d duplicated, %d overtaken, longest gap %v, %d gaps of %v or more, longest under way %v, %d spells of late ones",
		r.Sent, r.Lost(), r.Duplicated, r.Reordered, r.LongestGap.Round(time.Millisecond), r.Stalls, netlab.StallTime,
		r.LongestDelay.Round(time.Millisecond), r.Late)
	if err := l.mesh.Check(); err != nil {
		l.t.Errorf("packets of %d sent are missing or wrong:\n%v", r.Sent, err)
	}
	l.wantUnreadable(ctx)
	return r
}

// wantUnreadable asserts that nothing was readable, with the positive control.
func (l *load) wantUnreadable(ctx context.Context) {
	l.t.Helper()
	wantSilent(l.t, l.wire, "rotations under load")
	control(l.t, ctx, l.wire, l.lab[0], l.lab[1], l.marker)
}

// counters reads what the kernel counts in the containers (first) and hosts.
func (l *load) counters() []map[string]int64 {
	l.t.Helper()
	var all []map[string]int64
	read := func(of func(*nl.Namespace) (map[string]int64, error), ns *nl.Namespace) {
		c, err := of(ns)
		if err != nil && !(errors.Is(err, fs.ErrNotExist) && !emulated()) {
			l.t.Fatal(err)
		}
		all = append(all, c)
	}
	for _, at := range l.blue {
		read(netlab.Counters, at.Box.NS())
	}
	for _, n := range l.f.Nodes[:len(l.blue)] {
		read(netlab.XfrmCounters, n.Host.NS())
		read(netlab.XfrmCounters, secureNS(l.t, n))
	}
	return all
}

// checkCounters asserts that no TCP timeout and no refusal by ESP was counted.
// A timeout counts against the product unless the machine held packets up: stood
// still, or let some of them wait for a processor for half of TCP's patience or
// longer while others passed. The numbered packets, of which none was lost, tell.
func (l *load) checkCounters(r netlab.FlowResult) {
	l.t.Helper()
	held := int64(r.Late)
	if !slowMachine() || r.LongestGap >= slowPatience {
		held += int64(r.Stalls)
	}
	for i, now := range l.counters() {
		grown := netlab.Grown(l.before[i], now)
		if i < len(l.blue) {
			l.t.Logf("%s: %d TCP segments sent again, %d after a timeout, %d probes, %d of all for nothing (%d timeouts); %d packets dropped at the socket",
				l.blue[i].Node.Name, grown["Tcp.RetransSegs"], grown[netlab.TCPTimeouts], grown["TcpExt.TCPLossProbes"],
				grown["TcpExt.TCPDSACKRecv"], grown["TcpExt.TCPSpuriousRTOs"], grown["Udp.RcvbufErrors"])
			if n := grown[netlab.TCPTimeouts]; n > held {
				l.t.Errorf("%s: %d retransmission timeouts, and the machine held packets up %d times", l.blue[i].Node.Name, n, held)
			}
			continue
		}
		n := l.f.Nodes[(i-len(l.blue))/2]
		for _, name := range slices.Sorted(maps.Keys(grown)) {
			if l.refusals != nil && l.refusals(name) {
				l.t.Logf("%s: %s grew by %d", n.Name, name, grown[name])
				continue
			}
			l.t.Errorf("%s: %s grew by %d", n.Name, name, grown[name])
		}
	}
}

// spans shows how long something took, again and again.
type spans []time.Duration

func (s spans) String() string {
	if len(s) == 0 {
		return "none"
	}
	sorted := slices.Sorted(slices.Values(s))
	round := func(d time.Duration) string { return d.Round(time.Millisecond).String() }
	return strings.Join([]string{
		strconv.Itoa(len(s)) + " times", "least " + round(sorted[0]),
		"median " + round(sorted[len(sorted)/2]), "most " + round(sorted[len(sorted)-1]),
	}, ", ")
}

// lowerFirst returns two nodes in the order of their IDs: the first one dials.
func lowerFirst(t *testing.T, ctx context.Context, a, b *fleet.Node) (lower, higher *fleet.Node) {
	t.Helper()
	sa, err := a.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sb, err := b.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if cmp.Compare(sa.Node.ID.String(), sb.Node.ID.String()) < 0 {
		return a, b
	}
	return b, a
}
