package esp

import (
	"net/netip"
	"testing"
)

func TestOverhead(t *testing.T) {
	for addr, want := range map[string]int{"198.18.0.1": 57, "::ffff:198.18.0.1": 57, "fd00::1": 77} {
		for more, of := range map[int]func(netip.Addr) int{0: Overhead, 8: OverheadInUDP} {
			if got := of(netip.MustParseAddr(addr)); got != want+more {
				t.Errorf("on %s: %d, want %d", addr, got, want+more)
			}
		}
	}
}

// TestLongestInUDP: the longest packet fits, and one more byte does not. No
// underlay has less room than the greatest overhead leaves.
func TestLongestInUDP(t *testing.T) {
	for _, addr := range []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")} {
		header := 20 + 8 + 8 + 8 // IP, UDP, SPI and sequence number, IV
		if addr.Is6() {
			header += 20
		}
		size := func(packet int) int { return header + (packet+2+3)/4*4 + 16 }
		for mtu := 1400; mtu < 1420; mtu++ {
			got := LongestInUDP(addr, mtu)
			if size(got) > mtu || size(got+1) <= mtu || got < mtu-OverheadInUDP(addr) {
				t.Errorf("%d bytes of %d on %s", got, mtu, addr)
			}
		}
	}
}
