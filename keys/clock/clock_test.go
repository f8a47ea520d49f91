package clock

import (
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

const day = 24 * time.Hour

// begin is when the tests' node was last known to run.
var begin = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// hands are the clocks of a machine under the control of a test.
type hands struct {
	system time.Time
	steady time.Duration
}

// pass lets time go by: both clocks move.
func (h *hands) pass(d time.Duration) { h.system, h.steady = h.system.Add(d), h.steady+d }

// set moves the system clock alone.
func (h *hands) set(d time.Duration) { h.system = h.system.Add(d) }

func (h *hands) options(trusted time.Time) Options {
	return Options{
		Trusted: trusted, Reach: begin.Add(30 * day),
		System: func() time.Time { return h.system }, Steady: func() time.Duration { return h.steady },
	}
}

// clocks makes a clock whose system clock is off by so much when the process
// begins, some seconds after the machine did.
func clocks(trusted time.Time, off time.Duration) (*Clock, *hands) {
	h := &hands{system: begin.Add(off), steady: 7 * time.Second}
	return New(h.options(trusted)), h
}

func TestPace(t *testing.T) {
	type step struct {
		pass, set time.Duration // in this order
		jump      time.Duration
	}
	year := 365 * day
	for name, c := range map[string]struct {
		off     time.Duration // of the system clock, at the start
		unknown bool          // there is no trusted time
		start   time.Duration // the jump seen then
		steps   []step
	}{
		"keeps its pace":        {steps: []step{{pass: day}, {pass: 400 * day}}},
		"a nudge":               {steps: []step{{pass: time.Hour, set: time.Minute}, {pass: time.Hour, set: -2 * time.Minute}}},
		"nudges add up":         {steps: []step{{set: 4 * time.Minute}, {pass: day, set: 4 * time.Minute, jump: 8 * time.Minute}}},
		"forward and back":      {steps: []step{{set: day, jump: day}, {pass: 59 * time.Minute, jump: day}, {set: -day}}},
		"back and forward":      {steps: []step{{set: -day, jump: -day}, {pass: time.Minute, set: day + time.Second}}},
		"forward for good":      {steps: []step{{set: day, jump: day}, {pass: Settle}, {pass: day}, {set: -day, jump: -day}}},
		"twice":                 {steps: []step{{set: day, jump: day}, {pass: 50 * time.Minute, set: day, jump: 2 * day}, {pass: 50 * time.Minute, jump: 2 * day}, {pass: 10 * time.Minute}}},
		"after a long sleep":    {off: 20 * day, steps: []step{{pass: day}}},
		"away for too long":     {off: 31 * day, start: 31 * day, steps: []step{{pass: Settle}, {pass: day}}},
		"1970, never put right": {off: -56 * year, start: -56 * year, steps: []step{{pass: Settle}, {pass: day}}},
		"1970, put right":       {off: -56 * year, start: -56 * year, steps: []step{{pass: time.Minute, set: 56*year + 3*day}, {pass: day}}},
		"1970, put right late":  {off: -56 * year, start: -56 * year, steps: []step{{pass: day}, {set: 56 * year}, {pass: day}}},
		"ten years, put right":  {off: 10 * year, start: 10 * year, steps: []step{{pass: time.Minute, jump: 10 * year}, {set: -10 * year}}},
		"nothing to compare":    {off: 10 * year, unknown: true, steps: []step{{set: -day, jump: -day}}},
	} {
		t.Run(name, func(t *testing.T) {
			trusted := begin
			if c.unknown {
				trusted = time.Time{}
			}
			k, h := clocks(trusted, c.off)
			look := func(when string, want time.Duration) {
				t.Helper()
				if r := k.Read(); r.Jump != want || k.Settled() != (want == 0) {
					t.Errorf("%s: jump %v, settled %t, want %v", when, r.Jump, k.Settled(), want)
				}
			}
			look("start", c.start)
			for i, s := range c.steps {
				h.pass(s.pass)
				h.set(s.set)
				look("step "+string(rune('1'+i)), s.jump)
			}
		})
	}
}

func TestNow(t *testing.T) {
	for name, c := range map[string]struct {
		trusted time.Time
		off     time.Duration
		now     time.Duration // after begin
		behind  time.Duration
	}{
		"right":                {begin, 0, 0, 0},
		"slow, within reason":  {begin, -keys.ClockTolerance, 0, 0},
		"slow":                 {begin, -keys.ClockTolerance - time.Second, 0, keys.ClockTolerance + time.Second},
		"1970":                 {begin, begin.Sub(time.Unix(0, 0)) * -1, 0, begin.Sub(time.Unix(0, 0))},
		"after a pause":        {begin, 3 * day, 3 * day, 0},
		"ten years ahead":      {begin, 3652 * day, 3652 * day, 0},
		"nothing kept, behind": {time.Time{}, -day, -day, 0},
	} {
		k, h := clocks(c.trusted, c.off)
		for range 2 {
			if got := k.Now().Sub(begin); got != c.now {
				t.Errorf("%s: now is begin + %v, want %v", name, got, c.now)
			}
			if r := k.Read(); r.Behind != c.behind || r.Known == c.trusted.IsZero() {
				t.Errorf("%s: %+v, want behind by %v", name, r, c.behind)
			}
			h.pass(time.Hour)
			c.now += time.Hour
		}
	}
}

// TestSystemClockNeverMovesTheTrustedTime, whatever it does, while the node runs
// and over restarts.
func TestSystemClockNeverMovesTheTrustedTime(t *testing.T) {
	k, h := clocks(begin, 0)
	ran := time.Duration(0)
	for i, set := range []time.Duration{day, -2 * day, 3652 * day, -30000 * day, 26348 * day, time.Minute, -time.Minute} {
		h.set(set)
		h.pass(17 * time.Minute)
		ran += 17 * time.Minute
		if got := k.Trusted().Sub(begin); got != ran {
			t.Fatalf("jump %d by %v: the trusted time is begin + %v, want %v", i+1, set, got, ran)
		}
		// A restart of the machine, with the clock where it is.
		kept := k.Trusted()
		h.steady = 3 * time.Second
		k = New(h.options(kept))
	}
}

func TestSaw(t *testing.T) {
	for name, c := range map[string]struct {
		off, reach, signed time.Duration // after begin
		jump               time.Duration // before it is signed
		want               time.Duration
	}{
		"older":                       {off: day, reach: 30 * day, signed: -day, want: 0},
		"newer":                       {off: 2 * day, reach: 30 * day, signed: day, want: day},
		"a little ahead":              {off: day, reach: 30 * day, signed: day + time.Minute, want: day},
		"from the future":             {off: day, reach: 30 * day, signed: 20 * day, want: day},
		"beyond the certificate":      {off: 29 * day, reach: 20 * day, signed: 25 * day, want: 20 * day},
		"no certificate":              {off: day, signed: time.Hour, want: 0},
		"while the clock has jumped":  {off: 0, reach: 30 * day, jump: day, signed: day, want: 0},
		"while it is behind and new":  {off: -day, reach: 30 * day, signed: day, want: 0},
		"by a clock ten years ahead":  {off: 3652 * day, reach: 30 * day, signed: 3652 * day, want: 0},
		"by a clock a month and more": {off: 40 * day, reach: 30 * day, signed: 5 * day, want: 0},
	} {
		k, h := clocks(begin, c.off)
		k.Reaches(time.Time{})
		if c.reach != 0 {
			k.Reaches(begin.Add(c.reach))
		}
		h.set(c.jump)
		k.Saw(begin.Add(c.signed))
		if got := k.Trusted().Sub(begin); got != c.want {
			t.Errorf("%s: the trusted time is begin + %v, want %v", name, got, c.want)
		}
		h.pass(time.Hour)
		if got := k.Trusted().Sub(begin); got != c.want+time.Hour {
			t.Errorf("%s: an hour later it is begin + %v", name, got)
		}
	}
	// A clock that stays behind is told the time by what is signed, in the end.
	k, h := clocks(begin, -400*day)
	h.pass(Settle)
	k.Saw(begin.Add(9 * day))
	if got := k.Trusted().Sub(begin); got != 9*day {
		t.Errorf("behind for an hour: begin + %v, want nine days", got)
	}
	k.Saw(begin.Add(200 * day))
	if got := k.Trusted().Sub(begin); got != 30*day {
		t.Errorf("behind, and an issuer that is far ahead: begin + %v, want the certificate's end", got)
	}
}

func TestFor(t *testing.T) {
	for name, c := range map[string]struct {
		off, begins time.Duration
		want        time.Duration // after begin
	}{
		"right clock, older":               {0, -day, 0},
		"right clock, not valid yet":       {0, day, 0},
		"clock ahead":                      {day, 2 * day, day},
		"behind, older":                    {-day, -2 * day, 0},
		"behind, newer":                    {-day, 3 * day, 3 * day},
		"behind, beyond the certificate":   {-day, 31 * day, 0},
		"behind within the tolerance":      {-time.Minute, day, 0},
		"1970":                             {-20000 * day, 3 * day, 3 * day},
		"1970, what cannot be read (zero)": {-20000 * day, time.Time{}.Sub(begin), 0},
	} {
		k, _ := clocks(begin, c.off)
		if got := k.For(begin.Add(c.begins)).Sub(begin); got != c.want {
			t.Errorf("%s: begin + %v, want %v", name, got, c.want)
		}
	}
}

// TestBoottime: it runs, and is not the system clock.
func TestBoottime(t *testing.T) {
	a := Boottime()
	b := Boottime()
	if a <= 0 || b < a || a > 10*365*day {
		t.Errorf("%v, then %v", a, b)
	}
	k := New(Options{})
	if d := k.Now().Sub(time.Now()); d.Abs() > time.Minute || k.Read().Known || !k.Settled() || !k.Trusted().IsZero() {
		t.Errorf("the system clock alone: off by %v, %+v", d, k.Read())
	}
}
