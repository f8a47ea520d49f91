package nl

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestWaitLocal(t *testing.T) {
	requireRoot(t)
	path := filepath.Join(t.TempDir(), "ns")
	ns, err := CreateNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close(); _ = RemoveNamespace(path) })
	h, err := ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("fd00::1")
	short, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	if err := h.WaitLocal(short, addr); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("wait for an address that is not there: %v", err)
	}
	for range 20 {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(128, 128)}, Flags: unix.IFA_F_NODAD}
		if err := h.AddrAdd(lo, a); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if err := h.WaitLocal(ctx, addr); err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := ns.Do(func() error {
			c, err := net.ListenUDP("udp6", &net.UDPAddr{IP: addr.AsSlice()})
			if err == nil {
				err = c.Close()
			}
			return err
		}); err != nil {
			t.Fatalf("bind after the wait: %v", err)
		}
		if err := h.AddrDel(lo, a); err != nil {
			t.Fatal(err)
		}
		addr = addr.Next()
	}
}
