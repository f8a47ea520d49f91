package gso

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// join joins copies of packets and returns what came out, and each split again.
func join(packets [][]byte) (joined []Joined, split [][][]byte, err error) {
	var c Coalescer
	in := make([][]byte, len(packets))
	for i, p := range packets {
		in[i] = append([]byte{0xaa, 0xbb, 0xcc}, p...)
	}
	joined = c.Join(in, 3)
	for _, j := range joined {
		again, err := splitAll(j.Header(), slices.Concat(j.Parts...))
		if err != nil {
			return nil, nil, err
		}
		split = append(split, again)
	}
	return joined, split, nil
}

// stream is n segments of a connection, of size bytes each.
func stream(s segment, n, size int) (out []segment) {
	s.payload = make([]byte, n*size)
	for i := range s.payload {
		s.payload[i] = byte(i * 7)
	}
	return s.cut(size)
}

func bytesOf(segments ...segment) (out [][]byte) {
	for _, s := range segments {
		out = append(out, s.bytes())
	}
	return out
}

var plainSegment = segment{from: 1, vni: 7, port: 1, flags: 0x10, window: 500, seq: 1<<32 - 50, ack: 9, id: 65534}

// TestJoin joins datagrams whatever is in them, and the result describes itself rightly.
func TestJoin(t *testing.T) {
	for name, s := range map[string]segment{
		"TCP, v4": plainSegment, "TCP, v6": {from: 1, v6: true, flags: 0x10}, "UDP": {from: 1, udp: true},
		"pushed, with a tag": {from: 1, flags: 0x18, tags: 1},
	} {
		t.Run(name, func(t *testing.T) {
			all := stream(s, 5, 40)
			all[1].seq += 1000 // what is inside does not matter
			all[4].payload = all[4].payload[:7]
			in := bytesOf(all...)
			joined, split, err := join(in)
			if err != nil || len(joined) != 1 || len(joined[0].Parts) != 5 {
				t.Fatalf("joined to %d packets, %v", len(joined), err)
			}
			if d := cmp.Diff(in, split[0]); d != "" {
				t.Errorf("split again (-in +out):\n%s", d)
			}
			h, p := joined[0].Header(), slices.Concat(joined[0].Parts...)
			if n := binary.BigEndian.Uint16(p[4:]); int(n) != len(p)-40 {
				t.Errorf("the length is %d of %d", n, len(p))
			}
			want := Header{
				Flags: unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, Type: unix.VIRTIO_NET_HDR_GSO_UDP_L4,
				Len: 48, Size: uint16(len(in[0]) - 48), ChecksumStart: 40, ChecksumOffset: 6,
			}
			if h != want {
				t.Errorf("header %+v, want %+v", h, want)
			}
		})
	}
}

// TestJoinNot: what differs in anything but what is inside stays by itself, in its order.
func TestJoinNot(t *testing.T) {
	other := func(change func(s *segment)) func(b []byte) []byte {
		return func([]byte) []byte {
			s := stream(plainSegment, 2, 40)[1]
			change(&s)
			return s.bytes()
		}
	}
	// poke changes a byte and makes the checksum right again, so that nothing
	// but that byte is what keeps the packets apart.
	poke := func(at int, v byte) func(b []byte) []byte {
		return func(b []byte) []byte {
			b[at] ^= v
			setChecksum(b, unix.IPPROTO_UDP, udpChecksum)
			return b
		}
	}
	for name, change := range map[string]func(b []byte) []byte{
		"other source":            other(func(s *segment) { s.from = 3 }),
		"other network":           other(func(s *segment) { s.vni = 8 }),
		"longer":                  other(func(s *segment) { s.payload = make([]byte, 41) }),
		"no checksum":             other(func(s *segment) { s.noOuterChecksum = true }),
		"no tunnel":               other(func(s *segment) { s.bare = true }),
		"wrong checksum":          func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"traffic class":           poke(1, 0x10),
		"flow label":              poke(3, 1),
		"hop limit":               poke(7, 1),
		"destination":             poke(39, 1),
		"source port":             poke(outerLen+1, 4),
		"destination port":        poke(outerLen+3, 1),
		"VXLAN flags":             poke(vxlanAt, 0x40),
		"VXLAN reserved":          poke(vxlanAt+7, 1),
		"VXLAN reserved, before":  poke(vxlanAt+2, 1),
		"padding behind":          func(b []byte) []byte { return append(b, 0) },
		"cut off":                 func(b []byte) []byte { return b[:len(b)-1] },
		"cut off in VXLAN":        func(b []byte) []byte { return b[:vxlanAt+4] },
		"cut off in UDP":          func(b []byte) []byte { return b[:outerLen+4] },
		"lengths disagree":        func(b []byte) []byte { b[5]++; return b },
		"UDP length disagrees":    poke(outerLen+5, 1),
		"other next header":       poke(6, 1),
		"other version":           func(b []byte) []byte { b[0] = 4<<4 | 5; return b },
		"both lengths are longer": func(b []byte) []byte { b[5]++; b[outerLen+5]++; return b },
	} {
		t.Run(name, func(t *testing.T) {
			two := bytesOf(stream(plainSegment, 2, 40)...)
			two[1] = change(slices.Clone(two[1]))
			joined, split, err := join(two)
			if err != nil {
				t.Fatal(err)
			}
			if len(joined) != 2 || !slices.Equal(split[0][0], two[0]) || !slices.Equal(split[1][0], two[1]) {
				t.Errorf("became %d packets", len(joined))
			}
		})
	}
}

// TestJoinEnds: what ends a packet, so that the next datagram begins another.
func TestJoinEnds(t *testing.T) {
	s := stream(plainSegment, 6, 40)
	s[2].payload = s[2].payload[:30]
	s[4].noOuterChecksum = true
	foreign := stream(segment{from: 2, vni: 7, port: 1, flags: 0x10}, 3, 40)
	in := bytesOf(s[0], foreign[0], s[1], s[2], foreign[1], s[3], s[4], foreign[2], s[5])
	joined, split, err := join(in)
	if err != nil {
		t.Fatal(err)
	}
	want := [][][]byte{{in[0], in[2], in[3]}, {in[1], in[4], in[7]}, {in[5]}, {in[6]}, {in[8]}}
	if d := cmp.Diff(want, split); d != "" {
		t.Errorf("%d packets (-want +got):\n%s", len(joined), d)
	}
}

// TestJoinSize: no packet has more than its length fields can say and a link takes unsplit, nor more
// datagrams than a socket may send at once.
func TestJoinSize(t *testing.T) {
	for _, c := range []struct{ n, size, want int }{{100, 1370, 3}, {100, 64, 2}, {2, 32600, 1}, {2, 32700, 2}} {
		in := bytesOf(stream(plainSegment, c.n, c.size)...)
		joined, split, err := join(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range joined {
			if n := len(slices.Concat(j.Parts...)); n+EthernetLen >= 1<<16 || len(j.Parts) > 64 {
				t.Errorf("%d bytes, %d datagrams", n, len(j.Parts))
			}
		}
		if d := cmp.Diff(in, slices.Concat(split...)); d != "" || len(joined) != c.want {
			t.Errorf("%d of %d bytes: %d packets, want %d; split again (-in +out):\n%s", c.n, c.size, len(joined), c.want, d)
		}
	}
}

// TestJoinAny: whatever comes, split again it is the same packets, in the same order for each flow.
func TestJoinAny(t *testing.T) {
	var most int
	rapid.Check(t, func(t *rapid.T) {
		var in []segment
		for range rapid.IntRange(1, 6).Draw(t, "runs") {
			s := drawSegment(t)
			if s.udp = rapid.Bool().Draw(t, "udp"); s.udp {
				s.options = nil
			}
			s.noOuterChecksum = rapid.IntRange(0, 9).Draw(t, "checksum") == 0
			in = append(in, stream(s, rapid.IntRange(1, 6).Draw(t, "n"), rapid.IntRange(1, 50).Draw(t, "size"))...)
		}
		if rapid.Bool().Draw(t, "mixed") {
			in = rapid.Permutation(in).Draw(t, "mix")
		}
		packets := bytesOf(in...)
		joined, split, err := join(packets)
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range joined {
			most = max(most, len(j.Parts))
		}
		if d := cmp.Diff(byFlow(packets), byFlow(slices.Concat(split...))); d != "" {
			t.Fatalf("flows (-in +out):\n%s", d)
		}
	})
	if most < 4 {
		t.Errorf("at most %d packets were joined to one: nothing is shown", most)
	}
}

// byFlow sorts packets by flow.
func byFlow(packets [][]byte) map[string][][]byte {
	out := map[string][][]byte{}
	for _, p := range packets {
		key := fmt.Sprintf("%x", p[8:outerLen+4])
		out[key] = append(out[key], p)
	}
	return out
}

// FuzzJoin: packets from a peer that may say what it likes come out as they went in, split
// again, or are written as they are; and what is joined has one VXLAN header.
func FuzzJoin(f *testing.F) {
	for _, s := range []segment{plainSegment, {from: 1, v6: true, flags: 0x18}, {from: 1, udp: true}} {
		p := stream(s, 2, 30)
		f.Add(p[0].bytes(), p[1].bytes())
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a) == 0 || len(b) == 0 {
			return // no packet
		}
		in := [][]byte{a, b}
		joined, split, err := join(in)
		if err != nil {
			t.Fatalf("what was joined cannot be split: %v", err)
		}
		if len(joined) == 1 {
			if !slices.Equal(a[vxlanAt:vxlanAt+vxlanLen], b[vxlanAt:vxlanAt+vxlanLen]) {
				t.Error("two networks in one packet")
			}
			in, split[0] = normal(in), normal(split[0])
		}
		if d := cmp.Diff(in, slices.Concat(split...)); d != "" {
			t.Errorf("split again (-in +out):\n%s", d)
		}
	})
}

// normal leaves out what joining may change: the two forms of zero of a checksum.
func normal(packets [][]byte) (out [][]byte) {
	for _, p := range packets {
		p = slices.Clone(p)
		clear(p[outerLen+udpChecksum : outerLen+udpLen])
		out = append(out, p)
	}
	return out
}

// TestSamplesAreJoined: what a kernel is tried with is what it will get.
func TestSamplesAreJoined(t *testing.T) {
	p := Sample(netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2"), 4789, 77)
	joined, split, err := join([][]byte{p, p})
	if err != nil || len(joined) != 1 {
		t.Fatalf("joined to %d packets, %v", len(joined), err)
	}
	if d := cmp.Diff([][]byte{p, p}, split[0]); d != "" {
		t.Errorf("split again (-in +out):\n%s", d)
	}
}
