package vxlan

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

var update = flag.Bool("update", false, "write the golden files")

// blue is a network with two local endpoints and two remote ones.
func blue() Spec {
	end := func(i int) Endpoint {
		return Endpoint{ID: strings.Repeat("0", 11) + string(rune('0'+i)), MAC: mac(i),
			Addrs: []netip.Prefix{netip.PrefixFrom(v4(i), 24), netip.PrefixFrom(v6(i), 64)},
			Netns: "/run/netns/c" + string(rune('0'+i)), NsID: nl.ID{Dev: 4, Ino: uint64(i)}, Ifname: "eth0"}
	}
	vtep := []netip.Addr{netip.MustParseAddr("fd00::b"), netip.MustParseAddr("fd00::c")}
	return Spec{
		Network: "blue", VNI: 42, Encrypted: true, Local: netip.MustParseAddr("fd00::a"), Port: 4789, MTU: 1350,
		Flood: vtep,
		Remotes: []Remote{
			{MAC: mac(11), Addrs: []netip.Addr{v4(11), v6(11)}, VTEP: vtep[0]},
			{MAC: mac(12), Addrs: []netip.Addr{v4(12)}, VTEP: vtep[1]},
		},
		Endpoints: []Endpoint{end(1), end(2)},
	}
}

// plain is blue as a plaintext network.
func plain() Spec {
	s := blue()
	s.Encrypted, s.Local = false, netip.MustParseAddr("192.0.2.1")
	s.Flood = []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")}
	for i := range s.Remotes {
		s.Remotes[i].VTEP = s.Flood[i]
	}
	return s
}

// families is plain with a further node that has IPv6 only.
func families() Spec {
	s := plain()
	s.Also = netip.MustParseAddr("2001:db8::1")
	v := netip.MustParseAddr("2001:db8::4")
	s.Flood = append(s.Flood, v)
	s.Remotes = append(s.Remotes, Remote{MAC: mac(13), Addrs: []netip.Addr{v4(13)}, VTEP: v})
	return s
}

// moving is blue on its way to plaintext, sending to the first n nodes so already.
func moving(n int) Spec {
	s, b := plain(), blue()
	s.Other = &Way{Local: b.Local, Flood: b.Flood[n:]}
	s.Flood = s.Flood[:n]
	for i := n; i < len(s.Remotes); i++ {
		s.Remotes[i].VTEP, s.Remotes[i].Other = b.Remotes[i].VTEP, true
	}
	return s
}

// made returns what the kernel has when a Spec is in force.
func made(s Spec) Network {
	n := Network{Name: s.Network, Exists: true, Tuned: true,
		Bridge: &Bridge{Kind: "bridge", MTU: s.MTU, Up: true, Marked: true, Fixed: true},
	}
	ways := s.ways()
	for _, w := range ways {
		n.Devices = append(n.Devices, Device{Name: w.name, Kind: "vxlan", Birth: w.birth, VNI: s.VNI, Local: w.local, Port: s.Port, MTU: s.MTU,
			Up: true, Marked: true, Plain: true, InBridge: true, Flags: deviceFlags(s.Other == nil)})
		for _, v := range w.flood {
			n.Forwards = append(n.Forwards, Forward{Device: w.name, VTEP: v})
		}
	}
	for _, r := range s.Remotes {
		name := ways[slices.IndexFunc(ways, func(w way) bool { return w.carries(r) })].name
		n.Forwards = append(n.Forwards, Forward{Device: name, MAC: r.MAC, VTEP: r.VTEP})
		n.Stations = append(n.Stations, Station{MAC: r.MAC, Port: name})
		for _, a := range r.Addrs {
			n.Neighbours = append(n.Neighbours, Neighbour{Addr: a, MAC: r.MAC})
		}
	}
	for _, e := range s.Endpoints {
		n.Ports = append(n.Ports, Port{ID: e.ID, MTU: s.MTU, Up: true, Marked: true, InBridge: true,
			Flags: wantedFlags(Endpoint{}), Where: InnerThere,
			Inner: Inner{MAC: e.MAC, MTU: s.MTU, Up: true, Marked: true, Addrs: e.Addrs, Ours: e.Addrs}})
		n.Stations = append(n.Stations, Station{MAC: e.MAC, Port: portName(e.ID)})
		for _, a := range e.Addrs {
			n.Neighbours = append(n.Neighbours, Neighbour{Addr: a.Addr(), MAC: e.MAC})
		}
	}
	return n
}

// TestPlan compares plans with testdata/plan. Each case starts from a network
// in force and changes what is wanted, what is there, or both.
func TestPlan(t *testing.T) {
	elsewhere := netip.MustParseAddr("fd00::e")
	cases := map[string]func(want *[]Spec, have *[]Network){
		"fresh":   func(_ *[]Spec, h *[]Network) { *h = nil },
		"no-op":   func(*[]Spec, *[]Network) {},
		"nothing": func(w *[]Spec, h *[]Network) { *w, *h = nil, nil },
		"left-over-file": func(_ *[]Spec, h *[]Network) {
			*h = []Network{{Name: "blue"}}
		},
		"unread": func(_ *[]Spec, h *[]Network) { *h = []Network{{Name: "blue", Unread: true}} },
		"plaintext": func(w *[]Spec, h *[]Network) {
			*w, *h = []Spec{plain()}, nil
		},
		"mtu-larger":     func(w *[]Spec, _ *[]Network) { (*w)[0].MTU = 1400 },
		"mtu-smaller":    func(w *[]Spec, _ *[]Network) { (*w)[0].MTU = 1300 },
		"mtu-below-ipv6": func(w *[]Spec, _ *[]Network) { (*w)[0].MTU = 1000 },
		"remote-moves": func(w *[]Spec, _ *[]Network) {
			(*w)[0].Remotes[0].VTEP = (*w)[0].Flood[1]
		},
		"remote-new-mac": func(w *[]Spec, _ *[]Network) { (*w)[0].Remotes[0].MAC = mac(21) },
		"remote-added": func(w *[]Spec, _ *[]Network) {
			(*w)[0].Remotes = append((*w)[0].Remotes, Remote{MAC: mac(13), Addrs: []netip.Addr{v6(13)}, VTEP: elsewhere})
		},
		"remote-removed":   func(w *[]Spec, _ *[]Network) { (*w)[0].Remotes = (*w)[0].Remotes[:1] },
		"remote-multicast": func(w *[]Spec, _ *[]Network) { (*w)[0].Remotes[0].MAC = ids.MAC{1, 0, 0x5e, 0, 0, 1} },
		"remote-claims-local": func(w *[]Spec, _ *[]Network) {
			(*w)[0].Remotes = append((*w)[0].Remotes, Remote{MAC: mac(1), Addrs: []netip.Addr{v4(1)}, VTEP: elsewhere},
				Remote{MAC: mac(14), Addrs: []netip.Addr{v4(2)}, VTEP: elsewhere})
		},
		"remote-becomes-local": func(w *[]Spec, _ *[]Network) {
			(*w)[0].Endpoints[0].MAC, (*w)[0].Remotes = mac(11), (*w)[0].Remotes[1:]
		},
		"flood-changed":    func(w *[]Spec, _ *[]Network) { (*w)[0].Flood = []netip.Addr{(*w)[0].Flood[0], elsewhere} },
		"flood-off":        func(w *[]Spec, _ *[]Network) { (*w)[0].Flood = nil },
		"endpoint-added":   func(_ *[]Spec, h *[]Network) { drop(&(*h)[0], 1) },
		"endpoint-removed": func(w *[]Spec, _ *[]Network) { (*w)[0].Endpoints = (*w)[0].Endpoints[:1] },
		"endpoint-renewed": func(w *[]Spec, _ *[]Network) { (*w)[0].Endpoints[1].ID = "0000000000ab" },
		"endpoint-address": func(w *[]Spec, _ *[]Network) {
			(*w)[0].Endpoints[0].Addrs = []netip.Prefix{netip.PrefixFrom(v4(9), 24), (*w)[0].Endpoints[0].Addrs[1]}
		},
		"endpoint-lost":   func(_ *[]Spec, h *[]Network) { (*h)[0].Ports[0].Where = InnerLost },
		"endpoint-unseen": func(_ *[]Spec, h *[]Network) { (*h)[0].Ports[0].Where, (*h)[0].Ports[0].Inner = InnerUnseen, Inner{} },
		"endpoint-touched": func(_ *[]Spec, h *[]Network) {
			(*h)[0].Ports[0].Inner = Inner{MAC: mac(99), MTU: 1500}
		},
		"wrong-birthplace":   func(_ *[]Spec, h *[]Network) { (*h)[0].Devices[0].Birth = BornHost },
		"unknown-birthplace": func(_ *[]Spec, h *[]Network) { (*h)[0].Devices[0].Birth = BornUnknown },
		"encryption-off":     func(w *[]Spec, _ *[]Network) { *w = []Spec{plain()} },
		// Nodes of both families: one more device, and nothing that is there is touched.
		"family-added":   func(w *[]Spec, h *[]Network) { *w, *h = []Spec{families()}, []Network{made(plain())} },
		"family-removed": func(w *[]Spec, h *[]Network) { *w, *h = []Spec{plain()}, []Network{made(families())} },
		"family-changed": func(w *[]Spec, h *[]Network) {
			*w, *h = []Spec{families()}, []Network{made(families())}
			(*w)[0].Remotes[2].VTEP = (*w)[0].Flood[0]
		},
		"families-move": func(w *[]Spec, h *[]Network) {
			s, b := families(), blue()
			s.Other = &Way{Local: b.Local, Flood: b.Flood[:1]}
			s.Remotes[0].VTEP, s.Remotes[0].Other = b.Remotes[0].VTEP, true
			*w, *h = []Spec{s}, []Network{made(families())}
		},
		// From one form to the other without a gap: both, node by node, the other.
		"move-begins": func(w *[]Spec, _ *[]Network) { *w = []Spec{moving(0)} },
		"move-goes-on": func(w *[]Spec, h *[]Network) {
			*w, *h = []Spec{moving(1)}, []Network{made(moving(0))}
		},
		"move-is-complete": func(w *[]Spec, h *[]Network) {
			*w, *h = []Spec{plain()}, []Network{made(moving(2))}
		},
		"move-is-cut-short": func(w *[]Spec, h *[]Network) { *h = []Network{made(moving(1))} },
		"locked-while-moving": func(w *[]Spec, h *[]Network) {
			*w, *h = []Spec{moving(1)}, []Network{made(moving(1))}
			(*h)[0].Devices[1].Flags.Lock, (*h)[0].Devices[0].Flags.Isolated = true, false
		},
		"local-changed": func(w *[]Spec, _ *[]Network) { (*w)[0].Local = elsewhere },
		"port-changed":  func(w *[]Spec, _ *[]Network) { (*w)[0].Port = 8472 },
		"not-plain":     func(_ *[]Spec, h *[]Network) { (*h)[0].Devices[0].Plain = false },
		"foreign-entries": func(_ *[]Spec, h *[]Network) {
			n := &(*h)[0]
			n.Forwards = append(n.Forwards, Forward{Device: deviceName, MAC: mac(50), VTEP: elsewhere, Dynamic: true}, Forward{Device: deviceName, VTEP: elsewhere})
			n.Stations = append(n.Stations, Station{MAC: mac(50), Port: deviceName, Dynamic: true},
				Station{MAC: mac(1), Port: portName("000000000001"), VLAN: 1})
			n.Neighbours = append(n.Neighbours, Neighbour{Addr: v4(50), MAC: mac(50)}, Neighbour{Addr: v6(50), Dynamic: true})
		},
		"learned-over-ours": func(_ *[]Spec, h *[]Network) {
			n := &(*h)[0]
			n.Forwards[2] = Forward{Device: deviceName, MAC: mac(11), VTEP: elsewhere, Dynamic: true}
			n.Stations[0] = Station{MAC: mac(11), Port: portName("000000000001"), Dynamic: true}
			n.Neighbours[0].Dynamic = true
		},
		"network-removed": func(w *[]Spec, _ *[]Network) { *w = nil },
		"network-renamed": func(w *[]Spec, _ *[]Network) { (*w)[0].Network = "azure" },
		"two-networks-swap-vnis": func(w *[]Spec, h *[]Network) {
			red := Spec{Network: "red", VNI: 43, Local: netip.MustParseAddr("192.0.2.1"), Port: 4789, MTU: 1450}
			*w, *h = append(*w, red), append(*h, made(red))
			(*w)[0].VNI, (*w)[1].VNI = 43, 42
		},
		"bridge-deleted": func(_ *[]Spec, h *[]Network) {
			n := &(*h)[0]
			n.Bridge, n.Stations, n.Neighbours, n.Devices[0].InBridge = nil, nil, nil, false
			n.Devices[0].Flags = PortFlags{}
			for i := range n.Ports {
				n.Ports[i].InBridge, n.Ports[i].Flags = false, PortFlags{}
			}
		},
		"bridge-down":     func(_ *[]Spec, h *[]Network) { (*h)[0].Bridge.Up = false },
		"bridge-snooping": func(_ *[]Spec, h *[]Network) { (*h)[0].Bridge.Snooping, (*h)[0].Bridge.VLANs = true, true },
		"bridge-kind": func(_ *[]Spec, h *[]Network) {
			(*h)[0] = Network{Name: "blue", Exists: true, Tuned: true, Bridge: &Bridge{Kind: "veth"}}
		},
		"device-kind": func(_ *[]Spec, h *[]Network) { (*h)[0].Devices[0].Kind = "geneve" },
		"device-deleted": func(_ *[]Spec, h *[]Network) {
			n := &(*h)[0]
			n.Devices, n.Forwards = nil, nil
			n.Stations = slices.DeleteFunc(n.Stations, func(s Station) bool { return s.Port == deviceName })
		},
		"port-unenslaved": func(_ *[]Spec, h *[]Network) {
			n := &(*h)[0]
			n.Ports[0].InBridge, n.Ports[0].Flags = false, PortFlags{}
			n.Stations = slices.DeleteFunc(n.Stations, func(s Station) bool { return s.Port == portName(n.Ports[0].ID) })
		},
		"port-flags": func(_ *[]Spec, h *[]Network) {
			(*h)[0].Ports[0].Flags = PortFlags{Learning: true, Flood: true, Suppress: true}
		},
		"no-lock-on-this-kernel": func(_ *[]Spec, h *[]Network) {
			(*h)[0].Ports[0].Flags.Lock, (*h)[0].Ports[0].Flags.NoLock = false, true
		},
		"stray-port": func(_ *[]Spec, h *[]Network) {
			(*h)[0].Strays = []string{"eth1"}
			(*h)[0].Stations = append((*h)[0].Stations, Station{MAC: mac(60), Port: "eth1", Dynamic: true})
		},
		"untuned": func(_ *[]Spec, h *[]Network) { (*h)[0].Tuned = false },
	}
	for name, change := range cases {
		t.Run(name, func(t *testing.T) {
			want := []Spec{blue()}
			have := []Network{made(blue())}
			change(&want, &have)
			before := cmp.Diff([]Network{}, have, sameAddr, samePrefix)
			ops := lines(Plan(want, Observed{Networks: have}))
			if diff := cmp.Diff(before, cmp.Diff([]Network{}, have, sameAddr, samePrefix)); diff != "" {
				t.Errorf("Plan changed its argument:\n%s", diff)
			}
			golden(t, name, strings.Join(append(ops, ""), "\n"))
		})
	}
}

// drop takes endpoint i out of what the kernel has.
func drop(n *Network, i int) {
	port, in := portName(n.Ports[i].ID), n.Ports[i].Inner
	n.Ports = slices.Delete(n.Ports, i, i+1)
	n.Stations = slices.DeleteFunc(n.Stations, func(s Station) bool { return s.Port == port })
	n.Neighbours = slices.DeleteFunc(n.Neighbours, func(nb Neighbour) bool { return nb.MAC == in.MAC })
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "plan", name+".golden")
	if *update {
		ok(t, os.MkdirAll(filepath.Dir(path), 0o755))
		ok(t, os.WriteFile(path, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	ok(t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("plan (-want +got), run with -update if it is right:\n%s", diff)
	}
}

func TestNetworkNamesStayInTheFolder(t *testing.T) {
	p := NewProgrammer(Options{Dir: "/folder"})
	for _, bad := range []string{"", "a/b", "../x", "x\x00", strings.Repeat("x", 300)} {
		if path, err := p.path(bad); err == nil {
			t.Errorf("name %q became %s", bad, path)
		}
	}
	if path, err := p.path("Blue.Team"); err != nil || path != "/folder/net-Blue.Team" {
		t.Errorf("path = %s, %v", path, err)
	}
}
