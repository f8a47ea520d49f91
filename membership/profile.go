package membership

import "time"

// Names of the timer profiles.
const (
	ProfileLAN   = "lan"   // one site, round trips of some milliseconds
	ProfileWAN   = "wan"   // round trips of up to a second
	ProfileLocal = "local" // hosts on one machine: demo and tests
)

// profile holds the timers of a cluster; DESIGN.md gives the reasons. The
// members of one cluster may differ.
type profile struct {
	// memberlist
	probe, probeTimeout time.Duration
	gossip              time.Duration
	gossipNodes         int
	gossipToDead        time.Duration
	pushPull            time.Duration
	stream              time.Duration // timeout of a push/pull or fallback ping
	suspicionMult       int
	indirect            int

	// ours
	tick     time.Duration // how often due work is looked for
	grace    time.Duration // from a digest that differs to SYNC: hints may be under way
	resync   time.Duration // SYNC with one random member, whatever digests say
	retryMin time.Duration // reconnect back-off, first
	retryMax time.Duration // and last
	spread   time.Duration // per member: first contact with new members is spread over this
	call     time.Duration // one control request
	save     time.Duration // least time between two writes of the cache
	renew    time.Duration // how often a due renewal is tried, at first
	renewMax time.Duration // and at last
	beat     time.Duration // between two heartbeats of an issuer; 0: none (tests)
	stale    time.Duration // silence of all issuers, or lack of what one has, until it is shown
	forget   time.Duration // how often nodes that left, or ended, long ago are looked for
}

var profiles = map[string]profile{
	ProfileLAN: {
		probe: time.Second, probeTimeout: 500 * time.Millisecond,
		gossip: 200 * time.Millisecond, gossipNodes: 3, gossipToDead: 30 * time.Second,
		pushPull: 30 * time.Second, stream: 10 * time.Second, suspicionMult: 4, indirect: 3,
		tick: 100 * time.Millisecond, grace: 500 * time.Millisecond, resync: 30 * time.Second,
		retryMin: time.Second, retryMax: 10 * time.Second, spread: 20 * time.Millisecond,
		call: 20 * time.Second, save: 5 * time.Second,
		renew: time.Minute, renewMax: time.Hour, beat: time.Minute, stale: 10 * time.Minute, forget: time.Hour,
	},
	ProfileWAN: {
		probe: 5 * time.Second, probeTimeout: 3 * time.Second,
		gossip: 500 * time.Millisecond, gossipNodes: 4, gossipToDead: 60 * time.Second,
		pushPull: 60 * time.Second, stream: 30 * time.Second, suspicionMult: 6, indirect: 3,
		tick: 250 * time.Millisecond, grace: 2 * time.Second, resync: 60 * time.Second,
		retryMin: time.Second, retryMax: 30 * time.Second, spread: 50 * time.Millisecond,
		call: 60 * time.Second, save: 5 * time.Second,
		renew: time.Minute, renewMax: time.Hour, beat: time.Minute, stale: 10 * time.Minute, forget: time.Hour,
	},
	ProfileLocal: {
		probe: 500 * time.Millisecond, probeTimeout: 250 * time.Millisecond,
		gossip: 50 * time.Millisecond, gossipNodes: 3, gossipToDead: 10 * time.Second,
		pushPull: 5 * time.Second, stream: 5 * time.Second, suspicionMult: 3, indirect: 2,
		tick: 20 * time.Millisecond, grace: 100 * time.Millisecond, resync: 5 * time.Second,
		retryMin: 200 * time.Millisecond, retryMax: 3 * time.Second, spread: 10 * time.Millisecond,
		call: 10 * time.Second, save: 200 * time.Millisecond,
		renew: 200 * time.Millisecond, renewMax: 2 * time.Second, beat: 5 * time.Second, stale: 2 * time.Minute, forget: time.Second,
	},
}
