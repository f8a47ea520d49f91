package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

const day = 24 * time.Hour

// guestClock sets the clock of the virtual machine that the tests run in. What is
// right it knows from before, and from the monotonic clock.
type guestClock struct {
	t    *testing.T
	took time.Time
}

// takeClock puts the clock right when the test ends.
func takeClock(t *testing.T) *guestClock {
	t.Helper()
	netlab.Require(t, netlab.FeatureClock)
	g := &guestClock{t: t, took: time.Now()}
	t.Cleanup(func() { g.off(0) })
	return g
}

// off sets the clock to so much after what is right.
func (g *guestClock) off(d time.Duration) { g.set(g.took.Round(0).Add(time.Since(g.took) + d)) }

// set sets the clock. It asks each time whether this is the virtual machine: the
// clock of any other is nobody's to set.
func (g *guestClock) set(to time.Time) {
	g.t.Helper()
	netlab.Require(g.t, netlab.FeatureClock)
	ts := unix.NsecToTimespec(to.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		g.t.Fatalf("set the clock to %v: %v", to, err)
	}
	g.t.Logf("clock set to %v, right is %v", to.UTC().Format(time.RFC3339), g.took.Round(0).Add(time.Since(g.took)).UTC().Format(time.RFC3339))
}

// in1970 is what a machine without a battery shows. Linux refuses a time before
// that of its own start.
func in1970() time.Time { return time.Unix(0, 0).Add(day) }

// alarmWithin is how soon a wrong clock has to be told.
const alarmWithin = time.Minute

// wantClock waits until the running nodes report a problem with the clock, or that
// there is none.
func wantClock(t *testing.T, ctx context.Context, f *fleet.Fleet, code string) {
	t.Helper()
	for _, n := range f.Nodes {
		if !n.Running() {
			continue
		}
		waitUntil(t, ctx, alarmWithin, "problem "+code+" on "+n.Name, func() (bool, error) {
			s, err := n.Status(ctx)
			if err != nil {
				return false, err
			}
			has := slices.ContainsFunc(s.Problems, func(p api.Problem) bool {
				return strings.HasPrefix(p.Code, "clock-") && (code == "" || p.Code == code)
			})
			return has == (code != ""), nil
		})
	}
}

// target is the cluster's epoch as a node knows it.
func target(t *testing.T, ctx context.Context, n *fleet.Node) api.KeyTarget {
	t.Helper()
	s, err := n.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s.Target
}

// movedOn waits until all running nodes are on a later epoch than one, which a
// node has asked for because its clock went back.
func movedOn(t *testing.T, ctx context.Context, f *fleet.Fleet, from ids.Epoch) {
	t.Helper()
	if err := f.WaitEpoch(ctx, from+1); err != nil {
		t.Fatalf("no new epoch after the clock went back: %v", err)
	}
	if now := target(t, ctx, f.Nodes[0]); now.Reason != item.ReasonClock.String() {
		t.Errorf("epoch %d was made for %q, want %q", now.Epoch, now.Reason, item.ReasonClock)
	}
}

// rotateBehind rotates where the clock may have gone back since the last rotation.
// The trusted time is some seconds behind, as nobody but the issuer signs anything
// here: until they have gone by, the last target seems to be too new for a next one.
func rotateBehind(t *testing.T, ctx context.Context, n *fleet.Node) (r api.Rotation) {
	t.Helper()
	waitUntil(t, ctx, alarmWithin, "a rotation that is not too soon", func() (bool, error) {
		var err error
		r, err = n.Rotate(ctx, "")
		var refused *fleet.CommandError
		if errors.As(err, &refused) && strings.Contains(refused.Stderr, "the last rotation was just now") {
			return false, nil
		}
		return err == nil, err
	})
	return r
}

// TestClockJumps sets the clock, which all nodes share here, to tomorrow, to
// yesterday, to 1970 and to ten years ahead, the latter two with an agent that
// starts then. No tunnel that works loses a packet, keys rotate wherever
// certificates are not over by the clock, and when the clock is right again nothing
// of it is left.
//
// Nodes that share a clock cannot show what one with a wrong clock and one with a
// right one make of each other: for that see membership/noisenet
// TestHandshakeClocks, membership TestStartIn1970 and TestJumpMovesNothing.
func TestClockJumps(t *testing.T) { eachDriver(t, clockJumps) }

func clockJumps(t *testing.T, driver string) {
	g := takeClock(t)
	ctx, f := startFor(t, suited(), 3, 14, "")
	toDriver(t, ctx, f, driver)
	l := startLoad(t, ctx, f, lowRate(t), 200)
	// ESP has no dates, so nothing has to be done about a clock that went back.
	dated := !strings.HasPrefix(driver, "ipsec")
	turn := func(when string) {
		t.Helper()
		r := rotateBehind(t, ctx, f.Nodes[0])
		if err := f.WaitEpoch(ctx, r.To); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		t.Logf("%s: rotated to epoch %d", when, r.To)
		l.more(ctx, 100, when)
	}
	back := func(to func()) {
		t.Helper()
		was := target(t, ctx, f.Nodes[0]).Epoch
		to()
		if dated {
			movedOn(t, ctx, f, was)
		}
		l.more(ctx, 100, "after the clock went back")
	}

	g.off(day)
	wantClock(t, ctx, f, "clock-jumped")
	turn("tomorrow")
	back(func() { g.off(0) })
	wantClock(t, ctx, f, "")
	back(func() { g.off(-day) })
	wantClock(t, ctx, f, "clock-behind")
	turn("yesterday")
	g.off(0)
	wantClock(t, ctx, f, "")
	turn("today")

	victim := f.Nodes[2]
	if err := victim.Stop(); err != nil {
		t.Fatal(err)
	}
	back(func() {
		g.set(in1970())
		if err := victim.Up(ctx); err != nil {
			t.Fatal(err)
		}
	})
	wantClock(t, ctx, f, "clock-behind")
	turn("1970")
	g.off(0)
	wantClock(t, ctx, f, "")

	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	g.off(3652 * day)
	if err := victim.Up(ctx); err != nil {
		t.Fatal(err)
	}
	wantClock(t, ctx, f, "clock-jumped")
	l.more(ctx, uint64(10*lowRate(t)), "ten years ahead")
	g.off(0)
	wantClock(t, ctx, f, "")
	if err := f.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	turn("at last")
	l.finish(ctx)

	startWithNothing(t, ctx, f, g, victim)
}

// startWithNothing takes a node down, as a reboot does, and starts it in 1970: it
// meets the others, who have not moved from where they are, and all is well.
func startWithNothing(t *testing.T, ctx context.Context, f *fleet.Fleet, g *guestClock, n *fleet.Node) {
	t.Helper()
	if err := n.Down(ctx); err != nil {
		t.Fatal(err)
	}
	g.set(in1970())
	if err := n.Up(ctx); err != nil {
		t.Fatal(err)
	}
	err := n.WaitStatus(ctx, "tunnels to two nodes, in 1970", func(s api.Status) bool {
		up := 0
		for _, p := range s.Peers {
			if p.Tunnel == api.TunnelUp {
				up++
			}
		}
		return up == 2
	})
	if err != nil {
		t.Fatal(err)
	}
	g.off(0)
	if err := f.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestClockBackAlone puts the clock back where no issuer is there to grant an
// epoch. WireGuard's initiator then dates its handshakes before those that the
// responder has seen, for a day; its session ends after three minutes, and a moment
// later the responder has forgotten the date.
func TestClockBackAlone(t *testing.T) {
	g := takeClock(t)
	ctx, f := startFor(t, suited(), 3, 12, "")
	toDriver(t, ctx, f, "wireguard")
	lower, higher := lowerFirst(t, ctx, f.Nodes[1], f.Nodes[2])
	from, to := attach(t, ctx, f, lower, "blue"), attach(t, ctx, f, higher, "blue")
	if err := f.WaitEndpoints(ctx, "blue", 2); err != nil {
		t.Fatal(err)
	}
	if err := f.Nodes[0].Kill(); err != nil { // the one issuer
		t.Fatal(err)
	}
	const rate = 20
	// One way only: a responder that has something to send would call by itself.
	flow, err := netlab.StartUDPFlow(ctx, netlab.FlowOptions{
		From: from.Box.NS(), To: to.Box.NS(), Dst: netip.AddrPortFrom(to.V4(), 0), Rate: rate,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { flow.Stop() })
	wantMore(t, ctx, flow, rate, "before the clock goes back")
	g.off(-day)
	// Longer than any session lives. If the responder remembered, nothing would
	// arrive from its end on.
	wantMore(t, ctx, flow, rate*260, "a day back, without an issuer")
	r := flow.Stop()
	t.Logf("%d sent, %d lost, longest gap %v", r.Sent, r.Lost(), r.LongestGap.Round(time.Millisecond))
	if r.LongestGap > 30*time.Second {
		t.Errorf("nothing arrived for %v", r.LongestGap)
	}
	if e := target(t, ctx, lower).Epoch; e != target(t, ctx, higher).Epoch || e != 2 {
		t.Errorf("the epoch is %d: somebody granted one, so this shows nothing", e)
	}
}

// clockFinding is what doctor says about a node's clock.
func clockFinding(t *testing.T, ctx context.Context, n *fleet.Node) (level string) {
	t.Helper()
	var d struct {
		Findings []struct{ Name, Level, Detail string }
	}
	// It may end with 1, because of what else it finds.
	out, err := n.CLI(ctx, "doctor", "-o", "json")
	if jsonErr := json.Unmarshal(out, &d); jsonErr != nil {
		t.Fatalf("doctor on %s: %v, %v", n.Name, err, jsonErr)
	}
	for _, f := range d.Findings {
		if f.Name == "clock" {
			t.Logf("%s: %s: %s", n.Name, f.Level, f.Detail)
			level = f.Level
		}
	}
	return level
}

// TestClockIsShown: each node hears what the clocks of the others show, knows a
// time that has certainly come, and keeps it for its next start.
func TestClockIsShown(t *testing.T) {
	ctx, f := start(t, 2, bothNetworks())
	for _, n := range f.Nodes {
		err := n.WaitStatus(ctx, "the clock of the other node", func(s api.Status) bool { return s.Clock.Others == 1 })
		if err != nil {
			t.Fatal(err)
		}
		s, err := n.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		// Both are this machine's; the answer to a ping may have taken a while.
		if off := time.Duration(s.Clock.Ahead).Abs(); off > 30*time.Second {
			t.Errorf("%s: its clock is off by %v", n.Name, off)
		}
		if late := time.Since(s.Clock.Trusted); late < 0 || late > 10*time.Minute || s.Clock.Behind != 0 || s.Clock.Jumped != 0 {
			t.Errorf("%s: %+v", n.Name, s.Clock)
		}
		if left := time.Until(s.Expires); left < 29*day || len(s.Peers) != 1 || !s.Peers[0].Expires.After(time.Now()) {
			t.Errorf("%s: certificate ends in %v, peers %+v", n.Name, left, s.Peers)
		}
		if got := clockFinding(t, ctx, n); got != "ok" {
			t.Errorf("%s: doctor finds the clock %q", n.Name, got)
		}
	}
	n := f.Nodes[1]
	s, err := n.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if got := clockFinding(t, ctx, n); got != "ok" {
		t.Errorf("without its agent: doctor finds the clock %q", got)
	}
	if err := n.Up(ctx); err != nil {
		t.Fatal(err)
	}
	again, err := n.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if lost := s.Clock.Trusted.Sub(again.Clock.Trusted); lost > time.Second {
		t.Errorf("the restart took %v of the trusted time", lost)
	}
}
