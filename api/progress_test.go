package api

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

func ref(name string) NodeRef { return NodeRef{ID: ids.NodeIDOf([32]byte{name[0]}), Name: name} }

func keyNode(name, state string, epochs ...ids.Epoch) KeyNode {
	return KeyNode{NodeRef: ref(name), Self: name == "a", Epochs: epochs, State: state}
}

func keyPeer(name string, on, goal ids.Epoch, step KeyStep, reason string) KeyPeer {
	return KeyPeer{NodeRef: ref(name), Epoch: on, Goal: goal, Step: step, Reason: reason}
}

func TestProgress(t *testing.T) {
	for name, tc := range map[string]struct {
		k           KeyStatus
		want        Progress
		done, stuck bool
	}{
		"just asked for": {KeyStatus{
			Nodes: []KeyNode{keyNode("a", "alive", 1, 2), keyNode("b", "alive", 1), keyNode("c", "suspect", 1)},
			Peers: []KeyPeer{keyPeer("b", 1, 1, KeyStepDevice, "no device yet"), keyPeer("c", 1, 1, KeyStepDevice, "no device yet")},
		}, Progress{Count{1, 3}, Count{0, 2}, Count{0, 2}, Count{0, 3}, []Waiting{
			{ref("b"), PhasePrepare, "has no device of epoch 2 yet", false},
			{ref("c"), PhasePrepare, "not reachable (suspect)", false},
			{ref("a"), PhaseFinish, "still has epoch 1", false},
		}}, false, false},
		"pairs on the way": {KeyStatus{
			Nodes: []KeyNode{keyNode("a", "alive", 1, 2), keyNode("b", "alive", 1, 2), keyNode("c", "alive", 1, 2)},
			Peers: []KeyPeer{keyPeer("b", 1, 2, KeyStepProve, "probe unanswered"), keyPeer("c", 1, 2, KeyStepSwitch, "")},
		}, Progress{Count{3, 3}, Count{1, 2}, Count{0, 2}, Count{0, 3}, []Waiting{
			{ref("b"), PhaseProve, "probe unanswered", false},
			{ref("c"), PhaseSwitch, "step switch", false},
			{ref("a"), PhaseFinish, "still has epoch 1", false},
		}}, false, false},
		"the peer's probe is missing": {KeyStatus{
			Peers: []KeyPeer{keyPeer("b", 1, 2, KeyStepProved, "its probe")},
		}, Progress{Proved: Count{0, 1}, Switched: Count{0, 1}, Waiting: []Waiting{{ref("b"), PhaseProve, "its probe", false}}}, false, false},
		"an old step does not count": {KeyStatus{
			Peers: []KeyPeer{keyPeer("b", 1, 1, KeyStepDone, "")},
		}, Progress{Proved: Count{0, 1}, Switched: Count{0, 1}, Waiting: []Waiting{{ref("b"), PhaseProve, "step done", false}}}, false, false},
		"finished": {KeyStatus{
			Nodes: []KeyNode{keyNode("a", "alive", 2), keyNode("b", "dead", 2)},
			Peers: []KeyPeer{keyPeer("b", 2, 2, KeyStepDone, "")},
		}, Progress{Count{2, 2}, Count{1, 1}, Count{1, 1}, Count{2, 2}, []Waiting{}}, true, false},
		"overtaken by a later epoch": {KeyStatus{
			Nodes: []KeyNode{keyNode("a", "alive", 3), keyNode("b", "alive", 2, 3)},
			Peers: []KeyPeer{keyPeer("b", 2, 3, KeyStepAgree, "no answer")},
		}, Progress{Count{2, 2}, Count{1, 1}, Count{1, 1}, Count{2, 2}, []Waiting{}}, true, false},
		"a dead node holds all": {KeyStatus{
			Nodes: []KeyNode{keyNode("a", "alive", 1, 2), keyNode("b", "alive", 1, 2), keyNode("c", "dead", 1)},
			Peers: []KeyPeer{keyPeer("b", 2, 2, KeyStepDrain, "quiet"), keyPeer("c", 1, 1, KeyStepDevice, "no device")},
		}, Progress{Count{2, 3}, Count{1, 2}, Count{1, 2}, Count{0, 3}, []Waiting{
			{ref("c"), PhasePrepare, "not reachable (dead)", true},
			{ref("a"), PhaseFinish, "still has epoch 1", false},
			{ref("b"), PhaseFinish, "still has epoch 1", false},
		}}, false, true},
		"a dead and a slow node": {KeyStatus{
			Nodes: []KeyNode{keyNode("a", "alive", 1, 2), keyNode("b", "alive", 1), keyNode("c", "unknown", 1)},
		}, Progress{Prepared: Count{1, 3}, Finished: Count{0, 3}, Waiting: []Waiting{
			{ref("b"), PhasePrepare, "has no device of epoch 2 yet", false},
			{ref("c"), PhasePrepare, "not reachable (unknown)", true},
			{ref("a"), PhaseFinish, "still has epoch 1", false},
		}}, false, false},
		"no driver in common": {KeyStatus{
			Nodes: []KeyNode{keyNode("a", "alive", 1, 2), keyNode("b", "alive", 1, 2)},
			Peers: []KeyPeer{keyPeer("b", 1, 2, KeyStepRefused, "a has ipsec, b wireguard")},
		}, Progress{Count{2, 2}, Count{0, 1}, Count{0, 1}, Count{0, 2}, []Waiting{
			{ref("b"), PhaseProve, "a has ipsec, b wireguard", true},
			{ref("a"), PhaseFinish, "still has epoch 1", false},
		}}, false, true},
		"this node is blocked": {KeyStatus{
			Blocked: "the kernel has no ESP",
			Nodes:   []KeyNode{keyNode("a", "alive", 1), keyNode("b", "alive")},
		}, Progress{Prepared: Count{0, 2}, Finished: Count{0, 2}, Waiting: []Waiting{
			{ref("a"), PhasePrepare, "the kernel has no ESP", false},
			{ref("b"), PhasePrepare, "has no device of epoch 2 yet", false},
		}}, false, false},
		"nobody has encrypted networks": {KeyStatus{}, Progress{Waiting: []Waiting{}}, true, false},
	} {
		got := tc.k.Progress(2)
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		if got.Done() != tc.done || got.Stuck() != tc.stuck {
			t.Errorf("%s: done %v, stuck %v, want %v, %v", name, got.Done(), got.Stuck(), tc.done, tc.stuck)
		}
	}
}
