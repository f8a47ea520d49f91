package clock

import "time"

const (
	// Settle is how long the system clock has to keep a new pace before it is
	// believed: long enough for people to see the alarm, and short beside
	// anything that waits for it (half of a certificate's life, a rotation).
	Settle = time.Hour

	// MaxAhead is how far ahead of the trusted time a system clock may be at
	// the start of a process and still be plausible: as long as issuers' certificates
	// live. A node that was away for longer has none in force.
	MaxAhead = 30 * 24 * time.Hour
)

// reading is what all clocks showed at one moment.
type reading struct {
	system, trusted time.Time
	steady          time.Duration
	known           bool // there is a trusted time
	tolerance       time.Duration
}

// plausible reports whether the system clock may be right, as far as the trusted
// time tells.
func (r reading) plausible() bool {
	ahead := r.system.Sub(r.trusted)
	return !r.known || ahead >= -r.tolerance && ahead <= MaxAhead
}

// pace is what is known about how the system clock runs beside the steady one.
// Slewing moves both alike, so only somebody who sets the clock makes them part.
type pace struct {
	begun    bool
	origin   time.Time     // what the system clock shows where the steady one is zero, if it keeps its pace
	doubtful bool          // the system clock was not plausible when origin was taken
	jump     time.Duration // how far it has left its pace; 0: it keeps it
	since    time.Duration // steady time of the jump
}

// look returns the pace after a reading. It is pure.
func (p pace) look(r reading) pace {
	own := pace{begun: true, origin: r.system.Add(-r.steady), doubtful: !r.plausible()}
	switch {
	case (!p.begun || p.doubtful) && r.plausible():
		return own
	case !p.begun:
		// It would show this if the trusted time were not late.
		p = pace{begun: true, origin: r.trusted.Add(-r.steady), doubtful: true}
	}
	off := r.system.Sub(p.origin.Add(r.steady))
	switch {
	case off.Abs() <= r.tolerance:
		p.jump = 0 // it is back
	case p.jump == 0 || (off-p.jump).Abs() > r.tolerance:
		p.jump, p.since = off, r.steady
	case r.steady-p.since >= Settle:
		return own
	}
	return p
}
