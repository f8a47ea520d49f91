package ipsec

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/links"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/xfrm"
)

// State implements tunnel.Driver.
func (d *driver) State(ctx context.Context) (tunnel.State, error) {
	f, err := d.look()
	if err != nil {
		return tunnel.State{}, err
	}
	var out tunnel.State
	for _, name := range links.Names(f.links) {
		l := f.links[name]
		if l.Mark == (tunnel.Mark{}) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return out, err
		}
		s := tunnel.DeviceState{
			Name: name, Epoch: l.Mark.Epoch, Lane: l.Mark.Lane,
			Port: d.port, MTU: l.Attrs().MTU, Up: l.Attrs().Flags&net.FlagUp != 0,
		}
		s.Peers = d.peers(d.have(f, ifIDOf(l.Link)))
		out.Devices = append(out.Devices, s)
	}
	slices.SortFunc(out.Devices, func(a, b tunnel.DeviceState) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Lane, b.Lane))
	})
	return out, nil
}

// peers reads the peers of one device by their associations: a policy that
// somebody deleted is set again by the next Set, which needs no secret for it.
func (d *driver) peers(h have) []tunnel.PeerState {
	at := place{self: d.self}
	var out []tunnel.PeerState
	for peer, one := range h.of(at) {
		p := tunnel.PeerState{ID: d.owners[peer], Inner: peer}
		if in, ok := one.current(at, xfrm.In); ok {
			p.Key, p.In, p.RxBytes = keys.KeyID(in.ReqID), in.SPI, d.known[in.Name()].usage.Bytes
			p.Local, p.Endpoint = in.Dst, netip.AddrPortFrom(in.Src, in.Encap.Src)
			p.InUDP = in.Encap != (xfrm.Encap{})
		}
		// Of another key it would not be the other half of this one.
		if s, ok := one.current(at, xfrm.Out); ok && p.Key == keys.KeyID(s.ReqID) {
			u := d.known[s.Name()].usage
			p.Out, p.TxBytes, p.TxPackets = s.SPI, u.Bytes, u.Packets
		}
		if len(one.states) > 0 {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b tunnel.PeerState) int { return a.Inner.Compare(b.Inner) })
	return out
}

// current returns a peer's association of one direction. Where there are
// several, which is so only while one takes another's place, it is the one that
// the policy asks for.
func (h have) current(p place, dir xfrm.Dir) (out xfrm.State, ok bool) {
	asked, _ := h.policy(dir)
	for _, n := range inOrder(h.states) {
		s := h.states[n]
		if _, d := p.peerOf(s.From, s.To); d == dir && (!ok || asked.Name() == n) {
			out, ok = s, true
		}
	}
	return out, ok
}
