package wguser_test

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/tunnel"
)

// TestForeignVethIsLeftAlone: a veth link in the secure namespace that has a tunnel's name and not its
// mark is somebody else's, for the driver as for the firewall's owner.
func TestForeignVethIsLeftAlone(t *testing.T) {
	n := newNode(t)
	n.set()
	h, err := n.host.Env.Secure.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	name := tunnel.DeviceName(n.host.Env.Node, 2, 0)
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "far"}); err != nil {
		t.Fatal(err)
	}
	n.set()
	foreign, err := h.LinkByName(name)
	if err != nil {
		t.Fatalf("it is gone: %v", err)
	}
	if err := h.LinkDel(foreign); err != nil {
		t.Fatal(err)
	}
}
