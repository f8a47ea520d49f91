package membership

import (
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// Stale says that this node may be kept from hearing what the cluster decides:
// nothing of any issuer, or not what an issuer has that it does hear. It may as
// well be that no issuer runs, which is legal, or that a clock is wrong. So it is
// shown, and changes nothing.
type Stale struct {
	// Issuer is alive, and has items that do not come here. Zero: no issuer is
	// heard.
	Issuer keys.IssuerPublic
	// Since is when the newest heartbeat was made, of any issuer, or of those of
	// Issuer whose items this node has; zero: there was none.
	Since time.Time
}

// heard is what a node knows of an issuer's heartbeats.
type heard struct {
	issuer  keys.IssuerPublic
	since   time.Time // since when this process knows of it
	newest  time.Time // when its newest one was made
	reached time.Time // when the newest was made of those whose items this node has; zero: of none
}

// judge decides whether news may be withheld from this node. Of a cluster whose
// issuers have never been heard, because their program is older, nothing is
// expected. limit 0 judges nothing.
//
// A heartbeat counts from when it was made, not from when it came: whoever
// delays all of them by an hour, one a minute, withholds an hour of news. A
// process that has just begun, or has just heard of an issuer, waits for as long
// as everybody.
func judge(now time.Time, limit time.Duration, list []heard) []Stale {
	if limit == 0 || len(list) == 0 {
		return nil
	}
	var out []Stale
	var newest time.Time
	silent, waited := true, false
	for _, h := range list {
		newest = later(newest, h.newest)
		waited = waited || now.Sub(h.since) > limit
		// One that lies ahead came before this node's clock went back, and says
		// nothing about now.
		if age := now.Sub(h.newest); age > limit || age < -keys.ClockTolerance {
			continue
		}
		silent = false
		if now.Sub(later(h.reached, h.since)) > limit {
			out = append(out, Stale{Issuer: h.issuer, Since: h.reached})
		}
	}
	if silent && waited {
		return []Stale{{Since: newest}}
	}
	return out
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
