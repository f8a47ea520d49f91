package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// canned is an agent that answers what it was told to.
type canned struct {
	status    api.Status
	endpoints []api.Endpoint
	keys      *script    // nil: it cannot rotate, and has no events
	events    api.Events // nil: those of keys
	metrics   func(context.Context, io.Writer) error
	revoker   *revoker // nil: it cannot revoke
	issuers   *issuerDesk
	definer   *netDesk
	floors    *floors // nil: it has no protocol floor
	leaver    *leaver // nil: it cannot leave
	members   []api.Member
	reloaded  []api.ConfigChange // nil: a file is refused
}

func (c canned) Status(context.Context) (api.Status, error)    { return c.status, nil }
func (c canned) Members(context.Context) ([]api.Member, error) { return c.members, nil }
func (c canned) Networks(context.Context) ([]api.Network, error) {
	if c.definer != nil && c.definer.states != nil {
		return []api.Network{c.definer.states("")}, nil
	}
	return c.status.Networks, nil
}
func (c canned) Endpoints(context.Context) ([]api.Endpoint, error) { return c.endpoints, nil }
func (c canned) Tokens(context.Context) ([]api.Token, error)       { return nil, nil }
func (c canned) RevokeToken(context.Context, string) error         { return nil }
func (c canned) DecideJoin(_ context.Context, _ string, d api.JoinDecision) (api.NodeRef, error) {
	return nodeRef(d.Node), nil
}
func (c canned) Detach(context.Context, string) error { return nil }
func (c canned) CreateToken(context.Context, api.TokenRequest) (api.NewToken, error) {
	return api.NewToken{Text: "SO1X"}, nil
}

func (c canned) Attach(_ context.Context, req api.AttachRequest) (api.Endpoint, error) {
	return api.Endpoint{ID: "0123456789ab", Network: req.Network, Netns: req.Netns, State: api.StateOK}, nil
}

func (c canned) Reload(context.Context) (api.Reload, error) {
	if c.reloaded == nil {
		return api.Reload{}, api.NewError(api.CodeRefused, "a running agent cannot change data.port", "start it again")
	}
	return api.Reload{Changes: c.reloaded}, nil
}

func (c canned) Down(context.Context, api.DownRequest) (api.DownResult, error) {
	return api.DownResult{}, api.NewError(api.CodeRefused, "not now", "wait")
}

// with runs something against a canned agent in this process.
func with(t *testing.T, c canned, do func(*app, *api.Client) int) result {
	t.Helper()
	var out, errs strings.Builder
	code := 0
	serve(t, c, func(dir string) {
		client := api.NewClient(filepath.Join(dir, "agent.sock"))
		defer client.Close()
		a := &app{out: cli.Screen{W: &out}, err: cli.Screen{W: &errs}, global: globalFlags{runtimeDir: dir}}
		code = do(a, client)
	})
	return result{out.String(), errs.String(), code}
}

// serve runs a canned agent while do lasts.
func serve(t *testing.T, c canned, do func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	backend := api.Backend{Observer: c, Attacher: c, Tokens: c, Lifecycle: c, Events: c.events}
	if c.revoker != nil {
		backend.Revoker = c.revoker
	}
	if c.definer != nil {
		backend.NetworkDefiner = c.definer
	}
	if c.issuers != nil {
		backend.Issuing, backend.IssuerRevoker = c.issuers, c.issuers
	}
	if c.floors != nil {
		backend.Protocols = c.floors
	}
	if c.leaver != nil {
		backend.Leaver = c.leaver
	}
	if c.keys != nil {
		backend.Keys = c.keys
		if c.events == nil {
			backend.Events = c.keys
		}
	}
	srv := api.NewServer(api.ServerOptions{Path: filepath.Join(dir, "agent.sock"), Backend: backend, Metrics: c.metrics})
	if err := srv.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	do(dir)
}

// against runs a command line in this process against a canned agent.
func against(t *testing.T, c canned, args ...string) result {
	t.Helper()
	var out, errs strings.Builder
	code := 0
	serve(t, c, func(dir string) {
		env := []string{"SECURE_OVERLAY_CONFIG=" + dir + "/none.yaml"}
		code = run(t.Context(), append(args, "--runtime-dir", dir), strings.NewReader(""), &out, &errs, env)
	})
	return result{out.String(), errs.String(), code}
}

func degraded(now time.Time) canned {
	id := ids.NodeIDOf([32]byte{1})
	peer := api.NodeRef{ID: ids.NodeIDOf([32]byte{2}), Name: "db-1\x1b[2J"}
	return canned{
		status: api.Status{
			Cluster: ids.ClusterID{0xab}, Node: api.NodeRef{ID: id, Name: "web-1"}, Started: now.Add(-76 * time.Hour),
			State: api.StateDegraded, Ready: true, Members: api.Count{OK: 1, Total: 2}, Epoch: 42,
			Keys: api.KeySummary{Target: 43, Started: now.Add(-12 * time.Minute), NextRotation: now.Add(11*time.Hour + 48*time.Minute + 30*time.Second),
				OnTarget: api.Count{OK: 0, Total: 1}, Blocked: "it would be the fourth that lives"},
			Driver: api.Driver{Name: "userspace", Label: "wireguard (userspace)", Refused: []api.Refusal{{Name: "wireguard", Reason: "driver wireguard: kernel WireGuard is missing (exists since Linux 5.6): operation not supported"}}},
			Networks: []api.Network{
				{Name: "blue", VNI: 4097, Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")},
					Encrypted: true, State: api.StateDegraded, Driver: "wireguard (userspace)", MTU: 1370, EndpointsHere: 3, EndpointsTotal: 11, Peers: api.Count{OK: 0, Total: 1},
					Conflicts: []api.Conflict{{Peer: peer, Field: "vni", Here: "4097", There: "4098"}}},
				{Name: "lab", VNI: 4098, Subnets: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16")}, State: api.StateOK, Driver: api.PlaintextLabel, MTU: 1450},
			},
			Peers: []api.Peer{{NodeRef: peer, Gossip: "suspect", Underlay: netip.MustParseAddrPort("10.0.0.12:51871"), Tunnel: api.TunnelWaiting,
				RxBytes: 1_200_000_000, TxBytes: 830_000_000, LastHandshake: now.Add(-6 * time.Minute), InnerMTU: 1440, Epoch: 42, PQ: true, Networks: []string{"blue"}}},
			Problems: []api.Problem{{Code: "network-conflict", Subject: "blue", Message: "db-1 defines another VNI", Fix: "make vni: of network blue equal on both"}},
		},
		endpoints: []api.Endpoint{
			{ID: "0123456789ab", Network: "blue", Node: api.NodeRef{ID: id, Name: "web-1"}, Local: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.77.0.5/16")},
				Ifname: "eth0", MTU: 1370, State: api.StateFailed, Problem: "its namespace is gone"},
			{Network: "lab", Node: peer, Addresses: []netip.Prefix{netip.MustParsePrefix("10.78.0.6/16")}, State: api.StateOK},
		},
	}
}

func TestStatusTable(t *testing.T) {
	now := time.Now()
	r := against(t, degraded(now), "status")
	want := `degraded   node web-1 (` + ids.NodeIDOf([32]byte{1}).Short() + `)   cluster ab000000   up 3d4h
1 of 2 members alive   driver wireguard (userspace)
key epoch 42 -> 43   12m old   next rotation in 11h48m   0 of 1 peer on it
driver wireguard not used: kernel WireGuard is missing (exists since
         Linux 5.6): operation not supported

NETWORK  SUBNET           ENCRYPTION             MTU   ENDPOINTS  PEERS
blue     10.77.0.0/16 +1  wireguard (userspace)  1370  3/11       0/1
lab      10.78.0.0/16     PLAINTEXT              1450  0/0        0/0

PEER      GOSSIP   UNDERLAY   TUNNEL   EPOCH  PQ   HANDSHAKE  RX/TX      MTU
db-1` + "\ufffd" + `[2J  suspect  10.0.0.12  waiting  42     yes  6m         1.2G/830M  1440

blocked  key epoch 43: it would be the fourth that lives

problem  blue: db-1 defines another VNI
    fix  make vni: of network blue equal on both
`
	if r.code != 4 {
		t.Errorf("exit code %d, want 4", r.code)
	}
	if d := cmp.Diff(want, r.out); d != "" {
		t.Error(d)
	}
	narrow(t, r.out)
	ok := degraded(now)
	ok.status.State, ok.status.Problems = api.StateOK, nil
	ok.status.Protocol = api.Protocol{Min: 1, Max: 2, Floor: 2}
	ok.status.Warnings = []api.Problem{{Code: "stale", Message: "no issuer has given a sign of life since 2026-01-01T12:00:00Z", Fix: "start the agent on a node with an issuer key: web-1"}}
	r = against(t, ok, "status")
	for _, part := range []string{
		"driver wireguard (userspace)   protocol floor 2\n",
		"\nwarning  no issuer has given a sign of life since 2026-01-01T12:00:00Z\n    fix  start the agent",
	} {
		if !strings.Contains(r.out, part) {
			t.Errorf("no %q in:\n%s", part, r.out)
		}
	}
	if r.code != 0 || strings.Contains(r.out, "problem") {
		t.Errorf("with a warning only: exit code %d\n%s", r.code, r.out)
	}
	narrow(t, r.out)
	if r := against(t, ok, "status", "--json"); r.code != 0 || !strings.Contains(r.out, `"schema": 1`) {
		t.Errorf("ok: exit code %d\n%s", r.code, r.out)
	}
}

func TestNetworkInspect(t *testing.T) {
	r := against(t, degraded(time.Now()), "network", "inspect", "blue")
	for _, part := range []string{
		"subnets     10.77.0.0/16, fd77::/64\n", "conflict    with db-1\ufffd[2J: vni is 4097 here and 4098 there", "0123456789ab  -     blue     web-1", "problem  0123456789ab: its namespace is gone",
	} {
		if !strings.Contains(r.out, part) {
			t.Errorf("no %q in:\n%s", part, r.out)
		}
	}
	if strings.Contains(r.out, "10.78.0.6") {
		t.Errorf("endpoint of another network:\n%s", r.out)
	}
}

func TestLists(t *testing.T) {
	c := degraded(time.Now())
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"network", "ls", "-q"}, 0, "blue\nlab\n"},
		{[]string{"endpoint", "ls", "--local", "-o", "jsonl"}, 0, `{"schema":1,"id":"0123456789ab"`},
		{[]string{"endpoint", "ls", "--network", "nosuch", "-o", "json"}, 0, `"endpoints": []`},
		{[]string{"members", "-o", "yaml"}, 0, "schema: 1\nmembers: []\n"},
		{[]string{"token", "create"}, 0, "SO1X\n"},
		{[]string{"attach", "blue", "--netns", "relative/path", "-o", "json"}, 0, `/relative/path"`},
		{[]string{"down"}, 6, ""},
	} {
		r := against(t, c, tc.args...)
		if r.code != tc.code || !strings.Contains(r.out, tc.want) {
			t.Errorf("%v: exit code %d\n%s%s", tc.args, r.code, r.out, r.err)
		}
	}
}

// brokenWriter is a full disk.
type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, fmt.Errorf("no space left") }

func TestUnwritableOutput(t *testing.T) {
	var errs strings.Builder
	for _, args := range [][]string{{"version"}, {"version", "-o", "json"}} {
		if code := run(t.Context(), args, strings.NewReader(""), brokenWriter{}, &errs, nil); code != 1 {
			t.Errorf("%v: exit code %d, want 1", args, code)
		}
	}
	if !strings.Contains(errs.String(), "no space left") {
		t.Errorf("stderr: %s", errs.String())
	}
}

func TestColour(t *testing.T) {
	a := &app{out: cli.Screen{W: &strings.Builder{}, Colour: true}}
	if got := a.out.Paint(encryptionCell(api.Network{}).Style, "PLAINTEXT"); got != "\x1b[31mPLAINTEXT\x1b[0m" {
		t.Errorf("plaintext is shown as %q", got)
	}
}

func TestQuoteArg(t *testing.T) {
	for _, s := range []string{"plain", "with space", "a'b"} {
		if got := quoteArg(s); (s == "plain") != (got == s) {
			t.Errorf("quoteArg(%q) = %s", s, got)
		}
	}
}
