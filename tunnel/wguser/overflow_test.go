package wguser_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/tunnel"
)

// TestOverflowIsCounted: packets that find no room while the worker has no processor are in the state.
func TestOverflowIsCounted(t *testing.T) {
	n := newNode(t)
	n.set()
	dropped := func() map[string]uint64 {
		t.Helper()
		s, err := n.driver.State(t.Context())
		if err != nil || len(s.Devices) != 1 {
			t.Fatalf("state %+v, %v", s, err)
		}
		return s.Devices[0].Dropped
	}
	if d := dropped(); d == nil || len(d) != 0 {
		t.Errorf("before anything was sent: dropped %v, want none, counted", d)
	}
	link, _ := n.link()
	if _, single := link.(*netlink.Tuntap); single {
		return // its own statistics say it
	}
	pid := n.worker()
	stop(t, pid)
	err := n.host.Env.Secure.Do(func() error { return flood(link.Attrs().Index) })
	if err := errors.Join(err, unix.Kill(pid, unix.SIGCONT)); err != nil {
		t.Fatal(err)
	}
	if d := dropped(); d[tunnel.Overflow] == 0 {
		t.Errorf("dropped %v, want some as %q", d, tunnel.Overflow)
	}
}

// flood sends 64 MiB of TCP in packets of 64 KiB that are yet to be split out of a link of the thread's
// namespace.
func flood(link int) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	const header, ip, tcp, payload = 10, 10 + 14, 10 + 14 + 40, 60_000
	b := make([]byte, tcp+20+payload)
	b[0], b[1] = unix.VIRTIO_NET_HDR_F_NEEDS_CSUM, unix.VIRTIO_NET_HDR_GSO_TCPV6
	for at, v := range map[int]uint16{2: tcp + 20 - header, 4: 1200, 6: tcp - header, 8: 16} {
		binary.NativeEndian.PutUint16(b[at:], v)
	}
	b[ip-2], b[ip-1], b[ip], b[ip+6], b[ip+7], b[tcp+12] = 0x86, 0xdd, 6<<4, unix.IPPROTO_TCP, 64, 5<<4
	binary.BigEndian.PutUint16(b[ip+4:], 20+payload)
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link}))
	for sent := 0; err == nil && sent < 64<<20; sent += payload {
		_, err = unix.Write(fd, b)
	}
	return err
}
