package rotate

import (
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// state is what a message says about this node; the rest of it is addressing.
type state struct {
	tx     ids.Epoch
	epochs []EpochState
}

func (s state) equal(o state) bool { return s.tx == o.tx && slices.Equal(s.epochs, o.epochs) }

// talk is the exchange of messages with one peer.
type talk struct {
	heard   Message   // the newest one taken; Seq 0: none
	heardAt time.Time // when it was taken
	contact time.Time // when the peer last said anything, new or not; zero: never
	nudged  time.Time // when it was last asked for a sign of life
	said    Message   // the last one composed; Seq 0: none
	// stateSeq numbers the first message with said's state: a peer that has
	// taken it, or a later one, knows the state.
	stateSeq uint64
	// freshSeq is above every message said before heard was taken.
	freshSeq uint64
	// backSeq numbers the last message whose Tx was lower than that of the
	// one before. From it on Tx has not gone back.
	backSeq uint64

	retry retry // of a state that is not acknowledged
}

// take takes a message unless it is older than what is known. Boots have no
// order. That a strange boot is the newer one is proved by its acknowledging
// a message that was composed after the last one of the known boot was taken:
// processes of one node do not overlap in time. Without this a delayed
// message of a dead process could undo what its successor said.
func (t *talk) take(now time.Time, boot uint64, msg Message) {
	switch {
	case msg.Boot == t.heard.Boot && msg.Seq <= t.heard.Seq:
		return
	case msg.Boot != t.heard.Boot && t.heard.Seq != 0 && (msg.AckBoot != boot || msg.AckSeq < t.freshSeq):
		return
	}
	if msg.Boot != t.heard.Boot {
		t.retry.reset() // it lives, so it is worth telling it at once
	}
	msg.Epochs = slices.Clone(msg.Epochs)
	t.heard, t.heardAt = msg, now
	t.freshSeq = t.said.Seq + 1
}

// compose returns the message that says s, numbered as a repetition if the
// last one said exactly the same.
func (t *talk) compose(boot uint64, s state) Message {
	msg := Message{
		Boot: boot, Seq: t.said.Seq,
		AckBoot: t.heard.Boot, AckSeq: t.heard.Seq,
		Tx: s.tx, Epochs: s.epochs,
	}
	if t.said.Seq == 0 || msg.AckBoot != t.said.AckBoot || msg.AckSeq != t.said.AckSeq || !t.says(s) {
		msg.Seq++
	}
	return msg
}

// says reports whether the last message said s.
func (t *talk) says(s state) bool {
	return t.said.Seq != 0 && s.equal(state{t.said.Tx, t.said.Epochs})
}

// say composes a message and counts it as sent.
func (t *talk) say(now time.Time, m *Machine, s state) Message {
	msg := t.compose(m.boot, s)
	if !t.says(s) {
		t.stateSeq = msg.Seq
		t.retry.reset()
	}
	if msg.Tx < t.said.Tx {
		t.backSeq = msg.Seq
	}
	t.said = msg
	t.retry.tried(now, m.t)
	msg.Epochs = slices.Clone(msg.Epochs)
	return msg
}

// known reports whether the peer has acknowledged s.
func (t *talk) known(boot uint64, s state) bool {
	return t.says(s) && t.heardBy(boot) && t.heard.AckSeq >= t.stateSeq
}

// heardBy reports whether the peer's newest message was sent by a process that
// had taken one of this boot.
func (t *talk) heardBy(boot uint64) bool { return t.heard.Seq != 0 && t.heard.AckBoot == boot }

// due reports whether to say s now; if not, when, zero for never.
func (t *talk) due(now time.Time, boot uint64, s state) (bool, time.Time) {
	switch {
	case t.known(boot, s):
		return false, time.Time{}
	case !t.says(s):
		return true, time.Time{}
	}
	return !now.Before(t.retry.next), t.retry.next
}

// heardEpoch returns what the peer says about an epoch; false if it does not
// list it.
func (t *talk) heardEpoch(e ids.Epoch) (EpochState, bool) {
	for _, s := range t.heard.Epochs {
		if s.Epoch == e {
			return s, true
		}
	}
	return EpochState{}, false
}

// retry spaces attempts of one thing: the pause doubles from RetryMin to
// RetryMax. The zero value is due at once.
type retry struct {
	next  time.Time
	pause time.Duration
}

// reset makes the next attempt due at once, with the shortest pause after it.
func (r *retry) reset() { *r = retry{} }

// tried notes an attempt.
func (r *retry) tried(now time.Time, t Timing) {
	r.pause = min(max(2*r.pause, t.RetryMin), t.RetryMax)
	r.next = now.Add(r.pause)
}
