package tunneltest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// patience bounds every wait of the suite. It is long because kernels under
// emulation are slow; nothing waits for it to pass unless it fails.
const patience = 30 * time.Second

const firstPort = 51871

// mesh is a set of hosts with a driver each, and the specs they should have.
type mesh struct {
	t       *testing.T
	ctx     context.Context
	h       Harness
	hosts   []*Host
	drivers []tunnel.Driver
	specs   []tunnel.Spec
	agreed  map[pairEpoch]*agreement
	family  int // index into Host.Underlay for outer addresses
}

// newMesh makes n hosts without devices, and checks when the test ends that
// Remove leaves nothing behind.
func newMesh(t *testing.T, h Harness, n int) *mesh {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m := &mesh{t: t, ctx: ctx, h: h, hosts: h.Hosts(t, n), agreed: map[pairEpoch]*agreement{}}
	t.Cleanup(func() {
		m.removeAll()
		cancel()
	})
	for i := range m.hosts {
		m.drivers = append(m.drivers, m.open(i))
		m.specs = append(m.specs, tunnel.Spec{})
	}
	return m
}

// newTunnels makes n hosts that are all joined by epoch 1.
func newTunnels(t *testing.T, h Harness, n int) *mesh {
	t.Helper()
	m := newMesh(t, h, n)
	m.addEpoch(1)
	m.routeAll(1)
	return m
}

func (m *mesh) open(i int) tunnel.Driver {
	m.t.Helper()
	kind := m.h.Kind
	if m.other(i) {
		kind = m.h.Other.Kind
	}
	d, err := kind.Open(m.ctx, m.hosts[i].Env)
	if err != nil {
		m.t.Fatalf("open driver: %v", err)
	}
	return d
}

// other reports whether host i has the other driver.
func (m *mesh) other(i int) bool { return m.h.Other != nil && i%2 == 1 }

func (m *mesh) removeAll() {
	m.t.Helper()
	for i, d := range m.drivers {
		if err := d.Remove(m.ctx); err != nil {
			m.t.Errorf("host %d: remove: %v", i, err)
		}
		if err := d.Close(); err != nil {
			m.t.Errorf("host %d: close: %v", i, err)
		}
	}
	m.checkNothingLeft()
}

func (m *mesh) checkNothingLeft() {
	m.t.Helper()
	for i, host := range m.hosts {
		outer, secure, err := host.Net.Links()
		if err != nil || len(outer) > 0 || len(secure) > 0 {
			m.t.Errorf("host %d: links left: host %v, secure %v, error %v", i, outer, secure, err)
		}
	}
	if m.h.Leftovers == nil {
		return
	}
	if left, err := m.h.Leftovers(m.hosts); err != nil || len(left) > 0 {
		m.t.Errorf("left behind: %q, error %v", left, err)
	}
}

// set applies host i's spec, and wants the state to show it: by that the agent
// sees whether there is something to repair.
func (m *mesh) set(i int) {
	m.t.Helper()
	m.specs[i].Revision++
	m.clear(i, "set", func() error { return m.drivers[i].Set(m.ctx, m.specs[i]) })
	if s := m.state(i); !m.specs[i].MetBy(s) {
		m.t.Errorf("host %d: after a set the state does not show what was set: %+v", i, s)
	}
}

// clear repeats a call as long as the driver answers that it cannot tell yet
// whether a device works, as it may on a busy machine.
func (m *mesh) clear(i int, what string, call func() error) {
	m.t.Helper()
	var err error
	m.waitFor("a clear answer", func() bool {
		err = call()
		return !errors.Is(err, tunnel.ErrUnclear)
	})
	if err != nil {
		m.t.Fatalf("host %d: %s: %v", i, what, err)
	}
}

// setAll applies all specs, the highest ID's first: it responds. An initiator
// that comes first is not answered, and WireGuard tries again after 5 s.
func (m *mesh) setAll() {
	m.t.Helper()
	for i := len(m.hosts) - 1; i >= 0; i-- {
		m.set(i)
	}
}

func (m *mesh) state(i int) tunnel.State {
	m.t.Helper()
	var s tunnel.State
	m.clear(i, "state", func() (err error) {
		s, err = m.drivers[i].State(m.ctx)
		return err
	})
	return s
}

// device returns the state of host i's device of an epoch.
func (m *mesh) device(i int, epoch ids.Epoch) tunnel.DeviceState {
	m.t.Helper()
	s := m.state(i)
	for _, d := range s.Devices {
		if d.Epoch == epoch && d.Lane == 0 {
			return d
		}
	}
	m.t.Fatalf("host %d has no device of epoch %d: %+v", i, epoch, s)
	return tunnel.DeviceState{}
}

// peer returns what host i's device of an epoch knows of host j.
func (m *mesh) peer(i, j int, epoch ids.Epoch) tunnel.PeerState {
	m.t.Helper()
	for _, p := range m.device(i, epoch).Peers {
		if p.ID == m.hosts[j].Env.Node {
			return p
		}
	}
	m.t.Fatalf("host %d has no peer %d in epoch %d", i, j, epoch)
	return tunnel.PeerState{}
}

func (m *mesh) name(i int, epoch ids.Epoch) string {
	return tunnel.DeviceName(m.hosts[i].Env.Node, epoch, 0)
}

// addDevices makes a device of an epoch on each host, without peers.
func (m *mesh) addDevices(epoch ids.Epoch) {
	m.t.Helper()
	for i := range m.hosts {
		dev := tunnel.Device{Epoch: epoch, Port: m.port(i, epoch), MTU: 1400}
		m.specs[i].Devices = append(m.specs[i].Devices, dev)
		m.set(i)
	}
}

// addEpoch makes a device of an epoch on each host and joins them, as agents
// do: devices first, then what the others need to know of them to all others.
func (m *mesh) addEpoch(epoch ids.Epoch) {
	m.t.Helper()
	m.addDevices(epoch)
	m.exchangeKeys(epoch)
	m.setAll()
}

// specPeer returns host j's entry in host i's spec.
func (m *mesh) specPeer(i, j int) *tunnel.Peer {
	id := m.hosts[j].Env.Node
	at := 0
	for at < len(m.specs[i].Peers) && m.specs[i].Peers[at].ID.Compare(id) < 0 {
		at++
	}
	if at == len(m.specs[i].Peers) || m.specs[i].Peers[at].ID != id {
		p := tunnel.Peer{ID: id, Inner: id.InnerAddr()}
		rest := append([]tunnel.Peer{p}, m.specs[i].Peers[at:]...)
		m.specs[i].Peers = append(m.specs[i].Peers[:at:at], rest...)
	}
	return &m.specs[i].Peers[at]
}

// routeAll sends everything through the devices of an epoch.
func (m *mesh) routeAll(epoch ids.Epoch) {
	m.t.Helper()
	for i := range m.hosts {
		for j := range m.hosts {
			if i != j {
				m.route(i, j, epoch)
			}
		}
	}
}

func (m *mesh) route(i, j int, epoch ids.Epoch) {
	m.t.Helper()
	if err := m.hosts[i].Net.Route(m.hosts[j].Inner(), m.name(i, epoch)); err != nil {
		m.t.Fatalf("host %d: route to host %d: %v", i, j, err)
	}
}

// waitFor waits until cond holds.
func (m *mesh) waitFor(what string, cond func() bool) {
	m.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-end:
			m.t.Fatalf("waited %v for: %s", patience, what)
		}
	}
}
