package main

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// script is an agent whose key status moves on with each question; the last
// one stays.
type script struct {
	mu       sync.Mutex
	states   []api.KeyStatus
	rotation api.Rotation
	refusal  error
	asked    []api.RotateRequest
	events   []api.Event
}

func (s *script) Keys(context.Context) (api.KeyStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.states[0]
	if len(s.states) > 1 {
		s.states = s.states[1:]
	}
	return k, nil
}

func (s *script) Rotate(_ context.Context, req api.RotateRequest) (api.Rotation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, req)
	r := s.rotation
	r.DryRun = req.DryRun
	if req.Driver != "" {
		r.Driver = req.Driver
	}
	return r, s.refusal
}

func (s *script) KeyHistory(context.Context) ([]api.KeyEvent, error) { return s.events, nil }

func (s *script) Events(_ context.Context, q api.EventQuery) ([]api.Event, error) {
	var out []api.Event
	for _, e := range s.events {
		if e.Seq > q.After && !e.Time.Before(q.Since) {
			out = append(out, e)
		}
	}
	return out, nil
}

func nodeRef(name string) api.NodeRef {
	return api.NodeRef{ID: ids.NodeIDOf([32]byte{name[0]}), Name: name}
}

func keyNode(name, state string, epochs ...ids.Epoch) api.KeyNode {
	return api.KeyNode{NodeRef: nodeRef(name), Self: name == "a", Epochs: epochs, State: state}
}

func keyPeer(name string, on, goal ids.Epoch, step api.KeyStep, reason string) api.KeyPeer {
	return api.KeyPeer{NodeRef: nodeRef(name), Epoch: on, Goal: goal, Step: step, Reason: reason, Driver: "wireguard (userspace)", PQ: true, FullMTU: true}
}

// rotating is a rotation from 42 to 43 with three nodes, stage by stage.
func rotating() []api.KeyStatus {
	peers := func(on, goal ids.Epoch, step api.KeyStep, reason string) []api.KeyPeer {
		return []api.KeyPeer{keyPeer("b", on, goal, step, reason), keyPeer("c", on, goal, step, reason)}
	}
	nodes := func(e ...ids.Epoch) []api.KeyNode {
		return []api.KeyNode{keyNode("a", "alive", e...), keyNode("b", "alive", e...), keyNode("c", "alive", e...)}
	}
	return []api.KeyStatus{
		{Nodes: nodes(42), Peers: peers(42, 42, api.KeyStepDone, "")},
		{Nodes: nodes(42, 43), Peers: peers(42, 43, api.KeyStepProve, "no answer to the probe yet")},
		{Nodes: nodes(42, 43), Peers: peers(42, 43, api.KeyStepSwitch, "its route")},
		{Nodes: nodes(42, 43), Peers: peers(43, 43, api.KeyStepDrain, "packets still arrive")},
		{Nodes: nodes(43), Peers: peers(43, 43, api.KeyStepDone, "")},
	}
}

func asked43() api.Rotation {
	return api.Rotation{From: 42, To: 43, Driver: "auto", Effects: []string{"a device for epoch 43 (wireguard) on UDP port 51872", "db-1 has no driver ipsec: it keeps epoch 42"}}
}

func TestRotate(t *testing.T) {
	s := &script{rotation: asked43(), states: rotating()}
	c := canned{keys: s}
	r := against(t, c, "keys", "rotate")
	effects := "       - a device for epoch 43 (wireguard) on UDP port 51872\n       - db-1 has no driver ipsec: it keeps epoch 42\n"
	if d := cmp.Diff("epoch 42 -> 43   driver auto\n"+effects, r.out); r.code != 0 || d != "" {
		t.Errorf("exit code %d\n%s", r.code, d)
	}
	r = against(t, c, "keys", "rotate", "--dry-run", "--driver", "ipsec")
	want := "would start: epoch 42 -> 43   driver ipsec\n" + effects
	if d := cmp.Diff(want, r.out); r.code != 0 || d != "" {
		t.Errorf("exit code %d\n%s", r.code, d)
	}
	if d := cmp.Diff([]api.RotateRequest{{}, {Driver: "ipsec", DryRun: true}}, s.asked); d != "" {
		t.Error(d)
	}
	s.refusal = api.NewError(api.CodeRefused, "this node holds no issuer key", "run it on one that does")
	if r := against(t, c, "keys", "rotate", "--wait"); r.code != 6 || !strings.Contains(r.err, "fix: run it on one that does") || r.out != "" {
		t.Errorf("refused: exit code %d\n%s%s", r.code, r.out, r.err)
	}
}

func TestRotateWait(t *testing.T) {
	r := against(t, canned{keys: &script{rotation: asked43(), states: rotating()}}, "keys", "rotate", "--wait", "--timeout", "30s")
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if r.code != 0 || len(lines) != 4 || !strings.HasPrefix(lines[3], "epoch 43 is in use everywhere, the old keys are gone   ") {
		t.Errorf("exit code %d\n%s", r.code, r.out)
	}
	want := `ok    prepared            [3/3] nodes
ok    proved              [2/2] pairs of this node
ok    switched            [2/2] pairs of this node
ok    finished            [3/3] nodes
`
	if d := cmp.Diff(want, r.err); d != "" {
		t.Error(d)
	}
	r = against(t, canned{keys: &script{rotation: asked43(), states: rotating()}}, "keys", "rotate", "--wait", "-o", "json")
	for _, part := range []string{`"schema": 1`, `"to": 43`, `"outcome": "done"`, `"seconds": `, `"waiting": []`} {
		if !strings.Contains(r.out, part) {
			t.Errorf("no %s in\n%s", part, r.out)
		}
	}
}

// waitFor follows a scripted rotation with short pauses.
func waitFor(t *testing.T, o waitOptions, states ...api.KeyStatus) result {
	t.Helper()
	return with(t, canned{keys: &script{states: states}}, func(a *app, c *api.Client) int {
		return a.report(a.waitRotation(t.Context(), c, asked43(), "table", o))
	})
}

func TestRotateHeldUp(t *testing.T) {
	short := waitOptions{timeout: 30 * time.Second, poll: time.Millisecond, patience: time.Millisecond, settle: 50 * time.Millisecond}
	all := rotating()

	// A node is gone: named, and not waited for until the end of time.
	gone := all[3]
	gone.Nodes = []api.KeyNode{keyNode("a", "alive", 42, 43), keyNode("b", "alive", 42, 43), keyNode("c", "dead", 42)}
	gone.Peers = []api.KeyPeer{keyPeer("b", 43, 43, api.KeyStepDrain, ""), keyPeer("c", 42, 42, api.KeyStepDevice, "it has no device of epoch 43")}
	r := waitFor(t, short, append(all[:3:3], gone)...)
	if r.code != 4 || r.out != "" {
		t.Errorf("exit code %d\n%s", r.code, r.out)
	}
	for _, part := range []string{
		"warn  finished            [0/3] nodes\nerror: epoch 43 is in use, but the old keys stay until these nodes follow:\n", "\n  c: not reachable (dead)\n", "\n  a: still has epoch 42\n", "  fix: ",
	} {
		if !strings.Contains(r.err, part) {
			t.Errorf("no %q in\n%s", part, r.err)
		}
	}

	// A node is slow: said while waiting, once for each reason.
	short.timeout = time.Second // enough for two questions on any machine
	r = waitFor(t, short, all[:2]...)
	if r.code != 8 {
		t.Errorf("exit code %d", r.code)
	}
	want := `ok    prepared            [3/3] nodes
      waiting for b: no answer to the probe yet
      waiting for c: no answer to the probe yet
fail  proved              [0/2] pairs of this node
fail  switched            [0/2] pairs of this node
fail  finished            [0/3] nodes
error: epoch 43 is not finished after 1s; it goes on without this command:
  b: no answer to the probe yet
  c: no answer to the probe yet
  a: still has epoch 42
  fix: secure-overlay keys status
`
	if !strings.HasSuffix(r.err, want) {
		t.Errorf("(-want +got)\n%s", cmp.Diff(want, r.err))
	}
}

func TestRotateUsage(t *testing.T) {
	for _, args := range [][]string{
		{"keys", "rotate", "--wait", "--dry-run"}, {"keys", "rotate", "--timeout", "1m"}, {"keys", "rotate", "--wait", "--timeout", "0s"}, {"keys", "rotate", "now"},
		{"keys", "rotate", "--driver", "wiregard"},
	} {
		if r := against(t, canned{keys: &script{}}, args...); r.code != 2 || !strings.Contains(r.err, "fix: ") {
			t.Errorf("%v: exit code %d\n%s", args, r.code, r.err)
		}
	}
}

func TestKeysStatus(t *testing.T) {
	now := time.Now()
	k := api.KeyStatus{
		Target:  api.KeyTarget{Epoch: 43, Driver: "ipsec", Created: now.Add(-12 * time.Minute), Reason: "on command"},
		Started: now.Add(-12 * time.Minute), NextRotation: now.Add(11*time.Hour + 48*time.Minute + 30*time.Second), RotateEvery: api.Duration(12 * time.Hour),
		Devices: []api.KeyDevice{
			{Epoch: 42, Driver: "wireguard", Label: "wireguard (kernel)", Created: now.Add(-13 * time.Hour), Peers: 1},
			{Epoch: 43, Driver: "ipsec", Label: "ipsec", Created: now.Add(-12 * time.Minute), Peers: 1, Current: true},
		},
		Nodes: []api.KeyNode{keyNode("a", "alive", 42, 43), keyNode("b", "alive", 43), keyNode("c", "suspect", 42)},
		Peers: []api.KeyPeer{keyPeer("b", 43, 43, api.KeyStepDone, ""), keyPeer("c-with-a-longer-name", 42, 43, api.KeyStepAgree, "it has not answered for 40 s; is TCP port 7946 open between the two hosts? The old keys stay in use")},
	}
	k.Peers[0].Since, k.Peers[0].LastHandshake, k.Peers[0].Driver = now.Add(-11*time.Minute), now.Add(-38*time.Second), "ipsec"
	k.Peers[1].Since, k.Peers[1].PQ, k.Peers[1].FullMTU = now.Add(-40*time.Second), false, false
	r := against(t, canned{keys: &script{states: []api.KeyStatus{k}}}, "keys", "status")
	want := `epoch 43   driver ipsec   started 12m ago   next rotation in 11h48m
reason   on command

EPOCH  DRIVER              AGE  PEERS
42     wireguard (kernel)  13h  1
43 *   ipsec               12m  1

PEER                  EPOCH     STEP   SINCE  DRIVER                 HANDSHAKE  PQ
b                     43        done   11m    ipsec                  38s        yes
c-with-a-longer-name  42 -> 43  agree  40s    wireguard (userspace)  -          no

1 of 3 nodes on epoch 43 alone
NODE  EPOCHS  STATE
a *   42, 43  alive
c     42      suspect

waiting  c-with-a-longer-name: it has not answered for 40 s; is TCP port 7946
         open between the two hosts? The old keys stay in use
mtu      c-with-a-longer-name: packets of the tunnel's whole MTU are lost on the
         way; see: secure-overlay doctor
`
	if d := cmp.Diff(want, r.out); r.code != 0 || d != "" {
		t.Errorf("exit code %d\n%s", r.code, d)
	}
	// With a name of the usual length every line fits.
	k.Peers[1].Name = "database-1"
	narrow(t, against(t, canned{keys: &script{states: []api.KeyStatus{k}}}, "keys", "status").out)
	if r := against(t, canned{keys: &script{states: []api.KeyStatus{k}}}, "keys", "status", "-o", "yaml"); r.code != 0 || !strings.Contains(r.out, "rotate_every: 12h0m0s\n") {
		t.Errorf("yaml: exit code %d\n%s", r.code, r.out)
	}
	k.Blocked = "the kernel has no ESP"
	if r := against(t, canned{keys: &script{states: []api.KeyStatus{k}}}, "keys", "status"); r.code != 4 || !strings.Contains(r.out, "blocked  the kernel has no ESP\n") {
		t.Errorf("blocked: exit code %d\n%s", r.code, r.out)
	}
	k.Blocked, k.Peers[1].Step = "", api.KeyStepRefused
	if r := against(t, canned{keys: &script{states: []api.KeyStatus{k}}}, "keys", "status", "--json"); r.code != 4 {
		t.Errorf("refused: exit code %d", r.code)
	}
	empty := api.KeyStatus{Target: api.KeyTarget{Epoch: 1, Driver: "auto"}}
	if r := against(t, canned{keys: &script{states: []api.KeyStatus{empty}}}, "keys", "status"); r.code != 0 || r.out != "epoch 1   driver auto   not started here   rotates only on command\n" {
		t.Errorf("nothing encrypted: exit code %d\n%s", r.code, r.out)
	}
}

// narrow checks that a person with 80 columns sees it all.
func narrow(t *testing.T, text string) {
	t.Helper()
	for line := range strings.Lines(text) {
		if n := len([]rune(strings.TrimSpace(line))); n > 80 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
}
