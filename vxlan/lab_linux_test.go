package vxlan

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testPort = 4789
	testVNI  = ids.VNI(4242)
)

// world is two labs: hosts on an underlay, and secure namespaces on a wire
// that stands for the tunnels. The VXLAN side cannot tell the difference.
type world struct {
	t             *testing.T
	outer, tunnel *netlab.Lab
	nodes         []*node
}

type node struct {
	w            *world
	name         string
	host, secure *netlab.Host
	p            *Programmer
	spec         Spec
	boxes        []*netlab.Box
}

// member is an endpoint of one node with what the others know of it.
type member struct {
	box *netlab.Box
	Endpoint
	Remote
}

func newWorld(t *testing.T, nodes int) *world {
	t.Helper()
	netlab.Require(t, netlab.FeatureNetns)
	w := &world{t: t}
	w.outer = lab(t, "outer")
	w.tunnel = lab(t, "tunnel")
	for i := range nodes {
		w.addNode(fmt.Sprintf("n%d", i+1))
	}
	return w
}

func lab(t *testing.T, name string) *netlab.Lab {
	t.Helper()
	l, err := netlab.New(name)
	ok(t, err)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close lab: %v", err)
		}
	})
	return l
}

func (w *world) addNode(name string) {
	w.t.Helper()
	host, err := w.outer.Host(name)
	ok(w.t, err)
	secure, err := w.tunnel.Host(name, netlab.V6Only())
	ok(w.t, err)
	n := &node{w: w, name: name, host: host, secure: secure}
	n.p = n.programmer()
	n.spec = Spec{Network: "blue", VNI: testVNI, Encrypted: true, Local: secure.V6(), Port: testPort, MTU: 1430}
	w.t.Cleanup(func() {
		if err := n.p.Remove(context.Background()); err != nil {
			w.t.Errorf("remove networks of %s: %v", name, err)
		}
		ok(w.t, n.p.Close())
	})
	w.nodes = append(w.nodes, n)
}

func (n *node) programmer() *Programmer {
	return NewProgrammer(Options{Host: n.host.NS(), Secure: n.secure.NS(),
		Dir: filepath.Join(n.w.outer.Dir(), "netns-"+n.name)})
}

// plaintext makes a node's network a plaintext one over an underlay family.
func (n *node) plaintext(v6 bool) {
	n.spec.Encrypted, n.spec.Local, n.spec.MTU = false, n.host.V4(), 1450
	if v6 {
		n.spec.Local, n.spec.MTU = n.host.V6(), 1430
	}
}

// attach adds an endpoint number i (1..200) of the network to a node.
func (n *node) attach(i int) member {
	t := n.w.t
	t.Helper()
	box, err := n.w.outer.Container(fmt.Sprintf("%s-c%d", n.name, i))
	ok(t, err)
	n.boxes = append(n.boxes, box)
	m := member{box: box, Endpoint: endpoint(t, box, i)}
	m.Remote = Remote{MAC: m.Endpoint.MAC, Addrs: []netip.Addr{v4(i), v6(i)}, VTEP: n.spec.Local}
	n.spec.Endpoints = append(n.spec.Endpoints, m.Endpoint)
	return m
}

func endpoint(t *testing.T, box *netlab.Box, i int) Endpoint {
	t.Helper()
	id, err := box.NS().ID()
	ok(t, err)
	return Endpoint{
		ID: fmt.Sprintf("%012x", i), MAC: mac(i), Netns: box.Path(), NsID: id, Ifname: "eth0",
		Addrs: []netip.Prefix{netip.PrefixFrom(v4(i), 24), netip.PrefixFrom(v6(i), 64)},
	}
}

func mac(i int) ids.MAC { return ids.MAC{2, 0, 0x5e, 0, byte(i >> 8), byte(i)} }
func v4(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})
}
func v6(i int) netip.Addr {
	a := netip.MustParseAddr("fd09::").As16()
	binary.BigEndian.PutUint16(a[14:], uint16(i))
	return netip.AddrFrom16(a)
}

// meet makes the nodes know each other's endpoints and flood to each other.
func meet(nodes ...*node) {
	for _, n := range nodes {
		n.spec.Flood, n.spec.Remotes = nil, nil
		for _, o := range nodes {
			if o == n {
				continue
			}
			n.spec.Flood = append(n.spec.Flood, o.spec.Local)
			for _, e := range o.spec.Endpoints {
				r := Remote{MAC: e.MAC, VTEP: o.spec.Local}
				for _, a := range e.Addrs {
					r.Addrs = append(r.Addrs, a.Addr())
				}
				n.spec.Remotes = append(n.spec.Remotes, r)
			}
		}
	}
}

// sync brings the node's kernel to its spec and checks that nothing is left
// to do afterwards.
func (n *node) sync() []string {
	n.w.t.Helper()
	ops, err := n.p.Sync(context.Background(), []Spec{n.spec})
	ok(n.w.t, err)
	n.quiet()
	return lines(ops)
}

func (n *node) quiet(specs ...Spec) {
	n.w.t.Helper()
	if specs == nil {
		specs = []Spec{n.spec}
	}
	have, err := n.p.Observe(context.Background(), specs)
	ok(n.w.t, err)
	if left := lines(Plan(specs, have)); len(left) != 0 {
		n.w.t.Fatalf("%s: a second plan is not empty:\n%s", n.name, strings.Join(left, "\n"))
	}
}

func (n *node) observe() Observed {
	n.w.t.Helper()
	have, err := n.p.Observe(context.Background(), []Spec{n.spec})
	ok(n.w.t, err)
	return have
}

// room opens the namespace of the node's network for tampering with it.
func (n *node) room() *room {
	n.w.t.Helper()
	r, err := n.p.open(n.spec.Network)
	ok(n.w.t, err)
	return r
}

func lines(ops []Op) []string {
	out := make([]string, len(ops))
	for i, op := range ops {
		out[i] = op.String()
	}
	return out
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ping wants every one of a few pings answered, at the full MTU.
func ping(t *testing.T, from member, to netip.Addr, mtu int) {
	t.Helper()
	header := 28
	if to.Is6() {
		header = 48
	}
	r, err := netlab.Ping(context.Background(), from.box.NS(), to,
		netlab.PingOptions{Count: 5, Interval: 5 * time.Millisecond, Size: mtu - header, DontFragment: true, Timeout: 3 * time.Second})
	ok(t, err)
	if r.Received != 5 || r.SendErr != nil {
		t.Errorf("ping %s to %s with %d bytes: %d of 5 answered, %v", from.box.Name(), to, mtu, r.Received, r.SendErr)
	}
}

func pingBoth(t *testing.T, from member, to member, mtu int) {
	t.Helper()
	for _, a := range to.Endpoint.Addrs {
		ping(t, from, a.Addr(), mtu)
	}
}

// inner returns the frame that a captured VXLAN packet carries, or nil.
func inner(frame []byte) []byte {
	if len(frame) < 14+20+8+8+14 {
		return nil
	}
	at := 14 + 20
	if binary.BigEndian.Uint16(frame[12:]) == 0x86dd {
		at = 14 + 40
	}
	if len(frame) < at+16+14 || binary.BigEndian.Uint16(frame[at+2:]) != testPort {
		return nil
	}
	return frame[at+16:]
}

// asking matches VXLAN packets that carry ARP or neighbour discovery.
func asking(frame []byte) bool {
	in := inner(frame)
	if in == nil {
		return false
	}
	switch binary.BigEndian.Uint16(in[12:]) {
	case 0x0806:
		return true
	case 0x86dd:
		return len(in) > 54 && in[20] == 58 && in[54] >= 133 && in[54] <= 137
	}
	return false
}

func capture(t *testing.T, b *netlab.Box, link string, m netlab.Matcher) *netlab.Capture {
	t.Helper()
	c, err := netlab.OpenCapture(b.NS(), link, m)
	ok(t, err)
	t.Cleanup(func() { c.Stop() })
	return c
}

// sockets lists the UDP ports bound in a namespace, as "4:4789" or "6:4789".
func sockets(t *testing.T, ns *nl.Namespace) []string {
	t.Helper()
	var out []string
	ok(t, ns.Do(func() error {
		for family, file := range map[string]string{"4": "udp", "6": "udp6"} {
			f, err := os.Open("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }()
			for s := bufio.NewScanner(f); s.Scan(); {
				fields := strings.Fields(s.Text())
				if _, port, found := strings.Cut(fields[1], ":"); found && len(port) == 4 {
					raw, err := hex.DecodeString(port)
					if err != nil {
						return err
					}
					out = append(out, fmt.Sprintf("%s:%d", family, binary.BigEndian.Uint16(raw)))
				}
			}
		}
		return nil
	}))
	slices.Sort(out)
	return out
}

func wantSockets(t *testing.T, where string, ns *nl.Namespace, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, sockets(t, ns)); diff != "" {
		t.Errorf("UDP sockets in the %s namespace (-want +got):\n%s", where, diff)
	}
}
