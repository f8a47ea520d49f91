package gso

import (
	"encoding/binary"
	"fmt"
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
		again, err := splitAll(j.Header(0), slices.Concat(j.Parts...))
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

// TestJoin joins what may be joined, and the result describes itself rightly.
func TestJoin(t *testing.T) {
	options := []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
	for name, s := range map[string]segment{
		"v4": plainSegment, "v6": {from: 1, v6: true, flags: 0x10},
		"v4, options": {from: 2, flags: 0x10, options: options}, "v6, options": {from: 2, v6: true, flags: 0x10, options: options},
		"UDP, v4": {from: 1, udp: true, id: 65534}, "UDP, v6": {from: 1, udp: true, v6: true},
		"pushed": {from: 1, flags: 0x18}, "congestion echo": {from: 1, flags: 0x50},
	} {
		t.Run(name, func(t *testing.T) {
			in := bytesOf(stream(s, 5, 40)...)
			last := stream(s, 5, 40)[4]
			last.payload = last.payload[:7] // shorter: only a last one may be
			in[4] = last.bytes()
			joined, split, err := join(in)
			if err != nil || len(joined) != 1 || len(joined[0].Parts) != 5 {
				t.Fatalf("joined to %d packets, %v", len(joined), err)
			}
			if d := cmp.Diff(in, split[0]); d != "" {
				t.Errorf("split again (-in +out):\n%s", d)
			}
			h, p := joined[0].Header(14), slices.Concat(joined[0].Parts...)
			if n := binary.BigEndian.Uint16(p[4:]); int(n) != len(p)-40 {
				t.Errorf("the outer length is %d of %d", n, len(p))
			}
			if h.OuterTransport != 54 || h.InnerNetwork != innerAt || h.Size != 40 || h.Flags != 9 {
				t.Errorf("header %+v", h)
			}
		})
	}
}

// TestJoinNot: what differs in anything stays by itself, in its order.
func TestJoinNot(t *testing.T) {
	other := func(change func(s *segment)) func(b, _ []byte) []byte {
		return func([]byte, []byte) []byte {
			s := stream(plainSegment, 2, 40)[1]
			change(&s)
			return s.bytes()
		}
	}
	// poke changes a byte and makes the inner checksum right again, so that nothing
	// but that byte is what keeps the packets apart.
	poke := func(at int, v byte) func(b, _ []byte) []byte {
		return func(b, _ []byte) []byte {
			b[at] ^= v
			if at >= innerAt && at < innerAt+20 {
				put(b[innerAt+10:], 0)
				put(b[innerAt+10:], ^fold(sum(b[innerAt:innerAt+20], 0)))
			}
			setChecksum(b[innerAt:], unix.IPPROTO_TCP, tcpChecksum)
			setChecksum(b, unix.IPPROTO_UDP, udpChecksum)
			return b
		}
	}
	const tcp = innerAt + 20
	for name, change := range map[string]func(b, first []byte) []byte{
		"other source":            other(func(s *segment) { s.from = 3 }),
		"other network":           other(func(s *segment) { s.vni = 8 }),
		"other connection":        other(func(s *segment) { s.port = 2 }),
		"a gap":                   other(func(s *segment) { s.seq++ }),
		"repeated":                func(_, first []byte) []byte { return first },
		"other ack":               other(func(s *segment) { s.ack++ }),
		"other window":            other(func(s *segment) { s.window++ }),
		"options":                 other(func(s *segment) { s.options = []byte{1, 1, 1, 0} }),
		"longer":                  other(func(s *segment) { s.payload = make([]byte, 41) }),
		"empty":                   other(func(s *segment) { s.payload = nil }),
		"SYN":                     other(func(s *segment) { s.flags |= flagSYN }),
		"FIN":                     other(func(s *segment) { s.flags |= flagFIN }),
		"RST":                     other(func(s *segment) { s.flags |= flagRST }),
		"URG":                     other(func(s *segment) { s.flags |= flagURG }),
		"CWR":                     other(func(s *segment) { s.flags |= flagCWR }),
		"congestion echo":         other(func(s *segment) { s.flags |= 0x40 }),
		"UDP":                     other(func(s *segment) { s.udp = true }),
		"v6":                      other(func(s *segment) { s.v6 = true }),
		"no outer checksum":       other(func(s *segment) { s.noOuterChecksum = true }),
		"no tunnel":               other(func(s *segment) { s.bare = true }),
		"wrong TCP checksum":      func(b, _ []byte) []byte { b[len(b)-1] ^= 1; return b },
		"wrong outer checksum":    func(b, _ []byte) []byte { b[outerLen+udpChecksum] ^= 1; return b },
		"wrong IP checksum":       func(b, _ []byte) []byte { b[innerAt+10] ^= 1; setChecksum(b, unix.IPPROTO_UDP, udpChecksum); return b },
		"outer traffic class":     poke(1, 0x10),
		"outer flow label":        poke(3, 1),
		"outer hop limit":         poke(7, 1),
		"outer destination":       poke(39, 1),
		"outer source port":       poke(outerLen+1, 4),
		"outer destination port":  poke(outerLen+3, 1),
		"VXLAN flags":             poke(outerLen+udpLen, 0x40),
		"VXLAN reserved":          poke(outerLen+udpLen+7, 1),
		"destination MAC":         poke(innerAt-14, 4),
		"source MAC":              poke(innerAt-3, 1),
		"inner type of service":   poke(innerAt+1, 3),
		"fragments allowed":       poke(innerAt+6, 0x40),
		"more fragments":          poke(innerAt+6, 0x20),
		"inner TTL":               poke(innerAt+8, 1),
		"inner address":           poke(innerAt+19, 1),
		"TCP reserved bits":       poke(tcp+tcpDataOffset, 1),
		"urgent pointer":          poke(tcp+tcpUrgent+1, 1),
		"padding behind":          func(b, _ []byte) []byte { return append(b, 0) },
		"cut off":                 func(b, _ []byte) []byte { return b[:len(b)-1] },
		"cut off in the headers":  func(b, _ []byte) []byte { return b[:tcp+10] },
		"outer lengths disagree":  func(b, _ []byte) []byte { b[5]++; return b },
		"UDP length disagrees":    func(b, _ []byte) []byte { b[outerLen+5]++; return b },
		"inner length disagrees":  poke(innerAt+3, 1),
		"TCP header beyond":       poke(tcp+tcpDataOffset, 0xa0),
		"other outer next header": poke(6, 1),
	} {
		t.Run(name, func(t *testing.T) {
			two := bytesOf(stream(plainSegment, 2, 40)...)
			two[1] = change(slices.Clone(two[1]), two[0])
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

// TestJoinNotUDP: likewise of datagrams.
func TestJoinNotUDP(t *testing.T) {
	datagram := segment{from: 1, vni: 7, port: 1, udp: true, id: 9}
	const udp = innerAt + 20
	// rest makes the checksums right again.
	rest := func(b []byte) []byte {
		put(b[innerAt+10:], 0)
		put(b[innerAt+10:], ^fold(sum(b[innerAt:innerAt+20], 0)))
		setChecksum(b, unix.IPPROTO_UDP, udpChecksum)
		return b
	}
	other := func(change func(s *segment)) func([]byte) []byte {
		return func([]byte) []byte {
			s := stream(datagram, 2, 40)[1]
			change(&s)
			return s.bytes()
		}
	}
	for name, change := range map[string]func(b []byte) []byte{
		"other flow":        other(func(s *segment) { s.port = 2 }),
		"other source":      other(func(s *segment) { s.from = 3 }),
		"other network":     other(func(s *segment) { s.vni = 8 }),
		"longer":            other(func(s *segment) { s.payload = make([]byte, 41) }),
		"empty":             other(func(s *segment) { s.payload = nil }),
		"TCP":               other(func(s *segment) { s.udp = false }),
		"no outer checksum": other(func(s *segment) { s.noOuterChecksum = true }),
		"no inner checksum": func(b []byte) []byte { put(b[udp+udpChecksum:], 0); return rest(b) },
		"wrong checksum":    func(b []byte) []byte { b[len(b)-1] ^= 1; return rest(b) },
		"shorter than IP":   func(b []byte) []byte { b[udp+5]--; return rest(b) },
		"fragment":          func(b []byte) []byte { b[innerAt+7] = 1; return rest(b) },
		"may be a fragment": func(b []byte) []byte { b[innerAt+6] = 0; return rest(b) },
		"type of service":   func(b []byte) []byte { b[innerAt+1] = 3; return rest(b) },
		"cut off":           func(b []byte) []byte { return b[:udp+6] },
	} {
		t.Run(name, func(t *testing.T) {
			two := bytesOf(stream(datagram, 2, 40)...)
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

// TestJoinEnds: what ends a packet, so that the next segment begins another.
func TestJoinEnds(t *testing.T) {
	s := stream(plainSegment, 6, 40)
	s[2].flags |= flagPSH
	s[4].payload = s[4].payload[:30]
	s[5].seq -= 10
	foreign := stream(segment{from: 2, vni: 7, port: 1, flags: 0x10}, 3, 40)
	in := bytesOf(s[0], foreign[0], s[1], s[2], foreign[1], s[3], s[4], foreign[2], s[5])
	joined, split, err := join(in)
	if err != nil {
		t.Fatal(err)
	}
	want := [][][]byte{{in[0], in[2], in[3]}, {in[1], in[4], in[7]}, {in[5], in[6]}, {in[8]}}
	if d := cmp.Diff(want, split); d != "" {
		t.Errorf("%d packets (-want +got):\n%s", len(joined), d)
	}
}

// TestJoinSize: no packet has more than its length fields can say.
func TestJoinSize(t *testing.T) {
	in := bytesOf(stream(plainSegment, 100, 1370)...)
	joined, split, err := join(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range joined {
		if n := len(slices.Concat(j.Parts...)); n-outerLen > 65535 {
			t.Errorf("%d bytes", n)
		}
	}
	if d := cmp.Diff(in, slices.Concat(split...)); d != "" || len(joined) != 3 {
		t.Errorf("%d packets; split again (-in +out):\n%s", len(joined), d)
	}
}

// TestJoinDatagrams: no packet has more than a socket may send at once, and what is shorter is the
// last one.
func TestJoinDatagrams(t *testing.T) {
	all := stream(segment{from: 1, udp: true}, 100, 64)
	all[69].payload = all[69].payload[:10]
	in := bytesOf(all...)
	joined, split, err := join(in)
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for _, j := range joined {
		sizes = append(sizes, len(j.Parts))
	}
	if d := cmp.Diff(in, slices.Concat(split...)); d != "" || !slices.Equal(sizes, []int{64, 6, 30}) {
		t.Errorf("joined %v; split again (-in +out):\n%s", sizes, d)
	}
}

// TestJoinAny: whatever comes, split again it is the same packets, in the same order for each
// connection; only the number of inner IPv4 packets counts on from the first.
func TestJoinAny(t *testing.T) {
	var most int
	rapid.Check(t, func(t *rapid.T) {
		var in []segment
		for range rapid.IntRange(1, 6).Draw(t, "runs") {
			s := drawSegment(t)
			if s.udp = rapid.Bool().Draw(t, "udp"); s.udp {
				s.options = nil
			}
			run := stream(s, rapid.IntRange(1, 6).Draw(t, "n"), rapid.IntRange(1, 50).Draw(t, "size"))
			if rapid.Bool().Draw(t, "shuffled") {
				run = rapid.Permutation(run).Draw(t, "order")
			}
			if rapid.Bool().Draw(t, "pushed") {
				run[rapid.IntRange(0, len(run)-1).Draw(t, "which")].flags |= flagPSH
			}
			in = append(in, run...)
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
		if d := cmp.Diff(byConnection(packets), byConnection(slices.Concat(split...))); d != "" {
			t.Fatalf("connections (-in +out):\n%s", d)
		}
	})
	if most < 4 {
		t.Errorf("at most %d packets were joined to one: nothing is shown", most)
	}
}

// byConnection sorts packets by connection and leaves their numbers out.
func byConnection(packets [][]byte) map[string][][]byte {
	out := map[string][][]byte{}
	for _, p := range packets {
		p, f := numberless(p)
		key := fmt.Sprintf("%x", p[8:24])
		if f.at != 0 {
			key += fmt.Sprintf(" %x %x", p[outerLen+udpLen:innerAt-ethernetLen], p[f.at-8:f.at+4])
		}
		out[key] = append(out[key], p)
	}
	return out
}

// numberless returns a copy of a packet without the number of its inner IPv4 packet and the
// checksum of that header. The outer checksum does not cover them: the header adds up to
// nothing, by its own.
func numberless(p []byte) ([]byte, flow) {
	p = slices.Clone(p)
	f, _ := parse(p)
	if f.at == innerAt+20 {
		clear(p[innerAt+4 : innerAt+6])
		clear(p[innerAt+10 : innerAt+12])
	}
	return p, f
}

// FuzzJoin: packets from a peer that may say what it likes come out as they went in, split
// again, or are written as they are.
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
			in, split[0] = normal(in), normal(split[0])
		}
		if d := cmp.Diff(in, slices.Concat(split...)); d != "" {
			t.Errorf("split again (-in +out):\n%s", d)
		}
	})
}

// normal leaves out what joining may change: numbers of inner IPv4 packets, where PSH is,
// and the two forms of zero of a checksum.
func normal(packets [][]byte) (out [][]byte) {
	for _, p := range packets {
		p, f := numberless(p)
		if !f.udp {
			p[f.at+tcpFlags] &^= flagPSH
		}
		clear(p[f.at+f.checksum() : f.at+f.checksum()+2])
		clear(p[outerLen+udpChecksum : outerLen+udpLen])
		out = append(out, p)
	}
	return out
}

// TestSampleIsJoined: what a kernel is tried with is what it will get.
func TestSampleIsJoined(t *testing.T) {
	b := Sample(0)
	h, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	split, err := splitAll(h, b[HeaderLen:])
	if err != nil || len(split) != 2 {
		t.Fatalf("split into %d, %v", len(split), err)
	}
	joined, _, err := join(split)
	if err != nil || len(joined) != 1 || joined[0].Header(0) != h {
		t.Errorf("joined to %d packets, %v", len(joined), err)
	}
}
