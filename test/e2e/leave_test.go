package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestLeave has one of three nodes leave while all of them send to each other.
// The others lose nothing, nothing of it stays on its host, its old state does not
// bring it back, and with a new token the host is a node again, another one.
func TestLeave(t *testing.T) {
	ctx, f := prepareWith(t, timeout+time.Minute, fleet.Options{Nodes: 3, Networks: bothNetworks(), Profile: suited()})
	stay, leaver := f.Nodes[:2], f.Nodes[2]
	before := look(t, leaver)
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	blue, lab := attachAll(t, ctx, f, "blue"), attachAll(t, ctx, f, "lab")
	marker := []byte("who leaves says so and closes the door ")
	wire := sniff(t, f, marker)
	mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(blue[:2]), Rate: lowRate(t), Marker: marker})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mesh.Stop() })
	flows := startVictimFlows(t, ctx, blue, 2, lowRate(t)/2, marker)
	for _, v := range flows {
		if err := v.WaitReceived(ctx, 50); err != nil {
			t.Fatalf("before it leaves: %v", err)
		}
	}
	was, err := leaver.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(t.TempDir(), "data") // its state before
	if err := os.CopyFS(old, os.DirFS(leaver.DataDir())); err != nil {
		t.Fatal(err)
	}

	begin := time.Now()
	var res api.LeaveResult
	if err := leaver.JSON(ctx, &res, "leave", "--yes"); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	last := flows.silentFor(ctx, revokedWithin)
	if res.Node != was.Node || res.Told != (api.Count{OK: 2, Total: 2}) || len(res.Waiting) != 0 || len(res.Removed) == 0 {
		t.Errorf("leave answered %+v", res)
	}
	t.Logf("leave took %v; the last packet from or to the leaver arrived %v after it began", took, last.Sub(begin))
	if d := last.Sub(begin); d > revokedWithin {
		t.Errorf("the last packet arrived %v after the command, want at most %v", d, revokedWithin)
	}
	nothingRemains(t, leaver, before)
	if link := linkOfType(t, blue[2].Box.NS(), "veth"); link != 0 {
		t.Error("the container still has its link")
	}
	for _, n := range stay {
		if err := n.WaitStatus(ctx, "one peer", func(s api.Status) bool { return s.Members.Total == 2 && len(s.Peers) == 1 }); err != nil {
			t.Fatal(err)
		}
		m := memberOf(t, ctx, n, was.Node)
		if m.State != "left" || m.Left.Before(begin.Add(-time.Second)) || m.Left.After(time.Now()) {
			t.Errorf("%s shows %+v", n.Name, m)
		}
	}

	restoredStaysOut(t, ctx, f, blue[2], old, was.Node, flows)
	nothingRemains(t, leaver, before)

	// The same host, by the same name, as another node.
	if err := f.Join(ctx, leaver); err != nil {
		t.Fatal(err)
	}
	if err := f.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	is, err := leaver.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if is.Node.ID == was.Node.ID || is.Node.Name != was.Node.Name {
		t.Errorf("it was %+v and is %+v", was.Node, is.Node)
	}
	if m := memberOf(t, ctx, stay[0], was.Node); m.State != "left" {
		t.Errorf("the node that it was is %q", m.State)
	}
	again := attach(t, ctx, f, leaver, "blue")
	if err := f.WaitEndpoints(ctx, "blue", 3); err != nil {
		t.Fatal(err)
	}
	mustPing(t, ctx, again, blue[0].V4(), 56)
	mustPing(t, ctx, blue[1], again.V4(), 56)

	r := mesh.Stop()
	t.Logf("the others: %d sent, %d lost, longest gap %v", r.Sent, r.Lost(), r.LongestGap.Round(time.Millisecond))
	if err := mesh.Check(); err != nil {
		t.Errorf("packets between the others are missing or wrong:\n%v", err)
	}
	for _, v := range flows {
		v.Stop()
	}
	wantSilent(t, wire, "a leave")
	control(t, ctx, wire, lab[0], lab[1], marker)
}

// nothingRemains compares a host with what it was before its node started, and
// looks into its data directory.
func nothingRemains(t *testing.T, n *fleet.Node, before world) {
	t.Helper()
	if n.Running() {
		t.Errorf("the agent of %s runs", n.Name)
	}
	if diff := cmp.Diff(before, look(t, n)); diff != "" {
		t.Errorf("%s after it left (-before +after):\n%s", n.Name, diff)
	}
	entries, err := os.ReadDir(n.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); name != "lock" && !strings.HasPrefix(name, "events") {
			t.Errorf("%s still has %s", n.Name, name)
		}
	}
}

// memberOf is what a node shows of another.
func memberOf(t *testing.T, ctx context.Context, n *fleet.Node, of api.NodeRef) api.Member {
	t.Helper()
	list, err := n.Client().Members(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list.Members {
		if m.ID == of.ID {
			return m
		}
	}
	t.Fatalf("%s does not list %s", n.Name, of.Name)
	return api.Member{}
}

// restoredStaysOut starts an agent with the state that a node had before it left,
// with its container at its address: nobody takes anything of it, and what it made
// goes again.
func restoredStaysOut(t *testing.T, ctx context.Context, f *fleet.Fleet, at fleet.Attached, old string, was api.NodeRef, flows victimFlows) {
	t.Helper()
	n := at.Node
	kept := n.DataDir() + "-left"
	if err := os.Rename(n.DataDir(), kept); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(n.DataDir(), os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(n.DataDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(n.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Chmod(filepath.Join(n.DataDir(), e.Name()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	arrived := flows.received()
	if err := n.Up(ctx); err != nil {
		t.Fatal(err)
	}
	// It has everything but the others' consent.
	if _, err := f.AttachBox(ctx, n, at.Box, "blue", "--ip", at.V4().String()); err != nil {
		t.Fatal(err)
	}
	sent := flows[0].Result().Sent
	waitUntil(t, ctx, 20*time.Second, "its container sends again", func() (bool, error) { return flows[0].Result().Sent > sent+50, nil })
	seen := refusals(f.Nodes[0])
	waitUntil(t, ctx, 20*time.Second, "its handshakes are refused", func() (bool, error) { return refusals(f.Nodes[0]) > seen, nil })
	for _, other := range f.Nodes[:2] {
		s, err := other.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if m := memberOf(t, ctx, other, was); m.State != "left" || len(s.Peers) != 1 || s.Members.Total != 2 {
			t.Errorf("%s shows the restored node as %q, and has %d peers and %d members", other.Name, m.State, len(s.Peers), s.Members.Total)
		}
	}
	if n := flows.received() - arrived; n != 0 {
		t.Errorf("%d packets of or to the restored node arrived", n)
	}
	if err := n.Down(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(n.DataDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(kept, n.DataDir()); err != nil {
		t.Fatal(err)
	}
}
