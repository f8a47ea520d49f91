package espuser

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/keys"
)

var compared = cmp.Options{
	cmp.AllowUnexported(wanted{}, state{}, peer{}),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

func labState() state {
	w := labWanted()
	return state{port: 4500, dropped: [reasons]uint64{1, 2, 3}, peers: []peer{
		{inner: w.inner, key: w.key, in: w.in, out: w.out, local: w.local, remote: w.remote, rxBytes: 1 << 40, txBytes: 5, rxPackets: 6, txPackets: 7},
		{inner: labSelf, key: 1, in: 256, local: netip.MustParseAddrPort("[2001:db8::1]:4500"), remote: netip.MustParseAddrPort("[2001:db8::2]:1")},
	}}
}

func TestMessagesComeBack(t *testing.T) {
	half := labWanted()
	half.inner, half.outMaterial, half.in = netip.MustParseAddr("fd00::3"), nil, 0x1002
	v6 := without(labWanted())
	v6.inner, v6.in = netip.MustParseAddr("fd00::4"), 0x1003
	v6.local, v6.remote = netip.MustParseAddrPort("[2001:db8::1]:4500"), netip.MustParseAddrPort("[2001:db8::2]:4501")
	peers := []wanted{labWanted(), half, v6}
	port, got, err := decodeSet(encodeSet(51871, peers))
	if err != nil || port != 51871 {
		t.Fatalf("port %d, %v", port, err)
	}
	if d := cmp.Diff(peers, got, compared); d != "" {
		t.Error(d)
	}
	s, err := decodeState(labState().encode())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(labState(), s, compared); d != "" {
		t.Error(d)
	}
	var buf bytes.Buffer
	if err := writeMessage(&buf, kindSet, []byte("body")); err != nil {
		t.Fatal(err)
	}
	if k, body, err := readMessage(&buf); err != nil || k != kindSet || string(body) != "body" {
		t.Errorf("kind %d, %q, %v", k, body, err)
	}
}

// TestOtherCounters: workers of other versions count other things; the rest is read all the same.
func TestOtherCounters(t *testing.T) {
	peers := labState().encode()[portLen+1+8*int(reasons):]
	for n := range 20 {
		body := append([]byte{0x11, 0x94, byte(n)}, bytes.Repeat([]byte{0, 0, 0, 0, 0, 0, 0, 9}, n)...)
		s, err := decodeState(append(body, peers...))
		if err != nil || len(s.peers) != 2 || s.port != 4500 || n > 0 && s.dropped[0] != 9 {
			t.Errorf("with %d counters: %+v, %v", n, s, err)
		}
	}
}

// TestBadMessages: what no driver says is refused, and installs nothing.
func TestBadMessages(t *testing.T) {
	for name, change := range map[string]func(*wanted){
		"no key":            func(w *wanted) { w.key = 0 },
		"small index":       func(w *wanted) { w.in = 255 },
		"small other index": func(w *wanted) { w.out = 1 },
		"two families":      func(w *wanted) { w.local = netip.MustParseAddrPort("[::1]:1") },
		"nowhere":           func(w *wanted) { w.remote = netip.MustParseAddrPort("0.0.0.0:4500") },
		"no port":           func(w *wanted) { w.remote = netip.AddrPortFrom(w.remote.Addr(), 0) },
		"inner IPv4":        func(w *wanted) { w.inner = netip.MustParseAddr("10.0.0.1") },
	} {
		w := labWanted()
		change(&w)
		if _, _, err := decodeSet(encodeSet(1, []wanted{w})); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, head := range [][]byte{{2, 1, 0, 0, 0, 0}, {1, 1, 0xff, 0, 0, 0}, {1, 1, 0, 0, 0, 9}, {1}} {
		if _, _, err := readMessage(bytes.NewReader(head)); err == nil {
			t.Errorf("% x was accepted", head)
		}
	}
}

func FuzzDecodeSet(f *testing.F) {
	f.Add(encodeSet(4500, []wanted{labWanted()}))
	f.Add([]byte{0})
	f.Fuzz(func(t *testing.T, body []byte) {
		port, peers, err := decodeSet(body)
		if err != nil {
			return
		}
		for _, w := range peers {
			if m := w.inMaterial; m != nil && len(m) != keys.ESPKeySize {
				t.Fatalf("material of %d bytes", len(m))
			}
		}
		_, again, err := decodeSet(encodeSet(port, peers))
		if err != nil || !cmp.Equal(peers, again, compared) {
			t.Fatalf("%v: %v", err, cmp.Diff(peers, again, compared))
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	f.Add(labState().encode())
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := decodeState(body)
		if err != nil {
			return
		}
		again, err := decodeState(s.encode())
		if err != nil || !cmp.Equal(s, again, compared) {
			t.Fatalf("%v: %v", err, cmp.Diff(s, again, compared))
		}
	})
}
