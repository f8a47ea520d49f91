package agent

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// TestESPAddresses: associations stay between the addresses that they were made
// for as long as both are addresses of the nodes, whatever a new pair would
// choose; when one is gone they move.
func TestESPAddresses(t *testing.T) {
	own := func(addrs ...netip.AddrPort) (out []OwnAddr) {
		for _, a := range addrs {
			out = append(out, OwnAddr{Control: a, MTU: 1500})
		}
		return out
	}
	theirs := func(addrs ...netip.AddrPort) (out []record.Underlay) {
		for _, a := range addrs {
			out = append(out, record.Underlay{Control: a, MTU: 1500})
		}
		return out
	}
	here, there := v4(1), v4(2)
	here2, there2 := v4(101), v4(102)
	for _, c := range []struct {
		name          string
		own           []OwnAddr
		theirs        []record.Underlay // nil: the record is not known
		local, remote netip.AddrPort
	}{
		{"nothing has changed", own(here), theirs(there), here, there},
		{"a further address here", own(here, here2), theirs(there), here, there},
		{"a better address here", own(here2, here), theirs(there), here, there},
		{"a further address there", own(here), theirs(there, there2), here, there},
		{"a better address there", own(here), theirs(there2, there), here, there},
		{"a better family on both", own(v6(1), here), theirs(v6(2), there), here, there},
		{"the address here is gone", own(here2), theirs(there), here2, there},
		{"the address there is gone", own(here), theirs(there2), here, there2},
		{"both are gone", own(here2), theirs(there2), here2, there2},
		{"the family is gone", own(v6(1)), theirs(v6(2)), v6(1), v6(2)},
		{"the record is not known", own(here), nil, here, there},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := pairSim(t)
			for _, i := range []int{1, 2} {
				s.addDevice(i, 2, config.DriverIPsec, 51872)
			}
			in := s.nodes[0].in
			peer := in.Members[0].ID
			in.Underlay.Own = c.own
			in.Members = slices.Clone(in.Members)
			in.Members[0].Record.Underlay = c.theirs
			if c.theirs == nil {
				in.Members = nil
			}
			for _, u := range c.theirs {
				in.Underlay.Routes[u.Control.Addr()] = nl.Route{Device: "eth0", MTU: 1500}
			}
			in.Tunnels.Devices[1].Peers = []tunnel.PeerState{{
				Inner: peer.InnerAddr(), Key: 5, In: 0x1111, Out: 0x2222, Local: here.Addr(), Endpoint: netip.AddrPortFrom(there.Addr(), 0),
			}}
			in.Tunnels.Plan.Pairs = []rotate.Pair{{Peer: peer, Epoch: 2, Key: 5, Theirs: 1, Send: true, Main: true}}
			peers := Desired(in).Tunnels[config.DriverIPsec].Peers
			if len(peers) != 1 || len(peers[0].Keys) != 1 {
				t.Fatalf("peers = %+v", peers)
			}
			want := tunnel.ESP{Local: c.local.Addr(), Remote: c.remote.Addr(), In: 0x1111, Out: 0x2222}
			if got := peers[0].Keys[0].ESP; got != want {
				t.Errorf("ESP = %+v, want %+v", got, want)
			}
		})
	}
}
