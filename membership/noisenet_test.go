package membership

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// realLab runs over noisenet on loopback: TCP, UDP, Noise and all.
func realLab(t *testing.T) *lab {
	l := serialLab(t) // the addresses are the same in all of these tests
	l.transport = func(cfg noisenet.Config) transport { return noisenet.New(cfg) }
	return l
}

// realPort is the port of every node of this process, which differ by address;
// 127.1.0.0/16 is used by these tests only. Two processes differ by port.
func realPort() uint16 { return uint16(20000 + os.Getpid()%10000) }

// realAddr is where node i listens.
func realAddr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i + 1)}), realPort())
}

func (l *lab) startReal(i int, change ...func(*Options)) *node {
	l.t.Helper()
	n := l.start(i, append([]func(*Options){func(o *Options) {
		o.Bind = realAddr(i)
		o.Advertise = []netip.AddrPort{realAddr(i)}
		o.Seeds = []netip.AddrPort{realAddr(0)}
	}}, change...)...)
	n.publishReal(0)
	return n
}

func (n *node) publishReal(v int) {
	c := content(n.i, v)
	c.Underlay[0].Control = realAddr(n.i)
	n.Publish(c)
}

func TestNoisenetConverge(t *testing.T) {
	for _, size := range []int{3, 5, 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			l := realLab(t)
			var nodes []*node
			for i := range size {
				nodes = append(nodes, l.startReal(i))
			}
			converge(t, nodes, size)
			nodes[size-1].publishReal(1)
			for _, n := range nodes {
				n.until("a new record", shows(nodes[size-1].self, size-1, 1))
			}
			if m, _ := nodes[0].Snapshot().Member(nodes[1].self); !m.Addr.Addr().IsLoopback() || m.Addr.Port() != realPort() {
				t.Errorf("node 1 was seen at %q, want loopback and port %d", m.Addr, realPort())
			}
		})
	}
}

// TestNoisenetRestart stops a node, and starts it again with its identity.
func TestNoisenetRestart(t *testing.T) {
	l := realLab(t)
	nodes := []*node{l.startReal(0), l.startReal(1), l.startReal(2)}
	converge(t, nodes, 3)
	nodes[2].stop()
	for _, n := range nodes[:2] {
		n.until("node 2 dead, its record kept", func(s Snapshot) bool {
			m, ok := s.Member(nodes[2].self)
			return ok && m.State == StateDead
		})
	}
	l.run(nodes[2])
	nodes[2].publishReal(1)
	converge(t, nodes, 3)
	nodes[0].until("what it says now", shows(nodes[2].self, 2, 1))
}

// TestNoisenetSeedGone: the seed stops for good; the others stay together and
// a restarted one finds them by its learned seeds.
func TestNoisenetSeedGone(t *testing.T) {
	l := realLab(t)
	nodes := []*node{l.startReal(0), l.startReal(1), l.startReal(2)}
	converge(t, nodes, 3)
	nodes[0].stop()
	nodes[2].stop()
	nodes[2].opts.Seeds = []netip.AddrPort{realAddr(0), realAddr(1)}
	l.run(nodes[2])
	nodes[2].publishReal(1)
	two := func(s Snapshot) bool { return len(s.Members) == 3 && countState(s, StateAlive) == 2 }
	for _, n := range nodes[1:] {
		n.until("two alive, three records", two)
	}
}

func TestNoisenetPortInUse(t *testing.T) {
	l := realLab(t)
	n := l.startReal(0)
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	o := n.opts
	o.Identity = l.identity(1)
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := c.Run(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("Run on a port in use gave %v", err)
	}
}

// TestNoisenetOtherCluster: a node of another cluster gets nowhere.
func TestNoisenetOtherCluster(t *testing.T) {
	l, foreign := realLab(t), realLab(t)
	auth, err := membertest.New("another", time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	foreign.auth = auth
	nodes := []*node{l.startReal(0), l.startReal(1)}
	converge(t, nodes, 2)
	f := foreign.startReal(7)
	f.until("itself", func(s Snapshot) bool { return len(s.Members) == 1 })
	foreign.waitLog("seed is not reachable yet")
	for _, n := range nodes {
		if s := n.Snapshot(); len(s.Members) != 2 {
			t.Errorf("node %d knows a foreign node:\n%s", n.i, describe(s))
		}
	}
	if s := f.Snapshot(); len(s.Members) != 1 {
		t.Errorf("the foreign node knows others:\n%s", describe(s))
	}
}

// TestNoisenetRenewal: the certificate that a node gets by RENEW is the one that
// it shows in its next handshakes.
func TestNoisenetRenewal(t *testing.T) {
	l := realLab(t)
	l.auth = agedAuthority(t, "membership")
	issuer := l.startReal(0, l.aged(1, keys.RoleIssuer), func(o *Options) { o.Renewal = &stubRenewer{lab: l} })
	var kept adopted
	old := l.startReal(1, l.aged(20, 0), func(o *Options) { o.Adopt = kept.adopt })
	before := old.opts.Identity.Cert.NotAfter
	for _, n := range []*node{issuer, old} {
		n.until("the renewed certificate", expires(old.self, before))
	}
	peer, err := issuer.transport.Contact(t.Context(), realAddr(1))
	if err != nil {
		t.Fatal(err)
	}
	if !peer.Cert.NotAfter.After(before) {
		t.Errorf("handshake shows a certificate until %v", peer.Cert.NotAfter)
	}
}

// TestNoisenetRotate: a target epoch, pair messages and agreements over the
// real transport.
func TestNoisenetRotate(t *testing.T) {
	l := realLab(t)
	var s sharer
	nodes := []*node{l.startReal(0, l.signs(l.signer("a")), s.options, echoes), l.startReal(1), l.startReal(2)}
	checkAgree(t, nodes, s.tookOnce)
	want := nodes[2].mustRotate(1, item.DriverIPsec)
	for _, n := range nodes {
		n.until("epoch 2", func(s Snapshot) bool { return s.Target == want })
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	got, err := nodes[1].Pair(ctx, nodes[0].self, make([]byte, MaxPair-16))
	if err != nil || len(got) != MaxPair {
		t.Errorf("pair message: %d bytes, %v", len(got), err)
	}
	if _, err := nodes[0].Pair(ctx, nodes[1].self, nil); err == nil {
		t.Error("a node without handler answered")
	}
}

// TestRequireHybrid: the option reaches the transport, which enforces it.
func TestRequireHybrid(t *testing.T) {
	for _, want := range []bool{false, true} {
		if c := (&Cluster{opts: Options{RequireHybrid: want}}).transportConfig(); c.RequireHybrid != want {
			t.Errorf("required %v, configured %v", want, c.RequireHybrid)
		}
	}
}
