package tunnel

import (
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/keys"
)

// MetBy reports whether state shows everything that s asks for and nothing
// else: the same devices, up, and on each the same peers with the same keys. It
// cannot see what a State does not say, such as routes or a peer's wish for an
// endpoint; those are a Set's work.
func (s Spec) MetBy(state State) bool {
	if len(state.Devices) != len(s.Devices) {
		return false
	}
	for _, d := range s.Devices {
		i := slices.IndexFunc(state.Devices, func(have DeviceState) bool { return have.Epoch == d.Epoch && have.Lane == d.Lane })
		if i < 0 || !s.deviceMet(d, state.Devices[i]) {
			return false
		}
	}
	return true
}

func (s Spec) deviceMet(d Device, have DeviceState) bool {
	// Of a driver with one port for all devices, or none, a device names none or has none.
	if !have.Up || have.MTU != d.MTU || have.Port != 0 && d.Port != 0 && have.Port != d.Port {
		return false
	}
	peers := 0
	for _, p := range s.Peers {
		for _, k := range p.Keys {
			if k.Epoch != d.Epoch || k.Lane != d.Lane {
				continue
			}
			peers++
			if !slices.ContainsFunc(have.Peers, func(h PeerState) bool { return k.metBy(p.Inner, h) }) {
				return false
			}
		}
	}
	return peers == len(have.Peers)
}

func (k PeerKey) metBy(inner netip.Addr, have PeerState) bool {
	if have.Inner != inner || have.Key != k.Key || have.Public != k.Public {
		return false
	}
	if k.ESP == (ESP{}) {
		return have.In == 0 // WireGuard's endpoint follows the peer
	}
	is := ESP{
		Local: have.Local, Remote: have.Endpoint.Addr(), In: have.In, Out: have.Out, InUDP: have.InUDP, Port: have.Endpoint.Port(),
	}
	if k.ESP.InUDP && k.ESP.Port == 0 {
		is.Port = 0 // whichever the driver has
	}
	return k.ESP == is
}

// Equal reports whether s and o ask for the same. Secrets do not count, since the
// KeyID beside each names it, nor does the revision.
func (s Spec) Equal(o Spec) bool {
	return slices.Equal(s.Devices, o.Devices) && slices.EqualFunc(s.Peers, o.Peers, func(a, b Peer) bool {
		return a.ID == b.ID && a.Inner == b.Inner && slices.EqualFunc(a.Keys, b.Keys, PeerKey.equal)
	})
}

func (k PeerKey) equal(o PeerKey) bool {
	return k.Epoch == o.Epoch && k.Lane == o.Lane && k.Public == o.Public && k.Key == o.Key && k.Endpoint == o.Endpoint && k.ESP == o.ESP
}

// WithoutSecrets returns a copy of s that holds no secret.
func (s Spec) WithoutSecrets() Spec {
	s.Peers = slices.Clone(s.Peers)
	for i := range s.Peers {
		s.Peers[i].Keys = slices.Clone(s.Peers[i].Keys)
		for j := range s.Peers[i].Keys {
			s.Peers[i].Keys[j].Secret = keys.TunnelSecret{}
		}
	}
	return s
}
