package e2e

import (
	"context"
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// toggled is a network of the cluster that changes its form under load.
type toggled struct {
	t    *testing.T
	f    *fleet.Fleet
	at   []fleet.Attached
	mark []byte
	mesh *netlab.Mesh
	took spans
}

func startToggling(t *testing.T, changes int) (context.Context, *toggled) {
	t.Helper()
	ctx, f := prepareWith(t, 2*timeout+time.Duration(changes)*10*time.Second, fleet.Options{Nodes: 3})
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Nodes[0].CLI(ctx, "network", "create", "blue", "--subnet", "10.77.0.0/16,fd77::/64", "--plaintext"); err != nil {
		t.Fatal(err)
	}
	g := &toggled{t: t, f: f, mark: []byte("a network that changes its form ")}
	for _, n := range f.Nodes {
		waitNetwork(t, ctx, n, "blue")
	}
	g.at = attachAll(t, ctx, f, "blue")
	var err error
	g.mesh, err = netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(g.at), Rate: lowRate(t), Marker: g.mark})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.mesh.Stop() })
	g.more(ctx, "before")
	return ctx, g
}

// waitNetwork waits until a node knows a network of the cluster.
func waitNetwork(t *testing.T, ctx context.Context, n *fleet.Node, name string) {
	t.Helper()
	waitUntil(t, ctx, timeout, n.Name+" to know network "+name, func() (bool, error) {
		var list api.NetworkList
		err := n.JSON(ctx, &list, "network", "ls")
		for _, have := range list.Networks {
			if have.Name == name {
				return true, err
			}
		}
		return false, err
	})
}

func (g *toggled) more(ctx context.Context, when string) {
	g.t.Helper()
	if err := g.mesh.WaitReceived(ctx, 50); err != nil {
		g.t.Fatalf("%s: %v", when, err)
	}
}

// update runs a command of a node and looks at the wires from when it returned on.
func (g *toggled) update(ctx context.Context, node int, encrypted bool, args ...string) {
	g.t.Helper()
	if encrypted {
		args = append(args, "--encrypted")
	} else {
		request := append([]string{"network", "update", "blue", "--plaintext"}, args...)
		args = []string{"--signed", rootSigns(ctx, g.t, g.f.Nodes[node], g.f.Nodes[0], request...)}
	}
	args = append([]string{"network", "update", "blue", "-o", "json"}, args...)
	start := time.Now()
	out, err := g.f.Nodes[node].CLI(ctx, args...)
	if err != nil {
		g.t.Fatal(err)
	}
	wire := sniff(g.t, g.f, g.mark)
	g.took = append(g.took, time.Since(start))
	var n api.NetworkAnswer
	if err := json.Unmarshal(out, &n); err != nil || n.Encrypted != encrypted || n.Change != nil {
		g.t.Errorf("%v: %+v, %v", args, n, err)
	}
	g.more(ctx, "after it had changed")
	if encrypted {
		wantSilent(g.t, wire, "after the command had returned")
		wire.Stop()
		return
	}
	// The control: what is sent now can be read.
	if n := wire.Stop(); n.Matched < 50 {
		g.t.Errorf("in clear, and the capture saw %d frames", n.Matched)
	}
}

// rootSigns has the root key sign what a command asks for. It is where the cluster was founded, and
// no other node sees it.
func rootSigns(ctx context.Context, t *testing.T, asker, founder *fleet.Node, command ...string) string {
	t.Helper()
	var asked struct {
		Request string `json:"request"`
	}
	if err := asker.JSON(ctx, &asked, command...); err != nil {
		t.Fatal(err)
	}
	var signed struct {
		Signed string `json:"signed"`
	}
	if err := founder.JSON(ctx, &signed, "issuer", "sign", "--root-key", filepath.Join(founder.DataDir(), "root.key"), asked.Request); err != nil {
		t.Fatal(err)
	}
	return signed.Signed
}

// TestToggleMigrate: a network goes from plaintext to encrypted and back under load,
// and not one packet is lost, doubled or, once it is encrypted, readable.
func TestToggleMigrate(t *testing.T) {
	count := scaled(t, 50)
	ctx, g := startToggling(t, 2*count)
	for i := range count {
		g.update(ctx, 0, true, "--migrate")
		g.update(ctx, i%3, false, "--migrate") // any node, with the root key
	}
	r := g.mesh.Stop()
	t.Logf("%d changes: %v; %d packets", 2*count, g.took, r.Sent)
	if r.Lost()+r.Duplicated+r.Corrupt+r.SendErrors != 0 {
		t.Errorf("%d lost, %+v", r.Lost(), r)
	}
	if _, err := g.f.Nodes[1].CLI(ctx, "network", "update", "blue", "--encrypted", "--migrate"); exitCode(err) != 6 {
		t.Errorf("a node without an issuer key encrypts: %v", err)
	}
}

// TestToggleStrict: when the command returns, nothing is readable; and a node that
// is away meanwhile cannot bring the plaintext back.
func TestToggleStrict(t *testing.T) {
	count := scaled(t, 50)
	ctx, g := startToggling(t, 2*count)
	for range count {
		g.update(ctx, 0, true, "--strict")
		g.update(ctx, 0, false, "--strict")
	}
	t.Logf("%d changes: %v; %d of %d packets lost", 2*count, g.took, g.mesh.Result().Lost(), g.mesh.Result().Sent)

	// An agent that is dead leaves its plaintext device behind; nobody talks to it.
	away := g.f.Nodes[2]
	if err := away.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.f.Nodes[0].CLI(ctx, "network", "update", "blue", "--encrypted", "--strict", "--timeout", "60s"); exitCode(err) != 4 {
		t.Errorf("with a dead agent: %v", err)
	}
	g.mesh.Stop()
	wire := sniff(t, g.f, g.mark)
	mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(g.at[:2]), Rate: 100, Marker: g.mark})
	if err != nil {
		t.Fatal(err)
	}
	defer mesh.Stop()
	if err := mesh.WaitReceived(ctx, 50); err != nil {
		t.Fatal(err)
	}
	wantSilent(t, wire, "among those that have followed")
	if err := away.Up(ctx); err != nil {
		t.Fatal(err)
	}
	all, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(g.at), Rate: 100, Marker: g.mark})
	if err != nil {
		t.Fatal(err)
	}
	defer all.Stop()
	if err := all.WaitReceived(ctx, 50); err != nil {
		t.Fatal(err)
	}
	if n := wire.Host(away.Name).Counts(); n.Matched != 0 {
		t.Logf("%d readable frames of the node that was away, before it was back", n.Matched)
	}
	after := sniff(t, g.f, g.mark)
	if err := all.WaitReceived(ctx, 100); err != nil {
		t.Fatal(err)
	}
	wantSilent(t, after, "when the last one is back")
}
