package agent

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

var update = flag.Bool("update", false, "write the golden files of this package")

// TestDesired compares the complete output of every node of each scenario
// with testdata/desired/<name>.json.
func TestDesired(t *testing.T) {
	for name, build := range scenarios() {
		t.Run(name, func(t *testing.T) {
			s := build()
			if err := s.run(); err != nil {
				t.Fatal(err)
			}
			got := map[string]Output{}
			for _, n := range s.nodes {
				got[n.name] = n.out
			}
			golden(t, filepath.Join("testdata", "desired", name+".json"), got)
		})
	}
}

func golden(t *testing.T, path string, v any) {
	t.Helper()
	got, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run go test ./agent -update to write it)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", path, diff)
	}
}

func scenarios() map[string]func() *sim {
	return map[string]func() *sim{
		"alone": func() *sim { return newSim(1, blue(), lab()) },
		"two-nodes": func() *sim {
			s := newSim(2, blue(), lab())
			s.attach(1, "blue", "10.77.1.5/16", "fd00:77::5/64")
			s.attach(2, "blue", "10.77.2.6/16")
			s.attach(2, "lab", "10.78.0.20/24")
			s.attach(1, "lab", "10.78.0.40/24").Ready = false
			return s
		},
		"gateway": func() *sim {
			// 1 and 2 share blue, of which 1 has a way out, and lab, which is internal; what
			// 2 has there claims the name of another, and an endpoint that is not ready has none.
			closed := lab()
			closed.Internal = true
			s := newSim(2, blue(), closed)
			for i, n := range s.nodes {
				n.in.Gateway = GatewayFacts{Netns: "/run/gateway", Closed: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}}
				n.in.Config.Networks[0].Gateways = []netip.Addr{netip.MustParseAddr("10.77.255.254")}
				at := s.attach(i+1, "blue", fmt.Sprintf("10.77.%d.5/16", i+1))
				at.Name, at.Services, at.MAC = "web", []string{"shop"}, ids.MAC{2, 0, 0, 0, 0, byte(i + 1)}
			}
			s.nodes[0].in.Attachments[0].Ways = []netip.Addr{netip.MustParseAddr("10.77.255.254")}
			s.attach(1, "lab", "10.78.0.40/24").Ways = []netip.Addr{netip.MustParseAddr("10.78.0.1")}
			s.attach(2, "lab", "10.78.0.20/24").Name = "late"
			s.nodes[1].in.Attachments[1].Ready = false
			return s
		},
		"three-nodes-mixed": func() *sim {
			// 1 and 2 share blue, 2 and 3 share red, all share lab: no
			// tunnel between 1 and 3.
			red := blue()
			red.Name, red.VNI = "red", 5000
			s := newSim(3, lab())
			s.nodes[0].in.Config.Networks = []config.Network{blue(), lab()}
			s.nodes[1].in.Config.Networks = []config.Network{blue(), red, lab()}
			s.nodes[2].in.Config.Networks = []config.Network{red, lab()}
			s.attach(3, "red", "10.77.9.9/16")
			return s
		},
		"disagree": func() *sim {
			// 2 has blue with other subnets and in plaintext, 3 has another
			// name for its VNI, 4 agrees with 1.
			s := newSim(4, blue())
			s.nodes[1].in.Config.Networks[0].Encrypted = false
			s.nodes[1].in.Config.Networks[0].Subnets = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}
			s.nodes[2].in.Config.Networks[0].Name = "green"
			s.attach(2, "blue", "10.99.0.5/16")
			s.attach(4, "blue", "10.77.0.5/16")
			return s
		},
		"vxlan-port-differs": func() *sim {
			s := newSim(2, blue())
			s.nodes[1].in.Config.Data.VXLANPort = 8472
			return s
		},
		"plaintext-only": func() *sim {
			s := newSim(2, lab())
			for _, n := range s.nodes {
				n.in.Tunnels = TunnelFacts{}
			}
			s.attach(2, "lab", "10.78.0.20/24")
			return s
		},
		"v6-underlay": func() *sim {
			s := newSim(2, blue(), lab())
			for i, n := range s.nodes {
				n.in.Underlay.Own = []OwnAddr{{Control: v6(i + 1), MTU: 1500}}
			}
			return s
		},
		"mixed-families": func() *sim {
			// 1 has both, 2 only IPv4, 3 only IPv6: 2 and 3 cannot meet.
			s := newSim(3, blue(), lab())
			s.nodes[0].in.Underlay.Own = append(s.nodes[0].in.Underlay.Own, OwnAddr{Control: v6(1), MTU: 1500})
			s.nodes[2].in.Underlay.Own = []OwnAddr{{Control: v6(3), MTU: 1500}}
			return s
		},
		"mtu-mix": func() *sim {
			// 3 sits behind a link of 1400; 1 reaches 2 by a route of 1450
			// that 2 does not see; red is shared by 1 and 2 only.
			red := blue()
			red.Name, red.VNI = "red", 5000
			s := newSim(3, blue(), red, lab())
			s.nodes[2].in.Config.Networks = []config.Network{blue(), lab()}
			s.nodes[2].in.Underlay.Own[0].MTU = 1400
			s.nodes[0].in.Underlay.Routes[v4(2).Addr()] = nl.Route{Device: "eth0", MTU: 1450}
			return s
		},
		"mtu-config": func() *sim {
			s := newSim(2, blue(), lab())
			s.nodes[0].in.Config.Networks[0].MTU = 1300
			s.nodes[0].in.Config.Networks[1].MTU = 9000
			return s
		},
		"mtu-tiny": func() *sim {
			s := newSim(2, blue())
			s.nodes[1].in.Underlay.Own[0].MTU = 1280
			return s
		},
		"duplicate-claims": func() *sim {
			// 3 (the oldest) and 1 both have 10.77.0.9, 3 and 2 both .0.8.
			s := newSim(3, blue())
			for i, n := range s.nodes {
				n.serial = uint64(3 - i)
				n.in.Self.Serial = n.serial
			}
			s.attach(1, "blue", "10.77.0.9/16")
			s.attach(3, "blue", "10.77.0.9/16", "fd00:77::9/64")
			s.attach(2, "blue", "10.77.0.8/16")
			s.attach(3, "blue", "10.77.0.8/16")
			s.attach(3, "blue", "10.77.0.7/16")
			return s
		},
		"driver-refused": func() *sim {
			s := newSim(2, blue(), lab())
			ipsec := blue()
			ipsec.Name, ipsec.VNI, ipsec.Driver = "vault", 6000, config.DriverIPsec
			s.nodes[0].in.Config.Networks = []config.Network{blue(), ipsec, lab()}
			s.nodes[1].in.Tunnels = TunnelFacts{Refused: []api.Refusal{
				{Name: config.DriverWireGuard, Reason: "driver wireguard: kernel WireGuard (CONFIG_WIREGUARD) is missing (exists since Linux 5.6)"},
				{Name: config.DriverUserspace, Reason: "driver userspace: /dev/net/tun is missing"},
			}}
			s.attach(2, "blue", "10.77.0.8/16")
			return s
		},
		"peer-without-tunnel": func() *sim {
			s := newSim(3, blue())
			s.nodes[1].in.Tunnels.Devices = nil
			d := &s.nodes[2].in.Tunnels.Devices[0]
			d.Wire, d.Driver, d.Public = record.WireESP, config.DriverIPsec, keys.TunnelPublic{}
			return s
		},
		"stolen-tunnel-key": func() *sim {
			// 3 announces 2's key; 1 must go on talking to 2.
			s := newSim(3, blue())
			s.nodes[2].in.Tunnels.Devices[0].Public = keys.TunnelPublic{2, 0xbb}
			return s
		},
	}
}
