package e2e

import (
	"bytes"
	"compress/lzw"
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// rogueProcess is a running rogue (rogueMain).
type rogueProcess struct {
	t   *testing.T
	in  *json.Encoder
	out *json.Decoder
}

// startRogue stops the agent of a node, whose data plane stays, and runs a rogue with
// its keys, at its address, that has met the others.
func startRogue(t *testing.T, ctx context.Context, n *fleet.Node, others []*fleet.Node) *rogueProcess {
	t.Helper()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// It ends with its input, not with the test's context, which is over before.
	cmd := n.Host.Command(context.WithoutCancel(ctx), self)
	cmd.Env = append(os.Environ(), rogueEnv+"="+n.DataDir())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the rogue: %v\n%s", err, stderr.String())
		}
	})
	r := &rogueProcess{t: t, in: json.NewEncoder(in), out: json.NewDecoder(out)}
	o := rogueOrder{Do: "meet"}
	for _, n := range others {
		o.Targets = append(o.Targets, rogueTarget{ID: nodeID(t, ctx, n), Addr: netip.AddrPortFrom(n.Host.Addr(), 7946)})
	}
	r.do(o)
	return r
}

// do has an order carried out. What was accepted of it is an error of the others.
func (r *rogueProcess) do(o rogueOrder) rogueAnswer {
	r.t.Helper()
	if err := r.in.Encode(o); err != nil {
		r.t.Fatal(err)
	}
	begin := time.Now()
	var a rogueAnswer
	if err := r.out.Decode(&a); err != nil {
		r.t.Fatalf("the rogue's answer to %s: %v", o.Do, err)
	}
	if a.Error != "" {
		r.t.Fatalf("the rogue could not do %s: %s", o.Do, a.Error)
	}
	if a.Tried > 0 {
		r.t.Logf("rogue, %s: %d tried, %d accepted, %v", o.Do, a.Tried, len(a.Accepted), time.Since(begin).Round(time.Millisecond))
	}
	if n := len(a.Accepted); n > 0 {
		r.t.Errorf("%s: %d of %d were accepted: %s", o.Do, n, a.Tried, strings.Join(a.Accepted[:min(n, 10)], "; "))
	}
	return a
}

// spread waits until all the others hold one record of the rogue's, another one than
// was.
func (r *rogueProcess) spread(ctx context.Context, self ids.NodeID, was string) (is string) {
	r.t.Helper()
	waitUntil(r.t, ctx, 20*time.Second, "the rogue's own record at all the others", func() (bool, error) {
		is = ""
		for _, h := range r.do(rogueOrder{Do: "look"}).Held {
			now := h.Records[self]
			if now == was || is != "" && now != is {
				return false, nil
			}
			is = now
		}
		return true, nil
	})
	return is
}

func nodeID(t *testing.T, ctx context.Context, n *fleet.Node) ids.NodeID {
	t.Helper()
	s, err := n.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s.Node.ID
}

// untouchable is what a node has that no other may change.
type untouchable struct {
	Held       rogueHoldings // without the rogue's own record
	Target     ids.Epoch
	Devices    []api.KeyDevice
	Pairs      []api.KeyPeer // with other honest nodes: name, epoch, step, driver
	TunnelKeys [32]byte      // hash of all in the kernel or the worker
	Secure     string        // routes and filter of the secure namespace
	Forwarding map[string]string
	Endpoints  []api.Endpoint // of honest nodes: network, node, addresses, MAC
}

// lookAt reads it on all the others.
func lookAt(t *testing.T, ctx context.Context, r *rogueProcess, rogue ids.NodeID, others []*fleet.Node) map[string]untouchable {
	t.Helper()
	held := r.do(rogueOrder{Do: "look"}).Held
	out := map[string]untouchable{}
	for _, n := range others {
		u := untouchable{Held: held[nodeID(t, ctx, n)], Forwarding: map[string]string{}}
		delete(u.Held.Records, rogue)
		keys, err := n.Keys(ctx)
		if err != nil {
			t.Fatal(err)
		}
		u.Target, u.Devices = keys.Target.Epoch, keys.Devices
		for i := range u.Devices {
			u.Devices[i].Dropped = nil // what it sent and nobody took
		}
		for _, p := range keys.Peers {
			if p.ID != rogue {
				u.Pairs = append(u.Pairs, api.KeyPeer{NodeRef: p.NodeRef, Epoch: p.Epoch, Step: p.Step, Driver: p.Driver})
			}
		}
		u.TunnelKeys = tunnelKeys(t, n)
		if u.Secure, err = netlab.Snapshot(secureNS(t, n)); err != nil {
			t.Fatal(err)
		}
		for _, network := range []string{"blue", "green"} {
			u.Forwarding[network] = forwarding(t, n, network)
		}
		list, err := n.Client().Endpoints(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Endpoints {
			if e.Node.ID != rogue {
				u.Endpoints = append(u.Endpoints, api.Endpoint{Network: e.Network, Node: e.Node, Addresses: e.Addresses, MAC: e.MAC})
			}
		}
		out[n.Name] = u
	}
	return out
}

// tunnelKeys tells whether the keys of a node's tunnels are the same as before,
// and nothing about them.
func tunnelKeys(t *testing.T, n *fleet.Node) [32]byte {
	t.Helper()
	var all []string
	for _, k := range liveKeys(t, n) {
		all = append(all, string(k.patterns["raw"]))
	}
	slices.Sort(all)
	return sha256.Sum256([]byte(strings.Join(all, "")))
}

// forwarding reads what a node forwards on a network.
func forwarding(t *testing.T, n *fleet.Node, network string) string {
	t.Helper()
	ns, err := nl.OpenNamespace(filepath.Join(n.RuntimeDir(), "netns", "net-"+network))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	lines, err := netlab.Forwarding(ns)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(lines, "dev") {
		t.Errorf("control: %s forwards nothing on %s: %s", n.Name, network, lines)
	}
	return lines
}

// startWithRogue makes a fleet whose last node is not on the network green, and waits
// until all others are connected on every network.
func startWithRogue(t *testing.T, nodes int) (context.Context, *fleet.Fleet) {
	t.Helper()
	networks := append(bothNetworks(), fleet.Network{Name: "green", Encrypted: true, Subnets: prefixes("10.79.0.0/16")})
	profile := suited()
	ctx, f := prepareWith(t, timeout+time.Minute, fleet.Options{
		Nodes: nodes, Networks: networks, Profile: profile, Config: keysConfig(profile, ""),
	})
	if err := f.Nodes[nodes-1].WriteConfig(networks[:2]); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Nodes[0].CLI(ctx, "init"); err != nil {
		t.Fatal(err)
	}
	if err := f.Nodes[0].Up(ctx); err != nil {
		t.Fatal(err)
	}
	for _, n := range f.Nodes[1:] {
		if err := f.Join(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range f.Nodes {
		want := map[string]int{"blue": nodes - 1, "lab": nodes - 1, "green": nodes - 2}
		if i == nodes-1 {
			delete(want, "green")
		}
		err := n.WaitStatus(ctx, "all peers of all networks", func(s api.Status) bool {
			ok := 0
			for _, nw := range s.Networks {
				if nw.Peers.OK == want[nw.Name] && nw.Peers.Total == want[nw.Name] {
					ok++
				}
			}
			return s.State == api.StateOK && ok == len(want)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return ctx, f
}

// TestRogueMember lets a member loose that has a valid certificate and keeps no
// rules: it forges what others say and what the cluster says, declares everybody
// dead without end, sends into networks that are not its own, and whatever a
// memberlist cannot stand. Nothing of it is accepted; the others lose no packet, keep
// their keys and their forwarding, and do not grow.
func TestRogueMember(t *testing.T) {
	ctx, f := startWithRogue(t, 4)
	others, bad := f.Nodes[:3], f.Nodes[3]
	rogueID := nodeID(t, ctx, bad)
	// So that there is an item to alter.
	rot, err := f.Nodes[0].Client().Rotate(ctx, api.RotateRequest{Driver: drivers()[0]})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WaitEpoch(ctx, rot.To); err != nil {
		t.Fatal(err)
	}
	blue, lab := attachAll(t, ctx, f, "blue"), attachAll(t, ctx, f, "lab")
	var green []fleet.Attached
	for _, n := range others {
		green = append(green, attach(t, ctx, f, n, "green"))
	}
	mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(blue[:3]), Rate: lowRate(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mesh.Stop() })
	if err := mesh.WaitReceived(ctx, 50); err != nil {
		t.Fatal(err)
	}

	r := startRogue(t, ctx, bad, others)
	own := r.do(rogueOrder{Do: "look"}).Held[nodeID(t, ctx, others[0])].Records[rogueID]
	memory := watchGrowth(t, others)
	before := lookAt(t, ctx, r, rogueID, others)
	// The control: what is its own is taken.
	r.do(rogueOrder{Do: "honest"})
	own = r.spread(ctx, rogueID, own)

	hop(t, ctx, bad, rogueID, blue, green, lab)
	r.do(rogueOrder{Do: "records"})
	r.do(rogueOrder{Do: "epochs"})
	r.do(rogueOrder{Do: "claim"})
	r.spread(ctx, rogueID, own)
	refuted := refutations(others)
	r.do(accusations(t))
	if !emulated() || scaled(t, fullRotations) == fullRotations {
		// Nothing in these asks for another kernel.
		wantBomb(t)
		r.do(rogueOrder{Do: "items"})
		r.do(rogueOrder{Do: "streams"})
		r.do(rogueOrder{Do: "packets"})
		r.do(rogueOrder{Do: "requests"})
	}
	waitUntil(t, ctx, 20*time.Second, "somebody to ask the rogue", func() (bool, error) {
		return r.do(rogueOrder{Do: "told"}).Tried > 0, nil
	})
	if n := refutations(others) - refuted; n == 0 {
		t.Error("control: nobody contradicted the rogue, so gossip did not reach anybody")
	}

	for _, n := range others {
		err := n.WaitStatus(ctx, "all others alive", func(s api.Status) bool {
			alive := 0
			for _, p := range s.Peers {
				if p.ID != rogueID && p.Gossip == "alive" {
					alive++
				}
			}
			return alive == len(others)-1
		})
		if err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(before, lookAt(t, ctx, r, rogueID, others), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("the rogue changed something (-before +after):\n%s", diff)
	}
	memory.wantBounded(t)
	res := mesh.Stop()
	t.Logf("between the others: %d sent, %d lost, longest gap %v", res.Sent, res.Lost(), res.LongestGap.Round(time.Millisecond))
	if err := mesh.Check(); err != nil {
		t.Errorf("packets between the others are missing or wrong:\n%v", err)
	}
}

// accusations are what the rogue says about the others, 1,000 times a second. After what
// cannot be outbid gossip has to forget a node before it can count it again, which takes
// its time.
func accusations(t *testing.T) rogueOrder {
	t.Helper()
	if scaled(t, fullRotations) < fullRotations {
		return rogueOrder{Do: "accuse", Count: 3000, PerSecond: 1000}
	}
	return rogueOrder{Do: "accuse", Count: 20_000, PerSecond: 1000, Highest: true}
}

// refutations counts how often memberlists contradicted what was said about them.
func refutations(nodes []*fleet.Node) (n int) {
	for _, node := range nodes {
		raw, _ := os.ReadFile(node.LogPath())
		n += bytes.Count(raw, []byte("Refuting"))
	}
	return n
}

// wantBomb is a control: the bomb is one. A small one shows it: to unpack all of it
// takes the race detector half a minute.
func wantBomb(t *testing.T) {
	t.Helper()
	const size = 20 << 20
	b := bomb(size)
	packed := b[bytes.Index(b, []byte("\xa3Buf\xdb"))+9:]
	n, err := io.Copy(io.Discard, lzw.NewReader(bytes.NewReader(packed), lzw.LSB, 8))
	if err != nil || n < size || n < int64(1000*len(b)) {
		t.Errorf("control: a bomb of %d bytes unpacks to %d: %v", len(b), n, err)
	}
}
