package e2e

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// flooder opens connections to one node and writes garbage into them.
type flooder struct {
	ns     *nl.Namespace
	victim *fleet.Node
	keyID  []byte // of the access key: everybody on the way can read it in the header
	// source is where a connection comes from: any of many addresses; nil: the host's.
	source func(n int64) netip.Addr
	// held connections stay open without a byte until so many younger ones are there.
	held int

	tried  atomic.Int64
	opened atomic.Int64
	mu     sync.Mutex // guards open
	open   []net.Conn
}

// run goes on until ctx ends.
func (f *flooder) run(ctx context.Context, perSecond int) {
	limit := rate.NewLimiter(rate.Limit(perSecond), perSecond/100+1)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			_ = f.ns.Do(func() error { // one thread each: a socket belongs where it is made
				for limit.Wait(ctx) == nil {
					f.knock(ctx, f.tried.Add(1))
				}
				return nil
			})
		})
	}
	wg.Wait()
	for _, c := range f.open {
		_ = c.Close()
	}
}

// knock makes one connection: half of them begin as a member's or a newcomer's would,
// and of those some with the right key ID.
func (f *flooder) knock(ctx context.Context, n int64) {
	d := net.Dialer{Timeout: time.Second}
	to := f.victim.Host.V4()
	if f.source != nil {
		from := f.source(n)
		d.LocalAddr, d.Control = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), freeBind
		if from.Is6() {
			to = f.victim.Host.V6()
		}
	}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(to, 7946).String())
	if err != nil {
		return
	}
	f.opened.Add(1)
	// No TIME_WAIT: that would end the flood by itself.
	_ = c.(*net.TCPConn).SetLinger(0)
	if f.held > 0 && n%3 == 0 {
		f.hold(c)
		return
	}
	defer func() { _ = c.Close() }()
	garbage := make([]byte, 120)
	rand.Read(garbage)
	if garbage[0]&1 == 0 {
		copy(garbage, []byte{'S', 'O', 1, 2, 1 + garbage[1]&1, 0})
		if garbage[2]&1 == 0 {
			copy(garbage[6:], append(f.keyID, 0, 48)) // then the length of message 1
		}
	}
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, _ = c.Write(garbage)
}

// hold keeps a connection, in place of the oldest if there are enough.
func (f *flooder) hold(c net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = append(f.open, c)
	if len(f.open) > f.held {
		_ = f.open[0].Close()
		f.open = f.open[1:]
	}
}

// freeBind lets a socket have an address that is on no link of the namespace.
func freeBind(network, _ string, raw syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if network == "tcp6" {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	var err error
	if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); cerr != nil {
		return cerr
	}
	return err
}

// accessKeyID computes what stands in the clear header of handshakes (PROTOCOL.md,
// section 6), as if it had been read on the way.
func accessKeyID(t *testing.T, n *fleet.Node) []byte {
	t.Helper()
	text, err := accessKey(n)
	if err != nil {
		t.Fatal(err)
	}
	_, digits, _ := strings.Cut(strings.TrimSpace(text), ":")
	key, err := hex.DecodeString(strings.TrimSpace(digits))
	if err != nil || len(key) != 32 {
		t.Fatalf("access key of %s: %d bytes, %v", n.Name, len(key), err)
	}
	id, err := hkdf.Expand(sha256.New, key, "so-access-id-v1", 4)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestHandshakeFlood floods from one address.
func TestHandshakeFlood(t *testing.T) {
	f := handshakeFlood(t, func(*testing.T, *fleet.Fleet, *netlab.Host) func(int64) netip.Addr { return nil }, 0)
	wantRefused(t, f.Nodes[:3], "addr="+f.Nodes[3].Host.V4().String())
}

// wantRefused is a control: the nodes saw connections from these addresses.
func wantRefused(t *testing.T, nodes []*fleet.Node, addrs ...string) {
	t.Helper()
	for _, n := range nodes {
		for _, a := range addrs {
			if log := n.LogTail(100_000); !strings.Contains(log, "handshake refused") || !strings.Contains(log, a) {
				t.Errorf("control: %s does not say that it refused %s", n.Name, a)
			}
		}
	}
}

// TestHandshakeFloodFromEverywhere floods from 10,000 addresses of each family, so
// that no limit per source is in the way, while a thousand connections of each node
// stay open without a byte.
func TestHandshakeFloodFromEverywhere(t *testing.T) {
	const sources = 10_000
	f := handshakeFlood(t, func(t *testing.T, f *fleet.Fleet, from *netlab.Host) func(int64) netip.Addr {
		t.Helper()
		v4, v6 := netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("fd00:199::/32")
		for _, p := range []netip.Prefix{v4, v6} {
			if err := from.Own(p); err != nil {
				t.Fatal(err)
			}
			for _, n := range f.Nodes {
				if n.Host != from {
					if err := n.Host.Route(p, from); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		return func(n int64) netip.Addr {
			i := uint16(1 + n/2%sources)
			if n%2 == 0 {
				a := v4.Addr().As4()
				binary.BigEndian.PutUint16(a[2:], i)
				return netip.AddrFrom4(a)
			}
			a := v6.Addr().As16()
			binary.BigEndian.PutUint16(a[6:], i) // another /64 each, which is what limits count by
			a[15] = 1
			return netip.AddrFrom16(a)
		}
	}, 1000)
	wantRefused(t, f.Nodes[:3], "addr=198.19.", "addr=[fd00:199:")
}

// handshakeFlood opens garbage connections to every node, while a node joins
// and others watch each other: the join completes, nobody is suspected, what
// flows goes on flowing, and nobody grows.
func handshakeFlood(t *testing.T, sources func(*testing.T, *fleet.Fleet, *netlab.Host) func(int64) netip.Addr, held int) *fleet.Fleet {
	t.Helper()
	perSecond, long, patience := 5000, 30*time.Second, 2*time.Second
	if scaled(t, fullRotations) < fullRotations {
		long = 6 * time.Second
	}
	if slowMachine() {
		perSecond, patience = 500, 15*time.Second
	}
	ctx, f := startFor(t, suited(), 3, 1, "")
	members := f.Nodes[:3]
	blue := attachAll(t, ctx, f, "blue")
	for _, n := range members {
		// A tunnel can be up before gossip counts the node at its other end.
		if err := n.WaitStatus(ctx, "all members alive", func(s api.Status) bool { return s.Members.OK == 3 }); err != nil {
			t.Fatal(err)
		}
	}
	outsider, err := f.AddNode("outsider")
	if err != nil {
		t.Fatal(err)
	}
	late, err := f.AddNode("late")
	if err != nil {
		t.Fatal(err)
	}
	token, err := f.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	source, keyID := sources(t, f, outsider.Host), accessKeyID(t, members[0])
	memory := watchGrowth(t, members)
	garbage, stop := context.WithTimeout(ctx, long)
	defer stop()
	var wg sync.WaitGroup
	var floods []*flooder
	for _, n := range members {
		fl := &flooder{ns: outsider.Host.NS(), victim: n, keyID: keyID, source: source, held: held}
		floods = append(floods, fl)
		wg.Go(func() { fl.run(garbage, perSecond/len(members)) })
	}
	defer wg.Wait()

	begin := time.Now()
	if _, err := late.CLI(ctx, "join", token); err != nil {
		t.Error(err)
	}
	took := time.Since(begin)
	if took > patience {
		t.Errorf("a join took %v in the flood, want at most %v", took, patience)
	}
	watchMembers(t, garbage, members, late.Name)
	wg.Wait()
	opened := int64(0)
	for _, fl := range floods {
		opened += fl.opened.Load()
		if fl.opened.Load() == 0 {
			t.Errorf("%s was not flooded", fl.victim.Name)
		}
	}
	t.Logf("%d garbage connections in %v; the join took %v", opened, long, took.Round(time.Millisecond))
	memory.wantBounded(t)
	mustPing(t, ctx, blue[0], blue[1].V4(), 100)
	return f
}

// watchMembers asserts, until ctx ends, that members hold each other for alive.
func watchMembers(t *testing.T, ctx context.Context, members []*fleet.Node, but string) {
	t.Helper()
	for looks := 0; ctx.Err() == nil; looks++ {
		for _, n := range members {
			list, err := n.Client().Members(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range list.Members {
				if m.State != "alive" && m.Name != but {
					t.Errorf("look %d: %s holds %s for %s", looks, n.Name, m.Name, m.State)
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond): // the next look
		}
	}
}
