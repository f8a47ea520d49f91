package rotate

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// snap writes a node as bytes, or reads it from them. States that behave alike
// have equal bytes. It serves the exploration, in whose worlds pauses are
// either zero or endless. So of times only the years and pauses that have passed
// are written; retries of messages and probes, which are always due, are left
// out, and so is what each Poll computes anew.
type snap struct {
	b       []byte
	reading bool
}

func encode(n *simNode) []byte {
	s := snap{}
	s.node(n)
	return s.b
}

func decode(b []byte) *simNode {
	n := &simNode{}
	s := snap{b: b, reading: true}
	s.node(n)
	return n
}

func num[T ~uint8 | ~uint16 | ~uint32 | ~uint64](s *snap, v *T) {
	if !s.reading {
		s.b = binary.AppendUvarint(s.b, uint64(*v))
		return
	}
	x, n := binary.Uvarint(s.b)
	*v, s.b = T(x), s.b[n:]
}

func (s *snap) flags(vs ...*bool) {
	var f uint16
	for i, v := range vs {
		if *v {
			f |= 1 << i
		}
	}
	num(s, &f)
	for i, v := range vs {
		*v = f>>i&1 != 0
	}
}

func (s *snap) raw(b []byte) {
	if s.reading {
		s.b = s.b[copy(b, s.b):]
	} else {
		s.b = append(s.b, b...)
	}
}

func (s *snap) time(t *time.Time) {
	var v uint16
	if !t.IsZero() {
		v = 1 + uint16(t.Sub(simStart)/simPause)
	}
	num(s, &v)
	if *t = (time.Time{}); v != 0 {
		*t = simStart.Add(time.Duration(v-1) * simPause)
	}
}

// list visits the elements of a slice.
func list[T any](s *snap, v *[]T, f func(*T)) {
	n := uint8(len(*v))
	num(s, &n)
	if s.reading && n > 0 {
		*v = make([]T, n)
	}
	for i := range *v {
		f(&(*v)[i])
	}
}

func (s *snap) device(d *Device) {
	num(s, &d.Epoch)
	num(s, &d.Instance)
	num(s, &d.Wire)
}

func (s *snap) message(m *Message) {
	num(s, &m.Boot)
	num(s, &m.Seq)
	num(s, &m.AckBoot)
	num(s, &m.AckSeq)
	num(s, &m.Tx)
	list(s, &m.Epochs, func(e *EpochState) {
		num(s, &e.Epoch)
		num(s, &e.Mine)
		num(s, &e.Yours)
		num(s, &e.Key)
		s.flags(&e.Proved)
	})
}

func (s *snap) machine(m *Machine) {
	unable := m.unable != ""
	num(s, &m.boot)
	s.time(&m.observed)
	num(s, &m.target)
	s.flags(&m.enabled, &unable)
	if unable {
		m.unable = "unable"
	}
	list(s, &m.devices, s.device)
	num(s, &m.started)
	s.time(&m.rotated)
	for _, d := range m.devices {
		t := m.began[d.Epoch]
		s.time(&t)
		m.began[d.Epoch] = t
	}
	pairs := m.sorted()
	list(s, &pairs, func(p **pair) {
		if s.reading {
			*p = &pair{}
		}
		s.pair(*p)
		m.pairs[(*p).peer] = *p
	})
}

func (s *snap) pair(p *pair) {
	s.raw(p.peer[:1])
	s.flags(&p.listed, &p.asks)
	list(s, &p.devices, s.device)
	num(s, &p.tx)
	list(s, &p.legs, s.leg)
	t := &p.talk
	s.message(&t.heard)
	s.time(&t.heardAt)
	s.time(&t.contact)
	s.time(&t.nudged)
	s.message(&t.said)
	num(s, &t.stateSeq)
	num(s, &t.freshSeq)
	num(s, &t.backSeq)
	s.raw(p.ask.wanted.Peer[:1])
	num(s, &p.ask.wanted.Epoch)
	num(s, &p.ask.wanted.Mine)
	num(s, &p.ask.wanted.Theirs)
	s.time(&p.ask.retry.next)
}

func (s *snap) leg(l *leg) {
	num(s, &l.epoch)
	num(s, &l.mine)
	num(s, &l.theirs)
	num(s, &l.key)
	s.time(&l.since)
	s.flags(&l.installed, &l.seen, &l.sends, &l.gone, &l.send, &l.proved, &l.probe.small, &l.probe.full, &l.forms)
	s.time(&l.shared)
	s.time(&l.probe.retry.next)
	num(s, &l.rx)
	s.time(&l.rxAt)
	s.time(&l.drain)
}

func (s *snap) keys(ks *simKeys) {
	for e := range ks {
		s.raw(ks[e][:worldNodes])
	}
}

func (s *snap) node(n *simNode) {
	idx := uint8(n.idx)
	num(s, &idx)
	n.idx = int(idx)
	if s.reading {
		n.m = New(simID(n.idx), 1, simTiming)
	}
	s.machine(n.m)
	s.record(&n.dev)
	for e := range n.has {
		for p := range worldNodes {
			h := &n.has[e][p]
			num(s, &h.key)
			if h.key != 0 {
				num(s, &h.theirs)
				num(s, &h.rx)
				s.flags(&h.sends, &h.probe)
			}
		}
	}
	s.raw(n.route[:])
	s.raw(n.lastInst[:])
	num(s, &n.boots)
	s.flags(&n.disabled, &n.partial, &n.rejects)
	num(s, &n.target)
	num(s, &n.unable)
	num(s, &n.keep)
	num(s, &n.years)
	num(s, &n.pauses)
	s.raw(n.wires[:])
	s.flags(&n.wants[0], &n.wants[1], &n.wants[2], &n.wants[3])
	for p := range worldNodes {
		s.record(&n.view[p])
	}
	s.keys(&n.secrets)
	for p := range n.asks {
		num(s, &n.asks[p].epoch)
		num(s, &n.asks[p].mine)
		num(s, &n.asks[p].theirs)
	}
	s.keys(&n.probes)
	for e := range n.lost {
		for p := range worldNodes {
			num(s, &n.lost[e][p][0]) // keys of the exploration are low numbers
		}
	}
	s.flags(&n.hole[0], &n.hole[1], &n.hole[2], &n.hole[3])
	s.keys(&n.proved)
}

func (s *snap) record(r *simRecord) {
	for e := range r {
		num(s, &r[e].inst)
		if r[e].inst != 0 {
			num(s, &r[e].wire)
		}
	}
}

// TestSnapKnowsAllFields fails when a field is added to a type that snap visits
// field by field.
func TestSnapKnowsAllFields(t *testing.T) {
	for _, c := range []struct {
		v    any
		want int
	}{
		{Machine{}, 12}, {pair{}, 11}, {leg{}, 17}, {talk{}, 9}, {ask{}, 2}, {retry{}, 2}, {probing{}, 3},
		{Message{}, 6}, {EpochState{}, 5}, {Device{}, 3}, {Wanted{}, 4},
		{simNode{}, 20}, {simKernel{}, 3}, {simGhost{}, 3}, {simHold{}, 5},
	} {
		if got := reflect.TypeOf(c.v).NumField(); got != c.want {
			t.Errorf("%T has %d fields, snap was written for %d", c.v, got, c.want)
		}
	}
}

// TestSnapLosesNothing: in any world, a node that was written and read again
// plans and says the same as the original, however it goes on.
func TestSnapLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := newUniverse(limits{nodes: 3, target: 3, depth: 2, restarts: 2, reboots: 1, losses: 2, rejects: 2, lates: 1})
		w := u.start()
		for range rapid.IntRange(0, 120).Draw(t, "steps") {
			var acts []action
			u.actions(&w, func(a action) { acts = append(acts, a) })
			var err error
			if w, err = u.step(w, rapid.SampledFrom(acts).Draw(t, "action")); err != nil {
				t.Fatal(err)
			}
		}
		raw := encode(u.node(w.node[0]).simNode)
		a, b := u.node(w.node[0]).simNode.copy(), decode(raw)
		if !bytes.Equal(encode(b), raw) {
			t.Fatal("a node reads back as another")
		}
		for range 4 {
			pa, pb := a.loop(simStart), b.loop(simStart)
			for i := range pa.Progress {
				pa.Progress[i].Since, pb.Progress[i].Since = time.Time{}, time.Time{}
			}
			if !reflect.DeepEqual(pa, pb) {
				t.Fatalf("plans differ:\n%+v\n%+v", pa, pb)
			}
			a.m.Receive(simStart, simID(1), Message{Boot: 77, Seq: 1, AckBoot: a.m.boot, AckSeq: 90, Tx: ids.Epoch(1), Epochs: []EpochState{{1, 1, 1, keys.KeyID(1), true}}})
			b.m.Receive(simStart, simID(1), Message{Boot: 77, Seq: 1, AckBoot: a.m.boot, AckSeq: 90, Tx: ids.Epoch(1), Epochs: []EpochState{{1, 1, 1, keys.KeyID(1), true}}})
		}
	})
}
