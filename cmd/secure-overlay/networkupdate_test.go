package main

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// togglingNet is a network whose nodes follow an update after some looks.
type togglingNet struct {
	mu    sync.Mutex
	def   api.NetworkDefinition
	looks int  // until all have followed
	dead  bool // the one that is missing at the end cannot be reached
	seen  int  // since the last update
}

func (n *togglingNet) state(name string) api.Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	if name != "" {
		n.seen = 0
	}
	n.seen++
	def := n.def
	out := api.Network{
		Name: "blue", VNI: 7, Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}, Encrypted: def.Encrypted && !def.Moving,
		State: api.StateOK, Driver: "wireguard (kernel)", Cluster: true, Definition: &def,
		Change: &api.NetworkChange{Encrypted: def.Encrypted, Migrate: def.Moving, Nodes: api.Count{OK: 3, Total: 3}},
	}
	switch {
	case n.seen <= n.looks || n.dead:
		w := api.NetworkWait{RevocationWait: api.RevocationWait{NodeRef: nodeRef("db-1"), State: "alive"}, Form: "plaintext"}
		if n.dead {
			w.State = "dead"
		}
		out.Change.Nodes.OK, out.Change.Waiting = 2, []api.NetworkWait{w}
	case !def.Moving:
		out.Change = nil
	}
	return out
}

// follow makes of the network what the root has signed, and returns that.
func (n *togglingNet) follow(t *testing.T, trust keys.Trust, raw []byte) item.Network {
	t.Helper()
	it, err := item.Verify(trust, time.Now(), raw)
	if err != nil {
		t.Fatal(err)
	}
	to, ok := it.Network()
	if !ok || !it.Root {
		t.Errorf("signed %+v", it)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.def.Encrypted, n.def.Moving, n.def.Generation, n.def.Driver = to.Encrypted, to.Moving, to.Generation, to.Driver
	return to
}

func TestNetworkUpdate(t *testing.T) {
	for name, c := range map[string]struct {
		net  *togglingNet
		args string
		code int
		asks []api.NetworkUpdate
		says string
	}{
		"strict": {
			&togglingNet{def: api.NetworkDefinition{Encrypted: true}, looks: 2}, "--encrypted --strict", 0,
			[]api.NetworkUpdate{{Encrypted: true, Driver: "auto"}}, "network blue is encrypted on every node that has it",
		},
		"there already": {
			&togglingNet{def: api.NetworkDefinition{Encrypted: true}}, "--encrypted --migrate", 0,
			[]api.NetworkUpdate{{Encrypted: true, Driver: "auto", Migrate: true}}, "is encrypted",
		},
		"a node is dead": {
			&togglingNet{def: api.NetworkDefinition{Encrypted: true}, dead: true}, "--encrypted --strict", 4,
			[]api.NetworkUpdate{{Encrypted: true, Driver: "auto"}}, "db-1 (dead)",
		},
		"migration held up by a dead node": {
			&togglingNet{def: api.NetworkDefinition{Encrypted: true, Moving: true}, dead: true}, "--encrypted --migrate", 4,
			[]api.NetworkUpdate{{Encrypted: true, Driver: "auto", Migrate: true}}, "or --strict, which does not wait",
		},
		"one does not follow": {
			&togglingNet{def: api.NetworkDefinition{Encrypted: true}, looks: 1000}, "--encrypted --strict --timeout 300ms", 8,
			[]api.NetworkUpdate{{Encrypted: true, Driver: "auto"}}, "db-1 (alive)",
		},
		"neither":         {&togglingNet{}, "--strict", 2, nil, "--encrypted or --plaintext"},
		"both":            {&togglingNet{}, "--strict --encrypted --plaintext", 2, nil, "contradict"},
		"not how":         {&togglingNet{}, "--encrypted", 2, nil, "--strict and --migrate"},
		"both ways":       {&togglingNet{}, "--encrypted --strict --migrate", 2, nil, "--strict and --migrate"},
		"signed and how":  {&togglingNet{}, "--signed x --strict", 2, nil, "as it is"},
		"nothing signed":  {&togglingNet{}, "--signed x", 2, nil, "so-root-signed:"},
		"a root key lost": {&togglingNet{def: api.NetworkDefinition{Encrypted: true, VXLANPort: 4789}}, "--plaintext --strict --root-key /nowhere", 1, nil, "/nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &netDesk{states: c.net.state}
			got := against(t, canned{definer: d, status: api.Status{Root: keys.RootPublic{1}.String()}}, append([]string{"network", "update", "blue"}, strings.Fields(c.args)...)...)
			if got.code != c.code || !strings.Contains(got.out+got.err, c.says) {
				t.Errorf("exit code %d, want %d\n%s\n%s", got.code, c.code, got.out, got.err)
			}
			if !slices.EqualFunc(d.updates, c.asks, func(a, b api.NetworkUpdate) bool {
				return a.Encrypted == b.Encrypted && a.Driver == b.Driver && a.Migrate == b.Migrate && a.Item == nil
			}) {
				t.Errorf("the agent was asked %+v", d.updates)
			}
		})
	}
}

// TestNetworkUpdateByRoot: two steps, both signed with the root key file for the
// generation that the agent names, and the second only when all send in the new form.
func TestNetworkUpdateByRoot(t *testing.T) {
	dir, id := foundedIn(t)
	net := &togglingNet{def: api.NetworkDefinition{Encrypted: true, Driver: "ipsec", MTU: 1300, VXLANPort: 4789, Generation: 4}, looks: 1}
	d := &netDesk{states: net.state}
	d.update = func(req api.NetworkUpdate) {
		was := net.def.Generation
		n := net.follow(t, id.Trust, req.Item)
		if n.Encrypted || n.Generation != was+1 || n.MTU != 1300 || n.VNI != ids.VNI(7) || n.Driver != "auto" {
			t.Errorf("signed %+v", n)
		}
	}
	c := canned{definer: d, status: api.Status{Cluster: id.Trust.Cluster, Root: id.Trust.Root.String()}}
	root := filepath.Join(dir, "root.key")
	got := against(t, c, "network", "update", "blue", "--plaintext", "--migrate", "--root-key", root)
	if got.code != 0 || len(d.updates) != 2 || net.def.Moving || net.def.Generation != 6 {
		t.Fatalf("exit code %d, asked %d times, %+v\n%s", got.code, len(d.updates), net.def, got.err)
	}
	if !strings.Contains(got.out, "network blue is PLAINTEXT on every node") || strings.Contains(got.out+got.err, "so-root-key") {
		t.Errorf("%s\n%s", got.out, got.err)
	}
	// Nothing is left to sign.
	if got := against(t, c, "network", "update", "blue", "--plaintext", "--migrate", "--root-key", root); got.code != 0 || len(d.updates) != 2 {
		t.Errorf("once more: exit code %d, %s", got.code, got.err)
	}
}

// TestNetworkUpdateGoesOn: a migration to plaintext that was interrupted waits for all nodes to send in the new form, as
// it would have; --strict cuts it short. Whichever way it is signed.
func TestNetworkUpdateGoesOn(t *testing.T) {
	dir, id := foundedIn(t)
	root := filepath.Join(dir, "root.key")
	for name, c := range map[string]struct {
		how    string
		signed bool
		steps  []bool // Moving of each update
	}{
		"migrate":           {"--migrate", false, []bool{true, false}},
		"strict":            {"--strict", false, []bool{false}},
		"migrate, by steps": {"--migrate", true, []bool{true, false}},
		"strict, by steps":  {"--strict", true, []bool{false}},
	} {
		t.Run(name, func(t *testing.T) {
			net := &togglingNet{def: api.NetworkDefinition{Moving: true, Driver: "auto", MTU: 1300, VXLANPort: 4789, Generation: 5}, looks: 1}
			d := &netDesk{states: net.state}
			var steps []bool
			d.update = func(req api.NetworkUpdate) { steps = append(steps, net.follow(t, id.Trust, req.Item).Moving) }
			agent := canned{definer: d, status: api.Status{Cluster: id.Trust.Cluster, Root: id.Trust.Root.String()}}
			args := []string{"network", "update", "blue", "--plaintext", c.how}
			if c.signed {
				request := against(t, agent, args...)
				signed := against(t, agent, "issuer", "sign", "--root-key", root, strings.TrimSpace(request.out))
				args = []string{"network", "update", "blue", "--signed", strings.TrimSpace(signed.out)}
			} else {
				args = append(args, "--root-key", root)
			}
			if got := against(t, agent, args...); got.code != 0 || !slices.Equal(steps, c.steps) || net.def.Moving {
				t.Errorf("exit code %d, steps %v, want %v\n%s", got.code, steps, c.steps, got.err)
			}
		})
	}
}

// TestNetworkUpdateSigned: the root key never comes to the node. What it signed is two steps, is used once, and
// only for the network as it was when it was asked for.
func TestNetworkUpdateSigned(t *testing.T) {
	dir, id := foundedIn(t)
	root := filepath.Join(dir, "root.key")
	net := &togglingNet{def: api.NetworkDefinition{Encrypted: true, Driver: "ipsec", MTU: 1300, VXLANPort: 4789, Generation: 4}}
	d := &netDesk{states: net.state}
	d.update = func(req api.NetworkUpdate) { net.follow(t, id.Trust, req.Item) }
	c := canned{definer: d, status: api.Status{Cluster: id.Trust.Cluster, Root: id.Trust.Root.String()}}
	must := func(says string, args ...string) string {
		t.Helper()
		got := against(t, c, args...)
		if got.code != 0 || !strings.Contains(got.out+got.err, says) {
			t.Fatalf("%q: exit code %d, and not %q\n%s\n%s", args, got.code, says, got.out, got.err)
		}
		return strings.TrimSpace(got.out)
	}
	ask := []string{"network", "update", "blue", "--plaintext", "--migrate"}
	request := must("network update blue --signed SIGNED", ask...)
	if len(d.updates) != 0 || !strings.HasPrefix(request, item.RootRequestTag) {
		t.Fatalf("asked %d times; %s", len(d.updates), request)
	}
	signed := must("network blue (VNI 7, 10.77.0.0/16) is PLAINTEXT", "issuer", "sign", "--root-key", root, request)
	if got := against(t, c, "network", "update", "red", "--signed", signed); got.code != 2 || len(d.updates) != 0 {
		t.Errorf("of another network: exit code %d, asked %d times\n%s", got.code, len(d.updates), got.err)
	}
	if got := against(t, c, "protocol", "floor", "--signed", signed); got.code != 2 {
		t.Errorf("as a floor: exit code %d\n%s", got.code, got.err)
	}
	refused := func(what string) {
		t.Helper()
		before := len(d.updates)
		if got := against(t, c, "network", "update", "blue", "--signed", signed); got.code != 6 || len(d.updates) != before || !strings.Contains(got.err, "has been changed") {
			t.Errorf("%s: exit code %d, asked %d times\n%s", what, got.code, len(d.updates)-before, got.err)
		}
	}
	net.def.MTU = 1200
	refused("changed by an issuer since the request")
	net.def.MTU = 1300
	for range 2 { // the second time there is nothing left to do
		must("network blue is PLAINTEXT on every node", "network", "update", "blue", "--signed", signed)
		if len(d.updates) != 2 || net.def.Moving || net.def.Encrypted || net.def.Generation != 6 {
			t.Fatalf("asked %d times, %+v", len(d.updates), net.def)
		}
	}
	net.def.Encrypted = true
	refused("encrypted again")
	net.def.Encrypted, net.def.Generation = false, 7
	refused("changed by the root")
	must("network blue is PLAINTEXT on every node", ask...)
	if len(d.updates) != 2 {
		t.Errorf("asked %d times", len(d.updates))
	}
}

func TestChangeIsShown(t *testing.T) {
	net := &togglingNet{def: api.NetworkDefinition{Encrypted: true, Moving: true}, looks: 1000}
	c := canned{definer: &netDesk{states: net.state}}
	if got := against(t, c, "network", "ls"); !strings.Contains(got.out, "PLAINTEXT -> encrypted 2/3") {
		t.Errorf("the list is\n%s", got.out)
	}
	got := against(t, c, "network", "inspect", "blue")
	for _, want := range []string{"changes     to encrypted, without loss: 2 of 3 nodes have followed\n", "waits for db-1 (alive), which has it plaintext\n"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("no %q in\n%s", want, got.out)
		}
	}
}
