package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// rotate asks one node for the next epoch, waits as the command does, and
// asserts that it is the next one.
func rotate(t *testing.T, ctx context.Context, n *fleet.Node, driver string) (api.Rotation, time.Duration) {
	t.Helper()
	begin := time.Now()
	r, err := n.Rotate(ctx, driver)
	if err != nil {
		t.Fatalf("rotate on %s: %v\n%s", n.Name, err, n.LogTail(40))
	}
	if r.To != r.From+1 {
		t.Errorf("rotate on %s went from epoch %d to %d", n.Name, r.From, r.To)
	}
	return r, time.Since(begin)
}

// toDriver brings the fleet to a driver before the load begins.
func toDriver(t *testing.T, ctx context.Context, f *fleet.Fleet, driver string) {
	t.Helper()
	r, _ := rotate(t, ctx, f.Nodes[0], driver)
	if err := f.WaitEpoch(ctx, r.To); err != nil {
		t.Fatal(err)
	}
	wantDriver(t, ctx, f.Nodes, driver)
}

// wantDriver asserts that the only device of each of some nodes is of a driver.
func wantDriver(t *testing.T, ctx context.Context, nodes []*fleet.Node, driver string) {
	t.Helper()
	for _, n := range nodes {
		s, err := n.Keys(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Devices) != 1 || s.Devices[0].Driver != driver {
			t.Errorf("%s: devices %+v, want one of driver %s", n.Name, s.Devices, driver)
		}
	}
}

// TestRotationUnderLoad is what the product is named for: rotation after
// rotation, and not one packet is lost, doubled or readable.
func TestRotationUnderLoad(t *testing.T) {
	setUps := map[string]string{} // name: configuration
	for _, driver := range drivers() {
		setUps[driver] = ""
	}
	if emulated() {
		setUps["ipsec-in-udp"] = "ipsec:\n  encap: udp\n"
	}
	for name, more := range setUps {
		driver := strings.TrimSuffix(name, "-in-udp")
		t.Run(name, func(t *testing.T) {
			count := scaled(t, fullRotations)
			ctx, f := startFor(t, suited(), 3, count, more)
			toDriver(t, ctx, f, driver)
			first, err := f.Nodes[0].Keys(ctx)
			if err != nil {
				t.Fatal(err)
			}
			l := startLoad(t, ctx, f, packetRate(t), 200)
			l.startStream(ctx)
			var took spans
			begin := time.Now()
			for i := range count {
				r, d := rotate(t, ctx, f.Nodes[i%len(f.Nodes)], "")
				took = append(took, d)
				if want := first.Target.Epoch + ids.Epoch(i) + 1; r.To != want {
					t.Errorf("rotation %d gave epoch %d, want %d", i, r.To, want)
				}
				// The next node asked may see the end of this one later than
				// the node that waited for it, and would join it.
				if err := f.WaitEpoch(ctx, r.To); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("rotations: %v, all in %v", took, time.Since(begin).Round(time.Millisecond))
			l.more(ctx, 50, "after the last rotation")
			l.finish(ctx)
			wantDriver(t, ctx, f.Nodes, driver)
		})
	}
}

// TestRotationAlternatesDrivers moves a live network from one driver to another
// and back: to ones that are named and to the one that auto picks.
func TestRotationAlternatesDrivers(t *testing.T) {
	type turn struct{ ask, answer, get string }
	named := func(driver string) turn { return turn{driver, driver, driver} }
	turns := []turn{{"auto", "auto-esp", "ipsec-userspace"}, named("userspace")}
	if emulated() {
		turns = []turn{named("ipsec"), named("wireguard"), named("ipsec-userspace"), {"auto", "auto", "wireguard"}}
	}
	count := max(len(turns), scaled(t, 50))
	ctx, f := startFor(t, suited(), 3, count, "")
	l := startLoad(t, ctx, f, packetRate(t), 200)
	l.startStream(ctx)
	var took spans
	for i := range count {
		turn := turns[i%len(turns)]
		r, d := rotate(t, ctx, f.Nodes[i%len(f.Nodes)], turn.ask)
		took = append(took, d)
		if r.Driver != turn.answer {
			t.Errorf("rotation with --driver %s answered %+v", turn.ask, r)
		}
		if err := f.WaitEpoch(ctx, r.To); err != nil {
			t.Fatal(err)
		}
		wantDriver(t, ctx, f.Nodes, turn.get)
	}
	t.Logf("rotations: %v", took)
	l.more(ctx, 50, "after the last rotation")
	l.finish(ctx)
}

// TestAutoTakesESP lets three nodes whose kernels have no WireGuard find that userspace ESP is best
// for all, and go over to it under load; where kernels have it, nothing changes.
func TestAutoTakesESP(t *testing.T) {
	ctx, f := startFor(t, config.ProfileLocal, 3, 3, "keys:\n  rotate_every: 1h\n")
	if emulated() {
		var r api.Rotation
		err := f.Nodes[0].JSON(ctx, &r, "keys", "rotate", "--dry-run")
		if err != nil || r.Driver != "auto" || !strings.Contains(strings.Join(r.Effects, "; "), "driver auto is WireGuard, which the kernels of 3 of 3 nodes have") {
			t.Errorf("dry run: %+v, %v", r, err)
		}
		return
	}
	wantDriver(t, ctx, f.Nodes, "userspace")
	l := startLoad(t, ctx, f, packetRate(t), 200)
	l.startStream(ctx)
	for _, n := range f.Nodes {
		err := n.WaitKeys(ctx, "epoch 2", func(s api.KeyStatus) bool {
			return s.Target.Epoch == 2 && s.Target.Driver == "auto-esp" && s.Target.Reason == "driver" && s.Peers[0].Epoch == 2 && s.Peers[1].Epoch == 2
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WaitEpoch(ctx, 2); err != nil {
		t.Fatal(err)
	}
	wantDriver(t, ctx, f.Nodes, "ipsec-userspace")
	l.more(ctx, 50, "after the rotation")
	l.finish(ctx)
}

// TestESPOfTwoKinds lets one of three nodes with the kernel's ESP go over to that of user space:
// it is connected again in the same epoch, and in the next ones each follows with the driver that it
// has, under load, and nothing is lost.
func TestESPOfTwoKinds(t *testing.T) {
	netlab.Require(t, netlab.FeatureXfrm)
	count := max(3, scaled(t, 50))
	ctx, f := startFor(t, suited(), 3, count+1, "")
	toDriver(t, ctx, f, "ipsec")
	last := f.Nodes[2]
	nets := bothNetworks()
	nets[0].Driver = "ipsec-userspace"
	if err := errors.Join(last.WriteConfig(nets), last.Stop(), last.Up(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := f.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	l := startLoad(t, ctx, f, packetRate(t), 200)
	l.startStream(ctx)
	for i := range count {
		r, _ := rotate(t, ctx, f.Nodes[i%len(f.Nodes)], "ipsec")
		if err := f.WaitEpoch(ctx, r.To); err != nil {
			t.Fatal(err)
		}
		wantDriver(t, ctx, f.Nodes[:2], "ipsec")
		wantDriver(t, ctx, f.Nodes[2:], "ipsec-userspace")
	}
	l.more(ctx, 50, "after the last rotation")
	l.finish(ctx)
}

// TestTwoRotationsAtOnce asks two nodes at the same moment: both mean the epoch
// after the present one, so it is one new epoch.
func TestTwoRotationsAtOnce(t *testing.T) { eachDriver(t, twoRotationsAtOnce) }

func twoRotationsAtOnce(t *testing.T, driver string) {
	count := scaled(t, 50)
	ctx, f := startFor(t, suited(), 3, 2*count, "") // each may be two
	toDriver(t, ctx, f, driver)
	l := startLoad(t, ctx, f, lowRate(t), 200)
	atOnce := 0
	for i := range count {
		if err := f.WaitEpoch(ctx, 1); err != nil {
			t.Fatal(err)
		}
		answers := together(t, ctx, f.Nodes[i%3], f.Nodes[(i+1)%3])
		last := answers[0].To
		if answers[0].From == answers[1].From {
			atOnce++
			if answers[1].To != last {
				t.Errorf("two rotations from epoch %d at once gave epochs %d and %d", answers[0].From, last, answers[1].To)
			}
		} else {
			last = max(last, answers[1].To) // one was granted before the other was asked for
		}
		if err := f.WaitEpoch(ctx, last); err != nil {
			t.Fatal(err)
		}
		s, err := f.Nodes[2].Keys(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if s.Target.Epoch != last {
			t.Errorf("the cluster wants epoch %d, the rotations answered %d", s.Target.Epoch, last)
		}
	}
	t.Logf("%d of %d pairs of rotations were asked for at the same epoch", atOnce, count)
	if 2*atOnce < count {
		t.Errorf("only %d of %d pairs of rotations were at once: this shows nothing", atOnce, count)
	}
	l.finish(ctx)
}

// together asks two nodes for a rotation at the same moment, without the time
// that it takes to start a program.
func together(t *testing.T, ctx context.Context, a, b *fleet.Node) (answers [2]api.Rotation) {
	t.Helper()
	var errs [2]error
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i, n := range []*fleet.Node{a, b} {
		wg.Go(func() {
			<-begin
			answers[i], errs[i] = n.Client().Rotate(ctx, api.RotateRequest{})
		})
	}
	close(begin)
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("rotation %d of two at once: %v", i+1, err)
		}
	}
	return answers
}

// TestDriverNodeCannotDo asks for a driver that this machine lacks: a clear
// refusal, nothing changes. Where the machine has every driver, a node whose
// configuration pins another one must be named, and must keep its connection.
func TestDriverNodeCannotDo(t *testing.T) {
	ctx, f := startFor(t, suited(), 2, 1, "")
	l := startLoad(t, ctx, f, lowRate(t), 200)
	n := f.Nodes[0]
	before, err := n.Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	missing := "ipsec"
	if emulated() {
		missing = "nosuch"
	}
	want := map[string]int{"ipsec": 6, "nosuch": 2}[missing]
	for _, how := range []string{"--wait", "--dry-run"} {
		_, err = n.CLI(ctx, "keys", "rotate", how, "--driver", missing)
		if exitCode(err) != want {
			t.Errorf("%v, want exit %d", err, want)
		}
		t.Log(err)
	}
	after, err := n.Keys(ctx)
	if err != nil || after.Target.Epoch != before.Target.Epoch || len(after.Devices) != 1 {
		t.Errorf("after the refusal: %+v, %v", after, err)
	}
	l.more(ctx, 50, "after the refusal")
	l.finish(ctx)
}

// TestDryRun says what would happen and changes nothing.
func TestDryRun(t *testing.T) {
	ctx, f := startFor(t, suited(), 2, 1, "")
	n := f.Nodes[1]
	var r api.Rotation
	if err := n.JSON(ctx, &r, "keys", "rotate", "--dry-run"); err != nil {
		t.Fatal(err)
	}
	if !r.DryRun || r.From != 1 || r.To != 2 || !r.Created.IsZero() || len(r.Effects) == 0 {
		t.Errorf("dry run: %+v", r)
	}
	s, err := n.Keys(ctx)
	if err != nil || s.Target.Epoch != 1 || len(s.Devices) != 1 {
		t.Errorf("after a dry run: %+v, %v", s, err)
	}
}

// TestScheduledRotation lets time pass: epochs follow each other by themselves,
// and what they leave behind is in the history.
func TestScheduledRotation(t *testing.T) {
	// Longer than a rotation takes, so that each one ends before the next: a pair
	// that is overtaken goes to the newest epoch, and skips one.
	every := 2 * time.Second
	switch {
	case emulated():
		every = 12 * time.Second
	case raceDetector:
		every = 8 * time.Second
	}
	ctx, f := startFor(t, config.ProfileLocal, 3, 3, fmt.Sprintf("keys:\n  rotate_every: %s\n", every))
	l := startLoad(t, ctx, f, lowRate(t), 200)
	s, err := f.Nodes[0].Keys(ctx)
	if err != nil {
		t.Fatal(err)
	}
	goal := s.Target.Epoch + 3
	for _, n := range f.Nodes {
		err := n.WaitKeys(ctx, fmt.Sprintf("epoch %d", goal), func(s api.KeyStatus) bool {
			return s.Target.Epoch >= goal && len(s.Peers) == 2 && s.Peers[0].Epoch >= goal && s.Peers[1].Epoch >= goal
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// Old epochs end when their last packets have gone, which on a busy machine is after the
	// next one has begun.
	seen := map[api.EventKind]int{}
	if err := f.Nodes[1].WaitKeys(ctx, "the rotations in the history", func(api.KeyStatus) bool {
		var h api.KeyHistory
		if err := f.Nodes[1].JSON(ctx, &h, "keys", "history"); err != nil {
			return false
		}
		clear(seen)
		for _, e := range h.Events {
			seen[e.Kind]++
		}
		return seen[api.EventRotationRequested] >= 3 && seen[api.EventEpochStarted] >= 3 && seen[api.EventSwitched] >= 6 && seen[api.EventEpochEnded] >= 2
	}); err != nil {
		t.Errorf("history holds %v: %v", seen, err)
	}
	l.finish(ctx)
}

// TestRotationCutOff cuts a node off while the others rotate twice. It comes
// back by itself, and the others lose nothing meanwhile.
func TestCutOffDuringRotations(t *testing.T) {
	cuts := []struct {
		name   string
		blocks []netlab.Block
	}{
		{"everything", []netlab.Block{netlab.Cut()}},
		{"half-open", []netlab.Block{{Out: true}}},
		{"UDP only", []netlab.Block{{Out: true, In: true, Proto: udp}}},
		{"TCP only", []netlab.Block{{Out: true, In: true, Proto: tcp}}},
	}
	eachDriver(t, func(t *testing.T, driver string) {
		for _, cut := range cuts[:min(len(cuts), scaled(t, 50))] {
			t.Run(cut.name, func(t *testing.T) { cutOff(t, driver, cut.blocks) })
		}
	})
}

// IP protocols (IANA).
const (
	udp = 17
	tcp = 6
)

// comeBack is how long a node may take to be back after the wire is healed.
const comeBack = 15 * time.Second

func cutOff(t *testing.T, driver string, blocks []netlab.Block) {
	// With the timers that everybody has by default.
	ctx, f := startFor(t, config.ProfileLAN, 3, 6, "")
	toDriver(t, ctx, f, driver)
	lonely := f.Nodes[2]
	blue, lab := attachAll(t, ctx, f, "blue"), attachAll(t, ctx, f, "lab")
	marker := []byte("cut off, and still unreadable ")
	wire := sniff(t, f, marker)
	others, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(blue[:2]), Rate: lowRate(t), Marker: marker})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { others.Stop() })
	all, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(blue), Rate: 100, Marker: marker})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { all.Stop() })
	if err := all.WaitReceived(ctx, 20); err != nil {
		t.Fatal(err)
	}
	if err := lonely.Host.Block(blocks...); err != nil {
		t.Fatal(err)
	}
	var epoch ids.Epoch
	for i := range 2 {
		// A request that comes while the last rotation ends is part of that one.
		var r api.Rotation
		waitUntil(t, ctx, time.Minute, "a rotation of its own", func() (_ bool, err error) {
			r, err = f.Nodes[i].Client().Rotate(ctx, api.RotateRequest{})
			return r.To > epoch, err
		})
		if r.To != r.From+1 {
			t.Errorf("rotation %d: %+v", i+1, r)
		}
		epoch = r.To
		waitPair(t, ctx, f.Nodes[0], f.Nodes[1], epoch)
		waitPair(t, ctx, f.Nodes[1], f.Nodes[0], epoch)
	}
	t.Logf("two nodes are at epoch %d, the third is cut off", epoch)
	if err := lonely.Host.Block(); err != nil {
		t.Fatal(err)
	}
	healed := time.Now()
	back, cancel := context.WithTimeout(ctx, comeBack)
	defer cancel()
	if err := all.WaitReceived(back, 20); err != nil {
		t.Errorf("%v after healing: %v", time.Since(healed).Round(time.Millisecond), err)
	}
	t.Logf("packets pass all ways %v after healing", time.Since(healed).Round(time.Millisecond))
	for _, n := range f.Nodes[:2] {
		waitPair(t, back, n, lonely, epoch)
		waitPair(t, back, lonely, n, epoch)
	}
	t.Logf("all pairs are at epoch %d %v after healing", epoch, time.Since(healed).Round(time.Millisecond))
	if err := f.WaitEpoch(ctx, epoch); err != nil {
		t.Error(err)
	}
	t.Logf("nothing older is left %v after healing", time.Since(healed).Round(time.Millisecond))
	all.Stop()
	if r := others.Stop(); others.Check() != nil {
		t.Errorf("the two others, %d sent: %v", r.Sent, others.Check())
	}
	wantSilent(t, wire, "a node was cut off")
	control(t, ctx, wire, lab[0], lab[2], marker)
}

// waitPair waits until a node's pair with another is done with an epoch or a
// later one: a request before that would be part of the same rotation.
func waitPair(t *testing.T, ctx context.Context, n, to *fleet.Node, epoch ids.Epoch) {
	t.Helper()
	err := n.WaitKeys(ctx, fmt.Sprintf("epoch %d toward %s", epoch, to.Name), func(s api.KeyStatus) bool {
		for _, p := range s.Peers {
			if p.Name == to.Name {
				return p.Epoch >= epoch && p.Step == api.KeyStepDone
			}
		}
		return false
	})
	if err != nil {
		t.Fatal(err)
	}
}
