package agent

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// TestFrame: both ends of a pair prove the same size, that size passes through
// the devices of both, and no network sends more to the peer.
func TestFrame(t *testing.T) {
	red := blue()
	red.Name, red.VNI = "red", 5000
	networks := func(s *sim, lists ...[]config.Network) {
		for i, l := range lists {
			s.nodes[i].in.Config.Networks = slices.Clone(l)
		}
	}
	for _, c := range []struct {
		name   string
		change func(s *sim)
		device []int // MTU of each node's device
		frame  map[[2]int]int
	}{
		{"alike", func(*sim) {}, []int{1440, 1440, 1440}, map[[2]int]int{{1, 2}: 1440, {1, 3}: 1440, {2, 3}: 1440}},
		{"one node has mtu in its configuration", func(s *sim) {
			s.nodes[0].in.Config.Networks[0].MTU = 1300
		}, []int{1440, 1440, 1440}, map[[2]int]int{{1, 2}: 1440, {1, 3}: 1440, {2, 3}: 1440}},
		{"two nodes have different mtu", func(s *sim) {
			s.nodes[0].in.Config.Networks[0].MTU = 1300
			s.nodes[1].in.Config.Networks[0].MTU = 1280
		}, []int{1440, 1440, 1440}, map[[2]int]int{{1, 2}: 1440, {1, 3}: 1440, {2, 3}: 1440}},
		{"mtu larger than there is room for", func(s *sim) {
			s.nodes[0].in.Config.Networks[0].MTU = 9000
		}, []int{1440, 1440, 1440}, map[[2]int]int{{1, 2}: 1440, {1, 3}: 1440, {2, 3}: 1440}},
		{"a narrow node in one of two networks", func(s *sim) {
			// 3 has blue only and is narrow: red stays wide between 1 and 2.
			networks(s, []config.Network{blue(), red}, []config.Network{blue(), red}, []config.Network{blue()})
			s.nodes[2].in.Underlay.Own[0].MTU = 1450
		}, []int{1440, 1440, 1390}, map[[2]int]int{{1, 2}: 1440, {1, 3}: 1390, {2, 3}: 1390}},
		{"a chain of networks", func(s *sim) {
			// 1 and 2 share blue, 2 and 3 share red, which is narrow.
			networks(s, []config.Network{blue()}, []config.Network{blue(), red}, []config.Network{red})
			s.nodes[2].in.Underlay.Own[0].MTU = 1450
		}, []int{1440, 1440, 1390}, map[[2]int]int{{1, 2}: 1440, {2, 3}: 1390}},
		{"too narrow for IPv6 in blue, which is reported", func(s *sim) {
			networks(s, []config.Network{blue(), red}, []config.Network{blue(), red}, []config.Network{blue()})
			s.nodes[2].in.Underlay.Own[0].MTU = 1400
		}, []int{1440, 1440, 1350}, map[[2]int]int{{1, 2}: 1440, {1, 3}: 1340, {2, 3}: 1340}},
		{"mtu in one of two networks, the other not shared", func(s *sim) {
			networks(s, []config.Network{blue(), red}, []config.Network{blue()}, []config.Network{red})
			s.nodes[0].in.Config.Networks[0].MTU = 1300
		}, []int{1440, 1440, 1440}, map[[2]int]int{{1, 2}: 1440, {1, 3}: 1440}},
		{"a route that only one side sees", func(s *sim) {
			s.nodes[0].in.Underlay.Routes[v4(2).Addr()] = nl.Route{Device: "eth0", MTU: 1450}
		}, []int{1390, 1390, 1390}, map[[2]int]int{{1, 2}: 1390, {1, 3}: 1390, {2, 3}: 1390}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSim(3, blue())
			c.change(s)
			if err := s.run(); err != nil {
				t.Fatal(err)
			}
			for i, n := range s.nodes {
				if got := deviceMTUOf(n.out); got != c.device[i] {
					t.Errorf("node %d: device MTU %d, want %d", i+1, got, c.device[i])
				}
				for j, o := range s.nodes {
					v := viewOf(n.out, o.id)
					want := c.frame[[2]int{min(i, j) + 1, max(i, j) + 1}]
					if v.Frame != want {
						t.Errorf("node %d: frame %d to node %d, want %d", i+1, v.Frame, j+1, want)
					}
					if v.Frame > min(deviceMTUOf(n.out), deviceMTUOf(o.out)) || v.Frame > v.InnerMTU {
						t.Errorf("node %d: frame %d to node %d does not pass: inner MTU %d, devices %d, %d",
							i+1, v.Frame, j+1, v.InnerMTU, deviceMTUOf(n.out), deviceMTUOf(o.out))
					}
				}
			}
		})
	}
}

func deviceMTUOf(o Output) int { return o.Tunnels[config.DriverUserspace].Devices[0].MTU }

func viewOf(o Output, id ids.NodeID) PeerView {
	i := slices.IndexFunc(o.View.Peers, func(v PeerView) bool { return v.ID == id })
	if i < 0 {
		return PeerView{}
	}
	return o.View.Peers[i]
}

// TestRotationOfDifferentMTU rotates nodes whose devices or networks differ in
// size: each pair proves what its networks send, and nothing is reported.
func TestRotationOfDifferentMTU(t *testing.T) {
	red := blue()
	red.Name, red.VNI = "red", 5000
	for _, driver := range []string{config.DriverAuto, config.DriverIPsec} {
		for name, change := range map[string]func(a, b, c *machine){
			// The others do not know that, and it must not matter to them.
			"mtu in one node's configuration": func(a, b, c *machine) {
				for _, m := range []*machine{a, b, c} {
					m.cfg.Networks = []config.Network{blue()}
				}
				a.cfg.Networks[0].MTU = 1300
			},
			"a narrow node in one network": func(_, _, c *machine) { c.underlay, c.cfg.Networks = 1450, []config.Network{blue()} },
		} {
			t.Run(driver+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					a, b, c := w.machine(1, blue(), red), w.machine(2, blue(), red), w.machine(3, blue(), red)
					change(a, b, c)
					all := []*machine{a, b, c}
					for _, m := range all {
						m.ipsec = true
						m.start()
					}
					for e := ids.Epoch(1); e <= 3; e++ {
						if e > 1 {
							b.rotate(api.RotateRequest{Driver: driver})
						}
						w.until(fmt.Sprint("epoch ", e), func() bool { return a.on(e, 2) && b.on(e, 2) && c.on(e, 2) })
						for _, m := range all {
							w.until("the proof that full packets pass", func() bool {
								return !slices.ContainsFunc(m.keys().Peers, func(p api.KeyPeer) bool { return !p.FullMTU })
							})
							if s := m.status(); hasProblem(s, "mtu-black-hole") {
								t.Errorf("epoch %d: problems of node %d: %v", e, m.n, s.Problems)
							}
						}
					}
				})
			})
		}
	}
}
