package e2e

import (
	"context"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// secureNS opens a node's secure namespace.
func secureNS(t *testing.T, n *fleet.Node) *nl.Namespace {
	t.Helper()
	ns, err := nl.OpenNamespace(filepath.Join(n.RuntimeDir(), "netns", "secure"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// tunnelLink finds the index of the tunnel device in a secure namespace.
func tunnelLink(ns *nl.Namespace) (index int, found bool, err error) {
	links, err := tunnelLinks(ns)
	for index = range links {
		return index, true, nil
	}
	return 0, false, err
}

// tunnelNames lists the names of the tunnel devices in a secure namespace.
func tunnelNames(ns *nl.Namespace) ([]string, error) {
	links, err := tunnelLinks(ns)
	return slices.Sorted(maps.Values(links)), err
}

// tunnelLinks lists the tunnel devices in a secure namespace, names by index.
func tunnelLinks(ns *nl.Namespace) (map[int]string, error) {
	h, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	list, err := h.LinkList()
	if err != nil {
		return nil, err
	}
	links := map[int]string{}
	for _, l := range list {
		if strings.HasPrefix(l.Attrs().Alias, "secure-overlay/") {
			links[l.Attrs().Index] = l.Attrs().Name
		}
	}
	return links, nil
}

func flow(t *testing.T, ctx context.Context, from, to fleet.Attached, dst netip.Addr, marker []byte) *netlab.Flow {
	t.Helper()
	fl, err := netlab.StartUDPFlow(ctx, netlab.FlowOptions{
		From: from.Box.NS(), To: to.Box.NS(), Dst: netip.AddrPortFrom(dst, 0),
		Rate: 500, Size: 600, Marker: marker,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fl.Stop() })
	return fl
}

// wantMore waits until a flow has received n packets more than now.
func wantMore(t *testing.T, ctx context.Context, fl *netlab.Flow, n uint64, when string) {
	t.Helper()
	if err := fl.WaitReceived(ctx, n); err != nil {
		t.Fatalf("%s: %v; %+v", when, err, fl.Result())
	}
}

// TestAgentKilled kills an agent under load and starts it again: the data
// plane carries on without it, nothing is lost and nothing is readable.
func TestAgentKilled(t *testing.T) {
	ctx, f := start(t, 2, bothNetworks())
	marker := []byte("the agent was killed, the packets go on ")
	wire := sniff(t, f, marker)
	blue, lab := attachAll(t, ctx, f, "blue"), attachAll(t, ctx, f, "lab")
	there := flow(t, ctx, blue[0], blue[1], blue[1].V4(), marker)
	back := flow(t, ctx, blue[1], blue[0], blue[0].V6(), marker)
	wantMore(t, ctx, there, 300, "before the kill")
	begin := time.Now()
	for _, n := range f.Nodes {
		before := publicKey(t, ctx, n)
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		wantMore(t, ctx, there, 500, "while the agent of "+n.Name+" is dead")
		wantMore(t, ctx, back, 500, "while the agent of "+n.Name+" is dead")
		if err := n.Up(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: agent ready again at %v", n.Name, time.Since(begin).Round(time.Millisecond))
		if err := f.WaitConnected(ctx); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: all connected at %v", n.Name, time.Since(begin).Round(time.Millisecond))
		wantMore(t, ctx, there, 500, "after the restart on "+n.Name)
		if after := publicKey(t, ctx, n); after != before {
			t.Errorf("%s: the restart made a new tunnel device", n.Name)
		}
	}
	for name, fl := range map[string]*netlab.Flow{"there": there, "back": back} {
		res := fl.Stop()
		t.Logf("%s: %+v", name, res)
		if res.Lost() != 0 || res.SendErrors != 0 || res.Duplicated != 0 || res.Corrupt != 0 {
			t.Errorf("%s: lost %d of %d packets: %+v", name, res.Lost(), res.Sent, res)
		}
	}
	wantSilent(t, wire, "kill -9 and restart of both agents")
	control(t, ctx, wire, lab[0], lab[1], marker)
}

// publicKey identifies a node's tunnel device: its interface index in the
// secure namespace, which a new device would not keep.
func publicKey(t *testing.T, _ context.Context, n *fleet.Node) int {
	t.Helper()
	index, found, err := tunnelLink(secureNS(t, n))
	if err != nil || !found {
		t.Fatalf("find the tunnel device of %s: %v, %v", n.Name, found, err)
	}
	return index
}

// TestTunnelDeleted deletes the tunnel device under load. Packets are lost
// until it is back; none goes out in clear.
func TestTunnelDeleted(t *testing.T) {
	ctx, f := start(t, 2, bothNetworks())
	marker := []byte("the tunnel is gone, is this readable ")
	wire := sniff(t, f, marker)
	blue, lab := attachAll(t, ctx, f, "blue"), attachAll(t, ctx, f, "lab")
	fl := flow(t, ctx, blue[0], blue[1], blue[1].V4(), marker)
	wantMore(t, ctx, fl, 200, "before the deletion")
	for _, n := range f.Nodes {
		ns := secureNS(t, n)
		old, _, err := tunnelLink(ns)
		if err != nil {
			t.Fatal(err)
		}
		deleteLink(t, ns, old)
		repaired := time.Now()
		waitUntil(t, ctx, 2*time.Second, "a new tunnel device on "+n.Name, func() (bool, error) {
			index, found, err := tunnelLink(ns)
			return found && index != old, err
		})
		t.Logf("%s: device back after %v", n.Name, time.Since(repaired).Round(time.Millisecond))
		wantMore(t, ctx, fl, 200, "after the repair on "+n.Name)
		t.Logf("%s: traffic back after %v", n.Name, time.Since(repaired).Round(time.Millisecond))
	}
	fl.Stop()
	wantSilent(t, wire, "tunnel devices deleted")
	control(t, ctx, wire, lab[0], lab[1], marker)
}

func deleteLink(t *testing.T, ns *nl.Namespace, index int) {
	t.Helper()
	h, err := ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	link, err := h.LinkByIndex(index)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkDel(link); err != nil {
		t.Fatal(err)
	}
}

// waitUntil polls a condition of the kernel until it holds.
func waitUntil(t *testing.T, ctx context.Context, limit time.Duration, what string, cond func() (bool, error)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := cond()
		if err != nil {
			t.Fatalf("wait for %s: %v", what, err)
		}
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("wait for %s: not within %v", what, limit)
		case <-tick.C:
		}
	}
}

// TestRulesetFlushed flushes every nftables rule of the host and of the secure
// namespace, as an administrator's script might: encryption does not rest on
// them, so nothing is readable and nothing is lost, and ours come back.
func TestRulesetFlushed(t *testing.T) {
	ctx, f := start(t, 2, bothNetworks())
	marker := []byte("no firewall rule holds this together ")
	wire := sniff(t, f, marker)
	blue, lab := attachAll(t, ctx, f, "blue"), attachAll(t, ctx, f, "lab")
	fl := flow(t, ctx, blue[0], blue[1], blue[1].V4(), marker)
	wantMore(t, ctx, fl, 200, "before the flush")
	for _, n := range f.Nodes {
		ns := secureNS(t, n)
		if tables(t, ns) == 0 {
			t.Fatalf("%s: the secure namespace has no nftables table to flush", n.Name)
		}
		for _, where := range []*nl.Namespace{n.Host.NS(), ns} {
			c, err := nftables.New(nftables.WithNetNSFd(where.FD()))
			if err != nil {
				t.Fatal(err)
			}
			c.FlushRuleset()
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		waitUntil(t, ctx, 2*time.Second, "the guard of "+n.Name, func() (bool, error) { return tables(t, ns) == 1, nil })
		wantMore(t, ctx, fl, 200, "after the flush on "+n.Name)
	}
	if res := fl.Stop(); res.Lost() != 0 {
		t.Errorf("lost %d of %d packets", res.Lost(), res.Sent)
	}
	wantSilent(t, wire, "rulesets flushed")
	control(t, ctx, wire, lab[0], lab[1], marker)
}

func tables(t *testing.T, ns *nl.Namespace) int {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestBootBeforePeers sends on an encrypted network before any peer exists
// and while the peer's agent is down: nothing goes out, then all arrives.
func TestBootBeforePeers(t *testing.T) {
	ctx, f := prepare(t, 2, bothNetworks())
	marker := []byte("nobody is there yet to read this ")
	wire := sniff(t, f, marker)
	first := f.Nodes[0]
	if _, err := first.CLI(ctx, "init"); err != nil {
		t.Fatal(err)
	}
	if err := first.Up(ctx); err != nil {
		t.Fatal(err)
	}
	early := attach(t, ctx, f, first, "blue")
	dst := netip.MustParseAddr("10.77.255.9")
	ping := netlab.PingOptions{Count: 20, Size: 300, Interval: 5 * time.Millisecond, Timeout: time.Millisecond, Marker: marker}
	if res, err := netlab.Ping(ctx, early.Box.NS(), dst, ping); err != nil || res.Received != 0 {
		t.Fatalf("ping nobody: %+v, %v", res, err)
	}
	wantSilent(t, wire, "sending before there is a peer")
	second := f.Nodes[1]
	if err := f.Join(ctx, second); err != nil {
		t.Fatal(err)
	}
	late := attach(t, ctx, f, second, "blue", "--ip", dst.String())
	fl := flow(t, ctx, early, late, dst, marker)
	wantMore(t, ctx, fl, 100, "once the peer is there")
	if err := f.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	if err := second.Down(ctx); err != nil {
		t.Fatal(err)
	}
	wantSilent(t, wire, "the peer goes down under load")
	if err := second.Up(ctx); err != nil {
		t.Fatal(err)
	}
	fl.Stop()
	if err := f.WaitConnected(ctx); err != nil {
		t.Fatal(err)
	}
	lab := attachAll(t, ctx, f, "lab")
	wantSilent(t, wire, "boot before peers")
	control(t, ctx, wire, lab[0], lab[1], marker)
}

// TestRepair deletes what the agent made, piece by piece: each is back within
// two seconds, and traffic with it.
func TestRepair(t *testing.T) {
	ctx, f := start(t, 2, bothNetworks()[:1])
	blue := attachAll(t, ctx, f, "blue")
	mustPing(t, ctx, blue[0], blue[1].V4(), 56)
	node := f.Nodes[0]
	path := filepath.Join(node.RuntimeDir(), "netns", "net-blue")
	for _, kind := range []string{"vxlan", "bridge", "veth"} {
		ns, err := nl.OpenNamespace(path)
		if err != nil {
			t.Fatal(err)
		}
		old := linkOfType(t, ns, kind)
		if old == 0 {
			t.Fatalf("no %s link in the network namespace", kind)
		}
		deleteLink(t, ns, old)
		waitUntil(t, ctx, 2*time.Second, "a new "+kind, func() (bool, error) {
			now := linkOfType(t, ns, kind)
			return now != 0 && now != old, nil
		})
		for _, dst := range []netip.Addr{blue[1].V4(), blue[1].V6()} {
			waitUntil(t, ctx, 2*time.Second, "an answer from "+dst.String(), func() (bool, error) {
				// An error means that the container's link is not back yet.
				res, err := netlab.Ping(ctx, blue[0].Box.NS(), dst, netlab.PingOptions{Timeout: 50 * time.Millisecond})
				return err == nil && res.Received == 1, nil
			})
		}
		mustPing(t, ctx, blue[1], blue[0].V4(), 56)
		_ = ns.Close()
	}
}

func linkOfType(t *testing.T, ns *nl.Namespace, kind string) int {
	t.Helper()
	h, err := ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Type() == kind {
			return l.Attrs().Index
		}
	}
	return 0
}
