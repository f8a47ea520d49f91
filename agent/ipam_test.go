package agent

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

func anySubnet() *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		if rapid.Bool().Draw(t, "v4") {
			raw := rapid.Uint32Range(0x0a000000, 0x0affffff).Draw(t, "addr")
			a := netip.AddrFrom4([4]byte{byte(raw >> 24), byte(raw >> 16), byte(raw >> 8), byte(raw)})
			return netip.PrefixFrom(a, rapid.IntRange(8, 32).Draw(t, "bits")).Masked()
		}
		var raw [16]byte
		copy(raw[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "addr"))
		raw[0] = 0xfd
		return netip.PrefixFrom(netip.AddrFrom16(raw), rapid.IntRange(16, 128).Draw(t, "bits")).Masked()
	})
}

// anyRange is a part of a subnet, or all of it.
func anyRange(s netip.Prefix) *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		bits := rapid.IntRange(s.Bits(), s.Addr().BitLen()).Draw(t, "range bits")
		raw := s.Addr().AsSlice()
		for i := range raw {
			mask := byte(0xff) >> min(8, max(0, s.Bits()-8*i))
			raw[i] |= mask & rapid.Byte().Draw(t, "host")
		}
		a, _ := netip.AddrFromSlice(raw)
		return netip.PrefixFrom(a, bits).Masked()
	})
}

// TestBlocksTile checks that blocks are disjoint, aligned, inside the subnet,
// small, and at least 16 where the subnet has room.
func TestBlocksTile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySubnet().Draw(t, "subnet")
		o := netdef.Options{}
		r := anyRange(s).Draw(t, "range")
		if r != s {
			o.Ranges = []netip.Prefix{r}
		}
		n := blockCount(s, r)
		if host := s.Addr().BitLen() - s.Bits(); r == s && n < 16 && uint64(1)<<min(host, 16) > n {
			t.Fatalf("%s has %d blocks only", s, n)
		}
		i := rapid.Uint64Range(0, n-1).Draw(t, "i")
		b := blockAt(s, r, i)
		if !isBlock(s, b) || !b.Overlaps(r) || b.Addr().BitLen()-b.Bits() > blockHostBits {
			t.Fatalf("block %d of %s is %s", i, s, b)
		}
		if i+1 < n {
			if next := blockAt(s, r, i+1); next.Overlaps(b) || next.Addr().Compare(b.Addr()) <= 0 {
				t.Fatalf("blocks %s and %s of %s", b, next, s)
			}
		}
		for _, a := range addressesOf(o, s, b) {
			if !r.Contains(a) || !b.Contains(a) || a == s.Addr() {
				t.Fatalf("address %s of block %s of %s", a, b, s)
			}
		}
	})
}

// TestPickBlockFindsTheLastOne takes blocks until none is left: each exactly
// once, each with an address to give.
func TestPickBlockFindsTheLastOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anySubnet().Filter(func(p netip.Prefix) bool { return blockCount(p, p) <= 256 }).Draw(t, "subnet")
		r := anyRange(s).Draw(t, "range")
		o := netdef.Options{Ranges: []netip.Prefix{r}, Reserved: []netip.Prefix{anyRange(s).Draw(t, "reserved")}}
		id := ids.NodeID{rapid.Byte().Draw(t, "node")}
		taken := map[netip.Prefix]bool{}
		for {
			b, ok := pickBlock(id, o, s, taken)
			if !ok {
				break
			}
			if taken[b] || len(addressesOf(o, s, b)) == 0 {
				t.Fatalf("picked %s of %s", b, s)
			}
			taken[b] = true
		}
		want := 0
		for i := range blockCount(s, r) {
			if len(addressesOf(o, s, blockAt(s, r, i))) > 0 {
				want++
			}
		}
		if len(taken) != want {
			t.Fatalf("%d of %d blocks of %s found", len(taken), want, s)
		}
	})
}

// TestPickAddr hands out each address of a block once and nothing reserved.
func TestPickAddr(t *testing.T) {
	s := netip.MustParsePrefix("10.1.2.0/26")
	used := map[netip.Addr]bool{}
	blocks := []netip.Prefix{}
	o := netdef.Options{Reserved: []netip.Prefix{netip.MustParsePrefix("10.1.2.8/30")}, Gateways: []netip.Addr{netip.MustParseAddr("10.1.2.62")}}
	for i := range blockCount(s, s) {
		blocks = append(blocks, blockAt(s, s, i))
	}
	for {
		a, ok := pickAddr(o, s, blocks, func(a netip.Addr) bool { return used[a] })
		if !ok {
			break
		}
		used[a] = true
	}
	if len(used) != 64-3-4 {
		t.Errorf("%d addresses of a /26, want 57", len(used))
	}
	for _, text := range []string{"10.1.2.0", "10.1.2.8", "10.1.2.11", "10.1.2.62", "10.1.2.63"} {
		if used[netip.MustParseAddr(text)] {
			t.Errorf("reserved address %s was given out", text)
		}
	}
}
