package agent

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

func fileNet(name string, vni ids.VNI, encrypted bool, subnet string) config.Network {
	return config.Network{Name: name, VNI: vni, Encrypted: encrypted, Subnets: []netip.Prefix{netip.MustParsePrefix(subnet)}, Driver: config.DriverAuto}
}

func clusterNet(name string, vni ids.VNI, encrypted bool, subnet string) item.Network {
	return item.Network{
		Network: record.Network{Name: name, VNI: vni, Encrypted: encrypted, Subnets: []netip.Prefix{netip.MustParsePrefix(subnet)}, VTEPPort: 4789},
		Driver:  config.DriverAuto,
	}
}

func TestNetworksHere(t *testing.T) {
	blue := fileNet("blue", 1, true, "10.1.0.0/16")
	for name, c := range map[string]struct {
		file    []config.Network
		cluster []item.Network
		used    []string
		want    []string // names; in clear: with a !
		problem string   // part of the only message; empty: none
	}{
		"file alone":               {file: []config.Network{blue}, want: []string{"blue"}},
		"nothing uses it":          {cluster: []item.Network{clusterNet("red", 2, true, "10.2.0.0/16")}},
		"something does":           {cluster: []item.Network{clusterNet("red", 2, true, "10.2.0.0/16")}, used: []string{"red"}, want: []string{"red"}},
		"both say the same":        {file: []config.Network{blue}, cluster: []item.Network{clusterNet("blue", 1, true, "10.1.0.0/16")}, want: []string{"blue"}},
		"file has another subnet":  {file: []config.Network{blue}, cluster: []item.Network{clusterNet("blue", 1, true, "10.9.0.0/16")}, want: []string{"blue"}, problem: "subnets"},
		"file encrypts, alone":     {file: []config.Network{blue}, cluster: []item.Network{clusterNet("blue", 1, false, "10.1.0.0/16")}, want: []string{"blue"}, problem: "encrypted"},
		"file would be in clear":   {file: []config.Network{fileNet("blue", 1, false, "10.1.0.0/16")}, cluster: []item.Network{clusterNet("blue", 1, true, "10.1.0.0/16")}, problem: "not connected"},
		"subnets of two overlap":   {file: []config.Network{blue}, cluster: []item.Network{clusterNet("red", 2, true, "10.1.9.0/24")}, used: []string{"red"}, want: []string{"blue"}, problem: "overlaps"},
		"one number":               {file: []config.Network{blue}, cluster: []item.Network{clusterNet("red", 1, true, "10.2.0.0/16")}, used: []string{"red"}, want: []string{"blue"}, problem: "VNI"},
		"in clear as it is to be":  {cluster: []item.Network{clusterNet("lab", 3, false, "10.3.0.0/16")}, used: []string{"lab"}, want: []string{"lab!"}},
		"an endpoint of a removed": {used: []string{"gone"}},
	} {
		got, problems := networksHere(c.file, c.cluster, func(n string) bool { return slices.Contains(c.used, n) })
		var names []string
		for _, n := range got {
			mark := ""
			if !n.Encrypted {
				mark = "!"
			}
			names = append(names, n.Name+mark)
		}
		if !slices.Equal(names, c.want) {
			t.Errorf("%s: %v, want %v", name, names, c.want)
		}
		if (len(problems) == 0) != (c.problem == "") || len(problems) > 0 && !strings.Contains(problems[0].Message, c.problem) {
			t.Errorf("%s: problems %+v, want %q", name, problems, c.problem)
		}
	}
}

func (m *machine) create(req api.NetworkRequest) (api.Network, error) {
	return m.agent.CreateNetwork(context.Background(), req)
}

// has reports whether a node's kernel carries a network.
func (m *machine) has(network string) bool {
	return m.overlay.spec(network).Network != ""
}

// TestNetworkByCommand: a network that was created is on a node from the first
// endpoint to the last, and connects those that have one.
func TestNetworkByCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.machine(1), w.machine(2), w.machine(3)
		for _, m := range []*machine{a, b, c} {
			m.start()
		}
		n, err := a.create(api.NetworkRequest{Name: "green", Subnets: []string{"10.99.0.0/16"}})
		if err != nil || n.State != api.StateUnused || !n.Cluster || n.InFile || !n.Encrypted {
			t.Fatalf("%+v, %v", n, err)
		}
		w.watch("nobody carries it", 2*time.Second, func() bool { return !a.has("green") && !b.has("green") && !c.has("green") })
		if list, err := c.agent.Networks(context.Background()); err != nil || len(list) != 1 || list[0].State != api.StateUnused {
			t.Errorf("%+v, %v", list, err)
		}
		first, second := a.mustAttach("green", "/ns/1"), b.mustAttach("green", "/ns/1")
		w.until("two are connected, the third is not on it", func() bool {
			return len(a.overlay.spec("green").Remotes) == 1 && len(b.overlay.spec("green").Remotes) == 1 && !c.has("green") && a.on(1, 1) && b.on(1, 1)
		})
		if s := c.status(); len(s.Peers) != 0 {
			t.Error("a node that is on no network has tunnels")
		}
		if err := a.agent.RemoveNetwork(context.Background(), "green", false); api.CodeOf(err) != api.CodeRefused || !strings.Contains(err.Error(), "web-1") {
			t.Errorf("removed while in use: %v", err)
		}
		for _, d := range []struct {
			m  *machine
			id string
		}{{a, first.ID}, {b, second.ID}} {
			if err := d.m.agent.Detach(context.Background(), d.id); err != nil {
				t.Error(err)
			}
		}
		w.until("nobody carries it any more", func() bool { return !a.has("green") && !b.has("green") })
		// Its blocks are off the disk before they are out of the record.
		w.until("nobody says that it is on it", func() bool {
			return len(w.board.record(a.id).Networks)+len(w.board.record(b.id).Networks) == 0
		})
		if err := a.agent.RemoveNetwork(context.Background(), "green", false); err != nil {
			t.Error(err)
		}
		if _, err := a.attach("green", "/ns/1"); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("attached to a network that is gone: %v", err)
		}
	})
}

// TestNetworkRemovedInUse: with force its endpoints are disconnected, everywhere.
func TestNetworkRemovedInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()), w.machine(2, blue())
		a.start()
		b.start()
		if _, err := a.create(api.NetworkRequest{Name: "green", Subnets: []string{"10.99.0.0/16"}, Plaintext: true}); err != nil {
			t.Fatal(err)
		}
		for _, m := range []*machine{a, b} {
			m.mustAttach("green", "/ns/1")
			m.mustAttach("blue", "/ns/2")
		}
		w.until("both are connected", func() bool {
			return len(a.overlay.spec("green").Remotes) == 1 && len(b.overlay.spec("blue").Remotes) == 1
		})
		if err := b.agent.RemoveNetwork(context.Background(), "green", true); err != nil {
			t.Fatal(err)
		}
		w.until("it is gone on both, and the other network is not", func() bool {
			return !a.has("green") && !b.has("green") && len(a.overlay.spec("blue").Remotes) == 1
		})
	})
}

func TestCreateNetworkRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		lab := fileNet("lab", 77, false, "10.50.0.0/16")
		a, b := w.machine(1, blue()), w.machine(2, lab)
		a.start()
		b.start()
		w.until("each knows the other's networks", func() bool {
			return len(w.board.record(a.id).Networks) == 1 && len(w.board.record(b.id).Networks) == 1
		})
		for name, c := range map[string]struct {
			req  api.NetworkRequest
			code api.Code
			text string
		}{
			"a bad name":               {api.NetworkRequest{Name: "a b", Subnets: []string{"10.99.0.0/16"}}, api.CodeInvalid, "name"},
			"no subnet":                {api.NetworkRequest{Name: "green"}, api.CodeInvalid, "subnets"},
			"one of the own file":      {api.NetworkRequest{Name: "blue", Subnets: []string{"10.99.0.0/16"}}, api.CodeRefused, "this node's configuration"},
			"one of another node":      {api.NetworkRequest{Name: "lab", Subnets: []string{"10.99.0.0/16"}}, api.CodeRefused, "node web-2"},
			"subnet of another node":   {api.NetworkRequest{Name: "green", Subnets: []string{"10.50.1.0/24"}}, api.CodeRefused, "overlaps"},
			"a number that is taken":   {api.NetworkRequest{Name: "green", Subnets: []string{"10.99.0.0/16"}, VNI: 77}, api.CodeRefused, "VNI 77"},
			"a driver with none of it": {api.NetworkRequest{Name: "green", Subnets: []string{"10.99.0.0/16"}, Driver: "pigeon"}, api.CodeInvalid, "driver"},
		} {
			if _, err := a.create(c.req); api.CodeOf(err) != c.code || !strings.Contains(fullText(err), c.text) {
				t.Errorf("%s: %v", name, fullText(err))
			}
		}
		if err := a.agent.RemoveNetwork(context.Background(), "blue", false); api.CodeOf(err) != api.CodeRefused || !strings.Contains(fullText(err), "configuration") {
			t.Errorf("a network of the file: %v", fullText(err))
		}
		if err := a.agent.RemoveNetwork(context.Background(), "nosuch", false); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("a network that is not there: %v", err)
		}
		w.board.set(func() { w.board.noRevoker = true })
		if _, err := a.create(api.NetworkRequest{Name: "green", Subnets: []string{"10.99.0.0/16"}}); api.CodeOf(err) != api.CodeRefused || !strings.Contains(fullText(err), "issuer key") {
			t.Errorf("without issuer key: %v", fullText(err))
		}
		w.board.set(func() { w.board.noRevoker = false })
		// What a file says already may become the cluster's.
		if n, err := a.create(api.NetworkRequest{Name: "lab", Subnets: []string{"10.50.0.0/16"}, Plaintext: true, VNI: 77}); err != nil || n.VNI != 77 {
			t.Errorf("%+v, %v", n, err)
		}
	})
}
