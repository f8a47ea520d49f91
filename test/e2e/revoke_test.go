package e2e

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// revokedWithin is how soon after the command the last packet of a revoked node
// may arrive anywhere.
const revokedWithin = 3 * time.Second

// victimFlows are packets from one node to each of the others and back.
type victimFlows []*netlab.Flow

func startVictimFlows(t *testing.T, ctx context.Context, all []fleet.Attached, victim, rate int, marker []byte) victimFlows {
	t.Helper()
	var out victimFlows
	add := func(from, to fleet.Attached) {
		f, err := netlab.StartUDPFlow(ctx, netlab.FlowOptions{
			From: from.Box.NS(), To: to.Box.NS(), Dst: netip.AddrPortFrom(to.V4(), 0), Rate: rate, Marker: marker,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Stop() })
		out = append(out, f)
	}
	for i, a := range all {
		if i != victim {
			add(all[victim], a)
			add(a, all[victim])
		}
	}
	return out
}

func (v victimFlows) received() (n uint64) {
	for _, f := range v {
		n += f.Result().Received
	}
	return n
}

// silentFor looks until nothing has arrived for a while, or ctx ends, and
// returns when the last packet did, give or take a look.
func (v victimFlows) silentFor(ctx context.Context, quiet time.Duration) (last time.Time) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	n := v.received()
	for last = time.Now(); time.Since(last) < quiet; {
		if now := v.received(); now != n {
			n, last = now, time.Now()
		}
		select {
		case <-ctx.Done():
			return last
		case <-tick.C:
		}
	}
	return last
}

// accessKey reads the cluster access key of a node off its disk.
func accessKey(n *fleet.Node) (string, error) {
	b, err := os.ReadFile(filepath.Join(n.DataDir(), "access.key"))
	return string(b), err
}

// TestRevokeUnderLoad throws one of five nodes out while all of them send to each
// other. Nothing of it arrives anywhere any more, the others lose nothing, and
// neither its agent's restart nor its old state brings it back.
func TestRevokeUnderLoad(t *testing.T) { eachDriver(t, revokeUnderLoad) }

func revokeUnderLoad(t *testing.T, driver string) {
	rotations := 1 // room for one in the time limit
	ctx, f := startFor(t, suited(), 5, rotations, "")
	toDriver(t, ctx, f, driver)
	victim := f.Nodes[4]
	blue, lab := attachAll(t, ctx, f, "blue"), attachAll(t, ctx, f, "lab")
	marker := []byte("who is out hears and says nothing ")
	wire := sniff(t, f, marker)
	mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(blue[:4]), Rate: lowRate(t) / 2, Marker: marker})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mesh.Stop() })
	flows := startVictimFlows(t, ctx, blue, 4, lowRate(t)/2, marker)
	for _, v := range flows {
		if err := v.WaitReceived(ctx, 50); err != nil {
			t.Fatalf("before the revocation: %v", err)
		}
	}
	if err := mesh.WaitReceived(ctx, 50); err != nil {
		t.Fatal(err)
	}

	begin := time.Now()
	var rev api.RevocationAnswer
	if err := f.Nodes[0].JSON(ctx, &rev, "revoke", victim.Name, "--reason", "stolen", "--wait"); err != nil {
		t.Fatal(err)
	}
	told := time.Since(begin)
	last := flows.silentFor(ctx, 2*revokedWithin)
	if rev.Node.Name != victim.Name || rev.Applied.OK != 4 || rev.Applied.Total != 4 {
		t.Errorf("revoke answered %+v", rev)
	}
	t.Logf("all nodes had it %v after the command began; the last packet of or to the victim arrived %v after it", told, last.Sub(begin))
	if d := last.Sub(begin); d > revokedWithin {
		t.Errorf("the last packet arrived %v after the command, want at most %v", d, revokedWithin)
	}

	waitUntil(t, ctx, 10*time.Second, "a new access key on all nodes but the victim", func() (bool, error) {
		old, err := accessKey(victim)
		if err != nil {
			return false, err
		}
		for _, n := range f.Nodes[:4] {
			if now, err := accessKey(n); err != nil || now == old {
				return false, err
			}
		}
		return true, nil
	})

	// What the victim does about it, or its operator, changes nothing.
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := victim.Up(ctx); err != nil {
		t.Fatal(err)
	}
	before := flows.received()
	if err := mesh.WaitReceived(ctx, uint64(lowRate(t))); err != nil { // two seconds and more
		t.Fatal(err)
	}
	if n := flows.received() - before; n != 0 {
		t.Errorf("%d packets of or to the victim arrived after its agent's restart", n)
	}
	for _, n := range f.Nodes[:4] {
		s, err := n.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if s.Members.Total != 4 || len(s.Peers) != 3 {
			t.Errorf("%s knows %d members and %d peers, want 4 and 3", n.Name, s.Members.Total, len(s.Peers))
		}
	}
	// An agent that was away applies it from its own disk, or hears it first.
	other := f.Nodes[1]
	if err := other.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := other.Up(ctx); err != nil {
		t.Fatal(err)
	}
	if err := other.WaitStatus(ctx, "three peers after its restart", func(s api.Status) bool { return len(s.Peers) == 3 && s.Ready }); err != nil {
		t.Fatal(err)
	}
	if err := mesh.WaitReceived(ctx, uint64(lowRate(t))); err != nil {
		t.Fatal(err)
	}
	if n := flows.received() - before; n != 0 {
		t.Errorf("%d packets of or to the victim arrived after another agent's restart", n)
	}

	r := mesh.Stop()
	t.Logf("the others: %d sent, %d lost, longest gap %v", r.Sent, r.Lost(), r.LongestGap.Round(time.Millisecond))
	if err := mesh.Check(); err != nil {
		t.Errorf("packets between the others are missing or wrong:\n%v", err)
	}
	for _, v := range flows {
		v.Stop()
	}
	wantSilent(t, wire, "a revocation")
	control(t, ctx, wire, lab[0], lab[1], marker)
}
