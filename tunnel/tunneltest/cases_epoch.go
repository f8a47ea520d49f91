package tunneltest

import (
	"slices"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// testTwoEpochs moves traffic to a second epoch and back again under load,
// one side after the other, and then ends the first epoch.
func testTwoEpochs(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	a, b := m.listen(0), m.listen(1)
	a.deliver(b, []byte("first"))
	there, back := startFlow(a, b), startFlow(b, a)
	there.waitMore(m, 20)
	m.addEpoch(2)
	one, two := m.device(0, 1), m.device(0, 2)
	if one.Name == two.Name || !h.Keyless && one.Public == two.Public || !h.NoPort && one.Port == two.Port ||
		m.peer(0, 1, 1).Key == m.peer(0, 1, 2).Key {
		t.Errorf("the epochs share something: %+v, %+v", one, two)
	}
	m.waitFor("a session on the second epoch", func() bool { return m.established(0, 1, 2) })
	for _, epoch := range []ids.Epoch{2, 1, 2} {
		m.route(0, 1, epoch)
		there.waitMore(m, 20)
		m.route(1, 0, epoch)
		back.waitMore(m, 20)
	}
	there.finish(m)
	back.finish(m)
	m.endEpoch(1)
	if s := m.state(0); len(s.Devices) != 1 || s.Devices[0].Name != two.Name || s.Devices[0].Public != two.Public {
		t.Errorf("after the end of the first epoch: %+v", s)
	}
	// Those flows still own the sockets; a new pair sends on.
	m.listen(0).deliver(m.listen(1), []byte("last"))
}

// endEpoch takes an epoch's device and keys from all specs, and sets them.
func (m *mesh) endEpoch(epoch ids.Epoch) {
	m.t.Helper()
	for i := range m.hosts {
		for j := range m.hosts {
			if i != j {
				m.dropKey(i, j, epoch)
			}
		}
		m.specs[i].Devices = slices.DeleteFunc(slices.Clone(m.specs[i].Devices), func(d tunnel.Device) bool {
			return d.Epoch == epoch
		})
	}
	m.setAll()
}

// testRotation goes through epochs as agents do, while three hosts send to each
// other, and loses nothing: devices; receiving halves on both sides; sending
// halves; once proved, one route after the other; then the old keys, and last the
// old devices, while the next ones are there already.
func testRotation(t *testing.T, h Harness) {
	m := newTunnels(t, h, 3)
	var flows []*flow
	for _, pair := range [][2]int{{0, 1}, {1, 0}, {2, 0}} {
		from, to := m.listen(pair[0]), m.listen(pair[1])
		from.deliver(to, []byte("first"))
		flows = append(flows, startFlow(from, to))
	}
	for epoch := ids.Epoch(2); epoch <= 4; epoch++ {
		m.addDevices(epoch)
		m.install(epoch, receiving)
		m.install(epoch, func(k tunnel.PeerKey) tunnel.PeerKey { return k })
		for i := range m.hosts {
			m.forgetSecrets(i)
			m.set(i)
		}
		for _, pair := range [][2]int{{0, 1}, {1, 2}, {0, 2}} {
			m.waitFor("a session on the new epoch", func() bool { return m.established(pair[0], pair[1], epoch) })
		}
		for i := range m.hosts {
			for j := range m.hosts {
				if i != j {
					m.route(i, j, epoch)
				}
			}
			for _, f := range flows {
				f.waitMore(m, 5)
			}
		}
		if epoch > 2 {
			m.endEpoch(epoch - 2)
		}
		for _, f := range flows {
			f.drain(m)
		}
		for i := range m.hosts {
			for j := range m.hosts {
				if i != j {
					m.dropKey(i, j, epoch-1)
				}
			}
			m.set(i)
			if n := len(m.device(i, epoch-1).Peers); n != 0 {
				t.Errorf("host %d: %d peers are left in epoch %d", i, n, epoch-1)
			}
		}
		for _, f := range flows {
			f.waitMore(m, 5)
		}
	}
	for _, f := range flows {
		f.finish(m)
	}
}

// install puts each pair's key for an epoch into the specs and sets them, one
// host after the other, the lower ones first: they would initiate.
func (m *mesh) install(epoch ids.Epoch, part func(tunnel.PeerKey) tunnel.PeerKey) {
	m.t.Helper()
	for i := range m.hosts {
		for j := range m.hosts {
			if i != j {
				m.put(i, j, part(m.key(i, j, epoch)))
			}
		}
		m.set(i)
	}
}

// testDropped takes a peer from the old epoch while its traffic is on the new
// one. The new one does not notice; the old one is closed.
func testDropped(t *testing.T, h Harness) {
	m := newTunnels(t, h, 3)
	a, b, c := m.listen(0), m.listen(1), m.listen(2)
	b.deliver(a, []byte("welcome"))
	c.deliver(a, []byte("welcome"))
	m.addEpoch(2)
	m.waitFor("a session on the second epoch", func() bool { return m.established(0, 1, 2) })
	m.route(0, 1, 2)
	m.route(1, 0, 2)
	there, back := startFlow(m.listen(0), m.listen(1)), startFlow(m.listen(1), m.listen(0))
	there.waitMore(m, 20)
	// Host 0 alone: host 1 could still send on the old epoch.
	m.dropKey(0, 1, 1)
	m.set(0)
	if n := len(m.device(0, 1).Peers); n != 1 {
		t.Errorf("%d peers are left in the first epoch, want host 2 alone", n)
	}
	m.peer(0, 2, 1)
	there.waitMore(m, 20)
	back.waitMore(m, 20)
	there.finish(m)
	back.finish(m)
	m.route(1, 0, 1)
	m.sendMany(1, 0, b, a, []byte("on the dropped epoch"))
	m.mustNotArrive(c, a, []byte("on the dropped epoch"))
	m.route(1, 0, 2)
	b.deliver(a, []byte("on the new one"))
}
