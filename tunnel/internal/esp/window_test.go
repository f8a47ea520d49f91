package esp

import (
	"math/rand/v2"
	"testing"
)

// model is a window that remembers everything.
type model struct {
	top   uint64
	taken map[uint64]bool
}

func (m *model) fresh(seq uint64) bool {
	return seq != 0 && !m.taken[seq] && (seq > m.top || m.top-seq < Window)
}

// TestWindowIsTheModel moves a window about near places where numbers wrap.
func TestWindowIsTheModel(t *testing.T) {
	for _, start := range []uint64{0, 1<<32 - 3*Window, 5<<32 - 100} {
		r := rand.New(rand.NewPCG(1, start))
		var w window
		m := model{taken: map[uint64]bool{}}
		if start > 0 {
			w.take(start)
			m.top, m.taken[start] = start, true
		}
		for i := range 200_000 {
			seq := m.top + uint64(r.IntN(3*Window)) - min(3*Window/2, m.top)
			if i%1000 == 0 {
				seq = m.top + uint64(r.IntN(100*Window))
			}
			if got := w.guess(uint32(seq)); m.fresh(seq) && got != seq {
				t.Fatalf("top %#x: %#x was taken for %#x", m.top, seq, got)
			}
			if got, want := w.fresh(seq), m.fresh(seq); got != want {
				t.Fatalf("top %#x: fresh(%#x) = %v, want %v", m.top, seq, got, want)
			}
			if m.fresh(seq) {
				w.take(seq)
				m.taken[seq] = true
				m.top = max(m.top, seq)
			}
		}
	}
}

// TestGuess has the cases of RFC 4303, appendix A2.1.
func TestGuess(t *testing.T) {
	for _, c := range []struct {
		top  uint64
		low  uint32
		want uint64
	}{
		{0, 1, 1},
		{5_000, 4_000, 4_000},
		{5_000, 3_000, 1<<32 + 3_000}, // behind the window: taken for the next subspace, where the tag is wrong
		{1<<32 - 1, 5, 1<<32 + 5},
		{1<<32 + 5, 1<<32 - 1, 1<<32 - 1},
		{1<<32 + 5, 6, 1<<32 + 6},
		{7<<32 + 2_000, 1_999, 7<<32 + 1_999},
	} {
		w := window{top: c.top}
		if got := w.guess(c.low); got != c.want {
			t.Errorf("top %#x: %#x is taken for %#x, want %#x", c.top, c.low, got, c.want)
		}
	}
}

// TestNothingBeforeTheFirst: a new window knows no subspace before its own.
func TestNothingBeforeTheFirst(t *testing.T) {
	var w window
	for _, low := range []uint32{0, 1<<32 - 1, 1<<32 - Window + 1} {
		if seq := w.guess(low); w.fresh(seq) {
			t.Errorf("%#x is fresh, as %#x", low, seq)
		}
	}
}
