package agent

import (
	"log/slog"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// TestLargeProbe: a probe's large packet has the size of what the networks send,
// and is not sent under another key than the probed one, nor in ESP in UDP before
// the networks have become narrower.
func TestLargeProbe(t *testing.T) {
	peer := ids.NodeID{2}
	probe := rotate.Probe{Peer: peer, Epoch: 2, Key: 7}
	for name, c := range map[string]struct {
		change func(l *loop, d *OwnDevice)
		frame  int
		wanted bool
	}{
		"the peer's frame":      {func(*loop, *OwnDevice) {}, 1438, true},
		"no frame is known":     {func(l *loop, _ *OwnDevice) { l.out.View.Peers = nil }, 1440, true},
		"the device is gone":    {func(_ *loop, d *OwnDevice) { d.Epoch = 3 }, 0, false},
		"the peer is gone":      {func(_ *loop, d *OwnDevice) { d.Peers = nil }, 0, false},
		"another key":           {func(_ *loop, d *OwnDevice) { d.Peers[0].Key = 8 }, 0, false},
		"in UDP, still wide":    {func(_ *loop, d *OwnDevice) { d.Peers[0].InUDP = true }, 0, false},
		"in UDP, all of them":   {func(_ *loop, d *OwnDevice) { d.Peers[0].InUDP, d.Forms, d.Narrows = true, false, false }, 1438, true},
		"in UDP, userspace":     {func(_ *loop, d *OwnDevice) { d.Peers[0].InUDP, d.Forms, d.Wire = true, false, record.WireESPUDP }, 0, false},
		"in UDP, small passed":  {func(l *loop, d *OwnDevice) { d.Peers[0].InUDP, l.rot.forms.passed[7] = true, true }, 1438, true},
		"in UDP, it carries us": {func(l *loop, d *OwnDevice) { d.Peers[0].InUDP, l.rot.routes = true, map[ids.NodeID]ids.Epoch{peer: 2} }, 1438, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLoop(New(Options{Log: slog.New(slog.DiscardHandler)}), keystore.Identity{ID: ids.NodeID{1}}, files{})
			l.out.View.Peers = []PeerView{{ID: ids.NodeID{3}, Frame: 1300}, {ID: peer, Frame: 1438}}
			d := OwnDevice{Wire: record.WireESP, Forms: true, Narrows: true, DeviceState: tunnel.DeviceState{
				Epoch: 2, MTU: 1440, Up: true, Peers: []tunnel.PeerState{{Inner: peer.InnerAddr(), Key: keys.KeyID(7)}},
			}}
			c.change(l, &d)
			l.facts.Devices = []OwnDevice{d}
			if frame, wanted := l.largeProbe(probe); frame != c.frame || wanted != c.wanted {
				t.Errorf("size %d, wanted %t; want %d, %t", frame, wanted, c.frame, c.wanted)
			}
		})
	}
}
