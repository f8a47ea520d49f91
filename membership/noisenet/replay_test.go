package noisenet

import (
	"math/rand/v2"
	"testing"
)

func TestReplayWindow(t *testing.T) {
	type step struct {
		n  uint64
		ok bool
	}
	const top = uint64(1) << 40
	for name, steps := range map[string][]step{
		"in order":       {{0, true}, {1, true}, {2, true}, {2, false}, {0, false}},
		"late":           {{5, true}, {3, true}, {4, true}, {3, false}, {0, true}},
		"edge":           {{windowSize, true}, {1, true}, {0, false}, {windowSize - 1, true}},
		"jump":           {{7, true}, {top, true}, {7, false}, {top - windowSize + 1, true}, {top - windowSize, false}},
		"one word":       {{63, true}, {64, true}, {0, true}, {63, false}},
		"whole ring":     {{0, true}, {windowBits, true}, {windowBits - 1, true}, {windowBits, false}},
		"last counter":   {{^uint64(0), false}, {^uint64(0) - 1, true}, {^uint64(0) - 1, false}},
		"first is large": {{1000, true}, {999, true}, {0, true}, {0, false}},
	} {
		var w replayWindow
		for i, s := range steps {
			ok := w.check(s.n)
			if ok != s.ok {
				t.Errorf("%s: step %d: check(%d) = %v", name, i, s.n, ok)
			}
			if ok {
				w.accept(s.n)
			}
		}
	}
}

func TestReplayHighest(t *testing.T) {
	var w replayWindow
	for i, tc := range []struct {
		n    uint64
		want bool
	}{{0, true}, {5, true}, {3, false}, {6, true}, {4, false}} {
		if got := w.accept(tc.n); got != tc.want {
			t.Errorf("step %d: accept(%d) = %v", i, tc.n, got)
		}
	}
}

// model is the window as one would define it: a set and a highest value.
type model struct {
	seen map[uint64]bool
	top  uint64
	any  bool
}

func (m *model) check(n uint64) bool {
	return n != ^uint64(0) && !m.seen[n] && (!m.any || n >= m.top || m.top-n < windowSize)
}

func (m *model) accept(n uint64) {
	m.seen[n] = true
	if !m.any || n > m.top {
		m.top, m.any = n, true
	}
}

func TestReplayWindowModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var w replayWindow
		m := model{seen: map[uint64]bool{}}
		at := uint64(r.Uint32())
		for range 3000 {
			switch r.IntN(10) {
			case 0:
				at += uint64(r.IntN(5000))
			default:
				at += uint64(r.IntN(3))
			}
			n := at - min(at, uint64(r.IntN(2300)))
			if have, want := w.check(n), m.check(n); have != want {
				t.Fatalf("check(%d) = %v with top %d, want %v", n, have, m.top, want)
			} else if have {
				w.accept(n)
				m.accept(n)
			}
		}
	}
}

func FuzzReplayWindow(f *testing.F) {
	f.Add([]byte{0, 0, 1, 5, 255, 7})
	f.Add([]byte{3, 200, 3, 200, 2, 9, 1, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var w replayWindow
		m := model{seen: map[uint64]bool{}}
		at := uint64(0)
		for ; len(b) >= 2; b = b[2:] {
			// A jump forward by a power of two, then a step back.
			at += uint64(1) << (b[0] % 64) >> 1
			n := at - min(at, uint64(b[1])*16)
			have, want := w.check(n), m.check(n)
			if have != want {
				t.Fatalf("check(%d) = %v with top %d, want %v", n, have, m.top, want)
			}
			if have {
				w.accept(n)
				m.accept(n)
			}
		}
	})
}
