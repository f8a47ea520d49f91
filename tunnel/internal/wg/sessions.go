package wg

import (
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/keys"
)

// Sessions tells which peers of a device have no session that could carry data.
// WireGuard dates a handshake by the system clock, which may have been set since; so
// what counts is how long ago the driver saw the date change, by a clock that
// nobody sets. It is empty after a restart: then each session is taken to be new,
// because a jump of the clock must not end one that works.
type Sessions map[keys.TunnelPublic]session

// session is the last handshake with a peer.
type session struct {
	dated time.Time // as WireGuard says
	seen  time.Time // when the driver saw that, with monotonic reading
}

// See takes up what a device says at now, and returns the peers whose last
// handshake is too long ago. Those that never had one are not among them.
func (s Sessions) See(have []wgtypes.Peer, now time.Time) (dead map[keys.TunnelPublic]bool) {
	dead = map[keys.TunnelPublic]bool{}
	there := make(map[keys.TunnelPublic]bool, len(have))
	for i := range have {
		key, dated := keys.TunnelPublic(have[i].PublicKey), have[i].LastHandshakeTime
		if dated.IsZero() {
			continue
		}
		there[key] = true
		if was, known := s[key]; !known || !was.dated.Equal(dated) {
			s[key] = session{dated: dated, seen: now}
		}
		if now.Sub(s[key].seen) > SessionLife {
			dead[key] = true
		}
	}
	for key := range s {
		if !there[key] {
			delete(s, key)
		}
	}
	return dead
}
