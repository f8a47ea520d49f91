package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestMTUMatrix: on underlays of each width and family packets of a network's whole MTU
// pass with "don't fragment", TCP at full speed comes through unharmed, and nothing
// is fragmented on the underlay. At full size it sends a gigabyte.
func TestMTUMatrix(t *testing.T) {
	widths := []int{1280, 1500, 9000}
	if os.Getenv(rotationsEnv) != "" {
		widths = []int{1280, 1400, 1450, 1492, 1500, 8900, 9000}
	}
	bytes := int64(scaled(t, 1<<30))
	if raceDetector {
		bytes = 8 << 20 // the program is ten times slower
	}
	for _, mtu := range widths {
		for family, only := range map[string]netlab.HostOption{"IPv4": netlab.V4Only(), "IPv6": netlab.V6Only()} {
			t.Run(fmt.Sprintf("%s, %d", family, mtu), func(t *testing.T) {
				// Below 1280 bytes inside there is no IPv6.
				nets := []fleet.Network{
					{Name: "blue", Encrypted: true, Subnets: prefixes("10.77.0.0/16")},
					{Name: "lab", Subnets: prefixes("10.78.0.0/16")},
				}
				if mtu >= 1450 {
					nets[0].Subnets, nets[1].Subnets = prefixes("10.77.0.0/16", "fd77::/64"), prefixes("10.78.0.0/16", "fd78::/64")
				}
				ctx, f := prepareWith(t, 2*timeout+time.Duration(bytes>>20)*time.Second, fleet.Options{
					Nodes: 2, Networks: nets, Host: []netlab.HostOption{only, netlab.WithMTU(mtu)},
				})
				if err := f.Start(ctx); err != nil {
					t.Fatal(err)
				}
				for _, n := range nets {
					wholeMTU(t, ctx, f, n.Name, bytes)
				}
			})
		}
	}
}

// wholeMTU sends what just fits through a network, and a stream of TCP.
func wholeMTU(t *testing.T, ctx context.Context, f *fleet.Fleet, network string, bytes int64) {
	t.Helper()
	at := attachAll(t, ctx, f, network)
	mtu := at[0].Endpoint.MTU
	cut, err := f.Lab.CaptureAll(netlab.Fragment())
	if err != nil {
		t.Fatal(err)
	}
	for i := range at {
		from, to := at[i], at[1-i]
		mustPing(t, ctx, from, to.V4(), mtu-28)
		if to.V6().IsValid() {
			mustPing(t, ctx, from, to.V6(), mtu-48)
		}
	}
	for _, dst := range []netip.Addr{at[1].V4(), at[1].V6()} {
		if !dst.IsValid() {
			continue
		}
		r, err := netlab.TCPTransfer(ctx, at[0].Box.NS(), at[1].Box.NS(), netip.AddrPortFrom(dst, 0), netlab.TransferOptions{Bytes: bytes})
		if err != nil {
			t.Fatalf("%s to %s: %v", network, dst, err)
		}
		t.Logf("%s, MTU %d, to %s: %d MiB, %.0f Mbit/s", network, mtu, dst, r.Bytes>>20, r.MbitPerS)
	}
	if n := cut.Stop(); n.Matched != 0 || n.Dropped != 0 {
		t.Errorf("%s, MTU %d: %d fragments on the underlay, %d frames not examined", network, mtu, n.Matched, n.Dropped)
	}
}
