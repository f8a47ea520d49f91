package e2e

import (
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestThreeHosts is the product's main promise: networks of the config file
// come up, full-size packets pass everywhere, status tells the truth.
func TestThreeHosts(t *testing.T) {
	ctx, f := start(t, 3, bothNetworks())
	marker := []byte("three hosts, one overlay: readable? ")
	wire := sniff(t, f, marker)
	blue := attachAll(t, ctx, f, "blue")
	lab := attachAll(t, ctx, f, "lab")

	var status api.Status
	if err := f.Nodes[0].JSON(ctx, &status, "status"); err != nil {
		t.Fatal(err)
	}
	if status.Schema != api.Schema || len(status.Peers) != 2 || len(status.Networks) != 2 {
		t.Errorf("status -o json: %+v", status)
	}
	mtu := map[string]int{}
	for _, nw := range status.Networks {
		mtu[nw.Name] = nw.MTU
		checkNetwork(t, nw)
	}
	// Underlay 1500, VXLAN over IPv4 50; WireGuard over IPv4 60, VXLAN over IPv6 70.
	if mtu["lab"] != 1450 || mtu["blue"] != 1370 {
		t.Errorf("MTU = %v, want lab 1450, blue 1370", mtu)
	}

	for _, at := range [][]fleet.Attached{blue, lab} {
		size := mtu[at[0].Endpoint.Network]
		for i := range at {
			peer := at[(i+1)%len(at)]
			mustPing(t, ctx, at[i], peer.V4(), size-28)
			mustPing(t, ctx, at[i], peer.V6(), size-48)
		}
	}
	for i, j := range map[int]int{0: 1, 1: 0} {
		for _, dst := range []netip.Addr{blue[j].V4(), blue[j].V6()} {
			transfer(t, f, blue[i], blue[j], dst, marker)
		}
	}
	wantSilent(t, wire, "TCP and pings over blue")
	for i, j := range map[int]int{0: 1, 1: 0} {
		for _, dst := range []netip.Addr{lab[j].V4(), lab[j].V6()} {
			transfer(t, f, lab[i], lab[j], dst, marker)
		}
	}
	control(t, ctx, wire, lab[0], lab[1], marker)
	if text, err := f.Nodes[0].CLI(ctx, "status"); err != nil {
		t.Error(err)
	} else {
		checkTable(t, string(text))
	}
}

func checkNetwork(t *testing.T, nw api.Network) {
	t.Helper()
	if nw.Encrypted != (nw.Name == "blue") {
		t.Errorf("network %s: encrypted = %v", nw.Name, nw.Encrypted)
	}
	if nw.Peers != (api.Count{OK: 2, Total: 2}) || nw.State != api.StateOK {
		t.Errorf("network %s: peers %+v, state %s", nw.Name, nw.Peers, nw.State)
	}
	want := api.PlaintextLabel
	if nw.Encrypted {
		want = wantedDriver()
	}
	if nw.Driver != want {
		t.Errorf("network %s: driver %q, want %q", nw.Name, nw.Driver, want)
	}
}

// wantedDriver is what auto must choose: the kernel's WireGuard where this
// machine is meant to have it.
func wantedDriver() string {
	if strings.Contains(os.Getenv(netlab.RequireEnv), netlab.FeatureWireGuard) {
		return "wireguard (kernel)"
	}
	return "wireguard (userspace)"
}

// checkTable asserts what a person sees: plaintext is called so, and no line
// is wider than a terminal.
func checkTable(t *testing.T, text string) {
	t.Helper()
	if !strings.Contains(text, "PLAINTEXT") || !strings.Contains(text, "blue") {
		t.Errorf("status does not show both networks:\n%s", text)
	}
	for _, line := range strings.Split(text, "\n") {
		if len([]rune(line)) > 80 {
			t.Errorf("status line has %d columns: %q", len([]rune(line)), line)
		}
	}
}

func transfer(t *testing.T, f *fleet.Fleet, from, to fleet.Attached, dst netip.Addr, marker []byte) {
	t.Helper()
	res, err := netlab.TCPTransfer(t.Context(), from.Box.NS(), to.Box.NS(), netip.AddrPortFrom(dst, 0),
		netlab.TransferOptions{Bytes: 4 << 20, Marker: marker})
	if err != nil {
		t.Errorf("TCP from %s to %s: %v", from.Box.Name(), dst, err)
		return
	}
	t.Logf("TCP over %s to %s: %.0f Mbit/s", from.Endpoint.Network, dst, res.MbitPerS)
}

// TestIPv6Underlay runs the same networks over an underlay without IPv4.
func TestIPv6Underlay(t *testing.T) {
	ctx, f := start(t, 2, bothNetworks(), netlab.V6Only())
	for _, network := range []string{"blue", "lab"} {
		at := attachAll(t, ctx, f, network)
		mtu := at[0].Endpoint.MTU
		// WireGuard over IPv6 80, VXLAN over IPv6 70.
		if want := map[string]int{"blue": 1350, "lab": 1430}[network]; mtu != want {
			t.Errorf("MTU of %s = %d, want %d", network, mtu, want)
		}
		mustPing(t, ctx, at[0], at[1].V4(), mtu-28)
		mustPing(t, ctx, at[1], at[0].V6(), mtu-48)
	}
}

// TestUnequalMTU gives one host a smaller link: every node must use the
// smaller MTU toward it, or packets vanish.
func TestUnequalMTU(t *testing.T) {
	ctx, f := prepare(t, 2, bothNetworks())
	if err := f.Nodes[1].Host.SetMTU(1450); err != nil {
		t.Fatal(err)
	}
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for network, want := range map[string]int{"blue": 1320, "lab": 1400} {
		at := attachAll(t, ctx, f, network)
		for _, a := range at {
			if a.Endpoint.MTU != want {
				t.Errorf("MTU of %s on %s = %d, want %d", network, a.Node.Name, a.Endpoint.MTU, want)
			}
		}
		mustPing(t, ctx, at[0], at[1].V4(), want-28)
		mustPing(t, ctx, at[1], at[0].V4(), want-28)
	}
}

// TestDisagreement gives two nodes different ideas of a network. They must
// not connect it, both must say so, and the other network must work.
func TestDisagreement(t *testing.T) {
	ctx, f := prepare(t, 2, bothNetworks())
	other := bothNetworks()
	other[0].Encrypted = false
	if err := f.Nodes[1].WriteConfig(other); err != nil {
		t.Fatal(err)
	}
	first := f.Nodes[0]
	if _, err := first.CLI(ctx, "init"); err != nil {
		t.Fatal(err)
	}
	if err := first.Up(ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.Join(ctx, f.Nodes[1]); err != nil {
		t.Fatal(err)
	}
	for _, n := range f.Nodes {
		err := n.WaitStatus(ctx, "a reported conflict", func(s api.Status) bool {
			for _, nw := range s.Networks {
				if nw.Name == "blue" {
					return len(nw.Conflicts) == 1 && nw.Conflicts[0].Field == "encrypted" && nw.Peers.OK == 0
				}
			}
			return false
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.CLI(ctx, "status"); exitCode(err) != 4 {
			t.Errorf("status on %s: %v, want exit 4 (degraded)", n.Name, err)
		}
	}
	marker := []byte("two nodes disagree about encryption ")
	wire := sniff(t, f, marker)
	a, b := attach(t, ctx, f, f.Nodes[0], "blue"), attach(t, ctx, f, f.Nodes[1], "blue")
	for _, pair := range [][2]fleet.Attached{{a, b}, {b, a}} {
		res, err := netlab.Ping(ctx, pair[0].Box.NS(), pair[1].V4(), netlab.PingOptions{
			Count: 5, Size: 200, Marker: marker, Interval: 10 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if res.Received != 0 {
			t.Errorf("%d pings crossed a network that the nodes disagree about", res.Received)
		}
	}
	wantSilent(t, wire, "pings on the disputed network")
	lab := attachAll(t, ctx, f, "lab")
	control(t, ctx, wire, lab[0], lab[1], marker)
}
