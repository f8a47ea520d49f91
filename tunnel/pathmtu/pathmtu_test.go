package pathmtu

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// path is a Path with the world around it.
type path struct {
	Path
	now     time.Time
	carries int // bytes
	sizes   Sizes
	lose    func() bool // a probe although it fits
	probes  int
}

func newPath(carries, want, top int) *path {
	return &path{now: start, carries: carries, sizes: Sizes{Small: 128, Want: want, Top: top, Overhead: 60}, lose: func() bool { return false }}
}

// run lets time pass. A lost probe takes three seconds.
func (p *path) run(d time.Duration) {
	for end := p.now.Add(d); p.now.Before(end); {
		size, ok := p.Next(p.now, p.sizes)
		if !ok {
			p.now = p.now.Add(time.Second)
			continue
		}
		p.probes++
		passed := size <= p.carries && !p.lose()
		if !passed {
			p.now = p.now.Add(3 * time.Second)
		}
		p.Result(p.now, size, passed)
		// What the ends send follows what is known.
		if p.Limit() > 0 {
			p.sizes.Want = min(p.sizes.Top, p.Limit())
		} else {
			p.sizes.Want = p.sizes.Top
		}
	}
}

func TestFindsWhatThePathCarries(t *testing.T) {
	for _, underlay := range []int{576, 1280, 1400, 1450, 1492, 1500, 8900, 9000} {
		for _, off := range []int{0, 1, 3, 7} {
			carries := underlay - 60 - off
			p := newPath(carries, 9000-60, 9000-60)
			p.run(time.Minute)
			want := carries
			if carries >= 9000-60 {
				want = 0
			}
			if p.Limit() != want || p.Searching() {
				t.Errorf("carries %d: limit %d after %d probes", carries, p.Limit(), p.probes)
			}
		}
	}
}

func TestFollowsChanges(t *testing.T) {
	p := newPath(1440, 1440, 1440)
	p.run(time.Minute)
	if p.Limit() != 0 || p.probes > 13 {
		t.Errorf("nothing in the way: limit %d, %d probes in a minute", p.Limit(), p.probes)
	}
	p.carries = 1340
	p.run(Check + 40*time.Second)
	if p.Limit() != 1340 {
		t.Errorf("after it got narrower: %d", p.Limit())
	}
	p.carries = 1220
	p.run(Check + 40*time.Second)
	if p.Limit() != 1220 {
		t.Errorf("and narrower: %d", p.Limit())
	}
	p.carries = 1400
	p.run(Raise + time.Minute)
	if p.Limit() != 1400 {
		t.Errorf("after it got wider: %d", p.Limit())
	}
	p.carries = 9000
	p.run(Raise + time.Minute)
	if p.Limit() != 0 {
		t.Errorf("nothing in the way any more: %d", p.Limit())
	}
}

// TestOutagesSetNoLimit: where nothing passes, size is not the reason, and a limit
// that stands stays.
func TestOutagesSetNoLimit(t *testing.T) {
	p := newPath(1440, 1440, 1440)
	p.carries = 0
	p.run(time.Minute)
	if p.Limit() != 0 || p.Searching() {
		t.Errorf("limit %d", p.Limit())
	}
	p.carries = 1340
	p.run(time.Minute)
	p.carries = 0
	p.run(time.Hour)
	if p.Limit() != 1340 {
		t.Errorf("limit %d", p.Limit())
	}
}

func TestRestored(t *testing.T) {
	p := newPath(1340, 1340, 1440)
	p.Path = Restored(1340)
	p.run(time.Minute)
	if p.Limit() != 1340 {
		t.Errorf("it stands, and the limit is %d", p.Limit())
	}
	p.Path, p.carries = Restored(1340), 1440
	p.run(time.Minute)
	if p.Limit() != 0 {
		t.Errorf("it does not stand any more, and the limit is %d", p.Limit())
	}
	if size, ok := p.Next(p.now.Add(Check), p.sizes); !ok || size != 1440 {
		t.Fatal(size)
	}
	p.Result(p.now, 7, false) // of no probe under way
	p.Forget(p.now)
	if p.Limit() != 0 || p.Searching() {
		t.Error("a probe that was not sent is held against the path")
	}
}

// TestLossAloneSetsNoLimit: whatever is lost by chance, a limit is never below what
// passes by more than chance explains: once loss ends, it is right.
func TestLossAloneSetsNoLimit(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		carries := rapid.IntRange(128, 9100).Draw(rt, "carries")
		p := newPath(carries, 8940, 8940)
		p.lose = func() bool { return rapid.IntRange(0, 9).Draw(rt, "chance") == 0 }
		p.run(2 * time.Minute)
		p.lose = func() bool { return false }
		p.run(2*Raise + 2*time.Minute)
		want := carries
		if carries >= 8940 {
			want = 0
		}
		if p.Limit() != want {
			rt.Fatalf("carries %d, limit %d", carries, p.Limit())
		}
	})
}

func TestBetweenEnds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		good := rapid.IntRange(128, 9000).Draw(rt, "good")
		bad := rapid.IntRange(good+2, 9300).Draw(rt, "bad")
		overhead := rapid.IntRange(0, 80).Draw(rt, "overhead")
		real := rapid.IntRange(good, bad-1).Draw(rt, "real")
		steps := 0
		for bad-good > 1 {
			size := between(good, bad, overhead)
			if size <= good || size >= bad {
				rt.Fatalf("%d between %d and %d", size, good, bad)
			}
			if size <= real {
				good = size
			} else {
				bad = size
			}
			if steps++; steps > 24 {
				rt.Fatal("too many steps")
			}
		}
	})
}
