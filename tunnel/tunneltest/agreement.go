package tunneltest

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// pairEpoch names a pair of hosts in an epoch, the lower host first.
type pairEpoch struct {
	low, high int
	epoch     ids.Epoch
}

// agreement is what a pair has agreed on for an epoch: a common secret, and by
// host, the lower one first, the index it wants to receive on. It ends when one
// of the devices is made anew, or gets another port at which it receives ESP.
type agreement struct {
	secret  keys.TunnelSecret
	spi     [2]ids.SPI
	devices [2]device
}

// device tells a device from its successor under the same name.
type device struct {
	public keys.TunnelPublic
	link   int
	port   uint16 // with ESP in UDP
}

// randomSecret makes a secret that nobody else has.
func (m *mesh) randomSecret() keys.TunnelSecret {
	m.t.Helper()
	raw := make([]byte, 32)
	defer clear(raw)
	// Cannot fail: crypto/rand.Read never returns an error.
	_, _ = rand.Read(raw)
	s, err := keys.TunnelSecretFromRaw32(raw)
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// randomSPI makes an index. Two of 2^31 are equal so rarely that nobody looks.
func randomSPI() ids.SPI {
	raw := make([]byte, 4)
	_, _ = rand.Read(raw)
	return ids.SPI(binary.BigEndian.Uint32(raw)) | 1<<31
}

// agree makes a new agreement of a pair, as after one of both has lost the
// last one.
func (m *mesh) agree(i, j int, epoch ids.Epoch) {
	m.t.Helper()
	m.agreed[pairEpoch{min(i, j), max(i, j), epoch}] = &agreement{
		secret: m.randomSecret(), spi: [2]ids.SPI{randomSPI(), randomSPI()}, devices: m.devicesOf(i, j, epoch),
	}
}

// agreement returns what a pair has agreed on. If that was nothing, or was for
// devices that are no more, it agrees first.
func (m *mesh) agreement(i, j int, epoch ids.Epoch) *agreement {
	m.t.Helper()
	at := pairEpoch{min(i, j), max(i, j), epoch}
	if a := m.agreed[at]; a == nil || a.devices != m.devicesOf(i, j, epoch) {
		m.agree(i, j, epoch)
	}
	return m.agreed[at]
}

func (m *mesh) devicesOf(i, j int, epoch ids.Epoch) (out [2]device) {
	m.t.Helper()
	for at, host := range []int{min(i, j), max(i, j)} {
		d := m.device(host, epoch)
		out[at] = device{public: d.Public, link: m.link(host, epoch)}
		if m.h.Keyless && m.h.InUDP {
			out[at].port = d.Port
		}
	}
	return out
}

// key returns what host i should know of host j in an epoch: all of it. Of a
// pair only the host with the lower ID gets an endpoint.
func (m *mesh) key(i, j int, epoch ids.Epoch) tunnel.PeerKey {
	m.t.Helper()
	a := m.agreement(i, j, epoch)
	k := tunnel.PeerKey{Epoch: epoch, Key: a.secret.ID(), Secret: a.secret}
	far := m.device(j, epoch)
	if m.h.Keyless {
		mine, theirs := 0, 1
		if i > j {
			mine, theirs = 1, 0
		}
		k.ESP = tunnel.ESP{
			Local: m.hosts[i].Underlay[m.family], Remote: m.hosts[j].Underlay[m.family],
			In: a.spi[mine], Out: a.spi[theirs], InUDP: m.h.InUDP,
		}
		if m.h.InUDP {
			k.ESP.Port = far.Port
		}
		return k
	}
	k.Public = far.Public
	if i < j { // hosts are in ascending order of ID
		k.Endpoint = netip.AddrPortFrom(m.hosts[j].Underlay[m.family], far.Port)
	}
	return k
}

// receiving returns k without its sending half.
func receiving(k tunnel.PeerKey) tunnel.PeerKey {
	k.Endpoint, k.ESP.Out = netip.AddrPort{}, 0
	return k
}

// put makes host i's spec know a key of host j, in place of an earlier one in
// the same epoch.
func (m *mesh) put(i, j int, key tunnel.PeerKey) {
	p := m.specPeer(i, j)
	for n := range p.Keys {
		if p.Keys[n].Epoch == key.Epoch {
			p.Keys[n] = key
			return
		}
	}
	p.Keys = append(p.Keys, key)
}

// exchangeKeys puts what each pair has agreed on for an epoch into their
// specs, with what their devices are now.
func (m *mesh) exchangeKeys(epoch ids.Epoch) {
	m.t.Helper()
	for i := range m.hosts {
		for j := range m.hosts {
			if i != j {
				m.put(i, j, m.key(i, j, epoch))
			}
		}
	}
}

// forgetSecrets takes the secrets out of host i's spec, as an agent does when
// they are installed.
func (m *mesh) forgetSecrets(i int) {
	for p := range m.specs[i].Peers {
		for k := range m.specs[i].Peers[p].Keys {
			m.specs[i].Peers[p].Keys[k].Secret = keys.TunnelSecret{}
		}
	}
}

// dropKey takes an epoch's key of host j out of host i's spec, and with it what
// the pair has agreed on.
func (m *mesh) dropKey(i, j int, epoch ids.Epoch) {
	delete(m.agreed, pairEpoch{min(i, j), max(i, j), epoch})
	p := m.specPeer(i, j)
	var kept []tunnel.PeerKey
	for _, k := range p.Keys {
		if k.Epoch != epoch {
			kept = append(kept, k)
		}
	}
	p.Keys = kept
}

// dropPeer takes host j out of host i's spec, and all that they have agreed on.
func (m *mesh) dropPeer(i, j int) {
	for at := range m.agreed {
		if at.low == min(i, j) && at.high == max(i, j) {
			delete(m.agreed, at)
		}
	}
	var kept []tunnel.Peer
	for _, p := range m.specs[i].Peers {
		if p.ID != m.hosts[j].Env.Node {
			kept = append(kept, p)
		}
	}
	m.specs[i].Peers = kept
}

// established says whether hosts i and j can send to each other in an epoch, as
// far as their devices tell.
func (m *mesh) established(i, j int, epoch ids.Epoch) bool {
	m.t.Helper()
	for _, p := range []tunnel.PeerState{m.peer(i, j, epoch), m.peer(j, i, epoch)} {
		if m.h.Keyless && (p.In == 0 || p.Out == 0) || !m.h.Keyless && p.LastHandshake.IsZero() {
			return false
		}
	}
	return true
}

// establish applies both specs until hosts i and j are established. The one
// that responds comes first.
func (m *mesh) establish(i, j int, epoch ids.Epoch) {
	m.t.Helper()
	m.waitFor("a session", func() bool {
		m.set(max(i, j))
		m.set(min(i, j))
		return m.established(i, j, epoch)
	})
}

// port is the outer UDP port that host i's spec names for an epoch's device; 0: none.
func (m *mesh) port(i int, epoch ids.Epoch) uint16 {
	if m.h.NoPort && !m.other(i) || m.other(i) && m.h.Other.NoPort {
		return 0
	}
	return firstPort + uint16(epoch) - 1
}

// hasPort reports whether host i's device of an epoch has the port of its spec, where
// that names one.
func (m *mesh) hasPort(d tunnel.DeviceState, i int, epoch ids.Epoch) bool {
	want := m.port(i, epoch)
	return want == 0 || d.Port == want
}
