package tunneltest_test

import (
	"net/netip"
	"testing"

	"go.uber.org/goleak"

	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFakeConformance(t *testing.T) {
	f := tunneltest.NewFabric()
	tunneltest.Run(t, tunneltest.Harness{Kind: f.Kind(), Hosts: hosts(f), InProcess: true})
}

func TestFakeESPConformance(t *testing.T) {
	f := tunneltest.NewFabric()
	tunneltest.Run(t, tunneltest.Harness{Kind: f.ESPKind(0), Hosts: hosts(f), Keyless: true, NoPort: true, InProcess: true})
}

func TestFakeESPInUDPConformance(t *testing.T) {
	f := tunneltest.NewFabric()
	tunneltest.Run(t, tunneltest.Harness{Kind: f.ESPKind(4500), Hosts: hosts(f), Keyless: true, InUDP: true, NoPort: true, InProcess: true})
}

func TestFakeUserESPConformance(t *testing.T) {
	f := tunneltest.NewFabric()
	tunneltest.Run(t, tunneltest.Harness{Kind: f.UserESPKind(), Hosts: hosts(f), Keyless: true, InUDP: true, InProcess: true})
}

// hosts makes hosts in a fabric.
func hosts(f *tunneltest.Fabric) func(*testing.T, int) []*tunneltest.Host {
	next := netip.MustParseAddr("198.18.0.0")
	next6 := netip.MustParseAddr("fd00:198:18::")
	return func(_ *testing.T, n int) []*tunneltest.Host {
		var out []*tunneltest.Host
		for _, node := range tunneltest.Nodes(n) {
			next, next6 = next.Next(), next6.Next()
			out = append(out, &tunneltest.Host{
				Env:      tunnel.Env{Node: node},
				Underlay: []netip.Addr{next, next6},
				Net:      f.AddHost(node, next, next6),
			})
		}
		return out
	}
}
