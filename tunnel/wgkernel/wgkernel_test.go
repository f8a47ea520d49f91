package wgkernel_test

import (
	"context"
	"crypto/rand"
	"errors"
	"net/netip"
	"testing"

	"go.uber.org/goleak"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
	"github.com/secure-overlay/secure-overlay/tunnel/wgkernel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestConformance needs a kernel with WireGuard. Where the machine has none,
// test/vm runs it in a virtual machine.
func TestConformance(t *testing.T) {
	netlab.Require(t, netlab.FeatureWireGuard)
	tunneltest.Run(t, tunneltest.Harness{Kind: wgkernel.Kind(), Hosts: tunneltest.Namespaces, Marks: true})
}

// TestProbe runs on any kernel: it works, or it says what is missing.
func TestProbe(t *testing.T) {
	netlab.Require(t, netlab.FeatureNetns)
	err := wgkernel.Kind().Probe(context.Background(), tunnel.Env{})
	if err == nil {
		return
	}
	var missing *tunnel.UnsupportedError
	if !errors.As(err, &missing) {
		t.Fatalf("probe: %v", err)
	}
	if missing.Driver != wgkernel.Name || missing.Since != "Linux 5.6" || missing.Feature == "" || missing.Err == nil {
		t.Errorf("probe names %+v", missing)
	}
}

// TestManyPeers has more peers than go into one message, and replaces all of
// their secrets at once.
func TestManyPeers(t *testing.T) {
	netlab.Require(t, netlab.FeatureWireGuard)
	host := tunneltest.Namespaces(t, 1)[0]
	d, err := wgkernel.Kind().Open(t.Context(), host.Env)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(d.Remove(context.Background()), d.Close()); err != nil {
			t.Error(err)
		}
	}()
	spec := tunnel.Spec{Devices: []tunnel.Device{{Epoch: 1, Port: 51871, MTU: 1400}}}
	want := map[ids.NodeID]keys.KeyID{}
	for _, id := range tunneltest.Nodes(200) {
		k := tunnel.PeerKey{Epoch: 1, Endpoint: netip.MustParseAddrPort("198.18.0.9:51871")}
		_, _ = rand.Read(k.Public[:])
		spec.Peers = append(spec.Peers, tunnel.Peer{ID: id, Inner: id.InnerAddr(), Keys: []tunnel.PeerKey{k}})
	}
	for range 3 {
		for i, p := range spec.Peers {
			raw := make([]byte, 32)
			_, _ = rand.Read(raw)
			secret, err := keys.TunnelSecretFromRaw32(raw)
			if err != nil {
				t.Fatal(err)
			}
			spec.Peers[i].Keys[0].Secret, spec.Peers[i].Keys[0].Key = secret, secret.ID()
			want[p.ID] = secret.ID()
		}
		if err := d.Set(t.Context(), spec); err != nil {
			t.Fatal(err)
		}
		s, err := d.State(t.Context())
		if err != nil || len(s.Devices) != 1 || len(s.Devices[0].Peers) != len(want) {
			t.Fatalf("state: %v, %d peers", err, len(s.Devices[0].Peers))
		}
		for _, p := range s.Devices[0].Peers {
			if p.Key != want[p.ID] || p.Inner != p.ID.InnerAddr() || p.Endpoint.Port() != 51871 {
				t.Errorf("peer %s: key %s at %s from %s, want key %s", p.ID, p.Key, p.Inner, p.Endpoint, want[p.ID])
			}
		}
	}
}
