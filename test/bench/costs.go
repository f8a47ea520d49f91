package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
)

// costs are what single operations of a node take.
type costs struct {
	// Measured with the real driver and the real secure namespace, by
	// measureCosts.
	MakeDevice   time.Duration `json:"make_device"`
	RemoveDevice time.Duration `json:"remove_device"`
	AddPeer      time.Duration `json:"add_peer"`   // one of many in one Set
	ReadEntry    time.Duration `json:"read_entry"` // one of many in one State
	MoveRoute    time.Duration `json:"move_route"`
	Turn         time.Duration `json:"turn"` // of the loop, beside what is above: a Set of the secure namespace that changes nothing
	// Measured by measureAgree: one secret between two nodes on loopback, the work
	// of both ends.
	Agree time.Duration `json:"agree"`
	// Fitted to the first real fleet of the run: until another node has a new
	// target or record.
	Gossip time.Duration `json:"gossip"`
	// Assumed: between two nodes of one site, the kernel included.
	RTT time.Duration `json:"rtt"`
}

func (c costs) String() string {
	round := func(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
	return fmt.Sprintf("make device %v, remove %v, add peer %v, read peer %v, move route %v, turn %v, agree %v, spread %v, round trip %v",
		round(c.MakeDevice), round(c.RemoveDevice), round(c.AddPeer), round(c.ReadEntry), round(c.MoveRoute), round(c.Turn),
		round(c.Agree), round(c.Gossip), round(c.RTT))
}

// manyPeers is how many peers the measurement of costs uses.
const manyPeers = 50

// measureCosts opens a driver in namespaces of its own and times what a rotation
// asks of it, with manyPeers peers that nobody is behind.
func measureCosts(ctx context.Context, kind tunnel.Kind, c *costs) (err error) {
	lab, err := netlab.New("costs")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	host, err := lab.Host("host1")
	if err != nil {
		return err
	}
	sec, err := secure.Ensure(lab.Dir() + "/secure")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sec.Remove()) }()
	dir, err := os.MkdirTemp("", "secure-overlay-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	var id ids.NodeID
	_, _ = rand.Read(id[:])
	drv, err := kind.Open(ctx, tunnel.Env{Node: id, Host: host.NS(), Secure: sec.NS(), RuntimeDir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drv.Remove(ctx), drv.Close()) }()
	m := &costMeter{ctx: ctx, drv: drv, sec: sec, id: id, host: host.V4(), esp: kind.Compatible == "esp"}
	return m.measure(c)
}

// costMeter is one measurement.
type costMeter struct {
	ctx  context.Context
	drv  tunnel.Driver
	sec  *secure.Namespace
	id   ids.NodeID
	host netip.Addr
	esp  bool
	spec tunnel.Spec
}

func (m *costMeter) measure(c *costs) error {
	first, err := m.timed(func() error { return m.grow(1) })
	if err != nil {
		return err
	}
	add, err := m.timed(func() error { return m.add(1) })
	if err != nil {
		return err
	}
	again, err := m.timed(m.set) // what a Set costs that has nothing to do
	if err != nil {
		return err
	}
	read, err := m.timed(func() error { _, err := m.drv.State(m.ctx); return err })
	if err != nil {
		return err
	}
	second, err := m.timed(func() error { return m.grow(2) })
	if err != nil {
		return err
	}
	if err := m.routes(1, c); err != nil {
		return err
	}
	m.spec.Devices = m.spec.Devices[1:]
	for i := range m.spec.Peers {
		m.spec.Peers[i].Keys = nil
	}
	remove, err := m.timed(m.set)
	if err != nil {
		return err
	}
	c.MakeDevice = max(0, (first+second-again)/2)
	c.AddPeer = max(0, add-again) / manyPeers
	c.ReadEntry = (read + again/2) / manyPeers
	c.RemoveDevice = remove
	return nil
}

func (m *costMeter) timed(fn func() error) (time.Duration, error) {
	begin := time.Now()
	err := fn()
	return time.Since(begin), err
}

func (m *costMeter) set() error {
	m.spec.Revision++
	return m.drv.Set(m.ctx, m.spec)
}

// grow adds a device.
func (m *costMeter) grow(epoch ids.Epoch) error {
	m.spec.Devices = append(m.spec.Devices, tunnel.Device{Epoch: epoch, Port: 51870 + uint16(epoch), MTU: 1420})
	return m.set()
}

// add gives the device of an epoch its peers.
func (m *costMeter) add(epoch ids.Epoch) error {
	for i := range manyPeers {
		var id ids.NodeID
		_, _ = rand.Read(id[:])
		raw := make([]byte, 32)
		_, _ = rand.Read(raw)
		secret, err := keys.TunnelSecretFromRaw32(raw)
		if err != nil {
			return err
		}
		key := tunnel.PeerKey{Epoch: epoch, Key: secret.ID(), Secret: secret}
		if m.esp {
			remote := netip.AddrFrom4([4]byte{198, 18, 1, byte(i + 1)})
			key.ESP = tunnel.ESP{Local: m.host, Remote: remote, In: ids.SPI(0x1000 + i), Out: ids.SPI(0x2000 + i)}
		} else {
			_, _ = rand.Read(key.Public[:]) // any 32 bytes are a public key
		}
		m.spec.Peers = append(m.spec.Peers, tunnel.Peer{ID: id, Inner: id.InnerAddr(), Keys: []tunnel.PeerKey{key}})
	}
	return m.set()
}

// routes times the move of all routes from the first device to the second.
func (m *costMeter) routes(_ ids.Epoch, c *costs) error {
	state, err := m.drv.State(m.ctx)
	if err != nil {
		return err
	}
	if len(state.Devices) != 2 {
		return fmt.Errorf("measure routes: %d devices, want 2", len(state.Devices))
	}
	to := func(device string) secure.Spec {
		s := secure.Spec{Inner: m.id.InnerAddr(), VXLANPort: 4789}
		for _, p := range m.spec.Peers {
			s.Routes = append(s.Routes, secure.Route{Peer: p.Inner, Device: device})
		}
		return s
	}
	if err := m.sec.Set(m.ctx, to(state.Devices[0].Name)); err != nil {
		return err
	}
	same, err := m.timed(func() error { return m.sec.Set(m.ctx, to(state.Devices[0].Name)) })
	if err != nil {
		return err
	}
	moved, err := m.timed(func() error { return m.sec.Set(m.ctx, to(state.Devices[1].Name)) })
	if err != nil {
		return err
	}
	c.MoveRoute, c.Turn = max(0, moved-same)/manyPeers, same
	return nil
}
