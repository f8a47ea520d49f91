package clock

import (
	"cmp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/keys"
)

// Options says what a Clock begins with. The zero value is the system clock, of
// which nothing is known.
type Options struct {
	// Trusted is the trusted time that an earlier process has kept; zero: none.
	Trusted time.Time
	// Reach is the end of this node's certificate: nothing that is signed moves
	// the trusted time beyond it. Zero: nothing moves it.
	Reach time.Time
	// Tolerance is how far apart two clocks may be; 0: keys.ClockTolerance.
	Tolerance time.Duration

	System func() time.Time     // nil: time.Now
	Steady func() time.Duration // since some moment, by a clock that nobody sets; nil: that of time.Now
}

// Clock is the time as one node takes it. Its methods may be called from any
// goroutine; none of them blocks.
type Clock struct {
	system    func() time.Time
	steady    func() time.Duration
	tolerance time.Duration

	mu      sync.Mutex    // guards all below; leaf
	trusted time.Time     // as it was
	at      time.Duration // at this steady time
	reach   time.Time
	pace    pace
}

// New returns a clock that runs. It does no I/O and starts nothing.
func New(o Options) *Clock {
	if o.System == nil {
		o.System = time.Now
	}
	if o.Steady == nil {
		began := time.Now()
		o.Steady = func() time.Duration { return time.Since(began) }
	}
	c := &Clock{
		system: o.System, steady: o.Steady, tolerance: cmp.Or(o.Tolerance, keys.ClockTolerance),
		trusted: o.Trusted.Round(0), reach: o.Reach,
	}
	c.at = c.steady()
	c.look()
	return c
}

// Boottime is for Options.Steady: the time since the machine was booted, time in
// which it was suspended included (CLOCK_BOOTTIME, clock_gettime(2)).
func Boottime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("clock: CLOCK_BOOTTIME, which Linux has since 2.6.39: " + err.Error())
	}
	return time.Duration(t.Nano())
}

// look reads all clocks and lets the pace see them; mu is held, or nobody else
// has c yet.
func (c *Clock) look() (system, trusted time.Time) {
	steady := c.steady()
	system = c.system().Round(0)
	trusted = c.trusted.Add(steady - c.at)
	c.pace = c.pace.look(reading{
		system: system, trusted: trusted, steady: steady, known: !c.trusted.IsZero(), tolerance: c.tolerance,
	})
	return system, trusted
}

// Now returns the time for decisions about what others show: the later one of
// the system clock and the trusted time. So a clock that is behind lets nobody in
// whose certificate is known to have ended, and one that is ahead errs on the
// same side.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return later(c.look())
}

// For returns the time with which to verify something that an issuer has signed,
// and that says of itself that it begins, or was made, at a time. It is Now. But
// where the system clock is known to be behind, nothing but what issuers sign says
// how late it really is: then what is newer is verified as of its own beginning, up
// to the end of this node's certificate.
//
// That is no hole: "not valid yet" keeps no attacker out, since only an issuer can
// date something; it is there to find wrong clocks, and this one has been found.
// A wrong claim only chooses the time with which its signature then fails.
func (c *Clock) For(begins time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	system, trusted := c.look()
	now := later(system, trusted)
	if c.behind(system, trusted) && begins.After(now) && !begins.After(c.reach) {
		return begins
	}
	return now
}

// Saw takes the time that stands in something which an authority other than this
// node has signed, and which was verified: by then it was so late. It counts only
// while the system clock keeps its pace, or else a jump that all nodes of a machine
// share would move the trusted time by way of their issuer.
func (c *Clock) Saw(signed time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	system, trusted := c.look()
	limit := later(system, trusted)
	if c.behind(system, trusted) {
		limit = c.reach
	}
	if c.reach.Before(limit) {
		limit = c.reach
	}
	if signed.After(limit) {
		signed = limit
	}
	if c.pace.jump == 0 && signed.After(trusted) {
		c.trusted, c.at = signed.Round(0), c.steady()
	}
}

// Reaches says that this node's certificate ends then: a renewed one ends later.
func (c *Clock) Reaches(end time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reach = end
}

// Settled reports whether the system clock may date what this node signs by
// itself: it keeps its pace, or has kept another one for Settle.
func (c *Clock) Settled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look()
	return c.pace.jump == 0
}

// Reading is what the clocks showed at one moment.
type Reading struct {
	System  time.Time
	Trusted time.Time     // it was at least so late
	Known   bool          // false: there is no trusted time; Trusted means nothing
	Behind  time.Duration // by how much the system clock is behind Trusted, if by more than the tolerance; else 0
	// Jump is by how much the system clock has left its pace, forward if
	// positive, since this process began or within Settle; 0: it has not.
	Jump time.Duration
}

// Read returns what the clocks show now.
func (c *Clock) Read() Reading {
	c.mu.Lock()
	defer c.mu.Unlock()
	system, trusted := c.look()
	r := Reading{System: system, Trusted: trusted, Known: !c.trusted.IsZero(), Jump: c.pace.jump}
	if c.behind(system, trusted) {
		r.Behind = trusted.Sub(system)
	}
	return r
}

// Trusted returns the trusted time, zero if there is none.
func (c *Clock) Trusted() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, trusted := c.look()
	if c.trusted.IsZero() {
		return time.Time{}
	}
	return trusted
}

// behind reports whether the system clock cannot be right; mu is held.
func (c *Clock) behind(system, trusted time.Time) bool {
	return !c.trusted.IsZero() && trusted.Sub(system) > c.tolerance
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
