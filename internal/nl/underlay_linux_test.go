package nl

import (
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestUnderlay reads addresses and routes of a namespace with one veth pair.
func TestUnderlay(t *testing.T) {
	requireRoot(t)
	path := filepath.Join(t.TempDir(), "host")
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

	far := netip.MustParseAddr("192.0.2.1")
	if _, err := h.RouteTo(far); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("route in an empty namespace: %v, want ENETUNREACH", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "a0", 1450
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "a1", PeerMTU: 1450}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a0", "a1"} {
		link, err := h.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
	}
	link, _ := h.LinkByName("a0")
	for _, text := range []string{"198.18.0.1/16", "fd00:198:18::1/64"} {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := h.AddrAdd(link, addr); err != nil {
			t.Fatal(err)
		}
	}
	got, err := h.GlobalAddrs()
	if err != nil || len(got) != 2 {
		t.Fatalf("addresses = %v, %v; want two", got, err)
	}
	want := Address{Addr: netip.MustParseAddr("198.18.0.1"), Device: "a0", MTU: 1450}
	if got[0] != want {
		t.Errorf("first address = %v, want %v", got[0], want)
	}
	// An endpoint of an overlay network in the host is no way to the host.
	overlay := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "b0"}}
	if err := errors.Join(h.LinkAdd(overlay), h.LinkSetAlias(overlay, "secure-overlay/x/endpoint/y"), h.LinkSetUp(overlay),
		h.AddrAdd(overlay, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 0, 0, 1), Mask: net.CIDRMask(24, 32)}})); err != nil {
		t.Fatal(err)
	}
	if got, err := h.GlobalAddrs(); err != nil || len(got) != 2 {
		t.Errorf("addresses beside an overlay endpoint = %v, %v; want two", got, err)
	}
	for dst, src := range map[string]string{"198.18.9.9": "198.18.0.1", "fd00:198:18::9": "fd00:198:18::1"} {
		r, err := h.RouteTo(netip.MustParseAddr(dst))
		if err != nil || r != (Route{Device: "a0", Source: netip.MustParseAddr(src), MTU: 1450}) {
			t.Errorf("route to %s = %+v, %v", dst, r, err)
		}
	}
	_, narrow, _ := net.ParseCIDR("198.18.7.0/24")
	if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: narrow, MTU: 1400}); err != nil {
		t.Fatal(err)
	}
	if r, err := h.RouteTo(netip.MustParseAddr("198.18.7.7")); err != nil || r.MTU != 1400 {
		t.Errorf("route with an MTU of its own = %+v, %v", r, err)
	}
}
