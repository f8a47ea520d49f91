package agent

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// freshHandshake is how old a tunnel's last handshake may be for the tunnel
// to count as up: WireGuard rejects a session after 180 s (REJECT_AFTER_TIME).
const freshHandshake = 180 * time.Second

// Status implements api.Observer.
func (a *Agent) Status(ctx context.Context) (api.Status, error) {
	var s api.Status
	err := a.do(ctx, func(ctx context.Context, l *loop) { s = l.status(ctx) })
	return s, err
}

// Members implements api.Observer.
func (a *Agent) Members(ctx context.Context) ([]api.Member, error) {
	var out []api.Member
	err := a.do(ctx, func(_ context.Context, l *loop) { out = l.members() })
	return out, err
}

// Networks implements api.Observer.
func (a *Agent) Networks(ctx context.Context) ([]api.Network, error) {
	var out []api.Network
	err := a.do(ctx, func(ctx context.Context, l *loop) {
		l.show(ctx)
		out, _ = l.networks(ctx)
		out = append(out, l.unusedNetworks()...)
	})
	return out, err
}

// Endpoints implements api.Observer.
func (a *Agent) Endpoints(ctx context.Context) ([]api.Endpoint, error) {
	var out []api.Endpoint
	err := a.do(ctx, func(_ context.Context, l *loop) { out = l.endpoints() })
	return out, err
}

func (l *loop) self() api.NodeRef {
	return api.NodeRef{ID: l.identity.ID, Name: l.identity.Hostname}
}

func (l *loop) status(ctx context.Context) api.Status {
	l.show(ctx)
	s := api.Status{
		Schema: api.Schema, Cluster: l.identity.Trust.Cluster, Root: l.identity.Trust.Root.String(), Node: l.self(), Version: l.version,
		PID: os.Getpid(), Started: l.started, Ready: l.isReady, Epoch: l.target.Epoch,
		Driver: api.Driver{Name: l.facts.Driver, Label: label(l.facts.Driver), Refused: l.facts.Refused},
	}
	snap := l.gossip.Snapshot()
	s.Expires, s.Clock = l.ownCert(snap).NotAfter, l.clockStatus(snap)
	for _, m := range snap.Members {
		s.Members.Total++
		if m.State.Live() || m.ID == l.identity.ID {
			s.Members.OK++
		}
	}
	networks, wrong := l.networks(ctx)
	s.Networks = networks
	s.Peers = l.peers(snap)
	s.Keys = l.keySummary()
	s.Protocol, s.Heartbeat, s.Warnings = protocolOf(snap.Floor), snap.Heartbeat, l.warnings(snap)
	s.Problems = append(l.problems(), wrong...)
	if p, ok := issuerProblem(l.ownCert(snap), snap); ok {
		s.Problems = append(s.Problems, p)
	}
	s.Problems = append(s.Problems, l.quietPeers(s.Peers)...)
	switch {
	case l.stopping:
		s.State = api.StateStopping
	case !l.isReady:
		s.State = api.StateStarting
	case len(s.Problems) == 0:
		s.State = api.StateOK
	default:
		s.State = api.StateDegraded
	}
	return s
}

// label names a driver for people.
func label(driver string) string {
	switch driver {
	case config.DriverWireGuard:
		return "wireguard (kernel)"
	case config.DriverUserspace:
		return "wireguard (userspace)"
	case config.DriverIPsec:
		return "ipsec (kernel)"
	case config.DriverIPsecUser:
		return "ipsec (userspace)"
	case item.DriverAutoESP:
		return "auto (userspace ipsec)"
	default:
		return driver
	}
}

// networks describes each network of this node. Whether it is
// encrypted is what the kernel says about the namespace its VXLAN device was
// born in, not what the configuration asks for.
func (l *loop) networks(ctx context.Context) (out []api.Network, wrong []api.Problem) {
	observed, err := l.overlay.Observe(ctx, l.out.Networks)
	if err != nil {
		wrong = append(wrong, api.Problem{Code: "network-unreadable", Message: err.Error()})
	}
	devices := map[string][]vxlan.Device{}
	for _, n := range observed.Networks {
		devices[n.Name] = n.Devices
	}
	snap := l.gossip.Snapshot()
	for i, n := range l.here.Networks {
		a := api.Network{
			Name: n.Name, VNI: n.VNI, Subnets: n.Subnets, Encrypted: n.Encrypted, Options: n.Options, Labels: n.Labels,
			State: api.StateStarting, Driver: api.PlaintextLabel,
		}
		_, a.InFile = l.cfg.Network(n.Name)
		l.ofCluster(&a, snap)
		if i < len(l.out.View.Networks) {
			l.describe(&a, l.out.View.Networks[i])
		}
		for _, at := range l.attachments {
			if at.Network == n.Name {
				a.EndpointsHere++
			}
		}
		if d := devices[n.Name]; len(d) > 0 {
			if p, ok := birth(&a, d, n); !ok {
				wrong = append(wrong, p)
			}
		} else if a.State == api.StateOK || a.State == api.StateDegraded {
			a.State = api.StateFailed
		}
		if a.Encrypted || n.Moving {
			a.Driver = l.carriers()
		}
		out = append(out, a)
	}
	return out, wrong
}

// birth reports the namespaces that devices were really born in. A network counts as
// encrypted only if the kernel proves that all of it is in the secure namespace.
func birth(a *api.Network, devices []vxlan.Device, n config.Network) (api.Problem, bool) {
	a.Encrypted = true
	for _, d := range devices {
		secure := d.Birth == vxlan.BornSecure
		a.Encrypted = a.Encrypted && secure
		if secure && n.Tunnelled() || d.Birth == vxlan.BornHost && n.Clear() {
			continue
		}
		a.State, a.Encrypted = api.StateFailed, false
		return api.Problem{
			Code: "wrong-birthplace", Subject: n.Name,
			Message: "a VXLAN device of network " + n.Name + " was born in namespace " + string(d.Birth) + ", which is not what the network is to be; the agent makes it anew",
		}, false
	}
	return api.Problem{}, true
}

// describe fills in what the last round found out about a network.
func (l *loop) describe(a *api.Network, v NetworkView) {
	a.MTU, a.MTUFrom, a.Blocks, a.Conflicts = v.MTU, v.MTUFrom, v.Blocks, v.Conflicts
	a.EndpointsTotal = v.Total
	for _, s := range l.out.Networks {
		if s.Network == v.Name && s.MTU != v.MTU {
			a.MTU, a.MTUFrom = s.MTU, "before the restart, until other nodes answer"
		}
	}
	a.Peers.Total = len(v.Agreed)
	for _, id := range v.Connected {
		if slices.Contains(v.Clear, id) || l.fresh(id) {
			a.Peers.OK++
		}
	}
	switch {
	case !v.Wanted || l.failed(v.Name, "") != nil:
		a.State = api.StateFailed
	case len(v.Conflicts) > 0 || a.Peers.OK < a.Peers.Total || l.about(v.Name):
		a.State = api.StateDegraded
	case l.isReady:
		a.State = api.StateOK
	}
}

// about reports whether a problem names the network.
func (l *loop) about(network string) bool {
	return slices.ContainsFunc(l.problems(), func(p api.Problem) bool { return p.Subject == network })
}

func (l *loop) fresh(id ids.NodeID) bool {
	i := slices.IndexFunc(l.out.View.Peers, func(p PeerView) bool { return p.ID == id })
	return i >= 0 && l.tunnelState(l.out.View.Peers[i]) == api.TunnelUp
}

// tunnelState says how a peer's tunnel is. WireGuard tells by its last
// handshake; ESP has none, so a tunnel counts as up when an echo has come back
// through it lately.
func (l *loop) tunnelState(p PeerView) string {
	if !p.Tunnel {
		return api.TunnelNone
	}
	if at, ok := l.lastSign(p.ID); ok && l.now().Sub(at) < freshHandshake {
		return api.TunnelUp
	}
	return api.TunnelWaiting
}

// lastSign is when a peer's tunnel last showed that it works.
func (l *loop) lastSign(id ids.NodeID) (time.Time, bool) {
	s, d, ok := l.peerState(id)
	if !ok {
		return time.Time{}, false
	}
	if d.Wire.ESP() {
		at, ok := l.rot.echoes[id]
		return at, ok
	}
	return l.signs.at(d.Name, s)
}

// peerState is what the device that carries a peer's packets knows of it.
func (l *loop) peerState(id ids.NodeID) (tunnel.PeerState, OwnDevice, bool) {
	e := l.rot.routes[id]
	d, ok := l.facts.device(e)
	if !ok {
		return tunnel.PeerState{}, OwnDevice{}, false
	}
	s, ok := l.facts.installed(id, e)
	return s, d, ok
}

// driverTo is the driver that carries a peer's packets; empty if there is none.
func (l *loop) driverTo(id ids.NodeID) string {
	_, d, _ := l.peerState(id)
	return d.Driver
}

// carriers names the drivers that carry encrypted networks now, for people:
// one, or two while a rotation changes it.
func (l *loop) carriers() string {
	var out []string
	for _, d := range l.facts.Devices {
		used := false
		for _, e := range l.rot.routes {
			used = used || e == d.Epoch
		}
		if name := label(d.Driver); used && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	if len(out) == 0 {
		return label(l.facts.Driver)
	}
	return strings.Join(out, " and ")
}

// peers describes the nodes that share a network with this one.
func (l *loop) peers(snap membership.Snapshot) []api.Peer {
	out := make([]api.Peer, 0, len(l.out.View.Peers))
	for _, v := range l.out.View.Peers {
		p := api.Peer{
			NodeRef: api.NodeRef{ID: v.ID, Name: v.Name}, Gossip: membership.StateUnknown.String(),
			Underlay: v.Underlay, Tunnel: l.tunnelState(v), InnerMTU: v.InnerMTU, Networks: v.Networks,
		}
		if m, ok := snap.Member(v.ID); ok {
			p.Gossip, p.Expires = m.State.String(), m.Cert.NotAfter
		}
		if s, d, ok := l.peerState(v.ID); ok {
			p.Driver, p.Epoch, p.PQ = labelOf(d, s), d.Epoch, l.rot.hybrid[s.Key]
			p.LastHandshake, p.RxBytes, p.TxBytes = l.signs.shown(l.now(), d.Name, s), s.RxBytes, s.TxBytes
			if s.Endpoint.IsValid() {
				p.Underlay = s.Endpoint
			}
		}
		out = append(out, p)
	}
	return out
}

// quietPeers makes a problem of each tunnel without a recent handshake.
func (l *loop) quietPeers(peers []api.Peer) []api.Problem {
	var out []api.Problem
	for _, p := range peers {
		if p.Tunnel != api.TunnelWaiting {
			continue
		}
		what := "handshake"
		if _, d, ok := l.peerState(p.ID); ok && d.Wire.ESP() {
			what = "answer to an echo"
		}
		since := "there was none yet"
		if at, ok := l.lastSign(p.ID); ok {
			since = "the last one was " + l.now().Sub(at).Round(time.Second).String() + " ago"
		}
		out = append(out, api.Problem{
			Code: "peer-quiet", Subject: p.ID.String(),
			Message: "no recent " + what + " through the tunnel to node " + cmp.Or(p.Name, p.ID.Short()) + " at " + p.Underlay.Addr().String() + ": " + since,
			Fix:     "check that its agent runs and that the tunnel passes: UDP to data.port and the two ports after it, or ESP",
		})
	}
	return out
}
