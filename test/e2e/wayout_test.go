package e2e

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestWayOut: an endpoint that asked for a default route reaches a host that is on no
// overlay, by its node's address, also while no agent runs; nobody else does, and
// overlay addresses never leave in clear. Afterwards the host is as it was.
func TestWayOut(t *testing.T) {
	ctx, f := prepare(t, 2, bothNetworks())
	outside, err := f.Lab.Host("outside")
	if err != nil {
		t.Fatal(err)
	}
	first, second := f.Nodes[0], f.Nodes[1]
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Attach(ctx, first, "blue", "--default-route"); exitCode(err) != 6 || !strings.Contains(err.Error(), "sysctl -w net.ipv4.ip_forward=1") {
		t.Fatalf("on a host that does not forward: %v", err)
	}
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if err := first.Host.Sysctl(key, "1"); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Down(ctx); err != nil {
		t.Fatal(err)
	}
	before := look(t, first)
	if err := first.Up(ctx); err != nil {
		t.Fatal(err)
	}
	out := attach(t, ctx, f, first, "blue", "--default-route", "--mac", "02:00:5e:10:00:01")
	in, far := attach(t, ctx, f, first, "blue"), attach(t, ctx, f, second, "blue")
	lab := attach(t, ctx, f, first, "lab")
	if err := errors.Join(f.WaitEndpoints(ctx, "blue", 3), f.WaitConnected(ctx)); err != nil {
		t.Fatal(err)
	}
	if e := out.Endpoint; e.MAC.String() != "02:00:5e:10:00:01" || len(e.DefaultRoutes) != 2 {
		t.Errorf("%+v", e)
	}
	mustPing(t, ctx, far, out.V4(), 56) // a chosen MAC is found from other nodes
	leaked, err := netlab.OpenCapture(outside.NS(), netlab.HostLink, func(frame []byte) bool {
		if len(frame) < 34 || frame[12] != 8 || frame[13] != 0 {
			return false
		}
		source := netip.AddrFrom4([4]byte(frame[26:30]))
		return source != first.Host.V4() && source != outside.V4()
	})
	if err != nil {
		t.Fatal(err)
	}
	reach := func(from fleet.Attached, to netip.Addr, want bool, what string) {
		t.Helper()
		pings(t, ctx, from, to, want, what)
	}
	check := func(when string) {
		t.Helper()
		reach(out, outside.V4(), true, "outside "+when)
		reach(out, outside.V6(), true, "outside on IPv6 "+when)
		reach(out, far.V4(), true, "the overlay "+when)
		reach(in, outside.V4(), false, "outside without a default route "+when)
		reach(out, lab.V4(), false, "another network "+when)
		reach(out, first.Host.V4(), false, "the node itself "+when)
	}
	check("at first")
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	check("while no agent runs")
	if err := first.Up(ctx); err != nil {
		t.Fatal(err)
	}
	check("after a restart")
	if err := unix.Unmount(filepath.Join(first.RuntimeDir(), "netns", "gateway"), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, ctx, timeout, "the gateway namespace to be there again", func() (bool, error) {
		r, err := netlab.Ping(ctx, out.Box.NS(), outside.V4(), netlab.PingOptions{Timeout: 200 * time.Millisecond})
		return err == nil && r.Received == 1, nil
	})
	check("after the gateway namespace was unbound")
	if c := leaked.Stop(); c.Matched > 0 {
		t.Errorf("%d packets came outside that were not from the node's address", c.Matched)
	}
	for _, e := range []fleet.Attached{out, in, lab} {
		if _, err := first.CLI(ctx, "detach", e.Endpoint.ID); err != nil {
			t.Error(err)
		}
	}
	if err := first.Down(ctx); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, look(t, first)); diff != "" {
		t.Errorf("host after down (-before +after):\n%s", diff)
	}
}

// pings asks that all or none of three pings are answered.
func pings(t *testing.T, ctx context.Context, from fleet.Attached, to netip.Addr, want bool, what string) {
	t.Helper()
	timeout := 5 * time.Second
	if !want {
		timeout = 300 * time.Millisecond
	}
	r, err := netlab.Ping(ctx, from.Box.NS(), to, netlab.PingOptions{Count: 3, Interval: 20 * time.Millisecond, Timeout: timeout})
	if (err == nil && r.Received == 3) != want || r.Received > 0 && !want {
		t.Errorf("%s: %d of 3 pings answered (%v, %v), want answers: %v", what, r.Received, r.SendErr, err, want)
	}
}

// TestNetworkOptions: what a network says about its addresses holds on every node.
func TestNetworkOptions(t *testing.T) {
	ctx, f := start(t, 2, nil)
	first, second := f.Nodes[0], f.Nodes[1]
	if _, err := first.CLI(ctx, "network", "create", "green", "--subnet", "10.90.0.0/24", "--ip-range", "10.90.0.128/26", "--gateway", "10.90.0.254",
		"--reserve", "10.90.0.129,10.90.0.16/28", "--internal", "--no-broadcast", "--label", "team=web"); err != nil {
		t.Fatal(err)
	}
	if err := second.WaitStatus(ctx, "the network", func(api.Status) bool {
		var n api.NetworkDetail
		return second.JSON(ctx, &n, "network", "inspect", "green") == nil && n.Internal && n.NoBroadcast && slices.Equal(n.Labels, []string{"team=web"})
	}); err != nil {
		t.Fatal(err)
	}
	a, b := attach(t, ctx, f, first, "green"), attach(t, ctx, f, second, "green", "--ip", "10.90.0.1")
	if err := errors.Join(f.WaitEndpoints(ctx, "green", 2), f.WaitConnected(ctx)); err != nil {
		t.Fatal(err)
	}
	if p := netip.MustParsePrefix("10.90.0.128/26"); !p.Contains(a.V4()) || a.V4() == netip.MustParseAddr("10.90.0.129") {
		t.Errorf("address %s", a.V4())
	}
	mustPing(t, ctx, a, b.V4(), 56)
	pings(t, ctx, a, netip.MustParseAddr("10.90.0.254"), true, "the gateway")
	for _, args := range [][]string{{"--ip", "10.90.0.254"}, {"--ip", "10.90.0.20"}, {"--default-route"}, {"--mac", a.Endpoint.MAC.String()}} {
		if _, err := f.Attach(ctx, second, "green", args...); exitCode(err) != 6 {
			t.Errorf("attach %v: %v", args, err)
		}
	}
	// A frame for all stays on its node, and one for the other endpoint does not.
	marker := []byte("for everybody")
	seen, err := netlab.OpenCapture(b.Box.NS(), b.Endpoint.Ifname, netlab.ContainsMarker(marker))
	if err != nil {
		t.Fatal(err)
	}
	in, err := netlab.OpenInjector(a.Box.NS())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	packet := netlab.UDPPacket(netip.AddrPortFrom(a.V4(), 9), netip.MustParseAddrPort("10.90.0.255:9"), marker)
	send := func(dst [6]byte) {
		t.Helper()
		if err := in.Frame(a.Endpoint.Ifname, netlab.EthernetFrame(a.Endpoint.MAC, dst, packet)); err != nil {
			t.Fatal(err)
		}
	}
	send([6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	mustPing(t, ctx, a, b.V4(), 56) // behind it in every queue
	if n := seen.Counts().Matched; n != 0 {
		t.Errorf("%d frames for all came to the other node", n)
	}
	send(b.Endpoint.MAC)
	if err := seen.WaitMatched(ctx, 1); err != nil {
		t.Errorf("positive control: %v", err)
	}
	seen.Stop()
}
