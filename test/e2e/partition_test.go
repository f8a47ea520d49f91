package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// partitionCase is one way to come between the two halves of a fleet.
type partitionCase struct {
	name   string
	blocks []netlab.Block // of each host of the left half, against each of the right one
	// Which packets of containers have a way while it lasts: from left to right, and
	// back. Those lose nothing.
	right, left bool
	// told: control streams have a way, so what changes is known everywhere all the same.
	told bool
	// calm: no rotation begins meanwhile, which would change all records once more.
	calm bool
	// forgotten: it lasts until gossip has declared the others dead and forgotten them.
	forgotten bool
	flaps     time.Duration // it comes and goes every second for so long
}

// partitions are the cases; if not at full size, some of them, and short.

func partitions(t *testing.T) []partitionCase {
	t.Helper()
	both := func(protos ...uint8) (list []netlab.Block) {
		for _, p := range protos {
			list = append(list, netlab.Block{Out: true, In: true, Proto: p})
		}
		return list
	}
	// Not ARP and ND: hosts in two places have a router between them.
	all := both(tcp, udp, esp)
	halfOpen := slices.Clone(all)
	for i := range halfOpen {
		halfOpen[i].Out = false
	}
	if scaled(t, fullRotations) < fullRotations {
		return []partitionCase{
			{name: "full", blocks: all},
			{name: "TCP only, no tunnels", blocks: both(udp, esp), told: true, calm: true},
			{name: "flapping", blocks: all, flaps: 4 * time.Second, calm: true},
		}
	}
	return []partitionCase{
		{name: "full", blocks: all, forgotten: true},
		{name: "half-open", blocks: halfOpen, right: true},
		{name: "UDP only", blocks: both(tcp), right: true, left: true},
		{name: "TCP only", blocks: []netlab.Block{{Out: true, In: true, Proto: udp, Port: controlPort}}, right: true, left: true, told: true},
		{name: "TCP only, no tunnels", blocks: both(udp, esp), told: true},
		{name: "flapping", blocks: all, flaps: 20 * time.Second},
	}
}

// controlPort is that of every node here, TCP and UDP.
const controlPort = 7946

// TestPartition comes between two halves of a cluster under load, in every way in which
// a network can be cut. Pairs that have a way lose nothing, the others nothing but
// what they sent during the cut; what changed meanwhile is known to all soon after.
func TestPartition(t *testing.T) { eachDriver(t, partition) }

func partition(t *testing.T, driver string) {
	cases := partitions(t)
	// With the timers that everybody has by default.
	ctx, f := startFor(t, config.ProfileLAN, 4, 1+6*len(cases), "")
	toDriver(t, ctx, f, driver)
	h := &halves{f: f, blue: attachAll(t, ctx, f, "blue"), marker: []byte("two halves of a network ")}
	for _, c := range cases {
		if !t.Run(c.name, func(t *testing.T) { h.cut(t, ctx, c) }) {
			return // the next one would begin with what is broken
		}
	}
}

// halves is a fleet of four, of which two can be cut off from the others.
type halves struct {
	f      *fleet.Fleet
	blue   []fleet.Attached // one of each node carries the load
	more   []api.Endpoint   // attached since
	epoch  ids.Epoch        // asked for last; 0: none
	marker []byte
}

// block comes between the halves; without blocks it ends.
func (h *halves) block(t *testing.T, blocks []netlab.Block) {
	t.Helper()
	for _, n := range h.f.Nodes[:2] {
		var list []netlab.Block
		for _, other := range h.f.Nodes[2:] {
			for _, b := range blocks {
				b.With = other.Host
				list = append(list, b)
			}
		}
		if err := n.Host.Block(list...); err != nil {
			t.Fatal(err)
		}
	}
}

// cutRate is how many packets per second each of the twelve flows sends.
func cutRate(t *testing.T) int {
	t.Helper()
	return lowRate(t) / 4
}

// flows are numbered packets from some containers to others.
type flows []*netlab.Flow

func (h *halves) flows(t *testing.T, ctx context.Context, pairs ...[2]int) (out flows) {
	t.Helper()
	for _, p := range pairs {
		from, to := h.blue[p[0]], h.blue[p[1]]
		fl, err := netlab.StartUDPFlow(ctx, netlab.FlowOptions{
			From: from.Box.NS(), To: to.Box.NS(), Dst: netip.AddrPortFrom(to.V4(), 0), Rate: cutRate(t), Marker: h.marker,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { fl.Stop() })
		out = append(out, fl)
	}
	return out
}

func (fs flows) sent() (n uint64) {
	for _, f := range fs {
		n += f.Result().Sent
	}
	return n
}

// wait waits until each flow has received n packets more than now.
func (fs flows) wait(t *testing.T, ctx context.Context, n uint64, when string) {
	t.Helper()
	var g errgroup.Group
	for i, f := range fs {
		g.Go(func() error {
			if err := f.WaitReceived(ctx, n); err != nil {
				return fmt.Errorf("%s, flow %d: %w", when, i, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// last waits for some time, as packets tell it that nothing may hold up.
func (fs flows) last(t *testing.T, ctx context.Context, d time.Duration, when string) {
	t.Helper()
	fs.wait(t, ctx, uint64(d.Seconds()*float64(cutRate(t))), when)
}

// stop ends flows at once: each waits a moment for what is under way.
func (fs flows) stop() {
	var wg sync.WaitGroup
	for _, f := range fs {
		wg.Go(func() { f.Stop() })
	}
	wg.Wait()
}

// wantLost ends the flows and asserts that they lost no more than `most` packets.
func (fs flows) wantLost(t *testing.T, what string, most uint64) {
	t.Helper()
	var lost, sent uint64
	for i, f := range fs {
		r := f.Stop()
		lost, sent = lost+r.Lost(), sent+r.Sent
		if r.SendErrors != 0 || r.Duplicated != 0 || r.Corrupt != 0 {
			t.Errorf("%s, flow %d: %+v", what, i, r)
		}
	}
	t.Logf("%s: %d sent, %d lost, %d at most by the cut", what, sent, lost, most)
	if lost > most {
		t.Errorf("%s lost %d of %d packets, want at most %d", what, lost, sent, most)
	}
}

// cut runs one case.
func (h *halves) cut(t *testing.T, ctx context.Context, c partitionCase) {
	h.waitKnown(t, ctx, time.Minute, 0, true)
	within := h.flows(t, ctx, [2]int{0, 1}, [2]int{1, 0}, [2]int{2, 3}, [2]int{3, 2})
	right := h.flows(t, ctx, [2]int{0, 2}, [2]int{0, 3}, [2]int{1, 2}, [2]int{1, 3})
	left := h.flows(t, ctx, [2]int{2, 0}, [2]int{3, 0}, [2]int{2, 1}, [2]int{3, 1})
	all := slices.Concat(within, right, left)
	all.wait(t, ctx, 50, "before the cut")

	var lostRight, lostLeft, cuts uint64 // sent while there was no way
	down := func() (up func()) {
		cuts++
		r, l := right.sent(), left.sent()
		h.block(t, c.blocks)
		return func() {
			h.block(t, nil)
			if !c.right {
				lostRight += right.sent() - r
			}
			if !c.left {
				lostLeft += left.sent() - l
			}
		}
	}
	begin := time.Now()
	up := down()
	epoch := h.change(t, ctx, !c.calm)
	t.Logf("what happened meanwhile took %v", time.Since(begin).Round(time.Millisecond))
	const short = 2 * time.Second
	switch {
	case c.flaps > 0:
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for range c.flaps / (2 * time.Second) {
			<-tick.C
			up()
			<-tick.C
			up = down()
		}
		<-tick.C
	case c.told:
		h.waitKnown(t, ctx, convergence(), epoch, false)
		t.Log("what changed is known to all during the cut")
		within.last(t, ctx, short, "during the cut")
	case c.forgotten:
		h.waitForgotten(t, ctx, within)
	default:
		within.last(t, ctx, short, "during the cut")
	}
	if !c.told && c.flaps == 0 && h.known(ctx, epoch, false) == nil {
		t.Error("control: what changed is known to all, so nothing was cut")
	}
	up()
	healed := time.Now()
	t.Logf("the cut took %v", healed.Sub(begin).Round(time.Millisecond))
	all.wait(t, ctx, 20, "after healing")
	t.Logf("packets pass all ways %v after healing", time.Since(healed).Round(time.Millisecond))
	h.waitKnown(t, ctx, convergence()-time.Since(healed), epoch, true)
	t.Logf("all know the same %v after healing", time.Since(healed).Round(time.Millisecond))
	if err := h.f.WaitEpoch(ctx, epoch); err != nil {
		t.Error(err)
	}
	t.Logf("nothing older than epoch %d is left %v after healing", epoch, time.Since(healed).Round(time.Millisecond))
	// Packets under way at either end of a cut, each of them, count for a moment more.
	slack := cuts * uint64(4*cutRate(t)) / 10
	all.stop()
	within.wantLost(t, "within the halves", 0)
	if lostRight > 0 {
		lostRight += slack
	}
	if lostLeft > 0 {
		lostLeft += slack
	}
	right.wantLost(t, "from left to right", lostRight)
	left.wantLost(t, "from right to left", lostLeft)
}

// change has something happen on both sides of the cut: a container comes on each, and if
// it is to rotate, the side of the issuer asks for an epoch. It returns the newest one.
func (h *halves) change(t *testing.T, ctx context.Context, rotate bool) ids.Epoch {
	t.Helper()
	for _, n := range []*fleet.Node{h.f.Nodes[0], h.f.Nodes[3]} {
		h.more = append(h.more, attach(t, ctx, h.f, n, "blue").Endpoint)
	}
	if rotate {
		r, err := h.f.Nodes[0].Client().Rotate(ctx, api.RotateRequest{})
		if err != nil {
			t.Fatal(err)
		}
		h.epoch = r.To
	}
	return h.epoch
}

// convergence is how soon all must know the same again: 15 s, and longer where nodes
// get their turns late and memberlist, which notices that, probes less often.
func convergence() time.Duration {
	switch {
	case emulated():
		return 4 * comeBack
	case raceDetector:
		return 2 * comeBack
	}
	return comeBack
}

// known says what keeps the nodes from knowing the same: endpoints of records, the
// target epoch, and with gossip also that each counts each and has seen that their
// records are equal. It returns nil if nothing does.
func (h *halves) known(ctx context.Context, epoch ids.Epoch, gossip bool) error {
	for _, n := range h.f.Nodes {
		list, err := n.Client().Members(ctx)
		if err != nil {
			return err
		}
		for _, m := range list.Members {
			// A suspect is counted, too: its last sign of life was a while ago.
			if gossip && !m.Self && (m.State != "alive" && m.State != "suspect" || !m.Synced) {
				return fmt.Errorf("%s holds %s for %s, synced: %v", n.Name, m.Name, m.State, m.Synced)
			}
		}
		keys, err := n.Keys(ctx)
		if err != nil {
			return err
		}
		if len(list.Members) != len(h.f.Nodes) || keys.Target.Epoch < epoch {
			return fmt.Errorf("%s knows %d members and target epoch %d, want %d and %d", n.Name, len(list.Members), keys.Target.Epoch, len(h.f.Nodes), epoch)
		}
		ends, err := n.Client().Endpoints(ctx)
		if err != nil {
			return err
		}
		if len(ends.Endpoints) != len(h.blue)+len(h.more) {
			return fmt.Errorf("%s knows %d endpoints, want %d", n.Name, len(ends.Endpoints), len(h.blue)+len(h.more))
		}
	}
	return nil
}

// waitKnown waits until all nodes know the same.
func (h *halves) waitKnown(t *testing.T, ctx context.Context, limit time.Duration, epoch ids.Epoch, gossip bool) {
	t.Helper()
	end := time.After(limit)
	tick := time.NewTicker(100 * time.Millisecond) // each look costs twelve calls
	defer tick.Stop()
	for {
		err := h.known(ctx, epoch, gossip)
		if err == nil {
			return
		}
		select {
		case <-end:
			t.Fatalf("not all know the same after %v: %v", limit, err)
		case <-tick.C:
		}
	}
}

// waitForgotten waits until each node holds those of the other half for dead, and for
// longer than gossip remembers the dead: then only a node's own attempts bring them back.
func (h *halves) waitForgotten(t *testing.T, ctx context.Context, load flows) {
	t.Helper()
	waitUntil(t, ctx, 2*time.Minute, "the other half to be dead to each node", func() (bool, error) {
		for _, n := range h.f.Nodes {
			list, err := n.Client().Members(ctx)
			if err != nil {
				return false, err
			}
			dead := 0
			for _, m := range list.Members {
				if m.State == "dead" {
					dead++
				}
			}
			if dead != 2 {
				return false, nil
			}
		}
		return true, nil
	})
	t.Log("each half is dead to the other one")
	// Gossip to the dead (PROTOCOL.md, section 14), and a round of probes more.
	const remembered = 30*time.Second + 10*time.Second
	load.last(t, ctx, remembered, "while the other half is being forgotten")
}
