package pathmtu

import (
	"slices"
	"time"
)

// Times of a Path.
const (
	// Check is how often the largest packet that is in use is tried. What begins to
	// swallow large packets is noticed after so long at most.
	Check = 5 * time.Second
	// Retry is when a path is tried again on which nothing passes.
	Retry = 5 * time.Second
	// Raise is how long a limit stands until more is tried (RFC 8899 section 5.1.1,
	// PMTU_RAISE_TIMER).
	Raise = 10 * time.Minute
)

// Sizes of packets, in bytes of whole packet in the tunnel.
type Sizes struct {
	Small    int // passes wherever anything does
	Want     int // the largest that is sent now
	Top      int // the largest that both ends could send, were it not for the path; at least Want
	Overhead int // what the tunnel adds on the underlay
}

// Path is what is known of the path to one peer. The zero value knows nothing.
type Path struct {
	limit int
	due   time.Time
	raise time.Time

	phase     phase
	raising   bool
	sizes     Sizes // of this round
	good, bad int   // in a search: passed, lost
	flying    int   // size of the probe under way; 0: none
}

type phase int

const (
	idle    phase = iota // waits until due, then tries Want
	wanted               // Want is under way
	small                // it was lost: does anything pass?
	search               // between good and bad
	confirm              // is Want lost once more?
	top                  // Want passes: does Top?
)

// Restored is a path of which a limit was known before a restart. It is tried soon
// whether it still stands.
func Restored(limit int) Path { return Path{limit: limit} }

// Limit is the largest packet that the path carries, 0 if that is no less than both
// ends send.
func (p *Path) Limit() int { return p.limit }

// Searching reports whether large packets are being lost, and the limit is not known
// yet.
func (p *Path) Searching() bool { return p.phase >= small && p.phase <= confirm && !p.raising }

// Next returns the size of a probe to send now, false if there is none: one is under
// way, or it is not time yet. A probe is lost if none of three packets comes back.
func (p *Path) Next(now time.Time, s Sizes) (size int, ok bool) {
	if p.flying != 0 || now.Before(p.due) {
		return 0, false
	}
	switch p.phase {
	case idle:
		p.sizes, p.phase = s, wanted
		p.flying = s.Want
	case wanted, confirm:
		p.flying = p.sizes.Want
	case small:
		p.flying = p.sizes.Small
	case top:
		p.flying = p.sizes.Top
	case search:
		p.flying = between(p.good, p.bad, p.sizes.Overhead)
	}
	return p.flying, true
}

// Forget gives up a probe that could not be sent. It says nothing about the path.
func (p *Path) Forget(now time.Time) {
	p.flying, p.raising = 0, false
	p.rest(now, Retry)
}

// Result takes what became of a probe that Next asked for.
func (p *Path) Result(now time.Time, size int, passed bool) {
	if size != p.flying || size == 0 {
		return
	}
	p.flying = 0
	switch p.phase {
	case wanted:
		switch {
		case !passed:
			p.phase = small
		case p.limit != 0 && !now.Before(p.raise) && p.sizes.Top > p.limit:
			p.phase = top
		default:
			p.rest(now, Check)
		}
	case small:
		if !passed {
			p.rest(now, Retry) // nothing passes: that is no matter of size
			return
		}
		p.begin(now, p.sizes.Small, p.sizes.Want, false)
	case top:
		if passed {
			p.limit = 0
			p.rest(now, Check)
			return
		}
		p.begin(now, p.limit, p.sizes.Top, true)
	case search:
		if passed {
			p.good = size
		} else {
			p.bad = size
		}
		p.step(now)
	case confirm:
		if !passed {
			p.set(now)
			return
		}
		p.rest(now, Check) // it was chance
	case idle: // nothing is under way
	}
}

// begin searches between a size that passed and one that was lost.
func (p *Path) begin(now time.Time, good, bad int, raising bool) {
	p.good, p.bad, p.raising = good, bad, raising
	p.phase = search
	p.step(now)
}

// step ends a search that has come to its end.
func (p *Path) step(now time.Time) {
	switch {
	case p.bad-p.good > 1:
	case p.raising:
		p.set(now)
	default:
		p.phase = confirm
	}
}

func (p *Path) set(now time.Time) {
	p.limit, p.raise, p.raising = p.good, now.Add(Raise), false
	p.rest(now, Check)
}

func (p *Path) rest(now time.Time, d time.Duration) {
	p.phase, p.due = idle, now.Add(d)
}

// common lists MTUs that underlays have, ascending: least sizes of IPv4 and IPv6,
// tunnels of all kinds, PPPoE, Ethernet, jumbo frames.
func common() []int {
	return []int{576, 1024, 1200, 1280, 1300, 1320, 1340, 1350, 1360, 1370, 1380, 1400, 1410, 1420, 1430, 1440, 1442, 1450, 1454, 1460, 1472, 1476,
		1480, 1492, 1500, 1600, 2000, 4000, 4352, 8000, 8500, 8900, 8950, 8951, 8982, 9000, 9100, 9180, 9216}
}

// between chooses what to try between a size that passes and a larger one that does
// not: the middle one of those that are likely; where there is none left, one byte
// more than what passes, and if that passes, the middle.
func between(good, bad, overhead int) int {
	var likely []int
	exact := false
	for _, mtu := range common() {
		size := mtu - overhead
		exact = exact || size == good
		if good < size && size < bad {
			likely = append(likely, size)
		}
	}
	switch {
	case len(likely) > 0:
		return likely[len(likely)/2]
	case exact:
		return good + 1
	}
	return slices.Max([]int{good + 1, (good + bad) / 2})
}
