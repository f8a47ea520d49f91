package ipsec_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/ipsec"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
)

// patience bounds every wait: machines under emulation are slow.
const patience = 30 * time.Second

// marker is what a capture looks for.
const marker = "cleartext of the secure-overlay ipsec test"

// world is some nodes on one switch.
type world struct {
	t     *testing.T
	ctx   context.Context
	lab   *netlab.Lab
	nodes []*node
	inUDP bool // what pairs agree on
}

// node is one machine with a driver.
type node struct {
	host   *netlab.Host
	env    tunnel.Env
	inner  netip.Addr
	driver tunnel.Driver
	spec   tunnel.Spec
}

// newWorld makes n nodes without devices, in ascending order of ID, and checks
// when the test ends that Remove leaves nothing behind.
func newWorld(t *testing.T, n int) *world { return newWorldOf(t, n, ipsec.Options{}) }

func newWorldOf(t *testing.T, n int, o ipsec.Options) *world {
	t.Helper()
	netlab.Require(t, netlab.FeatureXfrm)
	ctx, cancel := context.WithCancel(context.Background())
	runtime := t.TempDir() // first, so that it is removed last
	lab := must(netlab.New("ipsec"))(t)
	w := &world{t: t, ctx: ctx, lab: lab, inUDP: o.Encap == ipsec.EncapUDP}
	t.Cleanup(func() {
		for _, n := range w.nodes {
			ok(t, n.driver.Remove(ctx))
			ok(t, n.driver.Close())
			if files := must(os.ReadDir(n.env.RuntimeDir))(t); len(files) != 0 {
				t.Errorf("left in the runtime directory: %v", files)
			}
		}
		cancel()
		ok(t, lab.Close())
	})
	for i, id := range tunneltest.Nodes(n) {
		host := must(lab.Host(fmt.Sprintf("host%d", i)))(t)
		secure := must(lab.Container(fmt.Sprintf("secure%d", i)))(t)
		ok(t, secure.Address("lo", netip.PrefixFrom(id.InnerAddr(), 128)))
		nd := &node{host: host, inner: id.InnerAddr(), env: tunnel.Env{
			Node: id, Host: host.NS(), Secure: secure.NS(), RuntimeDir: filepath.Join(runtime, strconv.Itoa(i)),
			Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		}}
		ok(t, os.Mkdir(nd.env.RuntimeDir, 0o750))
		nd.driver = must(ipsec.Kind(o).Open(ctx, nd.env))(t)
		w.nodes = append(w.nodes, nd)
	}
	return w
}

// limit is a context for one wait.
func (w *world) limit() context.Context {
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	w.t.Cleanup(cancel)
	return ctx
}

// waitFor waits until cond holds.
func (w *world) waitFor(what string, cond func() bool) {
	w.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			w.t.Fatalf("waited %v for: %s", patience, what)
		}
	}
}

func (w *world) set(i int) {
	w.t.Helper()
	ok(w.t, w.nodes[i].driver.Set(w.ctx, w.nodes[i].spec))
}

func (w *world) setAll() {
	w.t.Helper()
	for i := range w.nodes {
		w.set(i)
	}
}

// addDevice gives every node a device of an epoch.
func (w *world) addDevice(epoch ids.Epoch, mtu int) {
	for _, n := range w.nodes {
		n.spec.Devices = append(n.spec.Devices, tunnel.Device{Epoch: epoch, MTU: mtu})
	}
}

// agree gives each pair a new secret and indices for an epoch, in the specs.
func (w *world) agree(epoch ids.Epoch) {
	w.t.Helper()
	for i := range w.nodes {
		for j := i + 1; j < len(w.nodes); j++ {
			w.agreePair(i, j, epoch, netip.Addr.Is4)
		}
	}
}

// agreePair does so for one pair, over addresses that family chooses.
func (w *world) agreePair(i, j int, epoch ids.Epoch, family func(netip.Addr) bool) {
	w.t.Helper()
	raw := make([]byte, 32+8)
	_, _ = rand.Read(raw) // never fails
	secret := must(keys.TunnelSecretFromRaw32(raw[:32]))(w.t)
	in := ids.SPI(binary.BigEndian.Uint32(raw[32:])) | 1<<31
	out := ids.SPI(binary.BigEndian.Uint32(raw[36:])) | 1<<31
	outer := func(n *node) netip.Addr {
		if family(n.host.V4()) {
			return n.host.V4()
		}
		return n.host.V6()
	}
	a, b := w.nodes[i], w.nodes[j]
	a.put(b, tunnel.PeerKey{Epoch: epoch, Key: secret.ID(), Secret: secret,
		ESP: tunnel.ESP{Local: outer(a), Remote: outer(b), In: in, Out: out, InUDP: w.inUDP}})
	b.put(a, tunnel.PeerKey{Epoch: epoch, Key: secret.ID(), Secret: secret.Clone(),
		ESP: tunnel.ESP{Local: outer(b), Remote: outer(a), In: out, Out: in, InUDP: w.inUDP}})
}

// inUDP changes the form of all associations in the spec.
func (n *node) inUDP(on bool) {
	for i := range n.spec.Peers {
		for j := range n.spec.Peers[i].Keys {
			n.spec.Peers[i].Keys[j].ESP.InUDP = on
		}
	}
}

// put replaces a key of an epoch in the spec.
func (n *node) put(peer *node, key tunnel.PeerKey) {
	p := n.peerSpec(peer)
	p.Keys = slices.DeleteFunc(p.Keys, func(k tunnel.PeerKey) bool { return k.Epoch == key.Epoch })
	p.Keys = append(p.Keys, key)
}

// peerSpec returns a peer's entry in the spec, which it makes if need be.
func (n *node) peerSpec(peer *node) *tunnel.Peer {
	for i := range n.spec.Peers {
		if n.spec.Peers[i].ID == peer.env.Node {
			return &n.spec.Peers[i]
		}
	}
	n.spec.Peers = append(n.spec.Peers, tunnel.Peer{ID: peer.env.Node, Inner: peer.inner})
	return &n.spec.Peers[len(n.spec.Peers)-1]
}

// key returns what the spec says of a peer in an epoch.
func (n *node) key(peer *node, epoch ids.Epoch) *tunnel.PeerKey {
	p := n.peerSpec(peer)
	at := slices.IndexFunc(p.Keys, func(k tunnel.PeerKey) bool { return k.Epoch == epoch })
	return &p.Keys[at]
}

// forget takes all secrets out of the spec, as an agent does that has had them
// installed.
func (n *node) forget() {
	for p := range n.spec.Peers {
		for k := range n.spec.Peers[p].Keys {
			n.spec.Peers[p].Keys[k].Secret = keys.TunnelSecret{}
		}
	}
}

// join makes an epoch, installs all of it and sends everything through it.
func (w *world) join(epoch ids.Epoch) {
	w.t.Helper()
	w.addDevice(epoch, 1400)
	w.agree(epoch)
	w.setAll()
	w.routeAll(epoch)
}

func (w *world) routeAll(epoch ids.Epoch) {
	w.t.Helper()
	for i := range w.nodes {
		for j := range w.nodes {
			if i != j {
				w.route(i, j, epoch)
			}
		}
	}
}

// route sends node i's packets for node j through a device.
func (w *world) route(i, j int, epoch ids.Epoch) {
	w.t.Helper()
	h := must(w.nodes[i].env.Secure.Handle())(w.t)
	defer h.Close()
	l := must(h.LinkByName(w.nodes[i].device(epoch)))(w.t)
	dst := &net.IPNet{IP: w.nodes[j].inner.AsSlice(), Mask: net.CIDRMask(128, 128)}
	ok(w.t, h.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst}))
}

func (n *node) device(epoch ids.Epoch) string { return tunnel.DeviceName(n.env.Node, epoch, 0) }

// peer returns what node i knows of node j in an epoch.
func (w *world) peer(i, j int, epoch ids.Epoch) tunnel.PeerState {
	w.t.Helper()
	for _, d := range must(w.nodes[i].driver.State(w.ctx))(w.t).Devices {
		for _, p := range d.Peers {
			if d.Epoch == epoch && p.Inner == w.nodes[j].inner {
				return p
			}
		}
	}
	w.t.Fatalf("node %d has no peer %d in epoch %d", i, j, epoch)
	return tunnel.PeerState{}
}

// flow starts a stream of marked packets from node i to node j.
func (w *world) flow(i, j, rate, size int) *netlab.Flow {
	w.t.Helper()
	f := must(netlab.StartUDPFlow(w.ctx, netlab.FlowOptions{
		From: w.nodes[i].env.Secure, To: w.nodes[j].env.Secure, Dst: netip.AddrPortFrom(w.nodes[j].inner, 0),
		Rate: rate, Size: size, Marker: []byte(marker),
	}))(w.t)
	w.t.Cleanup(func() { f.Stop() })
	return f
}

// finish stops a flow and fails the test if a packet was lost, doubled or
// refused.
func (w *world) finish(f *netlab.Flow) netlab.FlowResult {
	w.t.Helper()
	r := f.Stop()
	if r.Lost() != 0 || r.Duplicated != 0 || r.Corrupt != 0 || r.SendErrors != 0 {
		w.t.Errorf("flow: %+v", r)
	}
	return r
}

// xfrmStat reads the error counters of a node's host namespace.
func (n *node) xfrmStat(t *testing.T) map[string]int {
	t.Helper()
	out := map[string]int{}
	ok(t, n.env.Host.Do(func() error {
		f, err := os.Open("/proc/thread-self/net/xfrm_stat")
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		for sc := bufio.NewScanner(f); sc.Scan(); {
			name, value, _ := strings.Cut(sc.Text(), " ")
			if out[name], err = strconv.Atoi(strings.TrimSpace(value)); err != nil {
				return err
			}
		}
		return nil
	}))
	if len(out) < 20 {
		t.Fatalf("error counters: %v", out)
	}
	return out
}

// changed says which counters differ.
func changed(before, after map[string]int) map[string]int {
	out := map[string]int{}
	for k, v := range after {
		if v != before[k] {
			out[k] = v - before[k]
		}
	}
	return out
}
