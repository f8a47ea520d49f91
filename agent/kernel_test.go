package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/wguser"
)

// kernelNode is a loop over the real kernel of one lab host; only membership
// is the board.
type kernelNode struct {
	t     *testing.T
	host  *netlab.Host
	id    ids.NodeID
	n     int
	board *board
	disk  *fakeDisk
	opts  Options

	agent *Agent
	stop  context.CancelFunc
	done  chan error
}

func newKernelNode(t *testing.T, on *netlab.Lab, b *board, n int) *kernelNode {
	t.Helper()
	host, err := on.Host(fmt.Sprint("host", n))
	if err != nil {
		t.Fatal(err)
	}
	k := &kernelNode{t: t, host: host, n: n, board: b, disk: &fakeDisk{}, id: ids.NodeIDOf([32]byte{byte(n), 0x77})}
	k.opts = Options{Log: slog.New(slog.DiscardHandler), Kinds: []tunnel.Kind{wguser.Kind(wguser.Options{Worker: []string{"/proc/self/exe", workerWord}})}}
	k.opts.Config = newSim(1, blue(), lab()).nodes[0].in.Config
	k.opts.Config.Control.Bind = netip.MustParseAddrPort("0.0.0.0:7946")
	k.opts.Config.Control.Profile = config.ProfileLocal
	k.opts.Config.Keys = config.Keys{Drain: 300 * time.Millisecond, Quiet: 100 * time.Millisecond, HoldDown: 30 * time.Second}
	k.opts.Config.RuntimeDir = filepath.Join(on.Dir(), fmt.Sprint("run", n))
	b.set(func() { b.wakes[k.id] = make(chan struct{}, 1) })
	return k
}

func (k *kernelNode) start() {
	k.t.Helper()
	a := New(k.opts)
	identity := keystore.Identity{ID: k.id, Hostname: fmt.Sprint("host", k.n), Cert: keys.Cert{Serial: uint64(k.n)}}
	dir := files{dir: k.opts.Config.RuntimeDir}
	lock, err := a.lock(dir)
	if err != nil {
		k.t.Fatal(err)
	}
	l := newLoop(a, identity, dir)
	if l.attachments, err = dir.loadAttachments(); err != nil {
		k.t.Fatal(err)
	}
	if err := a.openPlane(context.Background(), l, k.host.NS()); err != nil {
		k.t.Fatal(err)
	}
	l.restore()
	gossip := &fakeGossip{board: k.board, self: membership.Member{
		ID: k.id, Hostname: identity.Hostname, Serial: uint64(k.n), State: membership.StateAlive,
	}}
	l.gossip, l.rot.pairs, l.claims.asker = gossip, gossip, gossip
	a.blocks.disk = k.disk
	if err := a.blocks.open(k.id, l.clusterView); err != nil {
		k.t.Fatal(err)
	}
	k.board.set(func() { k.board.agents[k.id] = a })
	ctx, cancel := context.WithCancel(context.Background())
	k.agent, k.stop, k.done = a, cancel, make(chan error, 1)
	go func() {
		l.waitForCache(ctx)
		err := l.run(ctx)
		close(a.stopped)
		l.close()
		_ = lock.Close()
		k.done <- err
	}()
}

// kill ends the loop and leaves the data plane, as a killed agent does.
func (k *kernelNode) kill() {
	k.stop()
	if err := <-k.done; !errors.Is(err, context.Canceled) {
		k.t.Errorf("killed loop ended with %v", err)
	}
}

func (k *kernelNode) wait(what string, cond func(api.Status) bool) {
	k.t.Helper()
	var s api.Status
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); <-time.After(20 * time.Millisecond) {
		var err error
		if s, err = k.agent.Status(context.Background()); err != nil {
			k.t.Fatal(err)
		}
		if cond(s) {
			return
		}
	}
	k.t.Fatalf("host%d: waited for %s: %+v", k.n, what, s)
}

func connected(s api.Status) bool {
	for _, n := range s.Networks {
		if n.Peers.OK != 1 || n.State != api.StateOK {
			return false
		}
	}
	return s.Ready
}

// TestKernel runs two loops over real namespaces, wireguard-go and VXLAN:
// endpoints reach each other over both networks and families, a restart
// loses nothing, a deleted device is repaired, and nothing is left at the end.
func TestKernel(t *testing.T) {
	netlab.Require(t, netlab.FeatureNetns)
	l, err := netlab.New("agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	b := newBoard()
	one, two := newKernelNode(t, l, b, 1), newKernelNode(t, l, b, 2)
	before := one.links()
	for _, k := range []*kernelNode{one, two} {
		k.start()
	}
	for _, k := range []*kernelNode{one, two} {
		k.wait("both networks", connected)
	}
	from, to := container(t, l, "c1"), container(t, l, "c2")
	// The path of a process that ends does not outlive it, its namespace may.
	passing := filepath.Join(t.TempDir(), "passing")
	if err := os.Symlink(from.Path(), passing); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"blue", "lab"} {
		one.attach(network, passing)
		e := two.attach(network, to.Path())
		one.wait("the endpoint", func(s api.Status) bool { return s.Networks[0].EndpointsTotal > 1 || network == "lab" })
		for _, p := range e.Addresses {
			one.reach(from, p.Addr(), e.MTU)
		}
	}
	if err := os.Remove(passing); err != nil {
		t.Fatal(err)
	}
	one.restartUnderLoad(from, to)
	one.repair(from, to)

	for _, k := range []*kernelNode{one, two} {
		if _, err := k.agent.Down(context.Background(), api.DownRequest{}); err != nil {
			t.Errorf("down: %v", err)
		}
		if err := <-k.done; err != nil {
			t.Errorf("loop after down: %v", err)
		}
	}
	if after := one.links(); after != before {
		t.Errorf("links after down: %s, before up: %s", after, before)
	}
	for _, box := range []*netlab.Box{from, to} {
		if links := linksOf(t, box.NS()); links != "lo" {
			t.Errorf("links in a container after down: %s", links)
		}
	}
}

func container(t *testing.T, l *netlab.Lab, name string) *netlab.Box {
	t.Helper()
	box, err := l.Container(name)
	if err != nil {
		t.Fatal(err)
	}
	return box
}

func (k *kernelNode) attach(network, path string) api.Endpoint {
	k.t.Helper()
	e, err := k.agent.Attach(context.Background(), api.AttachRequest{Network: network, Netns: path})
	if err != nil {
		k.t.Fatal(err)
	}
	return e
}

// reach pings with full-size packets that may not be fragmented.
func (k *kernelNode) reach(from *netlab.Box, dst netip.Addr, mtu int) {
	k.t.Helper()
	size := mtu - 28
	if dst.Is6() {
		size = mtu - 48
	}
	var r netlab.PingResult
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		r, err = netlab.Ping(context.Background(), from.NS(), dst, netlab.PingOptions{Count: 3, Size: size, DontFragment: true})
		if err == nil && r.Received == 3 {
			return
		}
	}
	k.t.Errorf("ping %s with %d bytes: %+v, %v", dst, size, r, err)
}

func (k *kernelNode) flow(from, to *netlab.Box) *netlab.Flow {
	k.t.Helper()
	list, err := k.agent.Endpoints(context.Background())
	if err != nil {
		k.t.Fatal(err)
	}
	var dst netip.Addr
	for _, e := range list {
		if !e.Local && e.Network == "blue" {
			dst = e.Addresses[0].Addr()
		}
	}
	f, err := netlab.StartUDPFlow(context.Background(), netlab.FlowOptions{From: from.NS(), To: to.NS(), Dst: netip.AddrPortFrom(dst, 0), Rate: 200})
	if err != nil {
		k.t.Fatal(err)
	}
	k.more(f, 50)
	return f
}

// more waits until n more packets have arrived.
func (k *kernelNode) more(f *netlab.Flow, n uint64) {
	k.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := f.WaitReceived(ctx, n); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kernelNode) restartUnderLoad(from, to *netlab.Box) {
	k.t.Helper()
	f := k.flow(from, to)
	for range 3 {
		k.kill()
		k.more(f, 50)
		k.start()
		k.wait("both networks again", connected)
		k.more(f, 50)
	}
	if r := f.Stop(); r.Lost() != 0 || r.SendErrors != 0 {
		k.t.Errorf("three restarts lost %d of %d packets, %d send errors", r.Lost(), r.Sent, r.SendErrors)
	}
}

// repair deletes what the agent made, behind its back.
func (k *kernelNode) repair(from, to *netlab.Box) {
	k.t.Helper()
	f := k.flow(from, to)
	defer f.Stop()
	dir := filepath.Join(k.opts.Config.RuntimeDir, netnsDir)
	for path, link := range map[string]string{
		filepath.Join(dir, secureNetns): tunnel.DeviceName(k.id, 1, lane),
		filepath.Join(dir, "net-blue"):  "br0",
	} {
		ns, err := nl.OpenNamespace(path)
		if err != nil {
			k.t.Fatal(err)
		}
		if err := deleteLink(ns, link); err != nil {
			k.t.Errorf("delete %s: %v", link, err)
		}
		_ = ns.Close()
		start := time.Now()
		k.more(f, 50)
		k.t.Logf("%s deleted; traffic went on after %v", link, time.Since(start))
	}
}

func deleteLink(ns *nl.Namespace, name string) error {
	h, err := ns.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.LinkDel(link)
}

func (k *kernelNode) links() string { return linksOf(k.t, k.host.NS()) }

func linksOf(t *testing.T, ns *nl.Namespace) string {
	t.Helper()
	names, err := openNS{ns: ns}.Links()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}
