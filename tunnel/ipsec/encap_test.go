package ipsec_test

import (
	"bufio"
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
			if err := nd.driver.Set(w.ctx, nd.spec); !errors.Is(err, tunnel.ErrSecretGone) {
				t.Errorf("node %d: associations for another way are kept: %v", i, err)
			}
		}
		w.agree(1)
		w.setAll()
		w.routeAll(1)
		ok(t, f.WaitReceived(w.limit(), 20))
		if now := holderOf(t, n); now == pid || (now == 0) != !o.Encap {
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
