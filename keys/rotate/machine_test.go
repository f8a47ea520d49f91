package rotate

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// one is a machine of node 0 under test, fed by hand.
type one struct {
	t   *testing.T
	m   *Machine
	now time.Time
	o   Observation
}

// newOne begins with a working pair with node 1 on epoch 1 under key 7, found
// by a process that has just started.
func newOne(t *testing.T) *one {
	return &one{t: t, m: New(simID(0), 5, labTiming), now: simStart, o: Observation{
		Target: 1, Enabled: true,
		Devices: []Device{{1, 1, 1}},
		Peers:   []Peer{{simID(1), []Device{{1, 1, 1}}}},
		Installed: []Installed{
			{Peer: simID(1), Device: Device{1, 1, 1}, Theirs: 1, Key: 7, Sends: true},
		},
		Routes: map[ids.NodeID]ids.Epoch{simID(1): 1},
	}}
}

func (x *one) poll(after time.Duration) Plan {
	x.now = x.now.Add(after)
	x.m.Observe(x.now, x.o)
	return x.m.Poll(x.now)
}

func TestPollBeforeObserve(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("Poll before Observe gave a plan, which would remove everything")
		}
	}()
	New(simID(0), 1, labTiming).Poll(simStart)
}

// TestAdoption: a new process changes nothing that it finds.
func TestAdoption(t *testing.T) {
	x := newOne(t)
	plan := x.poll(0)
	want := []Pair{{Peer: simID(1), Epoch: 1, Key: 7, Theirs: 1, Send: true, Main: true}}
	if diff := cmp.Diff(want, plan.Pairs); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]ids.Epoch{1}, plan.Devices); diff != "" {
		t.Error(diff)
	}
	if len(plan.Agree)+len(plan.Probe) != 0 || len(plan.Send) != 1 {
		t.Errorf("wants %v, probes %v, says %v", plan.Agree, plan.Probe, plan.Send)
	}
	if s := plan.Send[0].Message.Epochs; len(s) != 1 || !s[0].Proved {
		t.Errorf("says %+v", s)
	}
}

// TestAdoptionWithOldRecord: after a restart the peer's record may be an old
// one, from a cache. It proves nothing against what is installed.
func TestAdoptionWithOldRecord(t *testing.T) {
	for name, devices := range map[string][]Device{"lacks the device": nil, "knows an older device": {{1, 1, 1}}} {
		x := newOne(t)
		x.o.Installed[0].Theirs = 2
		x.o.Peers[0].Devices = devices
		if plan := x.poll(0); len(plan.Pairs) != 1 || !plan.Pairs[0].Main {
			t.Errorf("record %s: %+v", name, plan.Pairs)
		}
	}
	x := newOne(t)
	x.o.Peers[0].Devices = []Device{{1, 3, 1}}
	if plan := x.poll(0); len(plan.Pairs) != 0 {
		t.Errorf("the peer's device was made anew, still: %+v", plan.Pairs)
	}
}

// TestUnknownTheirs: what is installed is matched by its key where the
// peer's instance is not known, as with ESP after a restart.
func TestUnknownTheirs(t *testing.T) {
	x := newOne(t)
	x.o.Installed[0].Theirs = 0
	x.poll(0)
	x.m.Receive(x.now, simID(1), Message{Boot: 9, Seq: 1, AckBoot: 5, AckSeq: 1, Tx: 1, Epochs: []EpochState{{1, 1, 1, 7, true}}})
	plan := x.poll(time.Minute)
	if len(plan.Pairs) != 1 || !plan.Pairs[0].Main || len(plan.Agree) != 0 {
		t.Errorf("%+v, asks %v", plan.Pairs, plan.Agree)
	}
}

// TestUnknownTheirsLost: a process that has just started finds a key of whose
// peer's device the record says nothing, or of which it names another instance,
// and cannot tell whether the record is too old or the key. It keeps the key
// until the peer, which knows that, lacks it: then the pair agrees anew,
// whichever node asks.
func TestUnknownTheirsLost(t *testing.T) {
	for _, asks := range []bool{true, false} {
		x, peer := newOne(t), simID(1)
		if !asks {
			peer = simID(0)
			x.m = New(simID(1), 5, labTiming)
			x.o.Peers[0].ID, x.o.Installed[0].Peer = peer, peer
			x.o.Routes = map[ids.NodeID]ids.Epoch{peer: 1}
		}
		x.o.Installed[0].Theirs = 0
		x.o.Peers[0].Devices = []Device{{1, 2, 1}}
		x.poll(0)
		plan := x.poll(time.Hour)
		if len(plan.Pairs) != 1 || plan.Pairs[0].Key != 7 || !plan.Pairs[0].Main || len(plan.Agree) != 0 {
			t.Errorf("asks %t: before the peer has said a word: %+v, asks %v", asks, plan.Pairs, plan.Agree)
		}
		x.m.Receive(x.now, peer, Message{Boot: 9, Seq: 1, AckBoot: 5, AckSeq: 1})
		plan = x.poll(time.Second)
		want := Wanted{Peer: peer, Epoch: 1, Mine: 1, Theirs: 2}
		if asks && !slices.Equal(plan.Agree, []Wanted{want}) {
			t.Errorf("the peer lacks the key: asks %v", plan.Agree)
		}
		if err := x.m.MayAgree(peer, want); !asks && err != nil {
			t.Errorf("the peer lacks the key and asks: %v", err)
		}
		if !x.m.Agreed(x.now, peer, Agreement{Epoch: 1, Mine: 1, Theirs: 2, Key: 8}) {
			t.Errorf("asks %t: the new key is not taken", asks)
		}
		plan = x.poll(time.Second)
		if diff := cmp.Diff([]Pair{{Peer: peer, Epoch: 1, Key: 8, Theirs: 2}}, plan.Pairs); diff != "" {
			t.Errorf("asks %t:\n%s", asks, diff)
		}
	}
}

// TestUnwanted: a pair that is not wanted goes at once, and comes afresh.
func TestUnwanted(t *testing.T) {
	x := newOne(t)
	x.poll(0)
	peers := x.o.Peers
	x.o.Peers = nil
	if plan := x.poll(time.Second); len(plan.Pairs) != 0 || len(plan.Progress) != 0 {
		t.Errorf("still %+v", plan.Pairs)
	}
	x.o.Partial = true
	if plan := x.poll(time.Second); len(plan.Pairs) != 1 || !plan.Pairs[0].Main || len(plan.Send) != 0 {
		t.Errorf("with a partial observation: %+v, says %v", plan.Pairs, plan.Send)
	}
	x.o.Partial, x.o.Installed, x.o.Routes, x.o.Peers = false, nil, nil, peers
	if plan := x.poll(time.Second); len(plan.Agree) != 1 {
		t.Errorf("afresh: asks %v", plan.Agree)
	}
	x.o.Enabled = false
	if plan := x.poll(time.Second); !cmp.Equal(plan, Plan{}) {
		t.Errorf("disabled: %+v", plan)
	}
}

// TestForeignKeys: a peer without a preshared key, as versions before rotation
// made it, is none of ours.
func TestForeignKeys(t *testing.T) {
	x := newOne(t)
	x.o.Installed[0].Key = 0
	if plan := x.poll(0); len(plan.Pairs) != 0 || len(plan.Agree) != 1 {
		t.Errorf("%+v, asks %v", plan.Pairs, plan.Agree)
	}
}

func TestMayAgree(t *testing.T) {
	good := Wanted{Peer: simID(0), Epoch: 2, Mine: 1, Theirs: 4}
	for name, c := range map[string]struct {
		change func(o *Observation)
		want   Wanted
		err    string
	}{
		"right":            {nil, good, ""},
		"unknown peer":     {func(o *Observation) { o.Peers = nil }, good, "no tunnel"},
		"older epoch":      {nil, Wanted{simID(0), 1, 1, 1}, "newest epoch of both is 2"},
		"unknown epoch":    {nil, Wanted{simID(0), 3, 1, 1}, "newest epoch of both is 2"},
		"my other device":  {nil, Wanted{simID(0), 2, 2, 4}, "made anew"},
		"its other device": {nil, Wanted{simID(0), 2, 1, 3}, "made anew"},
		"other wire":       {func(o *Observation) { o.Peers[0].Devices[1].Wire = 2 }, good, "newest epoch of both is 1"},
		"key in use": {func(o *Observation) {
			o.Installed = append(o.Installed, Installed{simID(0), Device{2, 1, 1}, 4, 8, true, false, 0})
		}, good, "in use"},
		"key that it lacks": {func(o *Observation) {
			o.Installed = append(o.Installed, Installed{simID(0), Device{2, 1, 1}, 4, 9, true, false, 0})
		}, good, ""},
	} {
		m := New(simID(1), 5, labTiming)
		o := Observation{Target: 2, Enabled: true, Devices: []Device{{1, 1, 1}, {2, 1, 1}},
			Peers: []Peer{{simID(0), []Device{{1, 1, 1}, {2, 4, 1}}}}}
		if c.change != nil {
			c.change(&o)
		}
		m.Observe(simStart, o)
		m.Poll(simStart)
		m.Receive(simStart, simID(0), Message{Boot: 9, Seq: 1, Epochs: []EpochState{{2, 4, 1, 8, true}}})
		err := m.MayAgree(simID(0), c.want)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
	}
	if err := newOne(t).m.MayAgree(simID(1), good); err == nil {
		t.Error("agrees although nothing was observed")
	}
	x := newOne(t)
	x.poll(0)
	if err := x.m.MayAgree(simID(1), Wanted{simID(1), 1, 1, 1}); err == nil || !strings.Contains(err.Error(), "lower node asks") {
		t.Errorf("the lower node lets itself be asked: %v", err)
	}
}

// TestUnprovedKey: which keys that both nodes have may be replaced, by the node
// that asks and by the one that is asked.
func TestUnprovedKey(t *testing.T) {
	const pause = 10 * time.Second
	for _, c := range []struct {
		name  string
		after time.Duration
		hears func(*Message)   // what the peer says
		has   func(*Installed) // what this node has
		probe *ProbeResult
		few   bool // one probe has failed, not two
		route bool
		stale bool
		half  bool // the asked node lets itself be asked, nobody asks
	}{
		{name: "for long enough", after: pause, stale: true},
		{name: "not for long enough", after: pause/2 - time.Millisecond},
		{name: "for half of it", after: pause / 2, half: true},
		{name: "there is one form", after: pause, has: func(i *Installed) { i.Forms = false }},
		{name: "the peer has proved it", after: pause, hears: func(m *Message) { m.Epochs[0].Proved = true }},
		{name: "this node has proved it", after: pause, probe: &ProbeResult{Small: true, Full: true}},
		{name: "small packets pass", after: pause, probe: &ProbeResult{Small: true}},
		{name: "one probe has failed", after: pause, few: true, half: true},
		{name: "this node sends on it", after: pause, route: true},
		{name: "the peer's word is for another process", after: pause, hears: func(m *Message) { m.AckBoot = 6 }},
		{name: "the peer has another key", after: pause, hears: func(m *Message) { m.Epochs[0].Key = 8 }},
	} {
		for self, peer := range map[int]int{0: 1, 1: 0} {
			x := newOne(t)
			x.m = New(simID(self), 5, labTiming)
			x.o.Peers[0].ID, x.o.Installed[0].Peer, x.o.Installed[0].Forms = simID(peer), simID(peer), true
			x.o.Routes = nil
			if c.route {
				x.o.Routes = map[ids.NodeID]ids.Epoch{simID(peer): 1}
			}
			if c.has != nil {
				c.has(&x.o.Installed[0])
			}
			x.poll(0)
			msg := Message{Boot: 9, Seq: 1, AckBoot: 5, AckSeq: 1, Epochs: []EpochState{{1, 1, 1, 7, false}}}
			if c.hears != nil {
				c.hears(&msg)
			}
			x.m.Receive(x.now, simID(peer), msg)
			x.poll(0)
			for n := range 2 {
				if n == 0 || !c.few {
					x.m.Probed(x.now, ProbeResult{Probe: Probe{simID(peer), 1, 7}})
				}
			}
			if c.probe != nil {
				c.probe.Probe = Probe{simID(peer), 1, 7}
				x.m.Probed(x.now, *c.probe)
			}
			plan := x.poll(c.after)
			want := Wanted{simID(peer), 1, 1, 1}
			if plan.Pairs[0].Unproved != (c.stale || c.few && self == 1) {
				t.Errorf("%s, node %d: unproved is %v", c.name, self, plan.Pairs[0].Unproved)
			}
			if c.name == "the peer has another key" {
				continue // then it lacks this one, which has rules of its own
			}
			if self == 0 && (len(plan.Agree) == 1) != c.stale {
				t.Errorf("%s: asks for %v", c.name, plan.Agree)
			}
			takes := c.stale || c.half && self == 1
			if err := x.m.MayAgree(simID(peer), want); self == 1 && (err == nil) != takes {
				t.Errorf("%s: lets itself be asked: %v", c.name, err)
			}
			if got := x.m.Agreed(x.now, simID(peer), Agreement{1, 1, 1, 9}); got != takes {
				t.Errorf("%s, node %d: takes another key: %v", c.name, self, got)
			}
		}
	}
}

// TestInUseKeyIsKept: a new key for a leg that both sides have is forgotten.
func TestInUseKeyIsKept(t *testing.T) {
	x := newOne(t)
	x.poll(0)
	msg := Message{Boot: 9, Seq: 1, AckBoot: 5, AckSeq: 1, Tx: 1, Epochs: []EpochState{{1, 1, 1, 7, true}}}
	if !x.m.Receive(x.now, simID(1), msg) || x.m.Receive(x.now, simID(1), msg) {
		t.Error("the first message is news, its repetition is not")
	}
	if x.m.Agreed(x.now, simID(1), Agreement{1, 1, 1, 8}) {
		t.Error("a key for a leg in use is taken")
	}
	if plan := x.poll(time.Second); plan.Pairs[0].Key != 7 || !plan.Pairs[0].Main {
		t.Errorf("the key in use was replaced: %+v", plan.Pairs)
	}
	msg.Seq, msg.Tx, msg.Epochs = 2, 0, nil // the peer has lost it
	x.m.Receive(x.now, simID(1), msg)
	if !x.m.Agreed(x.now, simID(1), Agreement{1, 1, 1, 8}) {
		t.Error("a key for a lost leg is not taken")
	}
	if plan := x.poll(time.Second); plan.Pairs[0].Key != 8 || plan.Pairs[0].Main || plan.Pairs[0].Send {
		t.Errorf("the lost key was not replaced: %+v", plan.Pairs)
	}
}

// TestProbeRoute: the second route is there from the beginning until the
// route itself leads through the epoch.
func TestProbeRoute(t *testing.T) {
	x := newOne(t)
	x.o.Target = 2
	x.o.Devices = append(x.o.Devices, Device{2, 1, 1})
	x.o.Peers[0].Devices = append(x.o.Peers[0].Devices, Device{2, 1, 1})
	x.poll(0)
	x.m.Agreed(x.now, simID(1), Agreement{2, 1, 1, 8})
	said := uint64(0)
	step := func(what string, want Pair, peer ...EpochState) {
		t.Helper()
		said++
		x.m.Receive(x.now, simID(1), Message{Boot: 9, Seq: said, AckBoot: 5, AckSeq: 1 << 20, Tx: 1, Epochs: append([]EpochState{{1, 1, 1, 7, true}}, peer...)})
		plan := x.poll(time.Second)
		want.Peer, want.Epoch, want.Key, want.Theirs = simID(1), 2, 8, 1
		if diff := cmp.Diff(want, plan.Pairs[1]); diff != "" {
			t.Errorf("%s:\n%s", what, diff)
		}
		probes := slices.Contains(plan.Probe, Probe{simID(1), 2, 8})
		if probes != (what == "both receive") {
			t.Errorf("%s: probes %v", what, plan.Probe)
		}
	}
	step("agreed", Pair{Probe: true})
	in := Installed{Peer: simID(1), Device: Device{2, 1, 1}, Theirs: 1, Key: 8}
	x.o.Installed = append(x.o.Installed, in)
	step("installed", Pair{Probe: true})
	step("the peer receives", Pair{Probe: true, Send: true}, EpochState{2, 1, 1, 8, false})
	x.o.Installed[1].Sends = true
	step("both receive", Pair{Probe: true, Send: true}, EpochState{2, 1, 1, 8, false})
	x.m.Probed(x.now, ProbeResult{Probe{simID(1), 2, 8}, true, true})
	step("proved", Pair{Probe: true, Send: true}, EpochState{2, 1, 1, 8, false})
	step("both proved", Pair{Main: true, Send: true}, EpochState{2, 1, 1, 8, true})
	x.o.Routes[simID(1)] = 2
	step("moved", Pair{Main: true, Send: true}, EpochState{2, 1, 1, 8, true})
}

// TestStaleProbe: the result of a probe of another key changes nothing.
func TestStaleProbe(t *testing.T) {
	x := newOne(t)
	x.o.Routes = nil
	x.poll(0)
	x.m.Probed(x.now, ProbeResult{Probe{simID(1), 1, 6}, true, true})
	x.m.Probed(x.now, ProbeResult{Probe{simID(2), 1, 7}, true, true})
	if x.m.pairs[simID(1)].leg(1).probe.small {
		t.Error("a probe of key 6 proved key 7")
	}
}

// TestDrainWaitsForSilence: an old epoch on which packets still arrive stays.
func TestDrainWaitsForSilence(t *testing.T) {
	x := newOne(t)
	x.o.Target, x.o.Routes[simID(1)] = 2, 2
	x.o.Devices = append(x.o.Devices, Device{2, 1, 1})
	x.o.Peers[0].Devices = append(x.o.Peers[0].Devices, Device{2, 1, 1})
	x.o.Installed = append(x.o.Installed, Installed{Peer: simID(1), Device: Device{2, 1, 1}, Theirs: 1, Key: 8, Sends: true})
	x.poll(0)
	x.m.Receive(x.now, simID(1), Message{Boot: 9, Seq: 1, AckBoot: 5, AckSeq: 1, Tx: 2, Epochs: []EpochState{{1, 1, 1, 7, true}, {2, 1, 1, 8, true}}})
	for range 10 {
		x.o.Installed[0].RxBytes += 100
		if plan := x.poll(9 * time.Second); len(plan.Pairs) != 2 || !plan.Pairs[0].Draining || plan.Pairs[0].Main {
			t.Fatalf("after %v: %+v", x.now.Sub(simStart), plan.Pairs)
		}
	}
	plan := x.poll(9 * time.Second)
	if len(plan.Pairs) != 2 || plan.Wake.Sub(x.now) != time.Second {
		t.Errorf("%+v, wake in %v", plan.Pairs, plan.Wake.Sub(x.now))
	}
	if plan := x.poll(time.Second); len(plan.Pairs) != 1 || plan.Pairs[0].Epoch != 2 {
		t.Errorf("10 s of silence: %+v", plan.Pairs)
	}
}

// TestUnreachableIsCheap: a peer that never answers costs one message and one
// agreement per RetryMax.
func TestUnreachableIsCheap(t *testing.T) {
	x := newOne(t)
	x.o.Installed, x.o.Routes = nil, nil
	sent, asked := 0, 0
	for end := simStart.Add(time.Hour); x.now.Before(end); {
		plan := x.poll(0)
		sent, asked = sent+len(plan.Send), asked+len(plan.Agree)
		for _, w := range plan.Agree {
			x.m.AgreeFailed(x.now, w)
		}
		if len(plan.Agree) > 0 {
			plan = x.poll(0)
		}
		if !plan.Wake.After(x.now) {
			t.Fatalf("wakes at %v", plan.Wake)
		}
		x.now = plan.Wake
	}
	if sent < 120 || sent > 130 || asked < 120 || asked > 130 {
		t.Errorf("%d messages, %d agreements in an hour, want about 120", sent, asked)
	}
}

// TestWithoutAgreeFailed: an agreement of which nothing is heard is asked for
// again.
func TestWithoutAgreeFailed(t *testing.T) {
	x := newOne(t)
	x.o.Installed, x.o.Routes = nil, nil
	if plan := x.poll(0); len(plan.Agree) != 1 {
		t.Fatalf("asks %v", plan.Agree)
	}
	if plan := x.poll(labTiming.RetryMax - time.Second); len(plan.Agree) != 0 || plan.Wake.IsZero() {
		t.Errorf("asks %v while the first is under way, wakes %v", plan.Agree, plan.Wake)
	}
	if plan := x.poll(time.Second); len(plan.Agree) != 1 {
		t.Errorf("asks %v", plan.Agree)
	}
}

// TestStrangers: messages and agreements of nodes with which no tunnel is
// wanted change nothing.
func TestStrangers(t *testing.T) {
	x := newOne(t)
	x.poll(0)
	x.m.Receive(x.now, simID(2), Message{Boot: 1, Seq: 1})
	x.m.Agreed(x.now, simID(2), Agreement{1, 1, 1, 9})
	x.m.AgreeFailed(x.now, Wanted{Peer: simID(2)})
	if _, ok := x.m.Answer(x.now, simID(2)); ok {
		t.Error("a stranger is answered")
	}
	if len(x.m.pairs) != 1 {
		t.Error("a stranger became a pair")
	}
	for _, a := range []Agreement{{1, 2, 1, 9}, {2, 1, 1, 9}, {1, 1, 1, 0}} {
		x.m.Agreed(x.now, simID(1), a)
	}
	if plan := x.poll(0); plan.Pairs[0].Key != keys.KeyID(7) {
		t.Errorf("%+v", plan.Pairs)
	}
}
