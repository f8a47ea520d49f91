package e2e

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// churn is a cluster in which networks and endpoints come and go, and what it should
// look like by all that was done.
type churn struct {
	t     *testing.T
	f     *fleet.Fleet
	rng   *rand.Rand
	root  string
	nets  map[string]*churnNet
	inner map[*fleet.Node]netip.Addr
	wrong []*netlab.Capture // of endpoints that are there: frames of other networks
	made  int               // networks so far
	done  map[string]int    // steps by kind
	slow  time.Duration     // the longest that entries took to follow
}

type churnNet struct {
	name      string
	encrypted bool
	ends      []churnEnd
}

type churnEnd struct {
	fleet.Attached
	alien *netlab.Capture
}

// churnMark begins everything that is sent in a network; the name follows.
const churnMark = "churn in network "

func (n *churnNet) marker() []byte { return []byte(churnMark + n.name + "; ") }

// entriesWithin is how long forwarding and neighbour entries may be stale.
func entriesWithin() time.Duration {
	if slowMachine() {
		return 15 * time.Second
	}
	return 2 * time.Second
}

// TestChurn creates, toggles and removes networks, and attaches and detaches endpoints,
// in random order while others are in use. After each step every node has exactly
// the entries that follow from all steps, no endpoint ever gets a frame of another
// network, a network that nobody touches loses nothing, and in the end nothing is left.
func TestChurn(t *testing.T) {
	steps, most := scaled(t, 600), min(20, 4+scaled(t, 60)/4)
	ctx, f := prepareWith(t, 2*timeout+time.Duration(steps)*10*time.Second, fleet.Options{Nodes: min(5, 3+scaled(t, 60)/20)})
	var before []world
	for _, n := range f.Nodes {
		before = append(before, look(t, n))
	}
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d nodes, %d steps, at most %d networks", seed, len(f.Nodes), steps, most)
	c := &churn{
		t: t, f: f, rng: rand.New(rand.NewPCG(seed, 1)), root: filepath.Join(f.Nodes[0].DataDir(), "root.key"),
		nets: map[string]*churnNet{}, done: map[string]int{}, inner: map[*fleet.Node]netip.Addr{},
	}
	for _, n := range f.Nodes {
		s, err := n.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		c.inner[n] = s.Node.ID.InnerAddr()
	}
	// One network of which nobody wants anything.
	still := c.create(ctx, true)
	for _, n := range f.Nodes {
		c.attach(ctx, still, n)
	}
	var at []fleet.Attached
	for _, e := range still.ends {
		at = append(at, e.Attached)
	}
	c.settle(ctx, "the first network")
	if err := f.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(at), Rate: 50, Marker: still.marker()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mesh.Stop() })
	for range steps {
		what := c.step(ctx, still, most)
		c.done[what]++
		c.settle(ctx, what)
		c.talk(ctx)
		if err := mesh.WaitReceived(ctx, 3); err != nil {
			t.Fatal(err)
		}
		// What is under way arrives; what is lost does not. Two of each flow may be under
		// way at any time.
		waitUntil(t, ctx, 5*time.Second, fmt.Sprintf("the packets of the network that nobody touched to arrive after %q", what), func() (bool, error) {
			return mesh.Result().Lost() <= uint64(2*len(at)*(len(at)-1)), nil
		})
		if t.Failed() {
			t.FailNow()
		}
	}
	if err := mesh.WaitReceived(ctx, 20); err != nil {
		t.Error(err)
	}
	mesh.Stop()
	if err := mesh.Check(); err != nil {
		t.Errorf("the network that nobody touched: %v", err)
	}
	c.clear(ctx)
	t.Logf("%v; entries followed within %v", c.done, c.slow.Round(time.Millisecond))
	for i, n := range f.Nodes {
		if err := n.Down(ctx); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before[i], look(t, n)); diff != "" {
			t.Errorf("%s after down (-before +after):\n%s", n.Name, diff)
		}
	}
}

// step does one thing and says what.
func (c *churn) step(ctx context.Context, still *churnNet, most int) string {
	var others []*churnNet
	for _, name := range slices.Sorted(maps.Keys(c.nets)) {
		if n := c.nets[name]; n != still {
			others = append(others, n)
		}
	}
	if len(others) == 0 || len(others) < most && c.rng.IntN(6) == 0 {
		c.create(ctx, c.rng.IntN(2) == 0)
		return "create"
	}
	n := others[c.rng.IntN(len(others))]
	switch c.rng.IntN(10) {
	case 0, 1, 2, 3:
		if len(n.ends) < 8 {
			c.attach(ctx, n, c.f.Nodes[c.rng.IntN(len(c.f.Nodes))])
			return "attach"
		}
		fallthrough
	case 4, 5:
		if len(n.ends) > 0 {
			c.detach(ctx, n, c.rng.IntN(len(n.ends)))
			return "detach"
		}
		fallthrough
	case 6:
		if len(n.ends) == 0 {
			c.run(ctx, c.f.Nodes[0], "network", "rm", n.name)
			delete(c.nets, n.name)
			return "remove"
		}
		fallthrough
	case 7, 8:
		return c.toggle(ctx, n)
	default:
		node := c.f.Nodes[c.rng.IntN(len(c.f.Nodes))]
		if err := node.Kill(); err != nil {
			c.t.Fatal(err)
		}
		if err := node.Up(ctx); err != nil {
			c.t.Fatal(err)
		}
		return "restart"
	}
}

func (c *churn) run(ctx context.Context, n *fleet.Node, args ...string) {
	c.t.Helper()
	// An endpoint that is detached elsewhere is still in the record for a moment.
	waitUntil(c.t, ctx, timeout, fmt.Sprint(args), func() (bool, error) {
		_, err := n.CLI(ctx, args...)
		if exitCode(err) == 6 && args[0] == "network" && args[1] == "rm" {
			return false, nil
		}
		return true, err
	})
}

func (c *churn) create(ctx context.Context, encrypted bool) *churnNet {
	c.t.Helper()
	c.made++
	n := &churnNet{name: fmt.Sprintf("net%d", c.made), encrypted: encrypted}
	args := []string{"network", "create", n.name, "--subnet", fmt.Sprintf("10.%d.0.0/16,fd%02x::/64", c.made, c.made)}
	if !encrypted {
		args = append(args, "--plaintext")
	}
	c.run(ctx, c.f.Nodes[0], args...)
	for _, node := range c.f.Nodes {
		waitNetwork(c.t, ctx, node, n.name)
	}
	c.nets[n.name] = n
	return n
}

func (c *churn) attach(ctx context.Context, n *churnNet, node *fleet.Node) {
	c.t.Helper()
	e := churnEnd{Attached: attach(c.t, ctx, c.f, node, n.name)}
	mine := n.marker()
	alien, err := netlab.OpenCapture(e.Box.NS(), e.Endpoint.Ifname, func(frame []byte) bool {
		return bytes.Contains(frame, []byte(churnMark)) && !bytes.Contains(frame, mine)
	})
	if err != nil {
		c.t.Fatal(err)
	}
	e.alien = alien
	c.t.Cleanup(func() { alien.Stop() })
	n.ends = append(n.ends, e)
}

func (c *churn) detach(ctx context.Context, n *churnNet, i int) {
	c.t.Helper()
	e := n.ends[i]
	c.judge(n, e)
	c.run(ctx, e.Node, "detach", e.Endpoint.ID)
	n.ends = slices.Delete(n.ends, i, i+1)
}

// judge looks at what an endpoint has heard.
func (c *churn) judge(n *churnNet, e churnEnd) {
	c.t.Helper()
	if got := e.alien.Stop().Matched; got != 0 {
		c.t.Errorf("%d frames of other networks came to an endpoint of %s on %s", got, n.name, e.Node.Name)
	}
}

func (c *churn) toggle(ctx context.Context, n *churnNet) string {
	c.t.Helper()
	how := []string{"--strict", "--migrate"}[c.rng.IntN(2)]
	args := []string{"network", "update", n.name, how, "--encrypted"}
	if n.encrypted {
		args = []string{"network", "update", n.name, how, "--plaintext", "--root-key", c.root}
	}
	c.run(ctx, c.f.Nodes[0], args...)
	n.encrypted = !n.encrypted
	return "toggle " + how
}

// settle wants each node's kernel to have exactly what follows from the model, soon.
func (c *churn) settle(ctx context.Context, after string) {
	c.t.Helper()
	start := time.Now()
	last := ""
	for ctx.Err() == nil {
		last = ""
		for _, node := range c.f.Nodes {
			last += c.differs(ctx, node)
		}
		took := time.Since(start)
		if last == "" {
			c.slow = max(c.slow, took)
			return
		}
		if took > entriesWithin() {
			break
		}
		<-time.After(20 * time.Millisecond)
	}
	c.t.Fatalf("%v after %q (-want +have):\n%s", time.Since(start), after, last)
}

// entries are what a node has of a network, as text.
type entries map[string]bool

// differs compares a node's kernel with the model.
func (c *churn) differs(ctx context.Context, node *fleet.Node) string {
	want := entries{}
	for _, n := range c.nets {
		c.expect(want, node, n)
	}
	have := entries{}
	p := vxlan.NewProgrammer(vxlan.Options{Dir: filepath.Join(node.RuntimeDir(), "netns")})
	defer func() { _ = p.Close() }()
	seen, err := p.Observe(ctx, nil)
	if err != nil {
		return err.Error()
	}
	for _, n := range seen.Networks {
		have["network "+n.Name] = true
		for _, f := range n.Forwards {
			if (f.MAC == ids.MAC{}) {
				have[n.Name+" floods to a node by "+f.Device+" "+f.VTEP.String()] = true
			} else {
				have[fmt.Sprintf("%s forwards %s by %s to %s", n.Name, f.MAC, f.Device, f.VTEP)] = true
			}
		}
		for _, nb := range n.Neighbours {
			have[fmt.Sprintf("%s has %s at %s", n.Name, nb.Addr, nb.MAC)] = true
		}
	}
	if d := cmp.Diff(want, have); d != "" {
		return node.Name + ":\n" + d
	}
	return ""
}

// expect adds what a node should have of a network.
func (c *churn) expect(want entries, node *fleet.Node, n *churnNet) {
	if !slices.ContainsFunc(n.ends, func(e churnEnd) bool { return e.Node == node }) {
		return
	}
	want["network "+n.name] = true
	gateways := n.ends[0].Endpoint.Resolvers // every node has the network's own
	for _, g := range gateways {
		want[fmt.Sprintf("%s has %s at %s", n.name, g, ids.EndpointMAC(ids.DeriveVNI(n.name), gateways[0]))] = true
	}
	for _, e := range n.ends {
		mac := e.Endpoint.MAC
		for _, a := range e.Endpoint.Addresses {
			want[fmt.Sprintf("%s has %s at %s", n.name, a.Addr(), mac)] = true
		}
		if e.Node == node {
			continue
		}
		vtep, device := c.vtep(e.Node, n.encrypted)
		want[n.name+" floods to a node by "+device+" "+vtep.String()] = true
		want[fmt.Sprintf("%s forwards %s by %s to %s", n.name, mac, device, vtep)] = true
	}
}

// vtep is where frames to a node go, and by which device.
func (c *churn) vtep(node *fleet.Node, encrypted bool) (netip.Addr, string) {
	if encrypted {
		return c.inner[node], "vx0"
	}
	return node.Host.V4(), "vx1"
}

// talk has some pair of each of some networks exchange packets.
func (c *churn) talk(ctx context.Context) {
	c.t.Helper()
	for _, n := range c.nets {
		if len(n.ends) < 2 {
			continue
		}
		i := c.rng.IntN(len(n.ends))
		j := (i + 1 + c.rng.IntN(len(n.ends)-1)) % len(n.ends)
		from, to := n.ends[i], n.ends[j]
		for _, dst := range []netip.Addr{to.V4(), to.V6()} {
			// The tunnel of a pair that has just met is made yet.
			waitUntil(c.t, ctx, timeout, fmt.Sprintf("%s on %s to reach %s on %s", n.name, from.Node.Name, dst, to.Node.Name), func() (bool, error) {
				r, err := netlab.Ping(ctx, from.Box.NS(), dst, netlab.PingOptions{Size: 300, Marker: n.marker(), Timeout: 300 * time.Millisecond})
				return err == nil && r.Received == 1, nil
			})
		}
	}
}

// clear detaches everything and removes all networks.
func (c *churn) clear(ctx context.Context) {
	c.t.Helper()
	for _, n := range c.nets {
		for len(n.ends) > 0 {
			c.detach(ctx, n, len(n.ends)-1)
		}
	}
	c.settle(ctx, "all are detached")
	for _, n := range c.nets {
		c.run(ctx, c.f.Nodes[0], "network", "rm", n.name)
	}
	c.nets = map[string]*churnNet{}
	c.settle(ctx, "all are removed")
}
