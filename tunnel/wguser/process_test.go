package wguser_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
	"github.com/secure-overlay/secure-overlay/tunnel/wguser"
)

// node is one host with a driver.
type node struct {
	t      *testing.T
	host   *tunneltest.Host
	driver tunnel.Driver
	spec   tunnel.Spec
}

func newNode(t *testing.T) *node {
	t.Helper()
	host := tunneltest.Namespaces(t, 1)[0]
	n := &node{t: t, host: host, spec: tunnel.Spec{Devices: []tunnel.Device{{Epoch: 1, Port: 51871, MTU: 1400}}}}
	n.open(options())
	t.Cleanup(func() {
		if err := n.driver.Remove(context.Background()); err != nil {
			t.Errorf("remove: %v", err)
		}
		n.close()
		if left, err := leftovers([]*tunneltest.Host{host}); err != nil || len(left) > 0 {
			t.Errorf("left behind: %q, error %v", left, err)
		}
	})
	return n
}

func (n *node) open(o wguser.Options) {
	n.t.Helper()
	d, err := wguser.Kind(o).Open(n.t.Context(), n.host.Env)
	if err != nil {
		n.t.Fatal(err)
	}
	n.driver = d
}

func (n *node) close() {
	n.t.Helper()
	if err := n.driver.Close(); err != nil {
		n.t.Errorf("close: %v", err)
	}
}

func (n *node) set() {
	n.t.Helper()
	if err := n.driver.Set(n.t.Context(), n.spec); err != nil {
		n.t.Fatalf("set: %v", err)
	}
}

// public returns the device's key.
func (n *node) public() keys.TunnelPublic {
	n.t.Helper()
	s, err := n.driver.State(n.t.Context())
	if err != nil || len(s.Devices) != 1 || s.Devices[0].Public.IsZero() {
		n.t.Fatalf("state = %+v, %v", s, err)
	}
	return s.Devices[0].Public
}

// worker returns the process ID of the only worker.
func (n *node) worker() int {
	n.t.Helper()
	pids, err := tunneltest.Processes("--mark=secure-overlay/" + n.host.Env.Node.String() + "/")
	if err != nil || len(pids) != 1 {
		n.t.Fatalf("workers = %v, %v", pids, err)
	}
	return pids[0]
}

// waitFor waits until cond holds.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(30 * time.Second); !cond(); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("waited too long for: %s", what)
		}
	}
}

func (n *node) links() map[string]int {
	n.t.Helper()
	_, secure, err := n.host.Net.Links()
	if err != nil {
		n.t.Fatal(err)
	}
	return secure
}

func TestKilledWorkerIsReplaced(t *testing.T) {
	n := newNode(t)
	n.set()
	old, pid := n.public(), n.worker()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the link to go with its worker", func() bool { return len(n.links()) == 0 })
	if s, err := n.driver.State(t.Context()); err != nil || len(s.Devices) != 0 {
		t.Errorf("state without a worker: %+v, %v", s, err)
	}
	n.set()
	if now := n.public(); now == old || n.worker() == pid {
		t.Errorf("key %s, worker %d after the worker was killed", now, n.worker())
	}
}

// stop stops a process. Its threads stop one after the other, and each could
// still answer, so it waits for all of them.
func stop(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "all threads to stop", func() bool {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		return err == nil && len(stats) > 0 && !slices.ContainsFunc(stats, func(path string) bool {
			stat, err := os.ReadFile(path)
			return err != nil || !bytes.Contains(stat, []byte(") T "))
		})
	})
}

func TestStuckWorkerIsReplaced(t *testing.T) {
	n := newNode(t)
	n.set()
	old, pid := n.public(), n.worker()
	n.close()
	impatient := options()
	impatient.Patience = time.Second
	n.open(impatient)
	stop(t, pid)
	// A context that ends says nothing about the worker: it must survive.
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := n.driver.Set(short, n.spec); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("set with a short deadline: %v", err)
	}
	if got := n.worker(); got != pid {
		t.Errorf("worker %d took the place of %d", got, pid)
	}
	s, err := n.driver.State(t.Context())
	if err == nil || len(s.Devices) != 1 || !s.Devices[0].Public.IsZero() {
		t.Errorf("state of a stuck worker: %+v, %v", s, err)
	}
	// On a busy machine the new worker may be too slow for so little patience.
	waitFor(t, "a new worker", func() bool { return n.driver.Set(t.Context(), n.spec) == nil })
	n.close()
	n.open(options())
	if now := n.public(); now == old || n.worker() == pid {
		t.Errorf("key %s, worker %d after the worker was stopped", now, n.worker())
	}
}

// TestSlowWorker does what the agent does, round by round, with a deadline no
// longer than the driver's patience: a worker that does not answer holds up
// nobody, keeps its device while it may yet answer, and is replaced in the end.
func TestSlowWorker(t *testing.T) {
	n := newNode(t)
	n.set()
	old, pid := n.public(), n.worker()
	stop(t, pid)
	const deadline = 15 * time.Second
	round := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		_, err := n.driver.State(ctx)
		err = errors.Join(err, n.driver.Set(ctx, n.spec))
		if ctx.Err() != nil {
			t.Fatalf("one round took longer than %v: %v", deadline, err)
		}
		return err
	}
	if err := round(); err == nil || n.worker() != pid {
		t.Errorf("round with a slow worker: %v, worker %d, was %d", err, n.worker(), pid)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the worker to answer", func() bool { return round() == nil })
	if n.public() != old || n.worker() != pid {
		t.Error("a worker that was only slow was replaced")
	}

	n.close()
	impatient := options()
	impatient.Patience = deadline / 5
	n.open(impatient)
	stop(t, pid)
	waitFor(t, "a new worker", func() bool { return round() == nil })
	if n.public() == old || n.worker() == pid {
		t.Error("a stuck worker was not replaced")
	}
}

func TestPortInUse(t *testing.T) {
	n := newNode(t)
	occupy := func(port uint16) (release func()) {
		t.Helper()
		var c net.PacketConn
		err := n.host.Env.Host.Do(func() (err error) {
			c, err = net.ListenPacket("udp4", netip.AddrPortFrom(netip.IPv4Unspecified(), port).String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return func() { _ = c.Close() }
	}
	release := occupy(51871)
	err := n.driver.Set(t.Context(), n.spec)
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "51871") {
		t.Errorf("set on a port in use: %v", err)
	}
	if left := n.links(); len(left) != 0 {
		t.Errorf("links left by a device that could not be made: %v", left)
	}
	release()
	n.set()
	old := n.public()
	release = occupy(51900)
	n.spec.Devices[0].Port = 51900
	err = n.driver.Set(t.Context(), n.spec)
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "51900") {
		t.Errorf("change to a port in use: %v", err)
	}
	release()
	n.set()
	s, err := n.driver.State(t.Context())
	if err != nil || s.Devices[0].Port != 51900 || s.Devices[0].Public != old {
		t.Errorf("after the port was free again: %+v, %v", s, err)
	}
}

// runAgent is an agent that makes a device and dies.
func runAgent(args []string) error {
	id, err := ids.ParseNodeID(args[0])
	if err != nil {
		return err
	}
	env := tunnel.Env{Node: id, RuntimeDir: args[3], Log: slog.New(slog.DiscardHandler)}
	if env.Host, err = nl.OpenNamespace(args[1]); err != nil {
		return err
	}
	if env.Secure, err = nl.OpenNamespace(args[2]); err != nil {
		return err
	}
	d, err := wguser.Kind(options()).Open(context.Background(), env)
	if err != nil {
		return err
	}
	spec := tunnel.Spec{Devices: []tunnel.Device{{Epoch: 1, Port: 51871, MTU: 1400}}}
	if err := d.Set(context.Background(), spec); err != nil {
		return err
	}
	s, err := d.State(context.Background())
	if err != nil {
		return err
	}
	_, _ = fmt.Fprint(os.Stdout, s.Devices[0].Public)
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}

// TestWorkerOutlivesAgent kills an agent, with everything in its session, and
// lets the next one take over.
func TestWorkerOutlivesAgent(t *testing.T) {
	n := newNode(t)
	env := n.host.Env
	agent := exec.Command("/proc/self/exe", agentWord, env.Node.String(), env.Host.Path(), env.Secure.Path(), env.RuntimeDir)
	agent.Stderr = os.Stderr
	out, err := agent.Output()
	if !strings.Contains(fmt.Sprint(err), "killed") {
		t.Fatalf("agent: %v", err)
	}
	pid := n.worker()
	n.set()
	if got := n.public().String(); got != string(out) || n.worker() != pid {
		t.Errorf("key %s, worker %d; the agent left key %s, worker %d", got, n.worker(), out, pid)
	}
	sid, err := unix.Getsid(pid)
	if err != nil || sid != pid {
		t.Errorf("the worker is in session %d, %v; it should have its own", sid, err)
	}
}

// TestWorkerSurroundings looks at a worker from outside.
func TestWorkerSurroundings(t *testing.T) {
	n := newNode(t)
	n.set()
	proc := filepath.Join("/proc", fmt.Sprint(n.worker()))

	env, err := os.ReadFile(filepath.Join(proc, "environ"))
	want := "GOTRACEBACK=none\x00"
	if race, ok := os.LookupEnv("GORACE"); ok { // how a program that looks for races ends
		want += "GORACE=" + race + "\x00"
	}
	if err != nil || string(env) != want {
		t.Errorf("environment %q, %v", env, err)
	}
	limits, err := os.ReadFile(filepath.Join(proc, "limits"))
	if err != nil || !coreIsZero(string(limits)) {
		t.Errorf("limits %s, %v", limits, err)
	}
	ns, err := nl.OpenNamespace(filepath.Join(proc, "ns", "net"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }()
	is, _ := ns.ID()
	if want, _ := n.host.Env.Host.ID(); is != want {
		t.Errorf("the worker is in namespace %v, want the host's %v", is, want)
	}

	link, addrs := n.link()
	if len(addrs) != 0 {
		t.Errorf("addresses on the tunnel device: %v", addrs)
	}
	if link.Attrs().Flags&net.FlagRunning == 0 || link.Attrs().RawFlags&unix.IFF_NOARP == 0 {
		t.Errorf("link %+v must be running, and ask nobody for addresses", link)
	}
	mark, ok := tunnel.ParseMark(link.Attrs().Alias)
	if want := (tunnel.Mark{Node: n.host.Env.Node, Protocol: "wg", Driver: wguser.Name, Epoch: 1}); !ok || mark != want {
		t.Errorf("mark %+v, want %+v", mark, want)
	}
}

// TestSingleWorker: asked for the form for kernels that can do no more, a worker has it: a TUN that is
// bound to its worker's life.
func TestSingleWorker(t *testing.T) {
	n := newNode(t)
	n.close()
	o := options()
	o.Single = true
	n.open(o)
	n.set()
	l, _ := n.link()
	tun, ok := l.(*netlink.Tuntap)
	if !ok || tun.Flags&netlink.TUNTAP_VNET_HDR != 0 || tun.Flags&netlink.TUNTAP_NO_PI == 0 || !tun.NonPersist {
		t.Errorf("link %+v must be a TUN without a virtio header, bound to its worker's life", l)
	}
}

// link returns the device of epoch 1, and its addresses.
func (n *node) link() (netlink.Link, []netlink.Addr) {
	n.t.Helper()
	h, err := n.host.Env.Secure.Handle()
	if err != nil {
		n.t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName(tunnel.DeviceName(n.host.Env.Node, 1, 0))
	if err != nil {
		n.t.Fatal(err)
	}
	addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		n.t.Fatal(err)
	}
	return l, addrs
}

func coreIsZero(limits string) bool {
	for line := range strings.Lines(limits) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") {
			return f[4] == "0" && f[5] == "0"
		}
	}
	return false
}

// TestForeignSocketIsLeftAlone puts a listener of somebody else, this very
// process, in the place of a worker.
func TestForeignSocketIsLeftAlone(t *testing.T) {
	n := newNode(t)
	if err := os.MkdirAll("/var/run/wireguard", 0o755); err != nil {
		t.Fatal(err)
	}
	path := "/var/run/wireguard/" + tunnel.DeviceName(n.host.Env.Node, 1, 0) + ".sock"
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := n.driver.Set(t.Context(), n.spec); err == nil || !strings.Contains(err.Error(), "belongs to another") {
		t.Errorf("set: %v", err)
	}
	if err := n.driver.Remove(t.Context()); err != nil {
		t.Errorf("remove: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the foreign socket is gone: %v", err)
	}
}

func TestOpenNeedsWorker(t *testing.T) {
	if _, err := wguser.Kind(wguser.Options{}).Open(t.Context(), tunnel.Env{RuntimeDir: t.TempDir()}); err == nil {
		t.Error("opened without a worker command")
	}
}

// TestWorkerThatCannotStart gives the driver a program that ends at once.
func TestWorkerThatCannotStart(t *testing.T) {
	n := newNode(t)
	for _, argv := range [][]string{{"/proc/self/exe", workerWord, "--no-such-flag"}, {"/nonexistent"}} {
		d, err := wguser.Kind(wguser.Options{Worker: argv}).Open(t.Context(), n.host.Env)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Set(t.Context(), n.spec); err == nil {
			t.Errorf("%q: set reports no error", argv)
		} else {
			t.Logf("%q: %v", argv, err)
		}
		if err := d.Remove(t.Context()); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}
