package ipsec_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/ipsec"
)

// TestInUDP sends over both families and looks at the wire: nothing but UDP.
func TestInUDP(t *testing.T) {
	for name, family := range families() {
		t.Run(name, func(t *testing.T) {
			w := newWorldOf(t, 2, inUDP())
			outer := w.nodes[0].host.V4()
			if !family(outer) {
				outer = w.nodes[0].host.V6()
			}
			mtu := 1500 - ipsec.Kind(inUDP()).Overhead(outer)
			w.addDevice(1, mtu)
			w.agreePair(0, 1, 1, family)
			w.setAll()
			w.routeAll(1)
			inUDP := must(w.lab.CaptureAll(netlab.UDPPort(ipsec.DefaultPort)))(t)
			other := must(w.lab.CaptureAll(func(frame []byte) bool {
				esp, fragment, _ := readESP(frame)
				return esp || fragment
			}))(t)
			for size := mtu - 4; size <= mtu; size++ {
				f := w.flow(0, 1, 100, size-48)
				ok(t, f.WaitReceived(w.limit(), 5))
				w.finish(f)
			}
			if c, o := inUDP.Stop(), other.Stop(); c.Matched < 50 || o.Matched != 0 || c.Dropped+o.Dropped != 0 {
				t.Errorf("in UDP %+v, otherwise %+v", c, o)
			}
		})
	}
}

// TestPairsChoose has pairs of both forms on one device: each travels in its
// own, a successor of the driver finds which, and a pair changes its form with
// its key, while the others lose nothing.
func TestPairsChoose(t *testing.T) {
	w := newWorldOf(t, 3, pairWise())
	kind := ipsec.Kind(pairWise())
	mtu := kind.InUDP(w.nodes[0].host.V4(), 1500)
	w.addDevice(1, mtu)
	w.agree(1)
	w.setAll()
	w.wantPortHeld(false, false, false) // an IKE daemon may have it
	w.inUDP = true
	w.agreePair(0, 2, 1, netip.Addr.Is4)
	w.setAll()
	w.wantPortHeld(true, false, true)
	w.routeAll(1)
	between := func(in, out int) netlab.Matcher {
		return func(frame []byte) bool {
			esp, _, _ := readESP(frame)
			return esp && bytes.Contains(frame[14:34], w.nodes[in].host.V4().AsSlice()) && bytes.Contains(frame[14:34], w.nodes[out].host.V4().AsSlice())
		}
	}
	inUDP := must(w.lab.CaptureAll(netlab.UDPPort(ipsec.DefaultPort)))(t)
	native := must(w.lab.CaptureAll(between(0, 2)))(t)
	flows := []*netlab.Flow{w.flow(0, 1, 200, 100), w.flow(1, 2, 200, 100), w.flow(2, 0, 200, mtu-48)}
	for _, f := range flows {
		ok(t, f.WaitReceived(w.limit(), 20))
	}
	if c, o := inUDP.Stop(), native.Stop(); c.Matched < 20 || o.Matched != 0 {
		t.Errorf("in UDP %+v, as it is between the two %+v", c, o)
	}
	for i, nd := range w.nodes {
		ok(t, nd.driver.Close())
		nd.driver = must(kind.Open(w.ctx, nd.env))(t)
		nd.forget()
		w.set(i)
	}
	if !w.peer(0, 2, 1).InUDP || !w.peer(2, 0, 1).InUDP || w.peer(0, 1, 1).InUDP || w.peer(2, 1, 1).InUDP {
		t.Errorf("pairs of node 0 are %+v and %+v", w.peer(0, 1, 1), w.peer(0, 2, 1))
	}
	w.finish(flows[2]) // the pair that changes
	w.inUDP = false
	w.agreePair(0, 2, 1, netip.Addr.Is4)
	w.setAll()
	again := w.flow(2, 0, 200, 100)
	ok(t, again.WaitReceived(w.limit(), 20))
	for _, f := range append(flows[:2], again) {
		w.finish(f)
	}
	if w.peer(0, 2, 1).InUDP {
		t.Error("the pair is still in UDP")
	}
	w.wantPortHeld(false, false, false)
}

// wantPortHeld asserts on which hosts something has the port of ESP in UDP.
func (w *world) wantPortHeld(want ...bool) {
	w.t.Helper()
	for i, nd := range w.nodes {
		err := nd.env.Host.Do(func() error {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: ipsec.DefaultPort})
			if err == nil {
				_ = c.Close()
			}
			return err
		})
		if errors.Is(err, unix.EADDRINUSE) != want[i] {
			w.t.Errorf("host %d: taking the port of ESP in UDP says %v, held should be %t", i, err, want[i])
		}
	}
}

// holderOf returns the process ID of a node's only holder, or 0.
func holderOf(t *testing.T, n *node) int {
	t.Helper()
	files := must(filepath.Glob("/proc/[0-9]*/cmdline"))(t)
	found := 0
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(line), "--node="+n.env.Node.String()+"\x00--port=") {
			continue
		}
		if found != 0 {
			t.Fatalf("a second holder: %s", f)
		}
		if _, err := fmt.Sscanf(f, "/proc/%d/cmdline", &found); err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// TestHolderOutlivesAgent kills, under load, the process that has started a
// holder.
func TestHolderOutlivesAgent(t *testing.T) {
	w := newWorldOf(t, 2, inUDP())
	n := w.nodes[0]
	agent := exec.Command("/proc/self/exe", agentWord, n.env.Node.String(), n.host.Path(), n.env.Secure.Path(), n.env.RuntimeDir)
	agent.Stderr = os.Stderr
	out := must(agent.StdoutPipe())(t)
	ok(t, agent.Start())
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("agent: %q, %v", line, err)
	}
	pid := holderOf(t, n)
	if pid == 0 {
		t.Fatal("the agent has started no holder")
	}
	w.join(1)
	f := w.flow(1, 0, 500, 100)
	ok(t, f.WaitReceived(w.limit(), 50))
	ok(t, agent.Process.Kill())
	_ = agent.Wait()
	ok(t, f.WaitReceived(w.limit(), 100))
	n.forget()
	ok(t, n.driver.Close())
	n.driver = must(ipsec.Kind(inUDP()).Open(w.ctx, n.env))(t)
	for range 3 {
		w.set(0)
		ok(t, f.WaitReceived(w.limit(), 20))
	}
	w.finish(f)
	if now := holderOf(t, n); now != pid {
		t.Errorf("the holder is %d, it was %d", now, pid)
	}
}

// runAgent is an agent that has just started to work when it is killed.
func runAgent(args []string) error {
	node, err := ids.ParseNodeID(args[0])
	if err != nil {
		return err
	}
	host, err := nl.OpenNamespace(args[1])
	if err != nil {
		return err
	}
	secure, err := nl.OpenNamespace(args[2])
	if err != nil {
		return err
	}
	ctx := context.Background()
	d, err := ipsec.Kind(inUDP()).Open(ctx, tunnel.Env{
		Node: node, Host: host, Secure: secure, RuntimeDir: args[3], Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	if err := d.Set(ctx, tunnel.Spec{Devices: []tunnel.Device{{Epoch: 1, MTU: 1400}}}); err != nil {
		return err
	}
	fmt.Println("ready")
	select {}
}

// TestHolderIsReplaced kills the holder, gives it another port, and changes to
// plain ESP and back.
func TestHolderIsReplaced(t *testing.T) {
	w := newWorldOf(t, 2, inUDP())
	w.join(1)
	n := w.nodes[0]
	f := w.flow(1, 0, 500, 100)
	ok(t, f.WaitReceived(w.limit(), 20))
	pid := holderOf(t, n)
	ok(t, unix.Kill(pid, unix.SIGKILL))
	w.waitFor("the holder to end", func() bool { return holderOf(t, n) == 0 })
	w.set(0)
	ok(t, f.WaitReceived(w.limit(), 20))
	if now := holderOf(t, n); now == pid || now == 0 {
		t.Errorf("the holder is %d, it was %d", now, pid)
	}
	other := inUDP()
	other.Port = 4501
	for _, o := range []ipsec.Options{other, {}, inUDP()} {
		pid := holderOf(t, n)
		for i, nd := range w.nodes {
			ok(t, nd.driver.Close())
			nd.driver = must(ipsec.Kind(o).Open(w.ctx, nd.env))(t)
			nd.forget()
			nd.inUDP(o.Encap == ipsec.EncapUDP)
			if err := nd.driver.Set(w.ctx, nd.spec); !errors.Is(err, tunnel.ErrSecretGone) {
				t.Errorf("node %d: associations for another way are kept: %v", i, err)
			}
		}
		w.inUDP = o.Encap == ipsec.EncapUDP
		w.agree(1)
		w.setAll()
		w.routeAll(1)
		ok(t, f.WaitReceived(w.limit(), 20))
		if now := holderOf(t, n); now == pid || (now == 0) != (o.Encap == ipsec.EncapNone) {
			t.Errorf("%+v: the holder is %d, it was %d", o, now, pid)
		}
	}
}

// TestPortInUse finds another program on the port.
func TestPortInUse(t *testing.T) {
	w := newWorldOf(t, 2, inUDP())
	n := w.nodes[0]
	var c *net.UDPConn
	ok(t, n.env.Host.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: ipsec.DefaultPort})
		return err
	}))
	n.spec.Devices = []tunnel.Device{{Epoch: 1, MTU: 1400}}
	if err := n.driver.Set(w.ctx, n.spec); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "4500") {
		t.Errorf("set says %v", err)
	}
	if pid := holderOf(t, n); pid != 0 {
		t.Errorf("a holder is left: %d", pid)
	}
	_ = c.Close()
	w.set(0)
}

// TestPortInUseWherePairsChoose: it takes nothing from pairs without UDP, and is
// an error when one needs it.
func TestPortInUseWherePairsChoose(t *testing.T) {
	w := newWorldOf(t, 2, pairWise())
	var c *net.UDPConn
	ok(t, w.nodes[0].env.Host.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{Port: ipsec.DefaultPort})
		return err
	}))
	w.join(1)
	f := w.flow(1, 0, 500, 100)
	ok(t, f.WaitReceived(w.limit(), 20))
	w.finish(f)
	w.inUDP = true
	w.agree(1)
	if err := w.nodes[0].driver.Set(w.ctx, w.nodes[0].spec); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("set says %v", err)
	}
	_ = c.Close()
	w.setAll()
	g := w.flow(1, 0, 500, 100)
	ok(t, g.WaitReceived(w.limit(), 20))
	w.finish(g)
}

// TestNotESP sends to the port what is not ESP: nobody answers, nothing is kept.
func TestNotESP(t *testing.T) {
	w := newWorldOf(t, 2, inUDP())
	w.join(1)
	to := netip.AddrPortFrom(w.nodes[0].host.V4(), ipsec.DefaultPort)
	in := must(netlab.OpenInjector(w.nodes[1].env.Host))(t)
	defer func() { _ = in.Close() }()
	before := w.nodes[0].xfrmStat(t)
	// An IKE message (marked by four zero bytes), a keepalive, an association
	// that nobody has, and the end of one.
	for _, payload := range [][]byte{
		append(make([]byte, 4), "an IKE message"...), {0xff}, binary.BigEndian.AppendUint32(nil, 0xdeadbeef),
		append(binary.BigEndian.AppendUint32(nil, 0xdeadbeef), make([]byte, 100)...), nil,
	} {
		for range 10 {
			ok(t, in.UDP(netip.AddrPortFrom(w.nodes[1].host.V4(), ipsec.DefaultPort), to, payload))
		}
	}
	f := w.flow(1, 0, 500, 100)
	ok(t, f.WaitReceived(w.limit(), 20))
	w.finish(f)
	if diff := cmp.Diff(map[string]int{"XfrmInNoStates": 10}, changed(before, w.nodes[0].xfrmStat(t))); diff != "" {
		t.Errorf("error counters (-want +got):\n%s", diff)
	}
}

// TestPeersPort gives one node another port than the other, as a node with ESP in
// userspace has: both send to the port that the association names, from their own.
func TestPeersPort(t *testing.T) {
	const port = 51871
	w := newWorldOf(t, 2, pairWise())
	other := pairWise()
	other.Port = port
	ok(t, w.nodes[1].driver.Close())
	w.nodes[1].driver = must(ipsec.Kind(other).Open(w.ctx, w.nodes[1].env))(t)
	w.inUDP = true
	w.addDevice(1, 1400)
	w.agree(1)
	ports := []uint16{ipsec.DefaultPort, port}
	for i, nd := range w.nodes {
		nd.spec.Peers[0].Keys[0].ESP.Port = ports[1-i]
	}
	w.setAll()
	w.routeAll(1)
	there, back := w.flow(0, 1, 500, 100), w.flow(1, 0, 500, 100)
	for _, f := range []*netlab.Flow{there, back} {
		ok(t, f.WaitReceived(w.limit(), 20))
		w.finish(f)
	}
	for i, nd := range w.nodes {
		s := must(nd.driver.State(w.ctx))(t)
		if p := w.peer(i, 1-i, 1); !nd.spec.MetBy(s) || s.Devices[0].Port != ports[i] || p.Endpoint.Port() != ports[1-i] {
			t.Errorf("node %d: device port %d, peer at %s", i, s.Devices[0].Port, p.Endpoint)
		}
	}
	for i, nd := range w.nodes {
		nd.forget()
		nd.spec.Peers[0].Keys[0].ESP.Port++
		if err := nd.driver.Set(w.ctx, nd.spec); !errors.Is(err, tunnel.ErrSecretGone) {
			t.Errorf("node %d: another port under the same key: %v", i, err)
		}
	}
}
