package agent

import (
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// Devices of two wires can talk in one case: ESP in UDP is all that some devices
// have, and something that others can have, too, pair by pair. Which of them can
// their record says by a port: a device of ESP as it is has one exactly if it
// takes ESP in UDP, at that port. Both nodes decide by the same: each knows its
// own device and the record that the other has published of its.

// meeting is how a pair's packets travel between two devices.
type meeting struct {
	ok   bool        // they can
	wire record.Wire // so; what both nodes say in an AGREE, except where the pair chooses
	// choice: each key may be for ESP as it is or for ESP in UDP. wire is the former.
	choice bool
}

// meet tells how the packets between a device of this node and one of a peer
// travel.
func (d OwnDevice) meet(their record.Tunnel) meeting {
	const native, inUDP = record.WireESP, record.WireESPUDP
	switch {
	case d.Wire == native && their.Wire == native:
		return meeting{ok: true, wire: native, choice: d.Forms && their.Port != 0}
	case d.Wire == native && their.Wire == inUDP:
		return meeting{ok: d.Forms, wire: inUDP}
	case d.Wire == inUDP && their.Wire == native:
		return meeting{ok: their.Port != 0, wire: inUDP}
	}
	return meeting{ok: d.Wire == their.Wire, wire: d.Wire}
}

// alone is what can be said about how a pair's packets travel while nothing is
// known of the peer's device.
func (d OwnDevice) alone() meeting { return meeting{wire: d.Wire, choice: d.Forms} }

// inUDP reports whether associations of such a pair are in UDP, where they were
// found so, or agreed on, or not. What was made for a form that the two devices do
// not allow, or no longer, is to be made anew.
func (m meeting) inUDP(is bool) bool { return m.wire == record.WireESPUDP || m.choice && is }

// meeting tells how packets travel between the devices that this node and a peer
// have of an epoch, as far as that is known.
func (in Input) meeting(peer ids.NodeID, epoch ids.Epoch) meeting {
	d, ok := in.Tunnels.device(epoch)
	if !ok {
		return meeting{}
	}
	if their, ok := in.theirs(peer, epoch); ok {
		return d.meet(their)
	}
	return d.alone()
}

// seen are a peer's devices as the rotation machine is to see them. It compares
// wires, and devices of one can talk, so a device that this node's of that epoch can
// talk to has that one's wire. Of an epoch that this node does not have it is the
// newest device that counts: the node would make one of its kind.
func (t TunnelFacts) seen(peer rotate.Peer, r record.Node) rotate.Peer {
	their := map[rotate.Device]record.Tunnel{}
	for _, d := range theirTunnels(r) {
		their[deviceIn(d)] = d
	}
	out := rotate.Peer{ID: peer.ID, Devices: make([]rotate.Device, 0, len(peer.Devices))}
	for _, d := range peer.Devices {
		own, ok := t.device(d.Epoch)
		if !ok {
			own, ok = t.newest()
		}
		if ok && own.meet(their[d]).ok {
			d.Wire = uint8(own.Wire)
		}
		out.Devices = append(out.Devices, d)
	}
	return out
}

// deviceIn is a device of a record, with the wire that it has there.
func deviceIn(t record.Tunnel) rotate.Device {
	return rotate.Device{Epoch: t.Epoch, Instance: t.Instance, Wire: uint8(t.Wire)}
}

// newest returns the newest device that works.
func (t TunnelFacts) newest() (out OwnDevice, ok bool) {
	for _, d := range t.Devices { // by epoch
		if found, works := t.device(d.Epoch); works {
			out, ok = found, true
		}
	}
	return out, ok
}
