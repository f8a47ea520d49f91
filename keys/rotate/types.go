package rotate

import (
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// MaxEpochs is how many epochs of a node live at most. A fourth one waits
// until one of them has ended.
const MaxEpochs = 3

// Timing are the pauses of a Machine.
type Timing struct {
	// MinInterval is the least time between the starts of two epochs of this
	// node, so that a rogue issuer cannot spin it.
	MinInterval time.Duration
	// Drain is how long the old receiving half stays at least after both
	// sides send elsewhere: what was queued by then arrives within it. Quiet
	// is how long nothing may have arrived on it.
	Drain, Quiet time.Duration
	// HoldDown is how long an epoch waits for pairs that do not follow, from
	// when this node got the device of its successor and last heard of the
	// peer; only the former counts where the epoch is in the way of the target.
	HoldDown time.Duration
	// RetryMin and RetryMax bound the pause between attempts of anything that
	// was not answered: messages, agreements, probes. It doubles.
	RetryMin, RetryMax time.Duration
	// Unproved is how long both nodes may hold a key whose probes get no answer
	// before they agree on another, where another may help (Installed.Forms).
	Unproved time.Duration
}

// DefaultTiming is right for networks of every kind: its pauses cost time and
// no packets. Drain is far above the delay of any path plus what queues hold,
// and the tunnel's own timers (WireGuard sends keepalives 10 s after the last
// packet) fall silent within Quiet. HoldDown is a day, so that a node that is
// switched off over night comes back without an interruption.
func DefaultTiming() Timing {
	return Timing{
		MinInterval: time.Minute,
		Drain:       30 * time.Second, Quiet: 10 * time.Second,
		HoldDown: 24 * time.Hour,
		RetryMin: time.Second, RetryMax: 30 * time.Second,
		Unproved: 10 * time.Second,
	}
}

// Message is all that a node has to say about one pair: its complete state,
// not an event, so losing, repeating and reordering messages is harmless.
type Message struct {
	Boot uint64 // random, of the sender's process, not 0
	// Seq grows with each message of this boot to this peer that says
	// something else than the one before, from 1: repetitions share it.
	Seq uint64
	// AckBoot and AckSeq name the newest message of the receiver that the
	// sender has taken; zero if none.
	AckBoot, AckSeq uint64
	// Tx is the epoch to which the sender's route to the receiver leads; 0:
	// there is none.
	Tx ids.Epoch
	// Epochs are those on which the sender receives from the receiver now,
	// ascending, at most MaxEpochs.
	Epochs []EpochState
}

// EpochState is what a node says about one epoch of a pair.
type EpochState struct {
	Epoch ids.Epoch
	// Mine is the instance of the sender's device, Yours the instance of the
	// receiver's device that Key was agreed with; 0: not known after a
	// restart. An instance grows when a device is made anew with other keys
	// in its epoch.
	Mine, Yours uint32
	Key         keys.KeyID
	// Proved: a probe of the sender went through this epoch and came back.
	Proved bool
}

// Observation is the truth about this node at one moment, complete.
type Observation struct {
	// Target is the cluster's epoch, at least 1.
	Target ids.Epoch
	// Enabled: this node has encrypted networks, so it wants devices at all.
	Enabled bool
	// Unable says why this node cannot make a device for Target, such as a
	// driver that its kernel lacks; empty: it can.
	Unable string
	// Partial: after a restart Peers may lack some. What is installed for
	// others stays as it is.
	Partial bool
	// Expelled are nodes that were thrown out of the cluster: their pairs go,
	// even if the Observation is partial. None of them is in Peers.
	Expelled []ids.NodeID
	// Devices are this node's tunnel devices that exist and work.
	Devices []Device
	// Peers are the nodes with which this one wants a tunnel.
	Peers []Peer
	// Installed is what devices hold for peers, wanted or not.
	Installed []Installed
	// Routes says through which epoch's device each peer's route leads.
	Routes map[ids.NodeID]ids.Epoch
}

// Device is a tunnel device of some node.
type Device struct {
	Epoch    ids.Epoch
	Instance uint32 // from 1
	Wire     uint8  // record.Wire: only equal ones can talk
}

// Peer is a node with which a tunnel is wanted, and its devices as its signed
// record lists them.
type Peer struct {
	ID      ids.NodeID
	Devices []Device
}

// Installed is what a device holds for a peer.
type Installed struct {
	Peer ids.NodeID
	Device
	// Theirs is the instance of the peer's device, as far as the installed
	// public key tells; 0: not known.
	Theirs uint32
	Key    keys.KeyID
	// Sends: the sending half is there, too.
	Sends bool
	// Forms: a pair of this device may travel in one of several forms, each key
	// in one of them. So where probes under this key get no answer, another
	// key, in another form, may.
	Forms   bool
	RxBytes uint64
}

// Agreement is a secret that a pair has agreed on and this node holds.
type Agreement struct {
	Epoch        ids.Epoch
	Mine, Theirs uint32 // instances of both devices
	Key          keys.KeyID
}

// Plan is what a Machine wants, complete. Carrying it out twice changes
// nothing.
type Plan struct {
	// Devices are the epochs in which this node should have a device,
	// ascending.
	Devices []ids.Epoch
	// Pairs are what the devices should hold, sorted by peer and epoch, complete
	// even if the Observation was partial. What is not listed goes away, a
	// secret whose KeyID is not listed, too.
	Pairs []Pair
	// Agree are secrets to agree on now; the node dials. Probe are probes to
	// make now. Send are messages to send now. Each is listed once until it
	// is due again.
	Agree []Wanted
	Probe []Probe
	Send  []Outgoing
	// Progress tells where each pair stands, sorted by peer.
	Progress []Progress
	// Blocked says why this node does not start the target epoch; empty: it
	// has started it, or nothing is in the way.
	Blocked string
	// Pausing says that Blocked is MinInterval and nothing else: it ends by
	// itself, and nothing is wrong.
	Pausing bool
	// Wake is when to poll again at the latest; zero: on the next input.
	Wake time.Time
}

// Wanted is a secret to agree on with a peer. Only the lower node of a pair
// asks for it.
type Wanted struct {
	Peer         ids.NodeID
	Epoch        ids.Epoch
	Mine, Theirs uint32 // instances of both devices
}

// Pair is what one device should hold for one peer.
type Pair struct {
	Peer   ids.NodeID
	Epoch  ids.Epoch
	Key    keys.KeyID
	Theirs uint32 // instance of the peer's device; 0: that of what is installed
	// Send: install the sending half, too. Main: the peer's route leads here.
	// Probe: a second route leads here, for probes. Draining: both sides send
	// elsewhere, so nothing needs to keep it alive. Unproved: both nodes have
	// had it for Timing.Unproved, no probe has come back, and another key may
	// take its place (Installed.Forms).
	Send, Main, Probe, Draining, Unproved bool
}

// Probe asks for proof that packets pass through an epoch both ways.
type Probe struct {
	Peer  ids.NodeID
	Epoch ids.Epoch
	Key   keys.KeyID
}

// ProbeResult is what a probe found.
type ProbeResult struct {
	Probe
	Small bool // small packets came back
	Full  bool // packets of the device's whole MTU, too
}

// Outgoing is a message to send.
type Outgoing struct {
	To      ids.NodeID
	Message Message
}

// Step says what a pair is waiting for, in the order of a rotation.
type Step string

// The steps.
const (
	StepDevice  Step = "device"  // a device of the target epoch on both nodes
	StepAgree   Step = "agree"   // a common secret
	StepReady   Step = "ready"   // both receive
	StepProve   Step = "prove"   // this node's probe
	StepProved  Step = "proved"  // the peer's probe
	StepSwitch  Step = "switch"  // the peer's route
	StepDrain   Step = "drain"   // the old epoch has to fall silent
	StepDone    Step = "done"    // on the target, nothing older left
	StepRefused Step = "refused" // the two nodes have no device in common
)

// Progress is where a pair stands.
type Progress struct {
	Peer   ids.NodeID
	Tx     ids.Epoch // the epoch this node sends on; 0: none
	Goal   ids.Epoch // the newest epoch that both nodes have; 0: none
	Oldest ids.Epoch // the oldest epoch that the pair still holds; 0: none
	Step   Step
	Since  time.Time // when Step began
	Reason string    // for people: who or what holds it up; empty when done
	// FullMTU is false if a probe of the whole MTU was lost on Tx while
	// small ones passed: the underlay swallows large packets.
	FullMTU bool
}
