package espuser_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/espuser"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
)

// node is one host with a driver, and a peer that nobody sees.
type node struct {
	t      *testing.T
	host   *tunneltest.Host
	driver tunnel.Driver
	spec   tunnel.Spec
}

func newNode(t *testing.T, o espuser.Options) *node {
	t.Helper()
	secret, err := keys.TunnelSecretFromRaw32(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	peer := ids.NodeID{7}
	n := &node{t: t, host: tunneltest.Namespaces(t, 1)[0], spec: tunnel.Spec{
		Devices: []tunnel.Device{{Epoch: 1, Port: 51871, MTU: 1400}},
		Peers: []tunnel.Peer{{ID: peer, Inner: peer.InnerAddr(), Keys: []tunnel.PeerKey{{
			Epoch: 1, Key: secret.ID(), Secret: secret,
			ESP: tunnel.ESP{Local: netip.MustParseAddr("198.18.0.1"), Remote: netip.MustParseAddr("198.18.0.2"), In: 1000, Out: 2000, InUDP: true, Port: 51871},
		}}}},
	}}
	if n.driver, err = espuser.Kind(o).Open(t.Context(), n.host.Env); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(n.driver.Remove(context.Background()), n.driver.Close()); err != nil {
			t.Error(err)
		}
		if left, err := leftovers([]*tunneltest.Host{n.host}); err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, error %v", left, err)
		}
	})
	return n
}

func (n *node) worker() int {
	n.t.Helper()
	pids, err := tunneltest.Processes("--mark=secure-overlay/" + n.host.Env.Node.String() + "/")
	if err != nil || len(pids) != 1 {
		n.t.Fatalf("workers = %v, %v", pids, err)
	}
	return pids[0]
}

func (n *node) state() tunnel.DeviceState {
	n.t.Helper()
	s, err := n.driver.State(n.t.Context())
	if err != nil || len(s.Devices) != 1 {
		n.t.Fatalf("state = %+v, %v", s, err)
	}
	return s.Devices[0]
}

// TestKilledWorker: with a worker its associations go. The device is made anew, says that the
// secrets are gone, also to who still has them, and takes other ones: under the same ones sequence
// numbers would begin again.
func TestKilledWorker(t *testing.T) {
	n := newNode(t, options())
	if err := n.driver.Set(t.Context(), n.spec); err != nil {
		t.Fatal(err)
	}
	old := n.worker()
	if d := n.state(); !d.Up || len(d.Peers) != 1 || d.Peers[0].Out != 2000 {
		t.Fatalf("device %+v", d)
	}
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitEnded(t, old)
	// The kernel takes the link away when it gets to it.
	if s, err := n.driver.State(t.Context()); err != nil || len(s.Devices) == 1 && s.Devices[0].Up {
		t.Errorf("state without a worker: %+v, %v", s, err)
	}
	for name, spec := range map[string]tunnel.Spec{"without": n.spec.WithoutSecrets(), "with": n.spec} {
		if err := n.driver.Set(t.Context(), spec); !errors.Is(err, tunnel.ErrSecretGone) {
			t.Errorf("set after the worker's end, %s its secret: %v", name, err)
		}
		if d := n.state(); !d.Up || len(d.Peers) != 0 || n.worker() == old {
			t.Errorf("device made anew: %+v", d)
		}
	}
	n.spec.Peers[0].Keys[0].ESP.In, n.spec.Peers[0].Keys[0].ESP.Out = 1001, 2001
	if err := n.driver.Set(t.Context(), n.spec); err != nil {
		t.Errorf("set with other associations: %v", err)
	}
}

// TestStuckWorker: one that does not answer for long is replaced, and nobody waits for it meanwhile.
func TestStuckWorker(t *testing.T) {
	o := options()
	o.Patience = 2 * time.Second
	n := newNode(t, o)
	if err := n.driver.Set(t.Context(), n.spec); err != nil {
		t.Fatal(err)
	}
	stuck := n.worker()
	if err := unix.Kill(stuck, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	unclear := 0
	for end := time.Now().Add(30 * time.Second); n.worker() == stuck; {
		err := n.driver.Set(t.Context(), n.spec.WithoutSecrets())
		if errors.Is(err, tunnel.ErrUnclear) {
			unclear++
		}
		if time.Now().After(end) {
			t.Fatalf("still the same worker: %v", err)
		}
	}
	if unclear == 0 {
		t.Error("it was never said that this is not clear yet")
	}
}

func waitEnded(t *testing.T, pid int) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); ; <-tick.C {
		// A zombie, which the driver collects, has no command line.
		if line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline"); err != nil || len(line) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d does not end", pid)
		}
	}
}
