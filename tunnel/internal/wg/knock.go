package wg

import (
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/keys"
)

// WireGuard repeats an unanswered handshake after 5 s and has no request to
// hurry. That is the usual case here, not a rare one: two nodes learn each
// other's new keys at about the same time, and when the initiator is first,
// the responder drops the initiation of a key it does not know yet. A peer
// entry that never had a session holds nothing worth keeping, so taking it
// out and putting it back makes WireGuard start anew at once.
//
// Only the initiating side knocks, so it cannot bring about the collision of
// two initiators. It knocks three times, each time waiting longer than the
// time before and much longer than a handshake takes, then WireGuard's own
// timer goes on; a peer that is away costs nothing more.
//
// The responding side has something else to forget. It takes no initiation that
// is dated before the last one. If the clock of the initiator went back, all of
// them are, until that clock shows again what it showed before, be it in a day; and
// since the initiator repeats itself for ever, nothing says so. So once the
// session is dead, the responder makes the entry anew: it holds nothing else worth
// keeping, and with it goes the date. What the date is good for is that nobody
// makes the responder forget a handshake under way by sending an old initiation
// again. Who has listened on the path can do that now, once: the date is back then,
// and the pair is where it would be without all this, silent until the next epoch.
const (
	firstKnock = 750 * time.Millisecond
	maxKnocks  = 3
)

// knocking is what the driver remembers of a peer without a session.
type knocking struct {
	since time.Time // the peer entry was made, or first seen
	count int
	key   keys.KeyID // under which it was made
}

// knocker decides which peer entries of one device to make anew. It is empty
// after a restart: then each peer has waited since now.
type knocker map[keys.TunnelPublic]knocking

// due returns the keys whose entries are to be made anew, and remembers that
// they are. dead are those whose session is.
func (k knocker) due(want Want, have []wgtypes.Peer, dead map[keys.TunnelPublic]bool, now time.Time) map[keys.TunnelPublic]bool {
	waiting := make(map[keys.TunnelPublic]bool, len(have))
	for i := range have {
		waiting[keys.TunnelPublic(have[i].PublicKey)] = have[i].LastHandshakeTime.IsZero()
	}
	due := map[keys.TunnelPublic]bool{}
	seen := make(map[keys.TunnelPublic]bool, len(want.Peers))
	for _, p := range want.Peers {
		silent, exists := waiting[p.Public]
		if !p.Endpoint.IsValid() && dead[p.Public] {
			due[p.Public] = true // once: the new entry has had no session
		}
		if !p.Endpoint.IsValid() || exists && !silent {
			continue
		}
		seen[p.Public] = true
		w, known := k[p.Public]
		switch {
		case !known || !exists || w.key != p.Key:
			k[p.Public] = knocking{since: now, key: p.Key}
		case w.count < maxKnocks && now.Sub(w.since) >= firstKnock<<w.count:
			due[p.Public] = true
			k[p.Public] = knocking{since: now, count: w.count + 1, key: p.Key}
		}
	}
	for key := range k {
		if !seen[key] {
			delete(k, key)
		}
	}
	return due
}
