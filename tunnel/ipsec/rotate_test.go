package ipsec_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// TestRotation changes keys under load, in the order of agents: nothing is
// lost, and not one packet meets an association or policy that is missing.
func TestRotation(t *testing.T) {
	w := newWorld(t, 2)
	w.join(1)
	flows := []*netlab.Flow{w.flow(0, 1, 500, 200), w.flow(1, 0, 500, 200)}
	more := func() {
		for _, f := range flows {
			ok(t, f.WaitReceived(w.limit(), 20))
		}
	}
	more()
	stats := []map[string]int{w.nodes[0].xfrmStat(t), w.nodes[1].xfrmStat(t)}
	const rotations = 10
	for epoch := ids.Epoch(2); epoch < 2+rotations; epoch++ {
		w.addDevice(epoch, 1400)
		w.agree(epoch)
		// Receive before anybody sends.
		var out [2]ids.SPI
		for i := range w.nodes {
			k := w.nodes[i].key(w.nodes[1-i], epoch)
			out[i], k.ESP.Out = k.ESP.Out, 0
		}
		w.setAll()
		for i := range w.nodes {
			w.nodes[i].key(w.nodes[1-i], epoch).ESP.Out = out[i]
			w.set(i)
			w.nodes[i].forget()
		}
		for i := range w.nodes {
			w.route(i, 1-i, epoch)
			more()
		}
		// What was under way on the old epoch has arrived by now.
		for _, n := range w.nodes {
			n.endEpoch(epoch - 1)
		}
		w.setAll()
		more()
	}
	for _, f := range flows {
		r := w.finish(f)
		t.Logf("%d of %d packets arrived over %d key changes, longest gap %v", r.Received, r.Sent, rotations, r.LongestGap)
	}
	for i, n := range w.nodes {
		if bad := changed(stats[i], n.xfrmStat(t)); len(bad) != 0 {
			t.Errorf("node %d: errors %v", i, bad)
		}
	}
}

// endEpoch takes a device and its keys out of the spec.
func (n *node) endEpoch(epoch ids.Epoch) {
	var devices []tunnel.Device
	for _, d := range n.spec.Devices {
		if d.Epoch != epoch {
			devices = append(devices, d)
		}
	}
	n.spec.Devices = devices
	for i := range n.spec.Peers {
		var kept []tunnel.PeerKey
		for _, k := range n.spec.Peers[i].Keys {
			if k.Epoch != epoch {
				kept = append(kept, k)
			}
		}
		n.spec.Peers[i].Keys = kept
	}
}

// TestOtherKeySameEpoch replaces a pair's key on a device, and what is left
// afterwards is the new one only.
func TestOtherKeySameEpoch(t *testing.T) {
	w := newWorld(t, 3)
	w.join(1)
	undisturbed := w.flow(0, 2, 500, 100)
	ok(t, undisturbed.WaitReceived(w.limit(), 20))
	for range 3 {
		w.agreePair(0, 1, 1, netip.Addr.Is4)
		w.set(0)
		w.set(1)
		f := w.flow(0, 1, 500, 100)
		ok(t, f.WaitReceived(w.limit(), 20))
		w.finish(f)
		k := must(kernel(w.nodes[0].env.Host))(t)
		if all := snapshot(t, k); len(all) != 8 {
			t.Errorf("installed are %q", all)
		}
		_ = k.Close()
		if p, want := w.peer(0, 1, 1), w.nodes[0].key(w.nodes[1], 1); p.Key != want.Key || p.In != want.ESP.In || p.Out != want.ESP.Out {
			t.Errorf("peer %+v, want %s, %+v", p, want.Key, want.ESP)
		}
	}
	w.finish(undisturbed)
}

// TestRepair deletes single policies and associations behind the driver's back.
func TestRepair(t *testing.T) {
	w := newWorld(t, 3)
	w.join(1)
	n := w.nodes[0]
	for _, nd := range w.nodes {
		nd.forget()
	}
	k := must(kernel(n.env.Host))(t)
	defer func() { _ = k.Close() }()
	other := w.flow(2, 0, 200, 100)
	ok(t, other.WaitReceived(w.limit(), 5))

	for _, dir := range []netlink.Dir{netlink.XFRM_DIR_IN, netlink.XFRM_DIR_OUT} {
		for _, spoil := range []func(*netlink.XfrmPolicy){
			func(*netlink.XfrmPolicy) {}, // deleted for good
			func(p *netlink.XfrmPolicy) { p.Action = netlink.XFRM_POLICY_BLOCK; ok(t, k.XfrmPolicyAdd(p)) },
			func(p *netlink.XfrmPolicy) { p.Tmpls = nil; ok(t, k.XfrmPolicyAdd(p)) },
			func(p *netlink.XfrmPolicy) { p.Tmpls[0].Reqid++; ok(t, k.XfrmPolicyAdd(p)) },
		} {
			p := w.policyOf(k, n, w.nodes[1], dir)
			ok(t, k.XfrmPolicyDel(p))
			p.Index = 0
			spoil(p)
			if s := w.peer(0, 1, 1); s.In == 0 || s.Out == 0 || s.Key == 0 {
				t.Errorf("%s: without the policy the state is %+v", dir, s)
			}
			w.set(0)
			f := w.flow(0, 1, 200, 100)
			ok(t, f.WaitReceived(w.limit(), 5))
			w.finish(f)
			f = w.flow(1, 0, 200, 100)
			ok(t, f.WaitReceived(w.limit(), 5))
			w.finish(f)
		}
	}

	for _, in := range []bool{true, false} {
		esp := n.key(w.nodes[1], 1).ESP
		spi, dst := esp.Out, esp.Remote
		if in {
			spi, dst = esp.In, esp.Local
		}
		ok(t, k.XfrmStateDel(&netlink.XfrmState{Dst: dst.AsSlice(), Spi: int(spi), Proto: netlink.XFRM_PROTO_ESP}))
		s := w.peer(0, 1, 1)
		if in != (s.In == 0) || in != (s.Key == 0) || s.Out != 0 {
			t.Errorf("in %v: without the association the state is %+v", in, s)
		}
		for range 2 {
			err := n.driver.Set(w.ctx, n.spec)
			var pe *tunnel.PeerError
			if !errors.Is(err, tunnel.ErrSecretGone) || !errors.As(err, &pe) || pe.Peer != w.nodes[1].env.Node {
				t.Errorf("in %v: set says %v", in, err)
			}
		}
		w.agreePair(0, 1, 1, netip.Addr.Is4)
		w.set(0)
		w.set(1)
		n.forget()
		w.nodes[1].forget()
		f := w.flow(1, 0, 200, 100)
		ok(t, f.WaitReceived(w.limit(), 5))
		w.finish(f)
	}
	w.finish(other)
}

// policyOf finds the policy between a node and a peer.
func (w *world) policyOf(k *netlink.Handle, n, peer *node, dir netlink.Dir) *netlink.XfrmPolicy {
	w.t.Helper()
	for _, p := range must(k.XfrmPolicyList(netlink.FAMILY_V6))(w.t) {
		far := p.Dst
		if dir == netlink.XFRM_DIR_IN {
			far = p.Src
		}
		if p.Dir == dir && far.IP.Equal(peer.inner.AsSlice()) {
			return &p
		}
	}
	w.t.Fatalf("no policy %s for %s", dir, peer.inner)
	return nil
}

// TestNeverTwice gives the secret once more after the association was
// deleted: its sequence numbers must not begin again.
func TestNeverTwice(t *testing.T) {
	w := newWorld(t, 2)
	w.join(1)
	n := w.nodes[0]
	k := must(kernel(n.env.Host))(t)
	defer func() { _ = k.Close() }()
	w.set(0) // with the secrets still there
	ok(t, k.XfrmStateFlush(0))
	if err := n.driver.Set(w.ctx, n.spec); !errors.Is(err, tunnel.ErrSecretGone) {
		t.Errorf("set says %v", err)
	}
	// Nor after the device was ended and came back.
	spec := n.spec
	n.spec = tunnel.Spec{}
	w.set(0)
	n.spec = spec
	if err := n.driver.Set(w.ctx, n.spec); !errors.Is(err, tunnel.ErrSecretGone) {
		t.Errorf("set says %v", err)
	}
	// The same secret with other indices makes other keys.
	for i := range w.nodes {
		e := &w.nodes[i].key(w.nodes[1-i], 1).ESP
		e.In, e.Out = e.In^1, e.Out^1
	}
	w.setAll()
	w.routeAll(1)
	f := w.flow(0, 1, 500, 100)
	ok(t, f.WaitReceived(w.limit(), 20))
	w.finish(f)
	// An index that somebody else has asks for another agreement, too.
	esp := n.key(w.nodes[1], 1).ESP
	w.agreePair(0, 1, 1, netip.Addr.Is4)
	taken := n.key(w.nodes[1], 1)
	ok(t, k.XfrmStateAdd(&netlink.XfrmState{
		Src: esp.Remote.AsSlice(), Dst: esp.Local.AsSlice(), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL,
		Spi: int(taken.ESP.In), Reqid: 1, Aead: &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: make([]byte, keys.ESPKeySize), ICVLen: 128},
	}))
	if err := n.driver.Set(w.ctx, n.spec); !errors.Is(err, tunnel.ErrSecretGone) {
		t.Errorf("set says %v", err)
	}
	if u := must(k.XfrmStateGet(&netlink.XfrmState{Dst: esp.Local.AsSlice(), Spi: int(taken.ESP.In), Proto: netlink.XFRM_PROTO_ESP}))(t); u.Reqid != 1 {
		t.Errorf("the other's association has request ID %d", u.Reqid)
	}
	ok(t, k.XfrmStateFlush(0))
}
