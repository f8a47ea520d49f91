package espuser

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMarks has the table of RFC 6040, figure 4.
func TestMarks(t *testing.T) {
	const drop = 99
	want := map[ecn][4]ecn{ // by outer mark
		//      not-ECT, ECT(1), ECT(0), CE inside
		notECT: {notECT, ect1, ect0, ce},
		ect1:   {notECT, ect1, ect1, ce},
		ect0:   {notECT, ect1, ect0, ce},
		ce:     {drop, ce, ce, ce},
	}
	for outer, row := range want {
		for inner, want := range row {
			p := innerPacket(labSelf, labPeer, 60, 1)
			p[0], p[1] = 0x6a, byte(inner)<<4|0xc5 // class and flow label around it
			before := slices.Clone(p)
			got := ecn(drop)
			if outer.copyTo(p) {
				got = ecnOf(p)
			}
			p[1] = p[1]&^0x30 | before[1]&0x30
			if got != want || !slices.Equal(p, before) {
				t.Errorf("outer %d, inner %d: %d, want %d, or more was changed", outer, inner, got, want)
			}
		}
	}
}

// TestMarkTravels: a mark goes with packets through the kernel, for both families, alone and several in one
// call.
func TestMarkTravels(t *testing.T) {
	for name, at := range map[string]unix.Sockaddr{
		"IPv4": &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}, "IPv6": &unix.SockaddrInet6{Addr: [16]byte{15: 1}},
	} {
		for mark := range ecn(4) {
			for _, n := range []int{1, 3} {
				t.Run(fmt.Sprintf("%s, mark %d, %d packets", name, mark, n), func(t *testing.T) {
					s, err := newSocket(at)
					if err != nil {
						t.Fatal(err)
					}
					defer s.close()
					own, err := unix.Getsockname(int(s.file.Fd()))
					if err != nil {
						t.Fatal(err)
					}
					to := netip.AddrPort{}
					switch own := own.(type) {
					case *unix.SockaddrInet4:
						to = netip.AddrPortFrom(netip.AddrFrom4(own.Addr), uint16(own.Port))
					case *unix.SockaddrInet6:
						to = netip.AddrPortFrom(netip.AddrFrom16(own.Addr), uint16(own.Port))
					}
					control := ecnMessage(sourceMessage(to.Addr()), to.Addr().Is4(), mark)
					if n > 1 {
						control = segmentMessage(control, 100)
					}
					if err := newTransmission().send(s, make([]byte, 100*n), control, rawAddr(to)); err != nil {
						t.Fatal(err)
					}
					r := newReception(s)
					for got := 0; got < 100*n; {
						b, size, is, err := r.next()
						if err != nil || size != 100 || is != mark {
							t.Fatalf("%d bytes in packets of %d, mark %d, %v", len(b), size, is, err)
						}
						got += len(b)
					}
				})
			}
		}
	}
}

// TestCongestionArrives: what is marked on the way arrives marked, or is dropped and counted, and what is not marked
// is as it was sent.
func TestCongestionArrives(t *testing.T) {
	a, b := lab(t)
	packet := func(mark ecn, fill byte) []byte {
		p := innerPacket(labSelf, labPeer, 200, fill)
		p[1] = byte(mark) << 4
		return p
	}
	burst := [][]byte{packet(notECT, 1), packet(ect0, 2), packet(ect1, 3), packet(ce, 4)}
	a.send(t, [][][]byte{burst}, false)
	for _, want := range burst {
		if got := b.heap.next(t); !slices.Equal(got, want) {
			t.Errorf("got % x, want % x", got[:2], want[:2])
		}
	}
	// A router marks what is on its way.
	s := newSender(&feed{[][][]byte{{packet(notECT, 5), packet(ect0, 6)}, {}}}, &a.table, &a.ends, &a.dropped)
	if err := s.fill(); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	for i := range s.batch {
		if s.batch[i].ecn != ecn(2*i) {
			t.Errorf("packet %d is sent with mark %d", i, s.batch[i].ecn)
		}
		s.batch[i].ecn = ce
	}
	s.flush()
	want := packet(ce, 6)
	if got := b.heap.next(t); !slices.Equal(got, want) {
		t.Errorf("got % x, want % x", got[:2], want[:2])
	}
	if n := b.dropped.read()[dropCongested]; n != 1 {
		t.Errorf("%d packets were dropped for their mark, want 1", n)
	}
}
