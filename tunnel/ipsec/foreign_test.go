package ipsec_test

import (
	"crypto/sha256"
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel/ipsec"
)

// TestForeignObjects runs devices beside what an IKE daemon would have made,
// with everything chosen so as to be taken for ours by mistake.
func TestForeignObjects(t *testing.T) {
	w := newWorld(t, 2)
	n := w.nodes[0]
	k := must(kernel(n.env.Host))(t)
	defer func() { _ = k.Close() }()
	foreign(t, k, n, w.nodes[1])
	before := snapshot(t, k)
	if len(before) != 10 {
		t.Fatalf("foreign objects: %q", before)
	}
	// Devices come, rotate, are adopted and go.
	for epoch := ids.Epoch(1); epoch <= 3; epoch++ {
		w.join(epoch)
		f := w.flow(0, 1, 500, 100)
		ok(t, f.WaitReceived(w.limit(), 20))
		w.finish(f)
		for _, nd := range w.nodes {
			nd.forget()
			ok(t, nd.driver.Close())
			nd.driver = must(ipsec.Kind(ipsec.Options{}).Open(w.ctx, nd.env))(t)
			ok(t, nd.driver.Set(w.ctx, nd.spec))
		}
	}
	if diff := cmp.Diff(before, others(snapshot(t, k), before)); diff != "" {
		t.Errorf("while devices exist (-before +now):\n%s", diff)
	}
	// The first device had to do with another interface ID.
	if id := ifID(t, n, 1); id == ipsec.DeriveIfID(n.env.Node, 1, 0, 0) || id != ipsec.DeriveIfID(n.env.Node, 1, 0, 2) {
		t.Errorf("interface ID %08x is taken", id)
	}
	if id := ifID(t, n, 2); id != ipsec.DeriveIfID(n.env.Node, 2, 0, 0) {
		t.Errorf("interface ID of the second device is %08x", id)
	}
	ok(t, n.driver.Remove(w.ctx))
	if diff := cmp.Diff(before, snapshot(t, k)); diff != "" {
		t.Errorf("after the removal (-before +now):\n%s", diff)
	}
	for _, l := range must(k.LinkList())(t) {
		if l.Type() == "xfrm" {
			ok(t, k.LinkDel(l))
		}
	}
	ok(t, k.XfrmPolicyFlush())
	ok(t, k.XfrmStateFlush(0))
}

// foreign makes associations and policies of others: without and with an
// interface ID, with ours and its second choice, between inner addresses of
// two strangers, and from one to the peer's.
func foreign(t *testing.T, k *netlink.Handle, n, peer *node) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "ipsec0"
	// Its ID is what the node's first device would choose first; a policy
	// without an interface has the second one.
	first, second := ipsec.DeriveIfID(n.env.Node, 1, 0, 0), ipsec.DeriveIfID(n.env.Node, 1, 0, 1)
	ok(t, k.LinkAdd(&netlink.Xfrmi{LinkAttrs: attrs, Ifid: first}))
	stranger := &net.IPNet{IP: net.ParseIP("fd00::1"), Mask: net.CIDRMask(128, 128)}
	other := &net.IPNet{IP: net.ParseIP("fd00::2"), Mask: net.CIDRMask(128, 128)}
	theirs := &net.IPNet{IP: peer.inner.AsSlice(), Mask: net.CIDRMask(128, 128)}
	wide := &net.IPNet{IP: net.ParseIP("fd00::"), Mask: net.CIDRMask(8, 128)}
	v4 := &net.IPNet{IP: net.ParseIP("192.0.2.0").To4(), Mask: net.CIDRMask(24, 32)}
	for i, p := range []struct {
		src, dst *net.IPNet
		ifID     uint32
	}{{v4, v4, 0}, {wide, wide, 0}, {stranger, other, first}, {stranger, theirs, second}, {wide, theirs, 7}} {
		outer := net.IPv4(198, 18, 0, 1).To4()
		key := make([]byte, 36)
		key[0] = byte(i + 1)
		ok(t, k.XfrmStateAdd(&netlink.XfrmState{
			Src: outer, Dst: net.IPv4(198, 18, 0, 2).To4(), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL,
			Spi: 0x1000 + i, Reqid: i + 1, Ifid: int(p.ifID), ESN: true, ReplayWindow: 64,
			Selector: &netlink.XfrmPolicy{Src: p.src, Dst: p.dst},
			Aead:     &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: key, ICVLen: 128},
		}))
		ok(t, k.XfrmPolicyAdd(&netlink.XfrmPolicy{
			Src: p.src, Dst: p.dst, Dir: netlink.XFRM_DIR_OUT, Ifid: int(p.ifID), Priority: 1000,
			Tmpls: []netlink.XfrmPolicyTmpl{{
				Src: outer, Dst: net.IPv4(198, 18, 0, 2).To4(), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL, Reqid: i + 1,
			}},
		}))
	}
}

// snapshot describes all associations and policies: what identifies them, when
// they were made, and a hash of their keys.
func snapshot(t *testing.T, k *netlink.Handle) []string {
	t.Helper()
	var out []string
	for _, s := range must(k.XfrmStateList(netlink.FAMILY_ALL))(t) {
		out = append(out, fmt.Sprintf("association %08x %s to %s request %d interface %08x key %.8x selector %s to %s made %d window %d",
			uint32(s.Spi), s.Src, s.Dst, s.Reqid, uint32(s.Ifid), sha256.Sum256(s.Aead.Key), s.Selector.Src, s.Selector.Dst,
			s.Statistics.AddTime, s.ReplayWindow))
	}
	for _, p := range must(k.XfrmPolicyList(netlink.FAMILY_ALL))(t) {
		out = append(out, fmt.Sprintf("policy %d %s %s to %s interface %08x priority %d request %d",
			p.Index, p.Dir, p.Src, p.Dst, uint32(p.Ifid), p.Priority, p.Tmpls[0].Reqid))
	}
	slices.Sort(out)
	return out
}

// others returns the entries of now that were there before.
func others(now, before []string) []string {
	return slices.DeleteFunc(now, func(s string) bool { return !slices.Contains(before, s) })
}

// ifID reads the interface ID of a node's device.
func ifID(t *testing.T, n *node, epoch ids.Epoch) uint32 {
	t.Helper()
	h := must(n.env.Secure.Handle())(t)
	defer h.Close()
	return must(h.LinkByName(n.device(epoch)))(t).(*netlink.Xfrmi).Ifid
}

// TestAdoption closes and opens drivers again and again: nothing in the kernel
// may change, be made anew or be deleted.
func TestAdoption(t *testing.T) {
	w := newWorld(t, 3)
	w.join(1)
	w.join(2)
	k := must(kernel(w.nodes[0].env.Host))(t)
	defer func() { _ = k.Close() }()
	before, link := snapshot(t, k), index(t, w.nodes[0].env.Secure, w.nodes[0].device(1))
	if len(before) != 16 {
		t.Errorf("%d associations and policies, want 16: two of each for two peers in two epochs", len(before))
	}
	changes := must(watch(w.nodes[0].env.Host))(t)
	f := w.flow(1, 0, 500, 100)
	w.nodes[0].forget()
	for range 5 {
		ok(t, f.WaitReceived(w.limit(), 20))
		ok(t, w.nodes[0].driver.Close())
		ok(t, f.WaitReceived(w.limit(), 20))
		w.nodes[0].driver = must(ipsec.Kind(ipsec.Options{}).Open(w.ctx, w.nodes[0].env))(t)
		w.set(0)
		w.set(0)
	}
	w.finish(f)
	if n := must(changes())(t); n != 0 {
		t.Errorf("the kernel told of %d changes", n)
	}
	if diff := cmp.Diff(before, snapshot(t, k)); diff != "" {
		t.Errorf("after the adoption (-before +now):\n%s", diff)
	}
	if i := index(t, w.nodes[0].env.Secure, w.nodes[0].device(1)); i != link {
		t.Errorf("the link was made anew")
	}
	// What a driver that knows nothing removes is all of it.
	ok(t, w.nodes[0].driver.Close())
	w.nodes[0].driver = must(ipsec.Kind(ipsec.Options{}).Open(w.ctx, w.nodes[0].env))(t)
	ok(t, w.nodes[0].driver.Remove(w.ctx))
	if left := snapshot(t, k); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	if n := must(changes())(t); n == 0 {
		t.Error("the removal was not seen: the watch sees nothing")
	}
}

func index(t *testing.T, ns *nl.Namespace, link string) int {
	t.Helper()
	h := must(ns.Handle())(t)
	defer h.Close()
	return must(h.LinkByName(link))(t).Attrs().Index
}
