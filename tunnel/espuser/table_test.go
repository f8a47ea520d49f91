package espuser

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

var (
	labSelf = netip.MustParseAddr("fd00::1")
	labPeer = netip.MustParseAddr("fd00::2")
)

// material returns key material that differs by n.
func material(n byte) []byte { return bytes.Repeat([]byte{n}, keys.ESPKeySize) }

// labWanted is a whole pair, with what installs it.
func labWanted() wanted {
	return wanted{
		inner: labPeer, key: 7, in: 0x1001, out: 0x2001,
		local: netip.MustParseAddrPort("127.0.0.1:4500"), remote: netip.MustParseAddrPort("127.0.0.2:4500"),
		inMaterial: material(1), outMaterial: material(2),
	}
}

// without returns w as a driver sends it that knows that both halves are there.
func without(w wanted) wanted {
	w.inMaterial, w.outMaterial = nil, nil
	return w
}

// TestSet plays sequences of requests, and says after each what became of the peer and which
// halves are there.
func TestSet(t *testing.T) {
	type step struct {
		name    string
		change  func(*wanted)
		drop    bool // the peer is not in the request
		verdict verdict
		in, out bool
	}
	same := func(*wanted) {}
	bare := func(w *wanted) { *w = without(*w) }
	both := step{name: "installed", change: same, in: true, out: true}
	for name, steps := range map[string][]step{
		"stays without material": {both, {name: "again", change: bare, in: true, out: true}},
		"never installed":        {{name: "without material", change: bare, verdict: verdictGone}},
		"receiving first": {
			{name: "half", change: func(w *wanted) { w.out = 0 }, in: true},
			{name: "other half without material", change: bare, verdict: verdictGone, in: true},
			{name: "other half", change: func(w *wanted) { w.inMaterial = nil }, in: true, out: true},
			{name: "no longer sending", change: func(w *wanted) { bare(w); w.out = 0 }, in: true},
			{name: "sending once more", change: same, verdict: verdictGone, in: true},
		},
		"not a second time": {
			both,
			{name: "gone", drop: true},
			{name: "back, with the same material", change: same, verdict: verdictGone},
			{name: "back, under another key", change: func(w *wanted) { w.key = 8 }, in: true, out: true},
		},
		"another key takes the place": {
			both,
			{name: "without its material", change: func(w *wanted) { bare(w); w.key = 8 }, verdict: verdictGone},
			{name: "with it", change: func(w *wanted) { w.key = 8 }, in: true, out: true},
			{name: "the former", change: same, verdict: verdictGone},
		},
		"another index":         {both, {name: "in", change: func(w *wanted) { w.in++ }, in: true, verdict: verdictGone}},
		"another outer address": {both, {name: "moved", change: func(w *wanted) { w.remote = netip.MustParseAddrPort("127.0.0.3:4500") }, verdict: verdictGone}},
		"another port":          {both, {name: "moved", change: func(w *wanted) { w.remote = netip.AddrPortFrom(w.remote.Addr(), 4501) }, verdict: verdictGone}},
		"own port":              {both, {name: "moved", change: func(w *wanted) { bare(w); w.local = netip.AddrPortFrom(w.local.Addr(), 4501) }, in: true, out: true}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder()
			for _, s := range steps {
				var peers []wanted
				if !s.drop {
					w := labWanted()
					s.change(&w)
					peers = append(peers, w)
				}
				got, err := b.set(peers)
				if err != nil {
					t.Fatal(err)
				}
				if !s.drop && got[0] != s.verdict {
					t.Errorf("%s: verdict %d, want %d", s.name, got[0], s.verdict)
				}
				p := b.now.pairs[labPeer.As16()]
				if (p.in != nil) != s.in || (p.out != nil) != s.out {
					t.Errorf("%s: in %v, out %v; want %v, %v", s.name, p.in != nil, p.out != nil, s.in, s.out)
				}
				if (b.now.out(labPeer.As16()) != nil) != s.out || (b.now.in[labWanted().in] != nil) != (s.in && p.in.spi == labWanted().in) {
					t.Errorf("%s: what is looked up is not what is there", s.name)
				}
			}
		})
	}
}

// TestSequenceGoesOn: a request that changes nothing leaves the associations themselves.
func TestSequenceGoesOn(t *testing.T) {
	b := newBuilder()
	if _, err := b.set([]wanted{labWanted()}); err != nil {
		t.Fatal(err)
	}
	was := b.now.pairs[labPeer.As16()]
	if _, err := b.set([]wanted{without(labWanted())}); err != nil {
		t.Fatal(err)
	}
	if is := b.now.pairs[labPeer.As16()]; is.in != was.in || is.out != was.out {
		t.Error("the associations were made anew")
	}
}

// TestOneIndexOnePeer: packets are told apart by the index alone.
func TestOneIndexOnePeer(t *testing.T) {
	b := newBuilder()
	second := labWanted()
	second.inner, second.key = netip.MustParseAddr("fd00::3"), 9
	got, err := b.set([]wanted{labWanted(), second})
	if err != nil || got[0] != verdictDone || got[1] != verdictGone {
		t.Fatalf("verdicts %v, %v", got, err)
	}
	if b.now.in[ids.SPI(0x1001)].inner != labPeer.As16() {
		t.Error("the later one has taken the place")
	}
}
