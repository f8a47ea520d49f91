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
	next := netip.MustParseAddr("198.18.0.0")
	next6 := netip.MustParseAddr("fd00:198:18::")
	tunneltest.Run(t, tunneltest.Harness{
		Kind: f.Kind(),
		Hosts: func(_ *testing.T, n int) []*tunneltest.Host {
			var hosts []*tunneltest.Host
			for _, node := range tunneltest.Nodes(n) {
				next, next6 = next.Next(), next6.Next()
				hosts = append(hosts, &tunneltest.Host{
					Env:      tunnel.Env{Node: node},
					Underlay: []netip.Addr{next, next6},
					Net:      f.AddHost(node, next, next6),
				})
			}
			return hosts
		},
	})
}
