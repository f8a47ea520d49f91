package netlab

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// TestRoughWire: what a rough wire says that it does is what arrives, in both directions, whatever is not UDP
// is left alone, and a wire that does nothing loses nothing.
func TestRoughWire(t *testing.T) {
	l := newLab(t, "rough")
	a, b, c := newHost(t, l, "a"), newHost(t, l, "b"), newHost(t, l, "c")
	rough := func(h *Host, r Roughness) *RoughWire {
		w, err := h.Rough(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		})
		return w
	}
	w := rough(a, Roughness{Drop: 0.05, Double: 0.05, Flip: 0.05, Resize: 0.05, Hold: 0.05, Replay: 0.05, Reach: 64, Seed: 1})
	smooth := rough(c, Roughness{Reach: 1})
	ctx := within(t, 30*time.Second)
	for _, way := range [][2]*Host{{a, b}, {b, a}} {
		before := w.Counts()
		r, err := UDPFlow(ctx, time.Second, FlowOptions{From: way[0].NS(), To: way[1].NS(), Dst: netip.AddrPortFrom(way[1].V4(), 7000), Size: 200, Rate: 3000})
		if err != nil {
			t.Fatal(err)
		}
		n := w.Counts()
		t.Logf("%s to %s: %+v, %+v", way[0].Name(), way[1].Name(), r, n)
		if r.Corrupt == 0 || r.Duplicated == 0 || r.Reordered == 0 || r.Received == r.Sent || r.Received < r.Sent/2 {
			t.Errorf("%s to %s: %+v", way[0].Name(), way[1].Name(), r)
		}
		for what, grew := range map[string]bool{
			"dropped": n.Dropped > before.Dropped, "doubled": n.Doubled > before.Doubled, "flipped": n.Flipped > before.Flipped,
			"resized": n.Resized > before.Resized, "held": n.Held > before.Held, "replayed": n.Replayed > before.Replayed,
		} {
			if !grew {
				t.Errorf("%s to %s: nothing was %s", way[0].Name(), way[1].Name(), what)
			}
		}
	}
	if _, err := TCPTransfer(ctx, a.NS(), b.NS(), netip.AddrPortFrom(b.V4(), 0), TransferOptions{Bytes: 8 << 20}); err != nil {
		t.Error(err)
	}
	r, err := UDPFlow(ctx, time.Second, FlowOptions{From: b.NS(), To: c.NS(), Dst: netip.AddrPortFrom(c.V4(), 7000), Size: 200, Rate: 3000})
	if n := smooth.Counts(); err != nil || r.Received != r.Sent || r.Corrupt != 0 || n.Refused != 0 {
		t.Errorf("a wire that does nothing: %+v, %+v, %v", r, n, err)
	}
}

// TestMangle: nothing is lost but what is dropped, and what waits comes in time.
func TestMangle(t *testing.T) {
	frame := func(i int) []byte {
		f := make([]byte, vnetHeader+14+28+4)
		copy(f[vnetHeader+12:], []byte{8, 0, 0x45})
		f[vnetHeader+14+9] = 17
		f[len(f)-2], f[len(f)-1] = byte(i>>8), byte(i)
		return f
	}
	m := newMangler(Roughness{Hold: 0.3, Double: 0.1, Reach: 512, Seed: 7})
	var got [][]byte
	late := 0
	for i := range 10_000 {
		for _, raw := range m.pass(frame(i)) {
			got = append(got, bytes.Clone(raw))
			n := int(raw[len(raw)-2])<<8 + int(raw[len(raw)-1])
			late = max(late, i-n)
		}
	}
	for _, raw := range m.all() {
		got = append(got, bytes.Clone(raw))
	}
	c := m.take()
	if late != 512 || c.Held == 0 || len(got) != 10_000+int(c.Doubled) {
		t.Errorf("%d packets of 10000, at most %d late, %+v", len(got), late, c)
	}
	slices.SortFunc(got, bytes.Compare)
	if n := len(slices.CompactFunc(got, bytes.Equal)); n != 10_000 {
		t.Errorf("%d different packets", n)
	}
	other := frame(1)
	other[vnetHeader+14+9] = 6
	if out := newMangler(Roughness{Drop: 1}).pass(other); len(out) != 1 {
		t.Error("a packet of TCP was not left alone")
	}
}
