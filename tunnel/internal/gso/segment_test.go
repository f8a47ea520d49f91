package gso

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// splitAll returns all packets of one that is to be split.
func splitAll(h Header, p []byte) ([][]byte, error) {
	var s Segmenter
	if err := s.Start(h, p); err != nil {
		return nil, err
	}
	var out [][]byte
	for s.More() {
		b := make([]byte, readLimit)
		n, err := s.Next(b)
		if err != nil {
			return nil, err
		}
		out = append(out, b[:n])
	}
	return out, nil
}

const readLimit = 1<<16 + 1<<10

// innerAt is where the inner IP packet of one without VLAN tags begins.
const innerAt = vxlanAt + vxlanLen + EthernetLen

// TestSplit: a packet that is to be split becomes the packets that somebody who makes each by
// itself makes.
func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSegment(t)
		s.udp, s.bare, s.noOuterChecksum = rapid.Bool().Draw(t, "udp"), rapid.Bool().Draw(t, "bare"), rapid.Bool().Draw(t, "no checksum")
		if s.udp {
			s.options = nil
		}
		s.tags = rapid.IntRange(0, maxTags).Draw(t, "tags")
		s.flags = 0x10 | rapid.Byte().Draw(t, "flags")&(flagFIN|flagPSH|flagCWR)
		s.payload = rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "payload")
		size := rapid.IntRange(1, 80).Draw(t, "size")
		h, p := s.superframe(size)
		got, err := splitAll(h, p)
		if err != nil {
			t.Fatal(err)
		}
		var want [][]byte
		for _, c := range s.cut(size) {
			want = append(want, c.bytes())
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatalf("segments (-want +got):\n%s", d)
		}
	})
}

// TestSplitLarge splits 64 KiB, whose checksums overflow 32 bits of anything.
func TestSplitLarge(t *testing.T) {
	s := segment{from: 1, flags: 0x18, payload: slices.Repeat([]byte{0xff}, 65000), seq: 1<<32 - 1000, id: 65530}
	h, p := s.superframe(1318)
	got, err := splitAll(h, p)
	if err != nil {
		t.Fatal(err)
	}
	want := s.cut(1318)
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i := range got {
		if !slices.Equal(got[i], want[i].bytes()) {
			t.Errorf("packet %d differs", i)
		}
	}
}

// TestFinish: where only a checksum is missing it is computed.
func TestFinish(t *testing.T) {
	for name, s := range map[string]segment{
		"inner TCP, v4": {payload: []byte("hello")}, "inner TCP, v6": {v6: true, payload: []byte("hello")},
		"inner UDP": {udp: true, payload: []byte("hello")}, "UDP": {udp: true, v6: true, bare: true, payload: []byte("hello")},
	} {
		t.Run(name, func(t *testing.T) {
			want := s.bytes()
			h, p := s.superframe(1)
			h.Type, h.Size = unix.VIRTIO_NET_HDR_GSO_NONE, 0
			if slices.Equal(p, want) {
				t.Fatal("nothing was missing")
			}
			got, err := splitAll(h, p)
			if err != nil || len(got) != 1 || !slices.Equal(got[0], want) {
				t.Errorf("got %x, %v\nwant %x", got, err, want)
			}
		})
	}
}

// TestMalformed: what does not fit together is refused.
func TestMalformed(t *testing.T) {
	s := segment{flags: 0x10, payload: make([]byte, 100)}
	for name, change := range map[string]func(h *Header, p []byte) []byte{
		"no size":                 func(h *Header, p []byte) []byte { h.Size = 0; return p },
		"no checksum":             func(h *Header, p []byte) []byte { h.Flags = 0; return p },
		"checksum beyond the end": func(h *Header, p []byte) []byte { h.ChecksumStart = uint16(len(p)); return p },
		"checksum elsewhere":      func(h *Header, p []byte) []byte { h.ChecksumStart += 2; return p },
		"checksum of VXLAN":       func(h *Header, p []byte) []byte { h.ChecksumStart = vxlanAt; return p },
		"not IP":                  func(_ *Header, p []byte) []byte { p[0] = 5 << 4; return p },
		"not UDP":                 func(_ *Header, p []byte) []byte { p[6] = unix.IPPROTO_TCP; return p },
		"not VXLAN":               func(_ *Header, p []byte) []byte { p[vxlanAt] = 0x0c; return p },
		"three tags":              func(*Header, []byte) []byte { s := s; s.tags = 3; _, p := s.superframe(10); return p },
		"cut off in VXLAN":        func(_ *Header, p []byte) []byte { return p[:vxlanAt+4] },
		"other version":           func(_ *Header, p []byte) []byte { p[innerAt] = 6<<4 | 5; return p },
		"IP options cut off":      func(_ *Header, p []byte) []byte { p[innerAt] = 4<<4 | 15; return p },
		"TCP without a header":    func(h *Header, p []byte) []byte { p[h.ChecksumStart+tcpDataOffset] = 1 << 4; return p },
		"TCP header too long": func(h *Header, p []byte) []byte {
			p[h.ChecksumStart+tcpDataOffset] = 15 << 4
			return p[:int(h.ChecksumStart)+30]
		},
		"no payload":      func(_ *Header, p []byte) []byte { return p[:len(p)-100] },
		"UDP fragments":   func(h *Header, p []byte) []byte { h.Type = unix.VIRTIO_NET_HDR_GSO_UDP; return p },
		"UDP that is TCP": func(h *Header, p []byte) []byte { h.Type = unix.VIRTIO_NET_HDR_GSO_UDP_L4; return p },
	} {
		t.Run(name, func(t *testing.T) {
			h, p := s.superframe(10)
			p = change(&h, p)
			if got, err := splitAll(h, p); !errors.Is(err, ErrMalformed) {
				t.Errorf("got %d packets, %v", len(got), err)
			}
		})
	}
	t.Run("longer than the buffer", func(t *testing.T) {
		h, p := s.superframe(10)
		var seg Segmenter
		if err := seg.Start(h, p); err != nil {
			t.Fatal(err)
		}
		n, left := 0, 0
		for ; seg.More(); n++ {
			if _, err := seg.Next(make([]byte, 20)); errors.Is(err, ErrMalformed) {
				left++
			}
		}
		if n != 10 || left != 10 {
			t.Errorf("%d packets, %d left out, want 10 each", n, left)
		}
	})
}

func TestHeaderGoesThere(t *testing.T) {
	want := Header{unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, 2, 3, 4, 5, 6}
	b := slices.Repeat([]byte{0xee}, HeaderLen+EthernetLen+1)
	want.Put(b)
	if got, p, err := Decode(b); err != nil || got != want || !slices.Equal(p, []byte{0xee}) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if b[6] != 5+EthernetLen && b[7] != 5+EthernetLen {
		t.Errorf("% x: the kernel counts from the Ethernet header", b)
	}
	if _, _, err := Decode(b[:len(b)-1]); !errors.Is(err, ErrMalformed) {
		t.Errorf("of an empty packet: %v", err)
	}
	clear(b[6:8])
	if _, _, err := Decode(b); !errors.Is(err, ErrMalformed) {
		t.Errorf("of a checksum in the Ethernet header: %v", err)
	}
}

// FuzzSplit: nothing that a kernel could say makes it panic or give more than there is.
func FuzzSplit(f *testing.F) {
	for _, s := range []segment{
		{flags: 0x18, payload: make([]byte, 300)}, {v6: true, flags: 0x11, payload: make([]byte, 300), options: make([]byte, 12)},
		{udp: true, payload: make([]byte, 300)}, {bare: true, payload: make([]byte, 300)}, {tags: 2, payload: make([]byte, 300)},
	} {
		h, p := s.superframe(100)
		var b [HeaderLen + EthernetLen]byte
		h.Put(b[:])
		f.Add(append(b[:], p...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, p, err := Decode(b)
		if err != nil {
			return
		}
		before := slices.Clone(p)
		out, err := splitAll(h, p)
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
		if !slices.Equal(before, p) {
			t.Error("it changed its input")
		}
		if len(out) > len(p)+1 {
			t.Errorf("%d packets of %d bytes", len(out), len(p))
		}
	})
}
