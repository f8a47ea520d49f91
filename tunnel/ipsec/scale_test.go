package ipsec_test

import (
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/ipsec"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
)

// TestManyPeers installs 100 peers in two epochs, and does nothing to them any
// more when the same is set again. It reports the times; they are of an
// emulated machine.
func TestManyPeers(t *testing.T) {
	const peers, epochs = 100, 2
	w := newWorld(t, 1)
	n := w.nodes[0]
	for epoch := range ids.Epoch(epochs) {
		n.spec.Devices = append(n.spec.Devices, tunnel.Device{Epoch: epoch + 1, MTU: 1400})
	}
	for i, id := range tunneltest.Nodes(peers) {
		p := tunnel.Peer{ID: id, Inner: id.InnerAddr()}
		for epoch := range ids.Epoch(epochs) {
			raw := make([]byte, 32)
			_, _ = rand.Read(raw) // never fails
			secret := must(keys.TunnelSecretFromRaw32(raw))(t)
			spi := ids.SPI(1<<16*(int(epoch)+1) + i)
			p.Keys = append(p.Keys, tunnel.PeerKey{Epoch: epoch + 1, Key: secret.ID(), Secret: secret, ESP: tunnel.ESP{
				Local: n.host.V4(), Remote: netip.AddrFrom4([4]byte{198, 18, 9, byte(i)}), In: spi, Out: spi,
			}})
		}
		n.spec.Peers = append(n.spec.Peers, p)
	}
	timed := func(what string, do func()) {
		start := time.Now()
		do()
		t.Logf("%s: %v", what, time.Since(start).Round(100*time.Microsecond))
	}
	k := must(kernel(n.env.Host))(t)
	defer func() { _ = k.Close() }()
	timed("install 400 associations and policies", func() { w.set(0) })
	n.forget()
	before := snapshot(t, k)
	if len(before) != 4*peers*epochs {
		t.Fatalf("%d associations and policies", len(before))
	}
	changes := must(watch(n.env.Host))(t)
	for range 3 {
		timed("set again", func() { w.set(0) })
	}
	timed("state", func() { _ = must(n.driver.State(w.ctx))(t) })
	ok(t, n.driver.Close())
	n.driver = must(ipsec.Kind(ipsec.Options{}).Open(w.ctx, n.env))(t)
	timed("set after a restart", func() { w.set(0) })
	if n := must(changes())(t); n != 0 {
		t.Errorf("the kernel told of %d changes", n)
	}
	timed("remove", func() { ok(t, n.driver.Remove(w.ctx)) })
	if left := snapshot(t, k); len(left) != 0 {
		t.Errorf("left behind: %d", len(left))
	}
}
