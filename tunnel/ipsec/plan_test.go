package ipsec

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/xfrm"
)

var (
	self  = netip.MustParseAddr("fd00::5e1f")
	here  = netip.MustParseAddr("198.18.0.1")
	there = netip.MustParseAddr("198.18.0.2")
	at    = place{self: self, ifID: 77, port: DefaultPort}
)

// wanted makes a peer under a key, to be reached under two indices; 0 for out
// is none.
func wanted(peer byte, key keys.KeyID, in, out ids.SPI, hasSecret bool) want {
	inner := netip.AddrFrom16([16]byte{0xfd, 15: peer})
	return want{
		peer: ids.NodeID{peer}, inner: inner, hasSecret: hasSecret,
		key: tunnel.PeerKey{Key: key, ESP: tunnel.ESP{Local: here, Remote: there, In: in, Out: out}},
	}
}

// inUDP is w in the other form.
func inUDP(w want) want {
	w.key.ESP.InUDP = true
	return w
}

// toPort is w in UDP, with a peer that has another port than this node.
func toPort(w want, port uint16) want {
	w = inUDP(w)
	w.key.ESP.Port = port
	return w
}

// TestPortsInUDP: what comes from the peer's port to this node's, and back.
func TestPortsInUDP(t *testing.T) {
	for _, c := range []struct {
		w       want
		in, out xfrm.Encap
	}{
		{wanted(1, 10, 1000, 2000, true), xfrm.Encap{}, xfrm.Encap{}},
		{inUDP(wanted(1, 10, 1000, 2000, true)), xfrm.Encap{Src: 4500, Dst: 4500}, xfrm.Encap{Src: 4500, Dst: 4500}},
		{toPort(wanted(1, 10, 1000, 2000, true), 51871), xfrm.Encap{Src: 51871, Dst: 4500}, xfrm.Encap{Src: 4500, Dst: 51871}},
	} {
		if in, out := at.states(c.w); in.Encap != c.in || out.Encap != c.out {
			t.Errorf("%+v: in %+v, out %+v", c.w.key.ESP, in.Encap, out.Encap)
		}
	}
}

// installed is what is there when these have been installed.
func installed(wants ...want) have {
	h := have{states: map[xfrm.Name]xfrm.State{}, used: map[use]bool{}}
	for _, w := range wants {
		in, out := at.states(w)
		for d, s := range map[xfrm.Dir]xfrm.State{xfrm.In: in, xfrm.Out: out} {
			if s.SPI != 0 {
				h.states[s.Name()] = s
				h.policies = append(h.policies, xfrm.Listed{Policy: s.Policy(d), Exact: true})
				h.used[use{w.key.Key, s.SPI, d}] = true
			}
		}
	}
	return h
}

// show writes steps down, one line each.
func show(steps []step) string {
	var lines []string
	for _, s := range steps {
		dir := map[xfrm.Dir]string{xfrm.In: "in", xfrm.Out: "out"}[s.dir]
		line := fmt.Sprintf("%s %s", s.do, dir)
		switch s.do {
		case addState, deleteState:
			line += fmt.Sprintf(" %d key %d", s.state.SPI, s.state.ReqID)
			if s.state.Encap != (xfrm.Encap{}) {
				line += " in UDP"
			}
		case setPolicy:
			line += fmt.Sprintf(" %d key %d", s.policy.SPI, s.policy.ReqID)
		case deletePolicy:
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestPlan(t *testing.T) {
	full := wanted(1, 10, 1000, 2000, true)
	bare := wanted(1, 10, 1000, 2000, false)
	receiving := wanted(1, 10, 1000, 0, true)
	next := wanted(1, 11, 1001, 2001, true)
	without := func(drop func(*have)) have {
		h := installed(full)
		drop(&h)
		return h
	}
	const all = "add association in 1000 key 10\nset policy in 1000 key 10\n" +
		"add association out 2000 key 10\nset policy out 2000 key 10"
	for _, c := range []struct {
		name  string
		wants []want
		have  have
		plan  string
		gone  bool
	}{
		{name: "nothing"},
		{name: "new peer", wants: []want{full}, plan: all},
		{name: "new peer, no secret", wants: []want{bare}, gone: true},
		{name: "as it should be", wants: []want{bare}, have: installed(full)},
		{
			name: "receiving half", wants: []want{receiving},
			plan: "add association in 1000 key 10\nset policy in 1000 key 10",
		},
		{
			name: "sending half follows", wants: []want{full}, have: installed(receiving),
			plan: "add association out 2000 key 10\nset policy out 2000 key 10",
		},
		{name: "sending half follows, no secret", wants: []want{bare}, have: installed(receiving), gone: true},
		{
			name: "sending half goes", wants: []want{receiving}, have: installed(full),
			plan: "delete policy out\ndelete association out 2000 key 10",
		},
		{
			name: "peer goes", have: installed(full),
			plan: "delete policy out\ndelete association out 2000 key 10\ndelete policy in\ndelete association in 1000 key 10",
		},
		{
			name: "new key", wants: []want{next}, have: installed(full),
			plan: "add association in 1001 key 11\nset policy in 1001 key 11\n" +
				"add association out 2001 key 11\nset policy out 2001 key 11\n" +
				"delete association out 2000 key 10\ndelete association in 1000 key 10",
		},
		{
			name: "new key, receiving half", wants: []want{wanted(1, 11, 1001, 0, true)}, have: installed(full),
			plan: "add association in 1001 key 11\nset policy in 1001 key 11\n" +
				"delete policy out\ndelete association out 2000 key 10\ndelete association in 1000 key 10",
		},
		{
			name: "new key, no secret", wants: []want{wanted(1, 11, 1001, 2001, false)}, have: installed(full), gone: true,
			plan: "delete policy out\ndelete association out 2000 key 10\ndelete policy in\ndelete association in 1000 key 10",
		},
		{
			name: "other key under the same indices", wants: []want{wanted(1, 11, 1000, 2000, true)}, have: installed(full),
			plan: "delete association in 1000 key 10\nadd association in 1000 key 11\nset policy in 1000 key 11\n" +
				"delete association out 2000 key 10\nadd association out 2000 key 11\nset policy out 2000 key 11",
		},
		{
			name: "other form, new key", wants: []want{inUDP(next)}, have: installed(full),
			plan: "add association in 1001 key 11 in UDP\nset policy in 1001 key 11\n" +
				"add association out 2001 key 11 in UDP\nset policy out 2001 key 11\n" +
				"delete association out 2000 key 10\ndelete association in 1000 key 10",
		},
		{name: "in UDP, as it should be", wants: []want{inUDP(bare)}, have: installed(inUDP(full))},
		{
			name: "other form under one key", wants: []want{inUDP(full)}, have: installed(full), gone: true,
			plan: "delete policy out\ndelete association out 2000 key 10\ndelete policy in\ndelete association in 1000 key 10",
		},
		{name: "in UDP, the driver's port by name", wants: []want{toPort(bare, DefaultPort)}, have: installed(inUDP(full))},
		{name: "in UDP, another port", wants: []want{toPort(bare, 51871)}, have: installed(toPort(full, 51871))},
		{
			name: "the peer's port changes under one key", wants: []want{toPort(full, 51872)}, have: installed(toPort(full, 51871)), gone: true,
			plan: "delete policy out\ndelete association out 2000 key 10 in UDP\ndelete policy in\ndelete association in 1000 key 10 in UDP",
		},
		{
			name: "policy gone", wants: []want{bare},
			have: without(func(h *have) { h.policies = h.policies[:0] }),
			plan: "set policy in 1000 key 10\nset policy out 2000 key 10",
		},
		{
			name: "policies changed", wants: []want{bare},
			have: without(func(h *have) { h.policies[0].Exact = false; h.policies[1].SPI++ }),
			plan: "set policy in 1000 key 10\nset policy out 2000 key 10",
		},
		{
			name: "receiving association gone", wants: []want{full}, gone: true,
			have: without(func(h *have) { delete(h.states, xfrm.Name{Dst: here, SPI: 1000}) }),
			plan: "delete policy in",
		},
		{
			name: "sending association gone", wants: []want{full}, gone: true,
			have: without(func(h *have) { delete(h.states, xfrm.Name{Dst: there, SPI: 2000}) }),
			plan: "delete policy out",
		},
		{
			name: "association of somebody else under the index", wants: []want{full},
			have: have{states: map[xfrm.Name]xfrm.State{}}, plan: all,
		},
		{
			name: "a peer's address goes to another", wants: []want{wanted(2, 20, 1002, 0, true)}, have: installed(receiving),
			plan: "delete policy in\ndelete association in 1000 key 10\n" +
				"add association in 1002 key 20\nset policy in 1002 key 20",
		},
		{
			name: "association left without a policy", have: without(func(h *have) { h.policies = nil }),
			plan: "delete association out 2000 key 10\ndelete association in 1000 key 10",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			steps, errs := plan(at, c.wants, c.have)
			if diff := cmp.Diff(c.plan, show(steps)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			var pe *tunnel.PeerError
			err := errors.Join(errs...)
			if c.gone != (err != nil) || c.gone && (!errors.Is(err, tunnel.ErrSecretGone) || !errors.As(err, &pe) || pe.Peer != c.wants[0].peer) {
				t.Errorf("error %v, want one: %v", err, c.gone)
			}
		})
	}
}

// TestPlanConverges applies plans to what they were made for, from many
// beginnings: the next plan is empty, and no step leaves a policy that asks for
// what is not there.
func TestPlanConverges(t *testing.T) {
	var choices []want
	for _, key := range []keys.KeyID{10, 11} {
		for _, out := range []ids.SPI{0, 2000 + ids.SPI(key)} {
			choices = append(choices, wanted(1, key, 1000, out, true), wanted(1, key, 1001, out, true))
		}
	}
	for i, before := range choices {
		for j, after := range choices {
			h := installed(before)
			if before.key.Key == after.key.Key {
				h.used = nil // or what was deleted on the way could not be made again
			}
			other := wanted(2, 99, 1099, 2099, false)
			extra := installed(other)
			for n, s := range extra.states {
				h.states[n] = s
			}
			h.policies = append(h.policies, extra.policies...)
			wants := []want{after, other}
			steps, errs := plan(at, wants, h)
			if len(errs) != 0 {
				t.Errorf("from %d to %d: %v", i, j, errs)
			}
			for _, s := range steps {
				h.take(s)
				for _, p := range h.policies {
					if _, there := h.states[p.Name()]; !there && before.key.ESP.In != after.key.ESP.In {
						t.Errorf("from %d to %d: after %s a policy asks for what is gone:\n%s", i, j, s.do, show(steps))
					}
				}
			}
			if steps, errs := plan(at, wants, h); len(steps) != 0 || len(errs) != 0 {
				t.Errorf("from %d to %d: a second plan:\n%s\n%v", i, j, show(steps), errs)
			}
		}
	}
}

// take does to h what the kernel would.
func (h *have) take(s step) {
	switch s.do {
	case addState:
		h.states[s.state.Name()] = s.state
	case deleteState:
		delete(h.states, s.state.Name())
	case setPolicy, deletePolicy:
		var kept []xfrm.Listed
		for _, p := range h.policies {
			if p.Dir != s.policy.Dir || p.From != s.policy.From || p.To != s.policy.To {
				kept = append(kept, p)
			}
		}
		if s.do == setPolicy {
			kept = append(kept, xfrm.Listed{Policy: s.policy, Exact: true})
		}
		h.policies = kept
	}
}

func TestDeriveIfID(t *testing.T) {
	a, b := ids.NodeID{1}, ids.NodeID{2}
	seen := map[uint32]bool{}
	for _, node := range []ids.NodeID{a, b} {
		for epoch := range ids.Epoch(1000) {
			for attempt := range uint8(attempts) {
				id := deriveIfID(node, epoch, 0, attempt)
				if seen[id] || id>>31 != 1 {
					t.Errorf("%s epoch %d attempt %d: %08x", node.Short(), epoch, attempt, id)
				}
				seen[id] = true
			}
		}
	}
	// Fixed for ever: associations of a device that was deleted carry it.
	if id := deriveIfID(a, 1, 0, 0); id != 0xeb13538a {
		t.Errorf("interface ID %#08x", id)
	}
}
