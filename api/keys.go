package api

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nearest"
)

// KeyStatus tells which key epoch the cluster wants, and how far this node
// and its pairs are. It holds no key and no fingerprint of one.
type KeyStatus struct {
	Schema int       `json:"schema"`
	Target KeyTarget `json:"target"`
	// Started is when this node made its device of the target epoch; zero if
	// it has none yet.
	Started time.Time `json:"started,omitzero"`
	// NextRotation is when this node will ask for the next epoch unless
	// another one does first; zero: not scheduled.
	NextRotation time.Time   `json:"next_rotation,omitzero"`
	RotateEvery  Duration    `json:"rotate_every"` // 0: only on command
	Devices      []KeyDevice `json:"devices"`      // of this node, ascending by epoch
	Peers        []KeyPeer   `json:"peers"`        // nodes with which a tunnel is wanted, by name
	Nodes        []KeyNode   `json:"nodes"`        // all nodes that take part, this one included, by name
	// Blocked says why this node does not start the target epoch; empty: it
	// has, or nothing is in the way.
	Blocked string    `json:"blocked,omitempty"`
	Counts  KeyCounts `json:"counts"`
}

// KeyTarget is the epoch that the whole cluster should use.
type KeyTarget struct {
	Epoch   ids.Epoch `json:"epoch"`
	Driver  string    `json:"driver"`           // auto, auto-esp, wireguard, userspace, ipsec or ipsec-userspace
	Created time.Time `json:"created,omitzero"` // when it was asked for; zero: it is the first
	Reason  string    `json:"reason,omitempty"` // what asked for it, for people; empty: not known here
}

// KeyDevice is a tunnel device of this node: one epoch of its keys.
type KeyDevice struct {
	Epoch   ids.Epoch `json:"epoch"`
	Driver  string    `json:"driver"` // wireguard, userspace, ipsec or ipsec-userspace
	Label   string    `json:"label"`  // for people: "wireguard (kernel)"
	Created time.Time `json:"created,omitzero"`
	Peers   int       `json:"peers"`   // that this node reaches through it
	Current bool      `json:"current"` // it is the target epoch
	// Dropped are packets that the device did not let through, by why, since it was made. Empty: none, or
	// the driver does not count them.
	Dropped map[string]uint64 `json:"dropped,omitempty"`
}

// KeyPeer is a pair: this node and another one.
type KeyPeer struct {
	NodeRef
	Epoch  ids.Epoch `json:"epoch"` // that this node sends on; 0: none
	Goal   ids.Epoch `json:"goal"`  // newest epoch that both nodes have; 0: none
	Step   KeyStep   `json:"step"`
	Since  time.Time `json:"since,omitzero"`   // when the step began
	Reason string    `json:"reason,omitempty"` // who or what holds it up; empty when done
	Driver string    `json:"driver,omitempty"` // for people, of Epoch's device
	InUDP  bool      `json:"in_udp,omitempty"` // it is ESP in UDP
	// UDPOnly: it could not be anything else than ESP in UDP, since one of the two
	// nodes has nothing else. Otherwise ESP as it is got no answer.
	UDPOnly bool `json:"udp_only,omitempty"`
	// LastHandshake is zero for drivers without handshakes of their own (ipsec).
	LastHandshake time.Time `json:"last_handshake,omitzero"`
	PQ            bool      `json:"pq"` // the keys of Epoch hold against a quantum computer, too
	Switched      time.Time `json:"switched,omitzero"`
	// FullMTU is false if packets of the device's whole MTU are lost on the
	// way, while small ones pass.
	FullMTU bool `json:"full_mtu"`
}

// KeyStep says what a pair waits for.
type KeyStep string

// The steps, in the order of a rotation. A refused pair has no device in
// common and cannot follow.
const (
	KeyStepDevice  KeyStep = "device" // a device of the target epoch on both nodes
	KeyStepAgree   KeyStep = "agree"  // a common secret
	KeyStepReady   KeyStep = "ready"  // both receive
	KeyStepProve   KeyStep = "prove"  // this node's probe
	KeyStepProved  KeyStep = "proved" // the peer's probe
	KeyStepSwitch  KeyStep = "switch" // the peer's route
	KeyStepDrain   KeyStep = "drain"  // the old epoch has to fall silent
	KeyStepDone    KeyStep = "done"   // nothing
	KeyStepRefused KeyStep = "refused"
)

// KeySteps lists the steps in the order of a rotation, refused last.
func KeySteps() []KeyStep {
	return []KeyStep{KeyStepDevice, KeyStepAgree, KeyStepReady, KeyStepProve, KeyStepProved, KeyStepSwitch, KeyStepDrain, KeyStepDone, KeyStepRefused}
}

// KeyNode is a node that has encrypted networks, as its signed record tells.
// It is prepared for an epoch when it has that epoch, and finished when it
// has nothing older.
type KeyNode struct {
	NodeRef
	Self   bool        `json:"self"`
	Epochs []ids.Epoch `json:"epochs"` // that it has devices of, ascending
	State  string      `json:"state"`  // of gossip: alive, indirect, suspect, dead, unknown
}

// KeyCounts count since the agent started.
type KeyCounts struct {
	Rotations     uint64  `json:"rotations"`      // epochs that this node started
	Switches      uint64  `json:"switches"`       // moves of a pair to another epoch
	SwitchSeconds float64 `json:"switch_seconds"` // sum over Switches, from the target's announcement to the move
	Refusals      uint64  `json:"refusals"`       // rotations and pairs that this node refused
}

// RotateRequest asks for a new key epoch in the whole cluster.
type RotateRequest struct {
	// Driver of the new epoch: auto, wireguard, userspace, ipsec or
	// ipsec-userspace; empty: that of the present one.
	Driver string `json:"driver,omitempty"`
	DryRun bool   `json:"dry_run,omitempty"` // say what would happen and change nothing
}

// Rotation is the answer to RotateRequest: the epoch that was asked for, by
// this call or by one on another node at the same time.
type Rotation struct {
	Schema  int       `json:"schema"`
	From    ids.Epoch `json:"from"`
	To      ids.Epoch `json:"to"`
	Driver  string    `json:"driver"`
	Created time.Time `json:"created,omitzero"` // zero for a dry run
	DryRun  bool      `json:"dry_run"`
	// Effects says what happens on this node and what keeps others from
	// following, one line each.
	Effects []string `json:"effects"`
}

func (k *KeyStatus) complete() {
	k.Schema = Schema
	k.Devices, k.Peers, k.Nodes = some(k.Devices), some(k.Peers), some(k.Nodes)
	for i := range k.Nodes {
		k.Nodes[i].Epochs = some(k.Nodes[i].Epochs)
	}
}

// RotateDrivers lists the words for RotateRequest.Driver.
func RotateDrivers() []string {
	return []string{"auto", "wireguard", "userspace", "ipsec", "ipsec-userspace"}
}

// check applies the rules that need no knowledge of the agent's state.
func (q RotateRequest) check() error {
	known := RotateDrivers()
	if q.Driver == "" || slices.Contains(known, q.Driver) {
		return nil
	}
	hint := "one of " + strings.Join(known, ", ")
	if near, ok := nearest.Of(q.Driver, known); ok {
		hint = fmt.Sprintf("did you mean %q? %s", near, hint)
	}
	return NewError(CodeInvalid, fmt.Sprintf("there is no driver %q", shorten(q.Driver)), hint)
}
