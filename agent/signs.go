package agent

import (
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// signs remembers when each tunnel last shook hands. WireGuard dates a handshake
// by the system clock; how long ago it was by a clock that has been set since, that
// does not tell. So what counts is when this agent saw the date change.
type signs struct {
	of map[signKey]sign
}

type signKey struct {
	device string
	peer   keys.TunnelPublic
}

type sign struct {
	dated time.Time // as WireGuard says
	seen  time.Time // when this agent saw that, with monotonic reading
}

// maxUnseen is how much later than WireGuard an agent that looks each second sees
// a handshake, at most.
const maxUnseen = 5 * time.Second

// see takes up what the devices say at now. A handshake of before this agent is
// as old as its date says, if that has come.
func (s *signs) see(now time.Time, devices []OwnDevice) {
	was := s.of
	s.of = map[signKey]sign{}
	for _, d := range devices {
		for _, p := range d.Peers {
			if p.LastHandshake.IsZero() {
				continue
			}
			key := signKey{d.Name, p.Public}
			g, known := was[key]
			if !known || !g.dated.Equal(p.LastHandshake) {
				g = sign{dated: p.LastHandshake, seen: now}
			}
			if age := now.Round(0).Sub(p.LastHandshake); !known && age > 0 {
				g.seen = now.Add(-age)
			}
			s.of[key] = g
		}
	}
}

// at returns when the tunnel to a peer shook hands last; false: never.
func (s *signs) at(device string, p tunnel.PeerState) (time.Time, bool) {
	g, ok := s.of[signKey{device, p.Public}]
	return g.seen, ok
}

// shown is at for people and programs, who compare it with the system clock: the
// date that WireGuard gave, unless the clock has been set since.
func (s *signs) shown(now time.Time, device string, p tunnel.PeerState) time.Time {
	at, ok := s.at(device, p)
	if !ok {
		return p.LastHandshake
	}
	// The monotonic reading tells how long ago it was; the present clock, what
	// time that was by it.
	if by := now.Round(0).Add(-now.Sub(at)); by.Sub(p.LastHandshake).Abs() > maxUnseen {
		return by
	}
	return p.LastHandshake
}
