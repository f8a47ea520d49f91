package netlab

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestCaptureSeesMarkers(t *testing.T) {
	l := newLab(t, "capture")
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	newHost(t, l, "c")
	ctx := within(t, 60*time.Second)
	all, err := l.CaptureAll(ContainsMarker(testMarker))
	if err != nil {
		t.Fatal(err)
	}
	sent, err := l.CaptureSent(ContainsMarker(testMarker))
	if err != nil {
		t.Fatal(err)
	}
	other, err := OpenCapture(a.NS(), HostLink, ContainsMarker([]byte("not in any packet")))
	if err != nil {
		t.Fatal(err)
	}
	for _, dst := range []netip.Addr{b.V4(), b.V6()} {
		if r, err := Ping(ctx, a.NS(), dst, PingOptions{Count: 3, Interval: time.Millisecond, Marker: testMarker}); err != nil || r.Received != 3 {
			t.Fatalf("ping %s = %+v, %v", dst, r, err)
		}
	}
	if got := all.Host("a").Stop(); got.Matched != 12 || got.Dropped != 0 {
		t.Errorf("a's port: %+v, want 12 matched: 3 requests and 3 replies of each family", got)
	}
	if got := all.Stop(); got.Matched != 24 {
		t.Errorf("all ports: %+v, want 24 matched", got)
	}
	if got := sent.Stop(); got.Matched != 12 {
		t.Errorf("all ports, what hosts send: %+v, want 12 matched", got)
	}
	if got := other.Stop(); got.Matched != 0 || got.Frames < 12 {
		t.Errorf("another marker: %+v", got)
	}
}

// A capture must look into segments that the kernel has not cut yet, and keep
// up with a transfer at full speed.
func TestCaptureWholeSuperpackets(t *testing.T) {
	l := newLab(t, "gso")
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	ctx := within(t, 60*time.Second)
	var largest int
	c, err := OpenCapture(l.Switch().NS(), a.Port(), func(f []byte) bool {
		largest = max(largest, len(f)) // one goroutine; read after Stop
		return ContainsMarker(testMarker)(f)
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := TCPTransfer(ctx, a.NS(), b.NS(), netip.AddrPortFrom(b.V4(), 0), TransferOptions{Bytes: 64 << 20, Marker: testMarker})
	if err != nil {
		t.Fatal(err)
	}
	got := c.Stop()
	if got.Dropped != 0 || got.Bytes < uint64(r.Bytes) || got.Matched == 0 {
		t.Errorf("counts = %+v for %d bytes", got, r.Bytes)
	}
	if largest < 10000 {
		t.Errorf("the largest frame had %d bytes: no superpacket was examined", largest)
	}
	t.Logf("%.0f Mbit/s under capture, %d frames, largest %d bytes", r.MbitPerS, got.Frames, largest)
}

func TestCaptureOfVanishingLink(t *testing.T) {
	l := newLab(t, "vanish")
	a := newHost(t, l, "a")
	c, err := OpenCapture(l.Switch().NS(), a.Port(), Any())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Remove(a.Box); err != nil {
		t.Fatal(err)
	}
	c.Stop()
	if _, err := OpenCapture(l.Switch().NS(), "nosuch", Any()); err == nil {
		t.Error("a capture on no link was opened")
	}
}

func TestInjector(t *testing.T) {
	l := newLab(t, "inject")
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	ctx := within(t, 30*time.Second)
	in, err := OpenInjector(a.NS())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.Close() })
	for _, tc := range []struct {
		name  string
		src   netip.AddrPort
		bind  netip.AddrPort
		frame bool
	}{
		{"v4 spoofed", netip.MustParseAddrPort("198.18.0.77:4789"), netip.AddrPortFrom(b.V4(), 4789), false},
		{"v6 spoofed", netip.MustParseAddrPort("[fd00:198:18::77]:4789"), netip.AddrPortFrom(b.V6(), 4789), false},
		{"v4 frame", netip.MustParseAddrPort("198.18.0.78:1"), netip.AddrPortFrom(b.V4(), 4789), true},
		{"v6 frame", netip.MustParseAddrPort("[fd00:198:18::78]:1"), netip.AddrPortFrom(b.V6(), 4789), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var rx *net.UDPConn
			if err := b.NS().Do(func() (err error) {
				rx, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(tc.bind))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = rx.Close() }()
			payload := VXLANPayload(42, testMarker)
			if tc.frame {
				// The destination's MAC address is not known here: broadcast.
				err = in.Frame(HostLink, EthernetFrame([6]byte{2, 0, 0, 0, 0, 1},
					[6]byte{255, 255, 255, 255, 255, 255}, UDPPacket(tc.src, tc.bind, payload)))
			} else {
				err = in.UDP(tc.src, tc.bind, payload)
			}
			if err != nil {
				t.Fatal(err)
			}
			deadline, _ := ctx.Deadline()
			_ = rx.SetReadDeadline(deadline)
			buf := make([]byte, 2000)
			n, from, err := rx.ReadFromUDPAddrPort(buf)
			if err != nil || from != tc.src || string(buf[:n]) != string(payload) {
				t.Errorf("received %q from %s, %v", buf[:n], from, err)
			}
		})
	}
	if err := in.UDP(netip.AddrPortFrom(a.V4(), 1), netip.AddrPortFrom(b.V6(), 1), nil); err == nil {
		t.Error("two families were taken")
	}
}

func TestUDPPortMatcher(t *testing.T) {
	v4 := func(a string) netip.AddrPort { return netip.MustParseAddrPort(a) }
	frame := func(src, dst string) []byte {
		return EthernetFrame([6]byte{}, [6]byte{}, UDPPacket(v4(src), v4(dst), []byte("x")))
	}
	m := UDPPort(51871)
	for _, tc := range []struct {
		name  string
		frame []byte
		want  bool
	}{
		{"v4 destination", frame("198.18.0.1:9", "198.18.0.2:51871"), true},
		{"v4 source", frame("198.18.0.1:51871", "198.18.0.2:9"), true},
		{"v6", frame("[::1]:51871", "[::2]:9"), true},
		{"other port", frame("198.18.0.1:9", "198.18.0.2:4789"), false},
		{"cut", frame("198.18.0.1:9", "198.18.0.2:51871")[:40], false},
		{"ARP", append(make([]byte, 12), 8, 6, 0, 1), false},
		{"empty", nil, false},
	} {
		if got := m(tc.frame); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
	if All(Any(), m)(nil) || !All(Any(), Any())(nil) {
		t.Error("All is not the conjunction")
	}
}
