package wgkernel_test

import (
	"context"
	"errors"
	"testing"

	"go.uber.org/goleak"

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
	tunneltest.Run(t, tunneltest.Harness{Kind: wgkernel.Kind(), Hosts: tunneltest.Namespaces})
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

// TestSelectPassesOver lets the table of drivers choose on this machine.
func TestSelectPassesOver(t *testing.T) {
	netlab.Require(t, netlab.FeatureNetns)
	fake := tunneltest.NewFabric().Kind()
	kind, refused, err := tunnel.Select(context.Background(), tunnel.Env{}, []tunnel.Kind{wgkernel.Kind(), fake})
	if err != nil {
		t.Fatal(err)
	}
	switch kind.Name {
	case wgkernel.Name:
		if len(refused) != 0 {
			t.Errorf("refused %v although the first works", refused)
		}
	case fake.Name:
		if len(refused) != 1 || !errors.Is(refused[0].Err, tunnel.ErrNotSupported) {
			t.Errorf("refused %v", refused)
		}
	default:
		t.Errorf("chose %q", kind.Name)
	}
}
