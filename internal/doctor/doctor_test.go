package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

func find(t *testing.T, list []Finding, name string) Finding {
	t.Helper()
	for _, f := range list {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no finding %q in %+v", name, list)
	return Finding{}
}

func works(context.Context) error { return nil }

func fails(context.Context) error { return errors.New("driver a: feature x is missing") }

func TestRun(t *testing.T) {
	if unix.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
	list := Run(t.Context(), Options{Drivers: []Driver{{Name: "a", Probe: fails, Fix: "modprobe a"}, {Name: "b", Probe: works}}})
	for _, f := range list {
		if (f.Level == OK) != (f.Fix == "") {
			t.Errorf("finding without fix, or fix without fault: %+v", f)
		}
	}
	for _, name := range []string{"capabilities", "namespaces", "vxlan", "bridge", "veth", "nftables", "driver b"} {
		if f := find(t, list, name); f.Level != OK {
			t.Errorf("%+v", f)
		}
	}
	if f := find(t, list, "driver a"); f.Level != Warn || f.Detail != "feature x is missing" {
		t.Errorf("%+v", f)
	}
	if Worst(list) == Fail {
		t.Errorf("worst is %s", Worst(list))
	}
}

func TestDrivers(t *testing.T) {
	list := drivers(t.Context(), []Driver{{Name: "a", Probe: fails, Fix: "modprobe a"}})
	if f := find(t, list, "tunnel"); f.Level != Fail || !strings.Contains(f.Detail, "never sent in the clear") {
		t.Errorf("%+v", f)
	}
	list = drivers(t.Context(), []Driver{{Name: "a", Probe: fails, Fix: "modprobe a", Wanted: true}, {Name: "b", Probe: works}})
	if f := find(t, list, "driver a"); f.Level != Fail || !strings.Contains(f.Fix, "modprobe a") {
		t.Errorf("%+v", f)
	}
}

// TestSlower: a driver that works, but slowly, is no fault, and says what would help.
func TestSlower(t *testing.T) {
	slow := func(context.Context) error { return errors.New("driver a: offload is missing (exists since Linux 9)") }
	list := drivers(t.Context(), []Driver{{Name: "a", Probe: works, Slower: slow}, {Name: "b", Probe: works, Slower: works}})
	if f := find(t, list, "driver a"); f.Level != OK || f.Detail != "works, but slowly: offload is missing (exists since Linux 9)" {
		t.Errorf("%+v", f)
	}
	if f := find(t, list, "driver b"); f.Level != OK || f.Detail != "works" {
		t.Errorf("%+v", f)
	}
}

func TestPorts(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tcp.Close() }()
	busy := netip.MustParseAddrPort(tcp.Addr().String())
	name := "port tcp/" + netip.AddrPort.String(busy)[len("127.0.0.1:"):]
	if f := find(t, ports(Options{Control: busy}), name); f.Level != Fail || f.Fix == "" {
		t.Errorf("%+v", f)
	}
	if f := find(t, ports(Options{Control: busy, AgentRunning: true}), name); f.Level != OK || !strings.Contains(f.Detail, "running agent") {
		t.Errorf("%+v", f)
	}
	foreign := netip.MustParseAddrPort("192.0.2.1:7946")
	if f := find(t, ports(Options{Control: foreign}), "port tcp/7946"); f.Level != Fail || !strings.Contains(f.Detail, "no address 192.0.2.1") {
		t.Errorf("%+v", f)
	}
	_ = tcp.Close()
	if f := find(t, ports(Options{Control: busy}), name); f.Level != OK {
		t.Errorf("%+v", f)
	}
}

// A port that only later keys need is no reason not to start.
func TestDataPorts(t *testing.T) {
	var conns []net.PacketConn
	var nums []uint16
	for range 2 {
		c, err := net.ListenPacket("udp", "[::]:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		conns, nums = append(conns, c), append(nums, netip.MustParseAddrPort(c.LocalAddr().String()).Port())
	}
	list := ports(Options{DataPorts: nums})
	if len(list) != 2 || list[0].Level != Fail || list[1].Level != Warn || !strings.Contains(list[1].Detail, "keys cannot rotate") || list[1].Fix == "" {
		t.Errorf("%+v", list)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	if list := ports(Options{DataPorts: nums}); list[0].Level != OK || list[1].Level != OK {
		t.Errorf("free ports: %+v", list)
	}
}

func TestMTU(t *testing.T) {
	o := Options{MTUs: map[string]int{"blue": 1400}, InnerMTU: func(underlay int, _ netip.Addr) int { return underlay - 130 }}
	f := mtuFinding("mtu ipv4", nl.Route{Device: "eth0", MTU: 1500}, netip.MustParseAddr("192.0.2.1"), o)
	if f.Level != Warn || !strings.Contains(f.Detail, "network blue is set to 1400") || !strings.Contains(f.Fix, "at most 1370") {
		t.Errorf("%+v", f)
	}
	o.MTUs = nil
	if f := mtuFinding("x", nl.Route{Device: "eth0", MTU: 1500}, netip.Addr{}, o); f.Level != OK || f.Detail != "eth0, 1500 bytes, leaves 1370 for encrypted networks" {
		t.Errorf("%+v", f)
	}
	if f := mtuFinding("x", nl.Route{Device: "eth0", MTU: 1400}, netip.Addr{}, o); f.Level != Warn || !strings.Contains(f.Fix, "1410") {
		t.Errorf("%+v", f)
	}
}

func TestESP(t *testing.T) {
	if list := esp(Options{}); list != nil {
		t.Errorf("without an ESP driver: %+v", list)
	}
	c, err := net.ListenPacket("udp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	port := c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	name := fmt.Sprintf("port udp/%d", port)
	o := Options{ESP: &ESP{Wanted: true, Port: port}}
	if f := find(t, esp(o), name); f.Level != Fail || f.Fix == "" {
		t.Errorf("%+v", f)
	}
	spare := Options{ESP: &ESP{Wanted: true, Port: port, PortOptional: true}}
	if f := find(t, esp(spare), name); f.Level != Warn || !strings.Contains(f.Detail, "cannot go over to UDP") {
		t.Errorf("needed only where ESP is blocked: %+v", f)
	}
	_ = c.Close()
	if f := find(t, esp(o), name); f.Level != OK || f.Detail != "esp in udp: free" {
		t.Errorf("%+v", f)
	}
	for _, f := range esp(Options{ESP: &ESP{Port: port}}) {
		if f.Name == name {
			t.Errorf("nobody asked for it: %+v", f)
		}
	}
	if f := cipherFinding(false, ESP{Wanted: true}); f.Level != Warn || f.Fix == "" {
		t.Errorf("%+v", f)
	}
	if f := cipherFinding(false, ESP{}); f.Level != OK || f.Fix != "" {
		t.Errorf("%+v", f)
	}
}

// TestPoliciesOff changes the settings in a namespace of its own.
func TestPoliciesOff(t *testing.T) {
	if unix.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
	err := nl.InScratch(func(n *nl.Namespace, _ *nl.Handle) error {
		if f := policyFinding(ESP{Wanted: true}); f.Level != OK || f.Fix != "" {
			t.Errorf("%+v", f)
		}
		for _, family := range []string{"ipv4", "ipv6"} {
			key := family + "/conf/all/disable_policy"
			if _, err := n.SetSysctls([]nl.Sysctl{{Key: key, Value: "1"}}); err != nil {
				return err
			}
			f := policyFinding(ESP{Wanted: true})
			if f.Level != Fail || !strings.Contains(f.Detail, key) || f.Fix != "sysctl -w net/"+key+"=0" {
				t.Errorf("%+v", f)
			}
			if f := policyFinding(ESP{}); f.Level != Warn {
				t.Errorf("%+v", f)
			}
			if _, err := n.SetSysctls([]nl.Sysctl{{Key: key, Value: "0"}}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
