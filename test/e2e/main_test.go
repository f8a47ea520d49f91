package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// binaryEnv names the program to test; the VM has no compiler.
const binaryEnv = "SECURE_OVERLAY_BIN"

func TestMain(m *testing.M) {
	if dir := os.Getenv(rogueEnv); dir != "" {
		os.Exit(runRogue(dir))
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Getenv(binaryEnv) == "" {
		dir, err := os.MkdirTemp("", "secure-overlay-e2e-")
		if err != nil {
			return 1, err
		}
		defer func() { _ = os.RemoveAll(dir) }()
		bin := filepath.Join(dir, "secure-overlay")
		build := exec.Command("go", "build", raceFlag, "-o", bin, "../../cmd/secure-overlay")
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build the program: %w\n%s", err, out)
		}
		if err := os.Setenv(binaryEnv, bin); err != nil {
			return 1, err
		}
	}
	// A race ends the program that has it; one without need not wait a second
	// at its end for others to report theirs.
	if err := os.Setenv("GORACE", "halt_on_error=1 atexit_sleep_ms=0"); err != nil {
		return 1, err
	}
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			return 1, err
		}
	}
	return code, nil
}

// timeout bounds one scenario; an emulated machine needs most of it.
const timeout = 4 * time.Minute

// lastWords is how long a failed scenario may take to say why and to clean up.
const lastWords = 40 * time.Second

// Networks of most scenarios, dual stack.
func bothNetworks() []fleet.Network {
	return []fleet.Network{
		{Name: "blue", Encrypted: true, Subnets: prefixes("10.77.0.0/16", "fd77::/64")},
		{Name: "lab", Subnets: prefixes("10.78.0.0/16", "fd78::/64")},
	}
}

func prefixes(text ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range text {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// prepare makes a fleet whose agents do not run yet.
func prepare(t *testing.T, nodes int, networks []fleet.Network, host ...netlab.HostOption) (context.Context, *fleet.Fleet) {
	t.Helper()
	return prepareWith(t, timeout, fleet.Options{Nodes: nodes, Networks: networks, Host: host})
}

// prepareWith is prepare with a limit of its own and any options; name and
// program are filled in.
func prepareWith(t *testing.T, limit time.Duration, o fleet.Options) (context.Context, *fleet.Fleet) {
	t.Helper()
	netlab.Require(t, netlab.FeatureNetns)
	if end, ok := t.Deadline(); ok {
		// A test that fails says what it saw; one that is ended does not.
		limit = min(limit, time.Until(end)-lastWords)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	o.Name, o.Binary, o.Step = "e2e", os.Getenv(binaryEnv), func(what string) { t.Log(what) }
	f, err := fleet.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, n := range f.Nodes {
				t.Logf("log of %s ends:\n%s", n.Name, n.LogTail(40))
			}
		}
		for _, n := range f.Nodes {
			if log := n.LogTail(100_000); strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic:") {
				t.Errorf("the agent of %s is broken:\n%s", n.Name, log)
			}
		}
		if err := f.Close(); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return ctx, f
}

// start makes a fleet and waits until its nodes are connected.
func start(t *testing.T, nodes int, networks []fleet.Network, host ...netlab.HostOption) (context.Context, *fleet.Fleet) {
	t.Helper()
	ctx, f := prepare(t, nodes, networks, host...)
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx, f
}

// attachAll attaches one container per node to a network and waits until
// every node knows them all.
func attachAll(t *testing.T, ctx context.Context, f *fleet.Fleet, network string) []fleet.Attached {
	t.Helper()
	var at []fleet.Attached
	for _, n := range f.Nodes {
		at = append(at, attach(t, ctx, f, n, network))
	}
	if err := f.WaitEndpoints(ctx, network, len(at)); err != nil {
		t.Fatal(err)
	}
	return at
}

func attach(t *testing.T, ctx context.Context, f *fleet.Fleet, n *fleet.Node, network string, extra ...string) fleet.Attached {
	t.Helper()
	a, err := f.Attach(ctx, n, network, extra...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// sniff watches every underlay link for a marker until the test ends.
func sniff(t *testing.T, f *fleet.Fleet, marker []byte) *netlab.Captures {
	t.Helper()
	c, err := f.Lab.CaptureAll(netlab.ContainsMarker(marker))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wantSilent asserts that no frame so far held the marker, and that no frame
// escaped the sniffer.
func wantSilent(t *testing.T, c *netlab.Captures, when string) {
	t.Helper()
	n := c.Counts()
	if n.Matched != 0 || n.Dropped != 0 {
		t.Errorf("%s: %d readable frames on the underlay, %d not examined; one begins % x", when, n.Matched, n.Dropped, c.First())
	}
}

// control leaks the marker on purpose, through the plaintext network, and
// asserts that the same capture sees it.
func control(t *testing.T, ctx context.Context, c *netlab.Captures, from, to fleet.Attached, marker []byte) {
	t.Helper()
	res, err := netlab.Ping(ctx, from.Box.NS(), to.V4(), netlab.PingOptions{Count: 3, Size: 200, Marker: marker, Timeout: 5 * time.Second})
	if err != nil || res.Received == 0 {
		t.Fatalf("positive control: ping over the plaintext network: %+v, %v", res, err)
	}
	if n := c.Stop(); n.Matched == 0 || n.Dropped != 0 {
		t.Fatalf("positive control: the capture saw %d of the leaked packets, missed %d: it proves nothing", n.Matched, n.Dropped)
	}
}

// mustPing asserts that every ping is answered.
func mustPing(t *testing.T, ctx context.Context, from fleet.Attached, dst netip.Addr, size int) {
	t.Helper()
	res, err := netlab.Ping(ctx, from.Box.NS(), dst, netlab.PingOptions{
		Count: 3, Size: size, Interval: 20 * time.Millisecond, Timeout: 5 * time.Second, DontFragment: true,
	})
	if err != nil || res.Received != res.Sent || res.Sent != 3 {
		t.Errorf("ping %s from %s with %d bytes: %d of %d answered, send error %v, %v",
			dst, from.Box.Name(), size, res.Received, res.Sent, res.SendErr, err)
	}
}
