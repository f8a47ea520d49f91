package secure

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

const (
	one, two = "soxxxxxxa1", "soxxxxxxa2"
	mtu      = 1400
)

// pair is two secure namespaces that are joined by two devices.
type pair struct {
	t       *testing.T
	n       [2]*Namespace
	inner   [2]netip.Addr
	probers [2]*Prober
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{t: t, inner: [2]netip.Addr{self, friend}}
	for i, name := range []string{"a", "b"} {
		p.n[i] = must(Ensure(filepath.Join(t.TempDir(), name)))(t)
		t.Cleanup(func() { _ = p.n[i].Remove() })
		p.probers[i] = must(p.n[i].Prober())(t)
		t.Cleanup(func() { ok(t, p.probers[i].Close()) })
	}
	for epoch, name := range []string{one, two} {
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: name, MTU: mtu})
		veth.PeerName, veth.PeerNamespace = name, netlink.NsFd(p.n[1].ns.FD())
		ok(t, p.n[0].h.LinkAdd(veth))
		hardware := must(p.n[0].h.LinkByName(name))(t).Attrs().HardwareAddr
		for _, n := range p.n {
			l := must(n.h.LinkByName(name))(t)
			mark := tunnel.Mark{Protocol: "wireguard", Driver: "test", Epoch: ids.Epoch(epoch + 1)}
			ok(t, n.h.LinkSetAlias(l, mark.String()))
			ok(t, n.h.LinkSetMTU(l, mtu))
			ok(t, n.h.LinkSetARPOff(l))
			ok(t, n.h.LinkSetHardwareAddr(l, hardware))
			ok(t, n.h.LinkSetUp(l))
		}
	}
	return p
}

// set gives side i its route through a device and its probes through others.
func (p *pair) set(i int, main string, probes ...string) {
	p.t.Helper()
	s := Spec{Inner: p.inner[i], VXLANPort: port}
	if main != "" {
		s.Routes = []Route{{Peer: p.inner[1-i], Device: main}}
	}
	for _, d := range probes {
		s.Probes = append(s.Probes, Route{Peer: p.inner[1-i], Device: d})
	}
	ok(p.t, p.n[i].Set(p.t.Context(), s))
	ok(p.t, p.n[i].Verify(p.t.Context()))
}

// probe lets side i probe the other one.
func (p *pair) probe(i int, device string, size int, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	return p.probers[i].Probe(ctx, device, p.inner[i], p.inner[1-i], size)
}

// received returns how many packets side i has received through a device.
func (p *pair) received(i int, device string) uint64 {
	p.t.Helper()
	return must(p.n[i].h.LinkByName(device))(p.t).Attrs().Statistics.RxPackets
}

// long is for what must come, short for what must not.
const long, short = 20 * time.Second, 200 * time.Millisecond

// TestAnswersComeBackTheSameWay probes each device while the route of either
// side leads through the same device, the other one, or none.
func TestAnswersComeBackTheSameWay(t *testing.T) {
	p := newPair(t)
	for _, mine := range []string{one, two, ""} {
		for _, theirs := range []string{one, two, ""} {
			p.set(0, mine, one, two)
			p.set(1, theirs, one, two)
			for _, device := range []string{one, two} {
				other := map[string]string{one: two, two: one}[device]
				there, back := p.received(1, device), p.received(0, device)
				strayed := p.received(1, other) + p.received(0, other)
				for _, size := range []int{MinProbe, mtu} {
					if err := p.probe(0, device, size, long); err != nil {
						t.Errorf("routes %q and %q: %v", mine, theirs, err)
					}
				}
				if there, back = p.received(1, device)-there, p.received(0, device)-back; there < 2 || back < 2 {
					t.Errorf("routes %q and %q, device %s: %d requests, %d answers", mine, theirs, device, there, back)
				}
				if n := p.received(1, other) + p.received(0, other) - strayed; n != 0 {
					t.Errorf("routes %q and %q, device %s: %d packets took the other device", mine, theirs, device, n)
				}
			}
		}
	}
}

// TestAnswerThroughAnotherDevice: where the peer has no way back through the
// device, its answer comes through its route, and proves nothing.
func TestAnswerThroughAnotherDevice(t *testing.T) {
	p := newPair(t)
	p.set(0, one, two)
	p.set(1, one)
	before := p.received(0, one)
	err := p.probe(0, two, MinProbe, short)
	if !errors.Is(err, ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("probe without a way back: %v", err)
	}
	if p.received(0, one) == before {
		t.Error("no answer came through the other device either, so this test shows nothing")
	}
	p.set(1, one, two)
	ok(t, p.probe(0, two, MinProbe, long))
}

// TestProbeRouteCarriesNothingElse: a peer that has only a probe route is
// unreachable, and one that has both gets its packets through its route.
func TestProbeRouteCarriesNothingElse(t *testing.T) {
	p := newPair(t)
	p.set(0, "", one, two)
	p.set(1, one, two)
	ok(t, p.probe(0, two, MinProbe, long))
	c := udp(t, p.n[0].ns, self, 0)
	defer func() { _ = c.Close() }()
	if err := write(c, friend, 42, 0); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("send to a peer that has only probe routes: %v", err)
	}
	p.set(0, one, two)
	before := p.received(1, one)
	for range 10 {
		ok(t, write(c, friend, 42, 0))
	}
	if n := p.received(1, one) - before; n != 10 {
		t.Errorf("%d of 10 packets took the route", n)
	}
}

func TestProbeErrors(t *testing.T) {
	p := newPair(t)
	p.set(0, one)
	p.set(1, one, two)
	ok(t, p.probe(0, one, mtu, long))
	for _, c := range []struct {
		device string
		size   int
		want   error
	}{
		{one, mtu + 1, ErrTooLarge},
		{two, MinProbe, ErrNoRoute},
		{"soxxxxxxa3", MinProbe, ErrNoRoute},
	} {
		err := p.probe(0, c.device, c.size, long)
		var pe *ProbeError
		if !errors.Is(err, c.want) || !errors.As(err, &pe) || pe.Device != c.device || pe.Size != c.size || pe.To != friend {
			t.Errorf("probe through %s with %d bytes: %v, want %v", c.device, c.size, err, c.want)
		}
	}
	if err := p.probe(0, one, MinProbe-1, long); err == nil {
		t.Error("a probe that anybody could answer was sent")
	}
	// Somebody else's packet-too-big must not make a large probe fail.
	lo := must(p.n[0].h.LinkByName(one))(t)
	narrow := toPeer(at(friend), lo.Attrs().Index)
	narrow.MTU = 1280
	ok(t, p.n[0].h.RouteReplace(narrow))
	ok(t, p.probe(0, one, mtu, long))
	ok(t, p.n[0].h.LinkSetDown(lo))
	if err := p.probe(0, one, MinProbe, long); !errors.Is(err, ErrNoRoute) {
		t.Errorf("probe through a device that is down: %v", err)
	}
	// The peer's end is gone: nothing answers.
	ok(t, p.n[0].h.LinkSetUp(lo))
	p.set(0, one, two)
	p.set(1, one)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.probers[0].Probe(ctx, two, self, friend, MinProbe); !errors.Is(err, ErrNoAnswer) || !errors.Is(err, context.Canceled) {
		t.Errorf("probe with an ended context: %v", err)
	}
}

// TestProbeTakesOnlyItsAnswer sends answers to other requests, and forged ones.
func TestProbeTakesOnlyItsAnswer(t *testing.T) {
	request := make([]byte, 40)
	for i := range request {
		request[i] = byte(i)
	}
	reply := func(change func([]byte)) []byte {
		b := append([]byte(nil), request...)
		b[0], b[1], b[2], b[3] = echoReply, 0, 9, 9
		change(b)
		return b
	}
	if !answers(request, reply(func([]byte) {})) {
		t.Error("the answer is refused")
	}
	for what, change := range map[string]func([]byte){
		"request":    func(b []byte) { b[0] = echoRequest },
		"code":       func(b []byte) { b[1] = 1 },
		"identifier": func(b []byte) { b[4]++ },
		"sequence":   func(b []byte) { b[6]++ },
		"first byte": func(b []byte) { b[8]++ },
		"last byte":  func(b []byte) { b[len(b)-1]++ },
	} {
		if answers(request, reply(change)) {
			t.Errorf("another %s is taken for the answer", what)
		}
	}
}

// TestManyProbes sends more at once, and more in a second, than a kernel would
// answer that limits them.
func TestManyProbes(t *testing.T) {
	p := newPair(t)
	p.set(0, one, two)
	p.set(1, two, one)
	const each = 100
	start := time.Now()
	var wg sync.WaitGroup
	for i := range 2 {
		for _, device := range []string{one, two} {
			for range 4 {
				wg.Go(func() {
					for range each {
						if err := p.probe(i, device, MinProbe, long); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
	}
	wg.Wait()
	t.Logf("%d probes in %v", 16*each, time.Since(start))
}

// TestProberOutlivesNamespace: its reference is its own.
func TestProberOutlivesNamespace(t *testing.T) {
	p := newPair(t)
	p.set(0, one)
	p.set(1, one)
	prober := must(p.n[0].Prober())(t)
	adopted := must(Ensure(p.n[0].ns.Path()))(t)
	ok(t, p.n[0].Close())
	p.n[0] = adopted
	ctx, cancel := context.WithTimeout(t.Context(), long)
	defer cancel()
	ok(t, prober.Probe(ctx, one, self, friend, MinProbe))
	ok(t, prober.Close())
	if err := prober.Probe(ctx, one, self, friend, MinProbe); !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.EBADF) {
		t.Errorf("probe by a closed prober: %v", err)
	}
	// Another namespace of the machine is not where it probes.
	here := must(nl.CurrentNamespace())(t)
	defer func() { _ = here.Close() }()
	if _, err := net.InterfaceByName(one); err == nil {
		t.Error("the test's own namespace has the device")
	}
}
