package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

const (
	labVNI  = 77
	labPort = 4789
)

var (
	labSelf = netip.MustParseAddr("fd00::1")
	labPeer = netip.MustParseAddr("fd00::2")
)

// labMACs are the addresses of a frame, first whom it is for.
var labMACs = []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}

// tunLab is a VXLAN device whose peer is behind one of two links: one gives packets
// as they are to be on the wire, the other as they came.
type tunLab struct {
	t      *testing.T
	ns     *nl.Namespace
	h      *nl.Handle
	single *single
	pair   *pair
	links  map[string]netlink.Link
	raw    int // socket on the VXLAN device, of frames with a virtio header
}

func newTUNLab(t *testing.T) *tunLab {
	t.Helper()
	netlab.Require(t, netlab.FeatureNetns)
	lab, err := netlab.New("tun")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	box, err := lab.Container("box")
	if err != nil {
		t.Fatal(err)
	}
	l := &tunLab{t: t, ns: box.NS(), links: map[string]netlink.Link{}}
	if l.h, err = box.NS().Handle(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.h.Close)
	if err := errors.Join(l.open(), l.configure(), box.NS().Do(l.openRaw)); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *tunLab) open() error {
	var err error
	if l.pair, err = openPair(l.ns, Options{Name: "pair", Alias: "test"}, nil); err != nil {
		return err
	}
	l.t.Cleanup(func() { _ = l.pair.file.Close() })
	err = l.ns.Do(func() (err error) {
		l.single, err = openSingle("single", nil)
		return err
	})
	if err != nil {
		return err
	}
	l.t.Cleanup(func() { _ = l.single.file.Close() })
	return nil
}

func (l *tunLab) configure() error {
	err := l.h.LinkAdd(&netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: "vx", MTU: 1400, TxQLen: -1},
		VxlanId:   labVNI, SrcAddr: labSelf.AsSlice(), Group: labPeer.AsSlice(), Port: labPort, TTL: 64, UDPCSum: true,
	})
	if err != nil {
		return err
	}
	for _, name := range []string{"lo", "single", "pair", "vx"} {
		link, err := l.h.LinkByName(name)
		if err != nil {
			return err
		}
		l.links[name] = link
		if err := l.h.LinkSetUp(link); err != nil {
			return err
		}
	}
	err = l.h.AddrAdd(l.links["lo"], &netlink.Addr{IPNet: &net.IPNet{IP: labSelf.AsSlice(), Mask: net.CIDRMask(128, 128)}, Flags: unix.IFA_F_NODAD})
	if err != nil {
		return err
	}
	return l.h.WaitLocal(l.t.Context(), labSelf)
}

func (l *tunLab) openRaw() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	l.raw = fd
	l.t.Cleanup(func() { _ = unix.Close(fd) })
	return errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.links["vx"].Attrs().Index}))
}

// via sends what is for the peer to one of the links.
func (l *tunLab) via(name string) {
	l.t.Helper()
	err := l.h.RouteReplace(&netlink.Route{
		LinkIndex: l.links[name].Attrs().Index,
		Dst:       &net.IPNet{IP: labPeer.AsSlice(), Mask: net.CIDRMask(128, 128)},
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// send puts a frame with a virtio header onto the VXLAN device.
func (l *tunLab) send(frame []byte) {
	l.t.Helper()
	if _, err := unix.Write(l.raw, frame); err != nil {
		l.t.Fatal(err)
	}
}

// receive returns the next n packets that a link gives and that are of the overlay.
func (l *tunLab) receive(p packets, n int) (out [][]byte) {
	l.t.Helper()
	if err := p.File().SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		l.t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	for len(out) < n {
		size, err := p.Next(b, true)
		if err != nil {
			l.t.Fatalf("after %d packets of %d: %v", len(out), n, err)
		}
		// The kernel says hello to neighbours and routers by itself.
		if size > 70 && bytes.HasPrefix(b[56:], labMACs) {
			out = append(out, slices.Clone(b[:size]))
		}
	}
	return out
}

// superframe is a frame with payload bytes of TCP or UDP that are to go in pieces of size, with
// the header that PACKET_VNET_HDR takes.
func superframe(v6, udp bool, flags byte, payload, size int) []byte {
	transport := make([]byte, 20)
	protocol, at, typ := byte(unix.IPPROTO_TCP), 16, byte(unix.VIRTIO_NET_HDR_GSO_TCPV4)
	binary.BigEndian.PutUint32(transport[4:], 1<<32-1000)
	transport[12], transport[13] = 5<<4, flags
	if v6 {
		typ = unix.VIRTIO_NET_HDR_GSO_TCPV6
	}
	if udp {
		transport = make([]byte, 8)
		protocol, at, typ = unix.IPPROTO_UDP, 6, unix.VIRTIO_NET_HDR_GSO_UDP_L4
		binary.BigEndian.PutUint16(transport[4:], uint16(8+payload))
	}
	transport[1], transport[3] = 40, 80
	n := len(transport) + payload
	src, dst := []byte{10, 0, 0, 1}, []byte{10, 0, 0, 2}
	ip := []byte{0x45, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}
	etherType := []byte{8, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+n))
	binary.BigEndian.PutUint16(ip[10:], ^onesSum(ip))
	if v6 {
		src, dst = labSelf.AsSlice(), labPeer.AsSlice()
		ip = slices.Concat([]byte{0x60, 1, 2, 3, byte(n >> 8), byte(n), protocol, 64}, src, dst)
		etherType = []byte{0x86, 0xdd}
	}
	binary.BigEndian.PutUint16(transport[at:], onesSum(slices.Concat(src, dst, []byte{0, protocol, byte(n >> 8), byte(n)})))
	head := make([]byte, 10)
	head[0], head[1] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, typ
	binary.NativeEndian.PutUint16(head[2:], uint16(14+len(ip)+len(transport)))
	binary.NativeEndian.PutUint16(head[4:], uint16(size))
	binary.NativeEndian.PutUint16(head[6:], uint16(14+len(ip)))
	binary.NativeEndian.PutUint16(head[8:], uint16(at))
	data := make([]byte, payload)
	for i := range data {
		data[i] = byte(i * 31 >> 3)
	}
	return slices.Concat(head, labMACs, etherType, ip, transport, data)
}

func onesSum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	return uint16(s>>16 + s&0xffff)
}

// tagged puts a VLAN tag into a frame with a virtio header.
func tagged(frame []byte) []byte {
	const header = 10
	out := slices.Concat(frame[:header+12], []byte{0x81, 0, 0, 9}, frame[header+12:])
	for _, at := range []int{2, 6} { // length of headers, place of the checksum
		binary.NativeEndian.PutUint16(out[at:], binary.NativeEndian.Uint16(out[at:])+4)
	}
	return out
}

// TestSegmentsAreTheKernels sends the same frames through a link for which the kernel
// splits them, and through one for which we do: what leaves is the same, to the byte.
func TestSegmentsAreTheKernels(t *testing.T) {
	l := newTUNLab(t)
	const payload, size = 30_000, 1210
	const n = (payload + size - 1) / size
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			for _, flags := range []byte{0x10, 0x18, 0x19, 0x50, 0x90} {
				for _, tag := range []bool{false, true} {
					frame := superframe(v6, udp, flags, payload, size)
					if tag {
						frame = tagged(frame)
					}
					if flags == 0x90 && !udp {
						frame[1] |= unix.VIRTIO_NET_HDR_GSO_ECN
					}
					l.via("single")
					l.send(frame)
					want := l.receive(l.single, n)
					l.via("pair")
					l.send(frame)
					got := l.receive(l.pair, n)
					if d := cmp.Diff(want, got); d != "" {
						t.Errorf("v6 %v, udp %v, flags %#x, tag %v: ours differ from the kernel's:\n%s", v6, udp, flags, tag, d)
					}
				}
			}
		}
	}
}

// answer sends a frame through a link and returns its n packets as a peer sends them
// back. From now on hear hears.
func (l *tunLab) answer(link string, p packets, frame []byte, n int) [][]byte {
	l.t.Helper()
	l.via(link)
	l.send(frame)
	out := l.receive(p, n)
	for _, p := range out {
		swap := slices.Clone(p[8:24])
		copy(p[8:], p[24:40])
		copy(p[24:], swap)
	}
	l.listen()
	return out
}

// hear returns the next frame that arrives on the VXLAN device and has payload in it.
func (l *tunLab) hear() []byte {
	l.t.Helper()
	b := make([]byte, 1<<17)
	for {
		n, err := unix.Read(l.raw, b)
		if err != nil {
			l.t.Fatalf("nothing arrived: %v", err)
		}
		if n > 1000 { // not the kernel's own
			return b[10:n]
		}
	}
}

// listen lets hear hear, from now on.
func (l *tunLab) listen() {
	l.t.Helper()
	const all = 0x0300 // ETH_P_ALL as it is in a packet
	err := errors.Join(
		unix.SetsockoptTimeval(l.raw, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}),
		unix.Bind(l.raw, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.links["vx"].Attrs().Index}))
	if err != nil {
		l.t.Fatal(err)
	}
}

// TestArrives writes packets to either form of link as they came from a peer: the VXLAN device
// gets what is in them, to the byte, and in order. The kernel may join it on the way.
func TestArrives(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			for _, form := range []Form{Pair, Single} {
				t.Run(fmt.Sprintf("%s, v6=%v, udp=%v", form, v6, udp), func(t *testing.T) {
					const payload, size = 30_000, 1210
					headers := 14 + 20 + 20
					if v6 {
						headers += 20
					}
					if udp {
						headers += 8 - 20
					}
					l := newTUNLab(t)
					var link packets = l.pair
					if form == Single {
						link = l.single
					}
					frame := superframe(v6, udp, 0x18, payload, size)
					segments := l.answer(string(form), link, frame, (payload+size-1)/size)
					if n, err := link.Write(segments, 0); err != nil || n != len(segments) {
						t.Fatalf("wrote %d of %d packets: %v", n, len(segments), err)
					}
					var got []byte
					for len(got) < payload {
						got = append(got, l.hear()[headers:]...)
					}
					if !slices.Equal(got, frame[10+headers:]) {
						t.Errorf("%d bytes arrived, or others than were sent", len(got))
					}
				})
			}
		}
	}
}

// TestFormIsTheKernels: Linux 6.8.5 and later has what the fast form needs, and it is used;
// one before 6.2 has not, and drivers say so and work in the other form. What is between them has it
// if it is a stable kernel of 2024 or later.
func TestFormIsTheKernels(t *testing.T) {
	netlab.Require(t, netlab.FeatureNetns)
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	form, err := FormFor(t.Context(), "some", false)
	if err != nil {
		t.Fatal(err)
	}
	version := major*100 + minor
	if version >= 609 && form != Pair || version < 602 && form != Single {
		t.Errorf("on Linux %d.%d the form is %s", major, minor, form)
	}
	slower := Slower(t.Context(), "some", false)
	if (form == Pair) != (slower == nil) || slower != nil && !errors.Is(slower, tunnel.ErrNotSupported) {
		t.Errorf("the driver is in form %s and says: %v", form, slower)
	}
	if err := Slower(t.Context(), "some", true); err == nil || !strings.Contains(err.Error(), "since Linux 6.8.5") {
		t.Errorf("made to be slow, the driver says: %v", err)
	}
	if err := Probe(t.Context(), "some"); err != nil {
		t.Error(err)
	}
}
